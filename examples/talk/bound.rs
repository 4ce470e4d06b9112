//! Is attention compute-bound or memory-bound? Both exact algorithms, several lengths and widths, under the ceilings that are
//! measured in the same run.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use wgpu_flash_attention::{Algorithm, DeviceClass, Element};

use crate::arguments::BoundOptions;
use crate::axes::Series;
use crate::case::{Case, Given, Problem};
use crate::ceilings::{self, Ceilings};
use crate::device::{self, Gpu};
use crate::failure::{Failure, Result};
use crate::inputs;
use crate::methods::{Method, whole::Whole};
use crate::target::Target;
use crate::text::{self, Table, numbers, words};
use crate::timing::{self, Effort};
use crate::{compare, roof};

/// One algorithm on one problem, and the ceilings of the run.
#[derive(Clone, Debug, Serialize)]
struct Record {
    algorithm: &'static str,
    seqlen: u32,
    batch: u32,
    heads: u32,
    head_dim: u32,
    element: &'static str,
    adapter: String,
    /// Whether its products run on cooperative matrices.
    on_matrices: bool,
    ms_median: Option<f64>,
    flops: Option<f64>,
    /// Bytes of device memory that the kernels read and write, counted from the plan.
    bytes: Option<f64>,
    flops_per_byte: Option<f64>,
    /// Floating-point operations a second.
    speed: Option<f64>,
    /// What the ceilings allow: the compute ceiling of its kernels, and the bandwidth times FLOPs per byte.
    compute_ceiling: Option<f64>,
    memory_ceiling: Option<f64>,
    /// Which of the two is lower: `compute` or `memory`.
    bound: Option<&'static str>,
    error: Option<String>,
}

pub fn bound(options: &BoundOptions, adapter: Option<&str>, out: &mut dyn Write) -> Result<bool> {
    if let Some(folder) = &options.out {
        compare::make_folder(folder)?;
    }
    let gpu = device::open(adapter)?;
    let problems = problems(options, &gpu);
    problems.iter().try_for_each(Problem::check_size)?;
    let ceilings = pollster::block_on(ceilings::measure(&gpu))?;
    let table = match options.json {
        true => None,
        false => Some(header(&gpu, &ceilings, options, out)?),
    };
    let mut records = Vec::new();
    for problem in &problems {
        for algorithm in [Algorithm::Standard, Algorithm::Flash] {
            let record = measure(&gpu, problem, algorithm, &ceilings);
            match &table {
                Some(table) => table.row(&record.cells(), out)?,
                None => writeln!(out, "{}", json(&record)?)?,
            }
            out.flush()?;
            records.push(record);
        }
    }
    let sentences = sentences(&records, &ceilings);
    if let Some(folder) = &options.out {
        let subtitle = format!("{} · batch {}, heads {}", gpu.describe(), options.batch, heads(options, &gpu));
        let titles = ("Exact attention: compute-bound or memory-bound?", subtitle.as_str());
        let figure = roof::figure(&lines(&records), &ceilings, &roofs(&records, &ceilings), titles, &sentences)?;
        Target::new(&folder.join("bound.svg"))?.write(figure.as_bytes())?;
        let json =
            serde_json::to_string_pretty(&records).map_err(|error| Failure::new(format_args!("no JSON: {error}")))?;
        Target::new(&folder.join("bound.json"))?.write((json + "\n").as_bytes())?;
        if table.is_some() {
            writeln!(out, "\nwrote bound.json and bound.svg to {}", folder.display())?;
        }
    }
    // The answer comes last.
    if table.is_some() {
        writeln!(out)?;
        sentences.iter().try_for_each(|sentence| writeln!(out, "{sentence}"))?;
    }
    Ok(true)
}

fn heads(options: &BoundOptions, gpu: &Gpu) -> u32 {
    options.heads.unwrap_or(if is_software(gpu) { 2 } else { 16 })
}

fn is_software(gpu: &Gpu) -> bool {
    gpu.attention.capabilities().device_class == DeviceClass::Cpu
}

