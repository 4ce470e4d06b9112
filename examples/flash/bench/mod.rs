//! Checks, then times: a time is only reported beside an answer that was compared with the oracle in the same run. Functions in
//! the user's own WGSL are the exception: the oracle cannot run them, and the table says so.

mod axes;
pub mod cache;
mod ceilings;
mod figures;
mod gradients;
mod record;
mod roof;
mod roofline;
pub mod sample;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, AttentionShape, AuxType, DeviceClass, KeyMask, Operand, Plan,
    PlanBuilder, PreparedBackward, PreparedForward, ProbabilitiesSlices, ScoreMod, Tiles,
};

use crate::arguments::{BenchOptions, CacheChoice, Pass, Passes, TileChoice};
use crate::device::{self, Gpu};
use crate::failure::{Failure, Result};
use crate::own_wgsl::OwnWgsl;
use crate::resident::Resident;
use crate::run::json;
use crate::target::Target;
use crate::text::{self, Table};
use crate::timing::{self, Effort};
use ceilings::Ceilings;
use record::Record;
use sample::Sample;

pub async fn bench(options: &BenchOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    if options.cache.is_some() && (options.passes != Passes::Forward || !options.algorithm.contains(&Algorithm::Flash))
    {
        return Err(Failure::new(
            "--cache: flash attention alone reads one, forward; leave --pass and --algorithm out",
        ));
    }
    let own = options.wgsl.read(AuxType::F32)?;
    if own.reads_aux() {
        return Err(Failure::new("flash bench has no aux; write the numbers into the WGSL, as a const array"));
    }
    if options.passes != Passes::Forward {
        own.expect_gradient("--pass", "time --pass forward")?;
    }
    let targets = options.out.as_deref().map(targets).transpose()?;
    let gpu = device::open(choice).await?;
    let mut problems = problems(options, &own, &gpu);
    if options.mask_blocks {
        for problem in &mut problems {
            let nothing = ProbabilitiesSlices::new(&[], &[], &[]);
            let blocks = gpu.attention.block_mask(problem, [1, 1], [128, 128], &nothing).await?;
            *problem = problem.clone().with_key_mask(KeyMask::Blocks(blocks));
        }
    }

    let table = if options.json { None } else { Some(header(options, &gpu, &problems, out)?) };
    let mut records: Vec<Record> = Vec::new();
    for problem in &problems {
        for record in measure(options, &gpu, problem).await? {
            match &table {
                Some(table) => record.print(table, out)?,
                None => writeln!(out, "{}", json(&record))?,
            }
            // The next row may take long.
            out.flush()?;
            records.push(record);
        }
    }

    if let (Some(folder), Some(targets)) = (&options.out, targets) {
        let ceilings = ceilings::measure(&gpu).await?;
        let conditions = problems.first().map_or(String::new(), |problem| conditions(options, problem));
        write_files(targets, &records, &ceilings, &format!("{} · {conditions}", gpu.describe()))?;
        if table.is_some() {
            writeln!(out)?;
            for sentence in roofline::sentences(&records, &ceilings) {
                writeln!(out, "{sentence}")?;
            }
            writeln!(
                out,
                "wrote bench.json, bench.csv, time.svg, memory.svg and roofline.svg to {}",
                folder.display()
            )?;
        }
    }
    Ok(records.iter().all(Record::is_good))
}

