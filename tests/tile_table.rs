//! Every row of the planner's tile tables is of use: some problem on some device is planned with it, or it is one of
//! `Plan::candidates`. No GPU needed.

use std::collections::HashSet;
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, Capabilities, DeviceClass, Element, Plan, Tiles,
};

/// The functions of the table, and what the names of their kernels begin with.
const TABLES: [(&str, &[&str]); 13] = [
    ("forward_on_matrices", &["flash_forward_cooperative"]),
    ("packed_on_matrices", &["flash_forward_cooperative_packed"]),
    ("f32_forward_on_matrices", &["flash_forward_cooperative"]),
    ("standard", &["standard_scores"]),
    ("forward", &["flash_forward", "flash_forward_split"]),
    ("forward_on_cpu", &["flash_forward", "flash_forward_split"]),
    ("decode", &["flash_decode"]),
    ("preprocess", &["flash_backward_preprocess"]),
    ("dkdv", &["flash_backward_dkdv"]),
    ("dq", &["flash_backward_dq"]),
    ("dkdv_on_matrices", &["flash_backward_dkdv_cooperative"]),
    ("dq_on_matrices", &["flash_backward_dq_cooperative"]),
    ("gradients_on_small_matrices", &["flash_backward_dkdv_cooperative", "flash_backward_dq_cooperative"]),
];

/// The tiles in the text of the table: the function, the line, and the tiles.
fn rows() -> Vec<(&'static str, usize, Tiles)> {
    let mut rows = Vec::new();
    let mut function = "";
    for (number, line) in (1..).zip(include_str!("../src/plan/tile_table.rs").lines()) {
        let code = line.trim();
        if let Some((_, after)) = code.split_once("fn ") {
            function = after.split('(').next().unwrap();
        }
        let is_table = TABLES.iter().any(|(name, _)| *name == function);
        let is_least = code.starts_with("const LEAST");
        if code.starts_with("//") || !(is_table || is_least) {
            continue;
        }
        let mut rest = code;
        while let Some((before, after)) = rest.split_once('(') {
            let numbers: Option<Vec<u32>> =
                after.split(')').next().unwrap().split(',').map(|number| number.trim().parse().ok()).collect();
            let constructor = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            let tiles = match (constructor, numbers.as_deref()) {
                ("of_16", Some(&[q, kv, rows])) => Some(Tiles::cooperative(q, kv, rows, 32, 16)),
                ("cooperative", Some(&[q, kv, rows, lanes, side])) => {
                    Some(Tiles::cooperative(q, kv, rows, lanes, side))
                }
                ("new", Some(&[q, kv, rows, lanes])) => Some(Tiles::new(q, kv, rows, lanes)),
                ("broadcasting", Some(&[q, kv, rows, lanes])) => Some(Tiles::broadcasting(q, kv, rows, lanes)),
                ("decode", Some(&[q, kv, lanes, key_lanes])) => Some(Tiles::decode(q, kv, lanes, key_lanes)),
                _ => None,
            };
            rows.extend(tiles.map(|tiles| (if is_least { "forward" } else { function }, number, tiles)));
            rest = after;
        }
    }
    rows
}

fn devices() -> Vec<Capabilities> {
    let mut devices = Vec::new();
    for device_class in [DeviceClass::Discrete, DeviceClass::Cpu] {
        for (storage, invocations) in [(16_384, 256), (32_768, 1024), (49_152, 1024)] {
            for (subgroup, matrix_side) in [1, 2, 4, 8, 16, 32].map(|subgroup| (subgroup, None)).into_iter().chain([
                (8, Some(8)),
                (32, Some(8)),
                (32, Some(16)),
            ]) {
                let mut device = Capabilities::webgpu_defaults();
                device.device_class = device_class;
                device.max_workgroup_storage = storage;
                device.max_invocations = invocations;
                device.subgroups = subgroup > 1;
                device.subgroup_min_size = subgroup.max(4);
                device.subgroup_max_size = subgroup.max(4);
                device.matrix_side = matrix_side;
                device.shader_f16 = matrix_side.is_some();
                devices.push(device);
            }
        }
    }
    devices
}

fn problems() -> Vec<AttentionProblem> {
    let mut problems = Vec::new();
    for head_dim in [32, 64, 80, 96, 128, 192, 256] {
        for (num_heads, seqlen_q, num_heads_kv) in
            [(2, 1, 2), (8, 1, 2), (24, 1, 3), (64, 1, 2), (4, 512, 4), (16, 512, 16), (32, 512, 32), (4, 5000, 4)]
        {
            let shape = AttentionShape::new(1, num_heads, seqlen_q, head_dim).with_num_heads_kv(num_heads_kv);
            for &element in Element::ALL {
                for algorithm in [Algorithm::Flash, Algorithm::Standard] {
                    let problem = AttentionProblem::new(shape.with_seqlen_kv(2000))
                        .with_element(element)
                        .with_algorithm(algorithm);
                    // Dropout takes workgroup memory.
                    problems.push(problem.clone().with_dropout(0.1, 7));
                    problems.push(problem);
                }
            }
        }
    }
    problems
}

#[test]
fn every_row_is_planned_or_measured_for_some_problem() {
    let (devices, problems) = (devices(), problems());
    let mut planned = HashSet::new();
    let mut candidates = HashSet::new();
    for device in &devices {
        for problem in &problems {
            candidates.extend(Plan::candidates(problem, device));
            for plan in [Plan::forward(problem, device), Plan::backward(problem, device)] {
                let plan = plan.build().expect("every device runs every problem");
                let passes = plan.passes().iter();
                planned.extend(passes.map(|pass| (pass.specialization.kernel.name(), pass.specialization.tiles)));
            }
        }
    }
    let rows = rows();
    assert!(rows.len() > 50, "only {} tiles were found in the text of the table", rows.len());
    let is_of_use = |table: &str, tiles: Tiles| {
        let (_, kernels) = TABLES.iter().find(|(name, _)| *name == table).unwrap();
        let is_one = |kernel: &str| kernels.iter().any(|name| kernel.starts_with(name));
        let is_forward = is_one("flash_decode") || kernels.iter().any(|name| name.starts_with("flash_forward"));
        planned.iter().any(|(kernel, of_kernel)| *of_kernel == tiles && is_one(kernel))
            || (is_forward && candidates.contains(&tiles))
    };
    let unused: Vec<String> = rows
        .iter()
        .filter(|(table, _, tiles)| !is_of_use(table, *tiles))
        .map(|(table, line, tiles)| format!("src/plan/tile_table.rs:{line}: {tiles} of {table}"))
        .collect();
    assert!(unused.is_empty(), "no problem is planned or measured with\n{}", unused.join("\n"));
}