fn problems(options: &BoundOptions, gpu: &Gpu) -> Vec<Problem> {
    let defaults = if is_software(gpu) { vec![256, 512, 1024] } else { vec![512, 1024, 2048, 4096, 8192, 16_384] };
    let mut lengths = if options.seqlen.is_empty() { defaults } else { options.seqlen.clone() };
    lengths.sort_unstable();
    lengths.dedup();
    let mut problems = Vec::new();
    for &element in &options.element {
        for &head_dim in &options.head_dim {
            for &seqlen in &lengths {
                let num_heads = heads(options, gpu);
                problems.push(Problem {
                    batch: options.batch,
                    num_heads,
                    num_heads_kv: num_heads,
                    seqlen,
                    head_dim,
                    element,
                    causal: false,
                });
            }
        }
    }
    problems
}

fn header(gpu: &Gpu, ceilings: &Ceilings, options: &BoundOptions, out: &mut dyn Write) -> Result<Table> {
    writeln!(out, "{}", gpu.describe())?;
    writeln!(out, "batch {}, heads {}, forward", options.batch, heads(options, gpu))?;
    writeln!(out, "{}\n", of_ceilings(ceilings))?;
    let columns = vec![
        words("algorithm", 9),
        words("type", 4),
        numbers("head_dim", 8),
        numbers("seqlen", 6),
        numbers("time", 8),
        numbers("FLOPs/byte", 10),
        numbers("speed", 13),
        numbers("memory allows", 13),
        numbers("compute allows", 14),
        numbers("reached", 7),
        words("bound by", 8),
    ];
    Table::new("", columns, out)
}

fn measure(gpu: &Gpu, problem: &Problem, algorithm: Algorithm, ceilings: &Ceilings) -> Record {
    let mut record = Record {
        algorithm: algorithm.name(),
        seqlen: problem.seqlen,
        batch: problem.batch,
        heads: problem.num_heads,
        head_dim: problem.head_dim,
        element: problem.element.name(),
        adapter: gpu.describe(),
        on_matrices: false,
        ms_median: None,
        flops: None,
        bytes: None,
        flops_per_byte: None,
        speed: None,
        compute_ceiling: None,
        memory_ceiling: None,
        bound: None,
        error: None,
    };
    if let Err(failure) = fill(&mut record, gpu, problem, algorithm, ceilings) {
        record.error = Some(failure.line().to_owned());
    }
    record
}

fn fill(record: &mut Record, gpu: &Gpu, problem: &Problem, algorithm: Algorithm, ceilings: &Ceilings) -> Result<()> {
    let attention = problem.attention().with_algorithm(algorithm);
    let plan = gpu.attention.plan_forward(&attention).build()?;
    record.on_matrices = plan.passes().iter().any(|pass| pass.specialization.tiles.matrix_side.is_some());
    let inputs = inputs::normal(problem, 0, 1.0);
    let given = Given::default();
    let case = Case::new(gpu, &inputs, 0, &given)?;
    let prepared = Whole { algorithm }.prepare(gpu, &case)?;
    let warm_up = Duration::from_millis(if is_software(gpu) { 0 } else { 1000 });
    let effort = Effort { least: 3, most: 20, budget: Duration::from_millis(400), warm_up };
    let time = timing::measure(gpu, effort, |encoder| prepared.encode(encoder))?;

    let cost = prepared.cost();
    let (flops_per_byte, speed) = (cost.flops / cost.bytes, cost.flops / time.median() * 1e3);
    let memory = ceilings.bandwidth * flops_per_byte;
    let compute = compute_ceiling(ceilings, record.on_matrices, problem.element);
    record.ms_median = Some(time.median());
    record.flops = Some(cost.flops);
    record.bytes = Some(cost.bytes);
    record.flops_per_byte = Some(flops_per_byte);
    record.speed = Some(speed);
    record.memory_ceiling = Some(memory);
    record.compute_ceiling = Some(compute);
    record.bound = Some(if memory < compute { "memory" } else { "compute" });
    Ok(())
}

/// What the arithmetic units allow these kernels. f32 on matrices takes three products of f16 for one.
fn compute_ceiling(ceilings: &Ceilings, on_matrices: bool, element: Element) -> f64 {
    match ceilings.matrices.filter(|_| on_matrices) {
        Some(matrices) if element == Element::F32 => matrices / 3.0,
        Some(matrices) => matrices,
        None => ceilings.compute,
    }
}