/// The problems of the options, shapes in the order of the table. Heads are contiguous, so that the longest fit.
fn problems(options: &BenchOptions, own: &OwnWgsl, gpu: &Gpu) -> Vec<AttentionProblem> {
    let software = gpu.attention.capabilities().device_class == DeviceClass::Cpu;
    let lengths = options.seqlen.clone().unwrap_or_else(|| match software {
        true => vec![256, 512, 1024, 2048],
        false => vec![256, 512, 1024, 2048, 4096],
    });
    let batch = options.batch.unwrap_or(if software { 1 } else { 2 });
    let heads = options.heads.unwrap_or(if software { 4 } else { 16 });
    let mut problems = Vec::new();
    for &head_dim in &options.head_dim {
        if let Some(seqlens) = &options.seqlens {
            let largest = seqlens.iter().copied().max().unwrap_or(1);
            let shape = AttentionShape::new(seqlens.len() as u32, heads, largest, head_dim)
                .with_num_heads_kv(options.heads_kv.unwrap_or(heads));
            let sums: Vec<u32> = std::iter::once(0)
                .chain(seqlens.iter().scan(0u32, |end, seqlen| {
                    *end = end.saturating_add(*seqlen);
                    Some(*end)
                }))
                .collect();
            let problem = AttentionProblem::new(shape).with_element(options.element);
            let problem = own.mask(options.scores.apply(options.causal.apply(problem), own));
            problems.push(options.blocks.apply(problem, None).with_cu_seqlens(sums.clone(), sums));
            continue;
        }
        for &seqlen in &lengths {
            let shape = AttentionShape::new(batch, heads, seqlen, head_dim)
                .with_num_heads_kv(options.heads_kv.unwrap_or(heads))
                .with_seqlen_kv(options.seqlen_kv.unwrap_or(seqlen));
            let problem =
                AttentionProblem::new(shape).with_element(options.element).with_layout(AttentionLayout::bhsd(&shape));
            let problem = own.mask(options.scores.apply(options.causal.apply(problem), own));
            let problem = options.blocks.apply(problem, None);
            problems.push(if options.bias { sample::with_bias(problem) } else { problem });
        }
    }
    problems
}

/// What all rows share, and the head of the table.
fn header(options: &BenchOptions, gpu: &Gpu, problems: &[AttentionProblem], out: &mut dyn Write) -> Result<Table> {
    writeln!(out, "{}", gpu.describe())?;
    if let Some(problem) = problems.first() {
        writeln!(out, "{}", conditions(options, problem))?;
    }
    let clock = if timing::has_clock(gpu) { "GPU timestamps" } else { "the wall clock" };
    if problems.iter().any(has_own_wgsl) {
        writeln!(out, "Times by {clock}; answers are not checked: the f64 oracle cannot run WGSL.")?;
        writeln!(out)?;
        return Table::new("", Record::columns(), out);
    }
    writeln!(
        out,
        "Times by {clock}; errors are the largest |error| over sampled rows of O, or of the gradients, against the f64 oracle."
    )?;
    writeln!(out)?;
    Table::new("", Record::columns(), out)
}

/// Whether only the device can compute it.
fn has_own_wgsl(problem: &AttentionProblem) -> bool {
    problem.scores().iter().any(|modifier| matches!(modifier, ScoreMod::Wgsl(_)))
        || problem.key_masks().iter().any(|mask| matches!(mask, KeyMask::Wgsl(_)))
}

/// Batch, heads, element and mask.
fn conditions(options: &BenchOptions, problem: &AttentionProblem) -> String {
    let shape = problem.shape;
    let mut text = match &options.seqlens {
        Some(seqlens) => {
            let seqlens: Vec<_> = seqlens.iter().map(u32::to_string).collect();
            format!("packed sequences of {}, heads {}", seqlens.join(", "), shape.num_heads)
        }
        None => format!("batch {}, heads {}", shape.batch, shape.num_heads),
    };
    if shape.num_heads_kv != shape.num_heads {
        text += &format!(" (kv {})", shape.num_heads_kv);
    }
    text += &format!(", {}", problem.element.name());
    if let Some(cache) = options.cache {
        text += &format!(", {}", cache::name(cache));
    }
    if let Some(causal) = options.causal.causal {
        text += &format!(", causal {}", causal.name());
    }
    let masks = problem.key_masks().iter().map(KeyMask::name);
    problem.scores().iter().map(ScoreMod::name).chain(masks).for_each(|name| text += &format!(", {name}"));
    text
}

/// One algorithm with tiles of its own or the table's, forward or backward.
#[derive(Clone, Copy)]
struct Candidate {
    pass: Pass,
    algorithm: Algorithm,
    tiles: Option<TileChoice>,
    num_splits: Option<u32>,
}

/// What a candidate has been compiled to.
enum Prepared {
    Forward(PreparedForward),
    Backward(PreparedBackward),
}

