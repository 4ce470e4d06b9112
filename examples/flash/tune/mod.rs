//! Measures the tiles worth trying on this adapter, and keeps the fastest: for problems of every workload, each answer
//! checked against the oracle.

mod file;

use std::io::Write;

use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, DeviceClass, Element, Plan, Tiles, Workload,
};

use crate::arguments::TuneOptions;
use crate::bench::sample::{self, Sample};
use crate::device::{self, Gpu};
use crate::failure::Result;
use crate::resident::Resident;
use crate::target::Target;
use crate::text::{self, Table, numbers, words};
use crate::timing::{self, Effort};
pub use file::{Entry, TuningFile};

/// A problem that stands for its kind.
fn problem(workload: Workload, element: Element, head_dim: u32, software: bool) -> AttentionProblem {
    let shape = match (workload, software) {
        (Workload::Decode, true) => AttentionShape::new(1, 8, 1, head_dim).with_num_heads_kv(2).with_seqlen_kv(4096),
        (Workload::Decode, false) => {
            AttentionShape::new(8, 32, 1, head_dim).with_num_heads_kv(8).with_seqlen_kv(16_384)
        }
        (Workload::Small, true) => AttentionShape::new(1, 2, 256, head_dim),
        (Workload::Small, false) => AttentionShape::new(1, 4, 512, head_dim),
        (_, true) => AttentionShape::new(1, 13, 512, head_dim),
        (_, false) => AttentionShape::new(2, 16, 2048, head_dim),
    };
    AttentionProblem::new(shape).with_element(element).with_layout(AttentionLayout::bhsd(&shape))
}

/// One problem with its tensors on the device.
struct Bench<'a> {
    gpu: &'a Gpu,
    problem: AttentionProblem,
    tensors: Resident,
    samples: Vec<Sample>,
}

impl<'a> Bench<'a> {
    async fn new(gpu: &'a Gpu, problem: AttentionProblem) -> Result<Self> {
        let tensors = Resident::new(gpu, &problem).await?;
        sample::upload_inputs(gpu, &problem, &tensors)?;
        let samples = sample::expected(&problem, false);
        Ok(Self { gpu, problem, tensors, samples })
    }

    /// Milliseconds with these tiles, or `None` where the answer is wrong.
    async fn time(&self, tiles: Tiles, effort: Effort) -> Result<Option<f64>> {
        self.time_plan(self.gpu.attention.plan_forward(&self.problem).with_tiles(&[tiles]).build()?, effort).await
    }

    async fn time_plan(&self, plan: Plan, effort: Effort) -> Result<Option<f64>> {
        let forward = self.gpu.attention.prepare_forward_plan(plan).await?;
        self.tensors.poison(self.gpu)?;
        let time = timing::measure(self.gpu, effort, |encoder| self.tensors.encode(&forward, encoder))?;
        let good = sample::compare(self.gpu, &self.problem, &self.tensors, &self.samples)?.is_good();
        Ok(good.then(|| time.median()))
    }
}