impl Record {
    /// The share of what the lower ceiling allows.
    fn reached(&self) -> Option<f64> {
        Some(self.speed? / self.memory_ceiling?.min(self.compute_ceiling?))
    }

    fn cells(&self) -> [String; 11] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let rate = |rate: Option<f64>| or_dash(rate.map(|rate| text::per_second(rate, "FLOP")));
        let bound = self.bound.map(|bound| match bound {
            "memory" => "memory".to_owned(),
            _ if self.on_matrices => "compute (matrices)".to_owned(),
            _ => "compute".to_owned(),
        });
        [
            self.algorithm.to_owned(),
            self.element.to_owned(),
            self.head_dim.to_string(),
            self.seqlen.to_string(),
            or_dash(self.ms_median.map(text::milliseconds)),
            or_dash(self.flops_per_byte.map(|x| format!("{x:.1}"))),
            rate(self.speed),
            rate(self.memory_ceiling),
            rate(self.compute_ceiling),
            or_dash(self.reached().map(percent)),
            or_dash(bound.or(self.error.clone())),
        ]
    }
}

/// The roofs of matrices that the records are judged by.
fn roofs(records: &[Record], ceilings: &Ceilings) -> Vec<roof::Roof> {
    let is_f32 = |record: &Record| record.element == Element::F32.name();
    let has = |wanted: bool| records.iter().any(|record| record.on_matrices && is_f32(record) == wanted);
    let of = |element: Element| compute_ceiling(ceilings, true, element);
    let roofs = [
        (has(false), (roof::OF_MATRICES, of(Element::F16))),
        (has(true), ("a third of the measured ceiling of matrices: f32 takes three products", of(Element::F32))),
    ];
    let roofs = roofs.into_iter().filter(|roof| roof.0 && ceilings.matrices.is_some());
    roofs.map(|roof| roof.1).collect()
}

/// One line for each algorithm, element and width.
fn lines(records: &[Record]) -> Vec<Series> {
    const COLORS: [[plotters::style::RGBColor; 4]; 2] = {
        use plotters::style::RGBColor;
        [
            [RGBColor(0, 98, 204), RGBColor(0, 150, 170), RGBColor(88, 86, 214), RGBColor(64, 160, 255)],
            [RGBColor(214, 90, 20), RGBColor(190, 40, 60), RGBColor(160, 110, 0), RGBColor(240, 150, 80)],
        ]
    };
    let mut lines: Vec<Series> = Vec::new();
    for record in records {
        let Some(point) = record.flops_per_byte.zip(record.speed) else { continue };
        let name = name(record);
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => {
                let shade = lines.iter().filter(|line| line.algorithm == record.algorithm).count() % 4;
                let color = COLORS[usize::from(record.algorithm != Algorithm::Flash.name())][shade];
                lines.push(Series { name, algorithm: record.algorithm, color, points: vec![point] });
            }
        }
    }
    lines
}

fn name(record: &Record) -> String {
    format!("{} {}, head_dim {}", record.algorithm, record.element, record.head_dim)
}

fn of_ceilings(ceilings: &Ceilings) -> String {
    let matrices = ceilings.matrices.map_or(String::new(), |rate| {
        format!(", {} of matrices (f16; f32 takes three products)", text::per_second(rate, "FLOP"))
    });
    format!(
        "Measured ceilings: {} of copying, {} of f32 multiply-adds{matrices}. Below {:.1} FLOPs per byte the memory is the limit.",
        text::per_second(ceilings.bandwidth, "B"),
        text::per_second(ceilings.compute, "FLOP"),
        ceilings.ridge()
    )
}