impl Prepared {
    fn plan(&self) -> &Plan {
        match self {
            Prepared::Forward(forward) => forward.plan(),
            Prepared::Backward(backward) => backward.plan(),
        }
    }
}

impl Candidate {
    fn all(options: &BenchOptions) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        if options.cache.is_some() {
            let of =
                |num_splits| Candidate { pass: Pass::Forward, algorithm: Algorithm::Flash, tiles: None, num_splits };
            return or_none(&options.num_splits).into_iter().map(of).collect();
        }
        for &pass in options.passes.each() {
            for &algorithm in &options.algorithm {
                let standard = algorithm == Algorithm::Standard;
                let tiles = if standard { Vec::new() } else { options.tiles.clone() };
                let splits = if standard || pass != Pass::Forward { &[] } else { &options.num_splits[..] };
                for tiles in or_none(&tiles) {
                    for num_splits in or_none(splits) {
                        candidates.push(Candidate { pass, algorithm, tiles, num_splits });
                    }
                }
            }
        }
        candidates
    }

    async fn prepare(&self, gpu: &Gpu, problem: &AttentionProblem) -> Result<Prepared> {
        let problem = problem.clone().with_algorithm(self.algorithm);
        let tiles = |tiles: &TileChoice| [Some(tiles.first), tiles.dq].into_iter().flatten().collect::<Vec<Tiles>>();
        let tiles = self.tiles.as_ref().map(tiles).unwrap_or_default();
        Ok(match self.pass {
            Pass::Forward => {
                let plan = gpu.attention.plan_forward(&problem).with_tiles(&tiles[..tiles.len().min(1)]);
                let plan = self.num_splits.into_iter().fold(plan, PlanBuilder::with_splits);
                Prepared::Forward(gpu.attention.prepare_forward_plan(plan.build()?).await?)
            }
            Pass::Backward => {
                let tiles = if self.algorithm == Algorithm::Flash { &tiles[..] } else { &tiles[..tiles.len().min(1)] };
                let plan = gpu.attention.plan_backward(&problem).with_tiles(tiles);
                Prepared::Backward(gpu.attention.prepare_backward_plan(plan.build()?).await?)
            }
        })
    }
}

/// Each of the choices, or none once.
fn or_none<T: Copy>(choices: &[T]) -> Vec<Option<T>> {
    if choices.is_empty() { vec![None] } else { choices.iter().copied().map(Some).collect() }
}

/// Inputs and the oracle's rows once, then each candidate.
async fn measure(options: &BenchOptions, gpu: &Gpu, problem: &AttentionProblem) -> Result<Vec<Record>> {
    let candidates = Candidate::all(options);
    let over = options.cache.map(|cache| cache::over(cache, problem));
    let record = |candidate: &Candidate| {
        Record::new(&problem.clone().with_algorithm(candidate.algorithm), candidate.pass, gpu.describe())
    };
    let mut records: Vec<Record> = candidates.iter().map(record).collect();
    // The library judges the problem before anything of its size is made.
    let mut prepared = Vec::new();
    for (record, candidate) in records.iter_mut().zip(&candidates) {
        let start = Instant::now();
        match candidate.prepare(gpu, over.as_ref().unwrap_or(problem)).await {
            Ok(ready) => {
                record.ms_first_call = Some(start.elapsed().as_secs_f64() * 1e3);
                prepared.push((record, ready));
            }
            Err(failure) => record.error = Some(failure.line().to_owned()),
        }
    }
    if prepared.is_empty() {
        return Ok(records);
    }
    let mut tensors = match Resident::new(gpu, problem).await {
        Ok(tensors) => tensors,
        Err(failure) => {
            prepared.into_iter().for_each(|(record, _)| record.error = Some(failure.line().to_owned()));
            return Ok(records);
        }
    };
    if options.bias {
        tensors.add_empty(gpu, Operand::Bias, sample::bias_len(problem) * problem.element.size()).await?;
    }
    sample::upload_inputs(gpu, problem, &tensors)?;
    if let Some(over) = &over {
        cache::fill(gpu, problem, over, &mut tensors).await?;
    }
    let is_int8 = options.cache == Some(CacheChoice::Int8);
    let samples = if has_own_wgsl(problem) { None } else { Some(sample::expected(problem, is_int8)) };
    let mut gradients = None;
    for (record, ready) in prepared {
        let result = match &ready {
            Prepared::Forward(forward) => {
                measure_forward(options, gpu, problem, &tensors, samples.as_deref(), forward, record)
            }
            Prepared::Backward(backward) => {
                if gradients.is_none() {
                    gradients = Some(gradients::Given::new(gpu, problem, &tensors, samples.as_deref()).await);
                }
                match &gradients {
                    Some(Ok(given)) => measure_backward(options, gpu, problem, &tensors, given, backward, record),
                    Some(Err(failure)) => Err(Failure::new(failure.line())),
                    None => Ok(()),
                }
            }
        };
        let plan = ready.plan();
        record.kernel = Some(text::kernels(plan));
        record.tiles = Some(text::tiles(plan));
        record.extra_bytes = Some(plan.extra_bytes());
        if let Err(failure) = result {
            record.error = Some(failure.line().to_owned());
        }
    }
    Ok(records)
}

