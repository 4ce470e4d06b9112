use std::io::Write;

use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Element};

use crate::device::{self, Gpu};
use crate::failure::Result;
use crate::text::{self, Table, numbers, words};
use crate::timing;

pub async fn info(choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let adapters = device::adapters().await;
    if adapters.is_empty() {
        return Err(wgpu_flash_attention::Error::NoAdapter("none offers compute shaders".to_owned()).into());
    }
    let only = choice.adapter.map(|selector| device::position(&adapters, selector)).transpose()?;
    for (index, adapter) in adapters.iter().enumerate() {
        if only.is_some_and(|only| only != index) {
            continue;
        }
        match device::open_on(adapter, choice).await {
            Ok(gpu) => {
                writeln!(out, "{index}: {}", gpu.describe())?;
                limits(&gpu, out)?;
                writeln!(out, "   matrices          {}", matrices(adapter, &gpu))?;
                choices(&gpu, out)?;
            }
            Err(failure) => writeln!(out, "{index}: {}: {}", adapter.get_info().name, failure.line())?,
        }
        writeln!(out)?;
    }
    Ok(true)
}

fn limits(gpu: &Gpu, out: &mut dyn Write) -> Result<()> {
    let capabilities = gpu.attention.capabilities();
    let yes = |has: bool| if has { "yes" } else { "no" };
    let subgroups = match capabilities.subgroups {
        true if capabilities.subgroup_min_size == capabilities.subgroup_max_size => {
            format!("of {}", capabilities.subgroup_min_size)
        }
        true => format!("of {} to {}", capabilities.subgroup_min_size, capabilities.subgroup_max_size),
        false => "no".to_owned(),
    };
    writeln!(out, "   kind              {:?}", capabilities.device_class)?;
    writeln!(out, "   f16 arithmetic    {}", yes(capabilities.shader_f16))?;
    writeln!(out, "   subgroups         {subgroups}")?;
    writeln!(out, "   timestamps        {}", yes(timing::has_clock(gpu)))?;
    writeln!(
        out,
        "   workgroup         {} of memory, {} invocations",
        text::bytes(capabilities.max_workgroup_storage.into()),
        capabilities.max_invocations
    )?;
    writeln!(out, "   one binding       {}", text::bytes(capabilities.max_binding))?;
    writeln!(out, "   one buffer        {}", text::bytes(capabilities.max_buffer))?;
    Ok(())
}

/// Which cooperative matrices problems may run on, or why on none.
fn matrices(adapter: &wgpu::Adapter, gpu: &Gpu) -> String {
    let offered: Vec<String> = adapter
        .cooperative_matrix_properties()
        .iter()
        .map(|matrix| {
            let sides = format!("{}x{}x{}", matrix.m_size, matrix.n_size, matrix.k_size);
            format!("{sides} {:?}→{:?}", matrix.ab_type, matrix.cr_type).to_lowercase()
        })
        .collect();
    match (
        gpu.attention.capabilities().matrix_side,
        gpu.attention.clone().with_matrices(true).capabilities().matrix_side,
    ) {
        (Some(8), _) => "8x8, for f16".to_owned(),
        (Some(side), _) => format!("{side}x{side}"),
        (None, Some(side)) => format!("{side}x{side}, switched off (--no-matrices)"),
        (None, None) if offered.is_empty() => "none: the adapter lists none".to_owned(),
        (None, None) => format!("none: of those listed, {}, WGSL can name none", offered.join(", ")),
    }
}

/// What the planner picks for a few shapes: widths, types and the number of rows matter.
fn choices(gpu: &Gpu, out: &mut dyn Write) -> Result<()> {
    writeln!(out)?;
    let columns = vec![
        numbers("head_dim", 8),
        words("algorithm", 13),
        words("elements", 14),
        words("kernels, tiles (query rows × keys); why", 44),
    ];
    let table = Table::new("   ", columns, out)?;
    for head_dim in [32, 64, 128, 256] {
        let large = AttentionShape::new(1, 8, 1024, head_dim);
        let small = AttentionShape::new(1, 4, 512, head_dim);
        let decode = AttentionShape::new(1, 32, 1, head_dim).with_num_heads_kv(8).with_seqlen_kv(8192);
        for (name, algorithm, shape) in [
            ("flash", Algorithm::Flash, large),
            ("flash, small", Algorithm::Flash, small),
            ("flash, decode", Algorithm::Flash, decode),
            ("standard", Algorithm::Standard, large),
        ] {
            // Elements with one choice share a row.
            let mut choices: Vec<(Vec<&str>, String)> = Vec::new();
            for &element in Element::ALL {
                let problem = AttentionProblem::new(shape).with_element(element).with_algorithm(algorithm);
                let choice = match gpu.attention.plan_forward(&problem).build() {
                    Ok(plan) => format!("{}; {}", text::passes(&plan), plan.reason()),
                    Err(error) => error.to_string(),
                };
                match choices.iter_mut().find(|(_, other)| *other == choice) {
                    Some((elements, _)) => elements.push(element.name()),
                    None => choices.push((vec![element.name()], choice)),
                }
            }
            for (elements, choice) in choices {
                table.row(&[head_dim.to_string(), name.into(), elements.join(", "), choice], out)?;
            }
        }
    }
    Ok(())
}