/// The answer in words: one sentence for each line, then one for all.
fn sentences(records: &[Record], ceilings: &Ceilings) -> Vec<String> {
    let mut sentences = vec![of_ceilings(ceilings)];
    for line in lines(records) {
        let own: Vec<&Record> =
            records.iter().filter(|record| name(record) == line.name && record.bound.is_some()).collect();
        let lengths = |bound: &str| -> Vec<String> {
            own.iter().filter(|record| record.bound == Some(bound)).map(|record| record.seqlen.to_string()).collect()
        };
        let (memory, compute) = (lengths("memory"), lengths("compute"));
        let verdict = match (memory.is_empty(), compute.is_empty()) {
            (false, true) => "the memory's ceiling is the lower one at every length".to_owned(),
            (true, _) => "the ceiling of compute is the lower one at every length".to_owned(),
            (false, false) => {
                format!(
                    "the memory's ceiling is the lower one at seqlen {}, that of compute at {}",
                    memory.join(", "),
                    compute.join(", ")
                )
            }
        };
        let intensity = |record: &&Record| record.flops_per_byte.unwrap_or(0.0);
        let least = own.iter().map(intensity).fold(f64::INFINITY, f64::min);
        let most = own.iter().map(intensity).fold(0.0, f64::max);
        let range = if most - least < 0.5 { format!("{most:.1}") } else { format!("{least:.1} to {most:.1}") };
        let best = own.iter().filter_map(|record| record.reached()).fold(0.0, f64::max);
        let reaches = match best < NEAR {
            true => format!("but it reaches only {} of what that allows: something else is the limit", percent(best)),
            false => format!("and it reaches up to {} of what that allows", percent(best)),
        };
        sentences.push(format!("{}: {range} FLOPs per byte, {verdict}, {reaches}.", line.name));
    }
    sentences.push(conclusion(records));
    sentences
}

/// A kernel that reaches less of its ceilings is limited by something else: launches, latency, instructions that are no
/// multiply-adds.
const NEAR: f64 = 0.2;

fn conclusion(records: &[Record]) -> String {
    let measured = || records.iter().filter(|record| record.bound.is_some());
    if measured().next().is_none() {
        return "So there is no answer: nothing could be measured.".to_owned();
    }
    if !records.iter().filter_map(Record::reached).any(|share| share >= NEAR) {
        return "So neither is what limits attention on this device: both algorithms stay far below its ceilings."
            .to_owned();
    }
    let of = |algorithm: Algorithm| -> Vec<&Record> {
        measured().filter(|record| record.algorithm == algorithm.name()).collect()
    };
    let (standard, flash) = (of(Algorithm::Standard), of(Algorithm::Flash));
    let all = |own: &[&Record], bound: &str| !own.is_empty() && own.iter().all(|record| record.bound == Some(bound));
    if all(&standard, "memory") && all(&flash, "compute") {
        return "So attention itself is compute-bound here. Writing S and P to memory is what makes the standard algorithm \
                memory-bound."
            .to_owned();
    }
    let answers: Vec<String> = [("standard", &standard), ("flash", &flash)]
        .into_iter()
        .filter(|(_, own)| !own.is_empty())
        .map(|(name, own)| format!("{name} attention is {}", bound_of(own)))
        .collect();
    format!("So {} here.", answers.join(", and "))
}

/// What binds an algorithm: on all its shapes, or on which.
fn bound_of(own: &[&Record]) -> String {
    let by_memory: Vec<&&Record> = own.iter().filter(|record| record.bound == Some("memory")).collect();
    if by_memory.is_empty() || by_memory.len() == own.len() {
        return if by_memory.is_empty() { "compute-bound" } else { "memory-bound" }.to_owned();
    }
    // The fewer ones are named, line by line.
    let is_mostly_compute = 2 * by_memory.len() <= own.len();
    let (most, few) = if is_mostly_compute { ("compute", "memory") } else { ("memory", "compute") };
    let mut named: Vec<(String, Vec<String>)> = Vec::new();
    for record in own.iter().filter(|record| record.bound == Some(few)) {
        let line = format!("{}, head_dim {}", record.element, record.head_dim);
        match named.iter_mut().find(|(other, _)| *other == line) {
            Some((_, lengths)) => lengths.push(record.seqlen.to_string()),
            None => named.push((line, vec![record.seqlen.to_string()])),
        }
    }
    let named = named.into_iter().map(|(line, lengths)| format!("{line}, seqlen {}", lengths.join(", ")));
    format!("{most}-bound, but {few}-bound at {}", named.collect::<Vec<_>>().join("; "))
}

fn percent(share: f64) -> String {
    if share < 0.01 { format!("{:.1} %", 100.0 * share) } else { format!("{:.0} %", 100.0 * share) }
}

fn json(record: &Record) -> Result<String> {
    serde_json::to_string(record).map_err(|error| Failure::new(format_args!("no JSON: {error}")))
}