pub async fn tune(options: &TuneOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let target = options.out.as_deref().map(Target::new).transpose()?;
    let gpu = device::open(choice).await?;
    let capabilities = gpu.attention.capabilities().clone();
    let software = capabilities.device_class == DeviceClass::Cpu;
    writeln!(out, "{}", gpu.describe())?;
    writeln!(out)?;
    let columns = vec![
        words("workload", 8),
        words("element", 7),
        numbers("head_dim", 8),
        numbers("median", 9),
        words("tiles", 44),
    ];
    let table = Table::new("", columns, out)?;

    let mut file = TuningFile {
        adapter: capabilities.adapter_name.clone(),
        driver: capabilities.driver.clone(),
        workgroups: None,
        tiles: Vec::new(),
    };
    for &workload in &options.workload {
        for &element in &options.element {
            for &head_dim in &options.head_dim {
                let bench = Bench::new(&gpu, problem(workload, element, head_dim, software)).await?;
                let mut times: Vec<(Tiles, f64)> = Vec::new();
                for tiles in Plan::candidates(&bench.problem, &capabilities) {
                    // A device may refuse what its limits allow; the next tiles may be better.
                    let time = bench.time(tiles, Effort::GLANCE).await;
                    let (ms, note) = match &time {
                        Ok(Some(ms)) => (text::milliseconds(*ms), tiles.to_string()),
                        Ok(None) => ("–".into(), format!("{tiles}: wrong answer")),
                        Err(failure) => ("–".into(), format!("{tiles}: {}", failure.line())),
                    };
                    table.row(&[workload.name().into(), element.name().into(), head_dim.to_string(), ms, note], out)?;
                    out.flush()?;
                    times.extend(time.ok().flatten().map(|ms| (tiles, ms)));
                }
                // At a glance a GPU may not have reached its clocks, at the first tiles least of all, which are the table's.
                if !software {
                    let finalists = fastest(&times);
                    for (place, time) in times.iter_mut().enumerate() {
                        if place == 0 || finalists.contains(time) {
                            time.1 = bench.time(time.0, Effort::BENCH).await?.unwrap_or(time.1);
                        }
                    }
                }
                file.tiles.extend(entries(&times, workload, element, head_dim));
            }
        }
    }
    if !software && options.workload.contains(&Workload::Decode) {
        file.workgroups = workgroups(&gpu, options, &file, out).await?;
    }

    writeln!(out)?;
    for Entry { workload, element, head_dim, tiles, ms, ms_of_table } in &file.tiles {
        let gain = ms_of_table / ms;
        writeln!(
            out,
            "{workload} {element} head_dim {head_dim}: {tiles}, {gain:.2} times as fast as the table's tiles"
        )?;
    }
    if let (Some(path), Some(target)) = (&options.out, target) {
        file.write(target)?;
        writeln!(out, "wrote {}; use it with --tuning", path.display())?;
    }
    Ok(!file.tiles.is_empty())
}

/// The fastest tiles with matrices and the fastest without, the faster first.
fn fastest(times: &[(Tiles, f64)]) -> Vec<(Tiles, f64)> {
    let best = |matrices: bool| {
        let alike = times.iter().filter(move |(tiles, _)| tiles.matrix_side.is_some() == matrices);
        alike.min_by(|a, b| a.1.total_cmp(&b.1)).copied()
    };
    let mut found: Vec<_> = [true, false].into_iter().filter_map(best).collect();
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    found
}

/// What a tuning file says of one kind of problem.
fn entries(times: &[(Tiles, f64)], workload: Workload, element: Element, head_dim: u32) -> Vec<Entry> {
    let Some(&(_, ms_of_table)) = times.first() else { return Vec::new() };
    let entry = |(tiles, ms): (Tiles, f64)| Entry {
        workload: workload.name().into(),
        element: element.name().into(),
        head_dim,
        tiles: text::tiles_option(&tiles),
        ms,
        ms_of_table,
    };
    fastest(times).into_iter().map(entry).collect()
}

/// How many workgroups keep the device busy, told by decoding one sequence, whose splits depend on it.
async fn workgroups(gpu: &Gpu, options: &TuneOptions, file: &TuningFile, out: &mut dyn Write) -> Result<Option<u32>> {
    let (Some(&element), Some(&head_dim)) = (options.element.last(), options.head_dim.last()) else { return Ok(None) };
    let shape = AttentionShape::new(1, 32, 1, head_dim).with_num_heads_kv(8).with_seqlen_kv(32_768);
    let problem = AttentionProblem::new(shape).with_element(element).with_layout(AttentionLayout::bhsd(&shape));
    let bench = Bench::new(gpu, problem).await?;
    let mut best: Option<(u32, f64)> = None;
    for workgroups in [16, 32, 64, 128, 256, 512, 1024] {
        let tuning = file.tuning().unwrap_or_default().with_workgroups(workgroups);
        let plan = gpu.attention.plan_forward(&bench.problem).with_tuning(&tuning).build()?;
        let splits = plan.num_splits();
        let Some(ms) = bench.time_plan(plan, Effort::GLANCE).await? else { continue };
        writeln!(out, "{workgroups} workgroups, {splits} splits: {}", text::milliseconds(ms))?;
        if best.is_none_or(|(_, fastest)| ms < fastest) {
            best = Some((workgroups, ms));
        }
    }
    Ok(best.map(|(workgroups, _)| workgroups))
}