fn measure_forward(
    options: &BenchOptions,
    gpu: &Gpu,
    problem: &AttentionProblem,
    tensors: &Resident,
    samples: Option<&[Sample]>,
    forward: &PreparedForward,
    record: &mut Record,
) -> Result<()> {
    tensors.poison(gpu)?;
    let time = timing::measure(gpu, effort(options), |encoder| tensors.encode(forward, encoder))?;
    if let Some(samples) = samples {
        let deviation = sample::compare(gpu, problem, tensors, samples)?;
        record.max_error = Some(deviation.max_error);
        record.error_bound = Some(deviation.bound);
        if !deviation.is_good() {
            record.wrong = true;
            record.error = Some(deviation.complaint());
            return Ok(());
        }
    }
    record.time(&time, problem.forward_flops() as f64, forward.plan());
    Ok(())
}

fn measure_backward(
    options: &BenchOptions,
    gpu: &Gpu,
    problem: &AttentionProblem,
    tensors: &Resident,
    given: &gradients::Given,
    backward: &PreparedBackward,
    record: &mut Record,
) -> Result<()> {
    given.gradients.poison(gpu)?;
    let time =
        timing::measure(gpu, effort(options), |encoder| tensors.encode_backward(&given.gradients, backward, encoder))?;
    if let Some(deviation) = given.compare(gpu, problem)? {
        record.max_error = Some(deviation.max_error);
        record.error_bound = Some(deviation.bound);
        if let Some(complaint) = deviation.complaint {
            record.wrong = true;
            record.error = Some(complaint);
            return Ok(());
        }
    }
    record.time(&time, problem.backward_flops() as f64, backward.plan());
    Ok(())
}

fn effort(options: &BenchOptions) -> Effort {
    options.iterations.map_or(Effort::BENCH, |iterations| Effort {
        least: iterations,
        most: iterations,
        ..Effort::BENCH
    })
}

/// The folder, made if need be, and the files in it.
fn targets(folder: &Path) -> Result<[Target; 5]> {
    std::fs::create_dir_all(folder)
        .map_err(|error| Failure::new(format_args!("cannot make the folder {}: {error}", folder.display())))?;
    let target = |name: &str| Target::new(&folder.join(name));
    Ok([
        target("bench.json")?,
        target("bench.csv")?,
        target("time.svg")?,
        target("memory.svg")?,
        target("roofline.svg")?,
    ])
}

fn write_files(targets: [Target; 5], records: &[Record], ceilings: &Ceilings, subtitle: &str) -> Result<()> {
    let json = serde_json::to_string_pretty(records).map_err(|error| Failure::new(format_args!("no JSON: {error}")))?;
    let texts = [
        json + "\n",
        Record::csv(records),
        figures::time(records, subtitle)?,
        figures::memory(records, subtitle)?,
        roofline::figure(records, ceilings, subtitle)?,
    ];
    targets.into_iter().zip(texts).try_for_each(|(target, text)| target.write(text.as_bytes()))
}
