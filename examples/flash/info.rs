use std::io::Write;

use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Capabilities, Element, Plan};

use crate::device::{self, Gpu};
use crate::failure::{Failure, Result};
use crate::text::{self, Table};
use crate::timing;

pub async fn info(adapter: Option<&str>, out: &mut dyn Write) -> Result<bool> {
    let adapters = device::adapters().await;
    if adapters.is_empty() {
        return Err(wgpu_flash_attention::Error::NoAdapter("none offers compute shaders".to_owned()).into());
    }
    let only = adapter.map(|selector| device::position(&adapters, selector)).transpose()?;
    for (index, adapter) in adapters.iter().enumerate() {
        if only.is_some_and(|only| only != index) {
            continue;
        }
        match device::open_on(adapter).await {
            Ok(gpu) => {
                writeln!(out, "{index}: {}", gpu.describe())?;
                limits(&gpu, out)?;
                choices(gpu.attention.capabilities(), out)?;
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

/// What the planner picks for a few shapes; the problem's own size hardly matters, its widths and types do.
fn choices(capabilities: &Capabilities, out: &mut dyn Write) -> Result<()> {
    writeln!(out)?;
    let table = Table::new(&[("   head_dim", 11), ("element", 7), ("algorithm", 9), ("kernels in tiles of query rows × keys", 40)], out)?;
    for head_dim in [32, 64, 128, 256] {
        for element in Element::ALL {
            for algorithm in [Algorithm::Flash, Algorithm::Standard] {
                let shape = AttentionShape::new(1, 8, 1024, head_dim);
                let problem = AttentionProblem::new(shape).element(element).algorithm(algorithm);
                let choice = match Plan::new(&problem, capabilities) {
                    Ok(plan) => {
                        let passes = plan.passes().iter();
                        let passes: Vec<String> = passes
                            .map(|pass| format!("{} {}", pass.kernel.name(), pass.specialization.tiles))
                            .collect();
                        passes.join(", ")
                    }
                    Err(error) => Failure::from(error).line().to_owned(),
                };
                table.row(&[format!("   {head_dim}"), element.name().into(), algorithm.name().into(), choice], out)?;
            }
        }
    }
    Ok(())
}
