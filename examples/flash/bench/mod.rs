//! Checks, then times: a time is only reported beside an answer that was compared with the oracle in the same run.

mod ceilings;
mod figures;
mod record;
mod roofline;
mod sample;

use std::io::Write;
use std::path::Path;

use wgpu_flash_attention::plan::DeviceClass;
use wgpu_flash_attention::{AttentionLayout, AttentionProblem, AttentionShape, PreparedForward};

use crate::arguments::BenchOptions;
use crate::device::{self, Gpu};
use crate::failure::{Failure, Result};
use crate::resident::Resident;
use crate::run::json;
use crate::text::{self, Table};
use crate::timing::{self, Effort};
use ceilings::Ceilings;
use record::Record;
use sample::Sample;

pub async fn bench(options: &BenchOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    if let Some(folder) = &options.out {
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::new(format_args!("cannot make the folder {}: {error}", folder.display())))?;
    }
    let gpu = device::open(choice).await?;
    let problems = problems(options, &gpu);

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

    if let Some(folder) = &options.out {
        let ceilings = ceilings::measure(&gpu).await?;
        let conditions = problems.first().map_or(String::new(), |problem| conditions(options, problem));
        write_files(folder, &records, &ceilings, &format!("{} · {conditions}", gpu.describe()))?;
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
fn problems(options: &BenchOptions, gpu: &Gpu) -> Vec<AttentionProblem> {
    let software = gpu.attention.capabilities().device_class == DeviceClass::Cpu;
    let lengths = options.seqlen.clone().unwrap_or_else(|| match software {
        true => vec![256, 512, 1024, 2048],
        false => vec![256, 512, 1024, 2048, 4096],
    });
    let batch = options.batch.unwrap_or(if software { 1 } else { 2 });
    let heads = options.heads.unwrap_or(if software { 4 } else { 16 });
    let mut problems = Vec::new();
    for &head_dim in &options.head_dim {
        for &seqlen in &lengths {
            let shape = AttentionShape::new(batch, heads, seqlen, head_dim)
                .num_heads_kv(options.heads_kv.unwrap_or(heads))
                .seqlen_kv(options.seqlen_kv.unwrap_or(seqlen));
            let problem = AttentionProblem::new(shape).element(options.element).layout(AttentionLayout::bhsd(&shape));
            problems.push(options.causal.apply(problem));
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
    writeln!(
        out,
        "Times by {clock}; errors are the largest |error| of O over 16 sampled rows against the f64 oracle."
    )?;
    writeln!(out)?;
    Table::new("", Record::columns(), out)
}

/// Batch, heads, element and mask.
fn conditions(options: &BenchOptions, problem: &AttentionProblem) -> String {
    let shape = problem.shape;
    let mut text = format!("batch {}, heads {}", shape.batch, shape.num_heads);
    if shape.num_heads_kv != shape.num_heads {
        text += &format!(" (kv {})", shape.num_heads_kv);
    }
    text += &format!(", {}", problem.element.name());
    if let Some(causal) = options.causal.causal {
        text += &format!(", causal {}", causal.name());
    }
    text
}

/// One record for each algorithm.
fn records(options: &BenchOptions, gpu: &Gpu, problem: &AttentionProblem) -> Vec<Record> {
    let record = |algorithm| Record::new(&problem.clone().algorithm(algorithm), gpu.describe());
    options.algorithm.iter().copied().map(record).collect()
}

/// Inputs and the oracle's rows once, then each algorithm.
async fn measure(options: &BenchOptions, gpu: &Gpu, problem: &AttentionProblem) -> Result<Vec<Record>> {
    let mut records = records(options, gpu, problem);
    // The library judges the problem before anything of its size is made.
    let mut prepared = Vec::new();
    for (record, &algorithm) in records.iter_mut().zip(&options.algorithm) {
        match gpu.attention.prepare_forward(&problem.clone().algorithm(algorithm)).await {
            Ok(forward) => prepared.push((record, forward)),
            Err(error) => record.error = Some(Failure::from(error).line().to_owned()),
        }
    }
    if prepared.is_empty() {
        return Ok(records);
    }
    let tensors = match Resident::new(gpu, problem).await {
        Ok(tensors) => tensors,
        Err(failure) => {
            prepared.into_iter().for_each(|(record, _)| record.error = Some(failure.line().to_owned()));
            return Ok(records);
        }
    };
    sample::upload_inputs(gpu, problem, &tensors)?;
    let samples = sample::expected(problem);
    for (record, forward) in prepared {
        if let Err(failure) = measure_one(options, gpu, problem, &tensors, &samples, &forward, record) {
            record.error = Some(failure.line().to_owned());
        }
    }
    Ok(records)
}

fn measure_one(
    options: &BenchOptions,
    gpu: &Gpu,
    problem: &AttentionProblem,
    tensors: &Resident,
    samples: &[Sample],
    forward: &PreparedForward,
    record: &mut Record,
) -> Result<()> {
    let plan = forward.plan();
    record.kernel = Some(text::kernels(plan));
    record.tiles = Some(plan.tiles().to_string());
    record.extra_bytes = Some(plan.extra_bytes());

    tensors.poison(gpu)?;
    let effort = options.iterations.map_or(Effort::BENCH, |iterations| Effort {
        least: iterations,
        most: iterations,
        ..Effort::BENCH
    });
    let time = timing::measure(gpu, effort, |encoder| tensors.encode(forward, encoder))?;

    let deviation = sample::compare(gpu, problem, tensors, samples)?;
    record.max_error = Some(deviation.max_error);
    record.error_bound = Some(deviation.bound);
    if !deviation.is_good() {
        record.wrong = true;
        record.error = Some(deviation.complaint());
        return Ok(());
    }
    let flops = problem.forward_flops() as f64;
    record.ms_median = Some(time.median());
    record.ms_min = Some(time.min());
    record.tflops = Some(flops / (time.median() / 1e3) / 1e12);
    record.flops_per_byte = Some(flops / plan.traffic_bytes() as f64);
    Ok(())
}

fn write_files(folder: &Path, records: &[Record], ceilings: &Ceilings, subtitle: &str) -> Result<()> {
    let json = serde_json::to_string_pretty(records).map_err(|error| Failure::new(format_args!("no JSON: {error}")))?;
    let files = [
        ("bench.json", json + "\n"),
        ("bench.csv", Record::csv(records)),
        ("time.svg", figures::time(records, subtitle)?),
        ("memory.svg", figures::memory(records, subtitle)?),
        ("roofline.svg", roofline::figure(records, ceilings, subtitle)?),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text)
            .map_err(|error| Failure::new(format_args!("cannot write {}: {error}", path.display())))?;
    }
    Ok(())
}
