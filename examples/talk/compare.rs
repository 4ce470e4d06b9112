//! Each method: its answer beside its twin, its time, its memory, and its error against exact attention.

use std::io::Write;

use wgpu_flash_attention::DeviceClass;

use crate::arguments::CompareOptions;
use crate::case::{self, Case, Head, Inputs, Problem, State};
use crate::device::{self, Gpu};
use crate::elements;
use crate::exact;
use crate::failure::{Failure, Result};
use crate::inputs;
use crate::methods::{self, Method, Prepared};
use crate::text::{self, Table, numbers, words};
use crate::timing::{self, Effort};

pub fn compare(options: &CompareOptions, adapter: Option<&str>, out: &mut dyn Write) -> Result<bool> {
    let methods = chosen(&options.methods)?;
    let gpu = device::open(adapter)?;
    writeln!(out, "{}", gpu.describe())?;
    let columns = vec![
        numbers("seqlen", 6),
        words("method", 12),
        numbers("time", 8),
        numbers("extra memory", 12),
        numbers("error", 8),
        numbers("largest row", 11),
        numbers("twin", 8),
    ];
    let table = Table::new("", columns, out)?;
    let mut good = true;
    for &seqlen in &options.seqlen {
        let inputs = inputs::random(&problem(options, &gpu, seqlen), options.seed);
        let given = State::new();
        let case = Case::new(&gpu, &inputs, options.seed, &given)?;
        for method in &methods {
            if let Err(reason) = method.supports(&inputs.problem) {
                writeln!(out, "{}: {reason}", method.name())?;
                continue;
            }
            let prepared = method.prepare(&gpu, &case)?;
            let time = timing::measure(&gpu, Effort::GLANCE, |encoder| prepared.encode(encoder))?;
            let difference = against_twin(&gpu, &inputs, method.as_ref(), prepared.as_ref())?;
            let exact = exact::output(&gpu, &inputs, method.exact())?;
            let error = against_exact(&gpu, &inputs, prepared.output(), &exact)?;
            good &= difference <= tolerance(&inputs.problem);
            let cells = [
                seqlen.to_string(),
                method.name().to_owned(),
                text::milliseconds(time.median()),
                text::bytes(prepared.cost().extra_bytes),
                text::error(error.relative),
                text::error(error.largest_row),
                text::error(difference),
            ];
            table.row(&cells, out)?;
        }
    }
    Ok(good)
}

/// The methods of these names, or all.
fn chosen(names: &[String]) -> Result<Vec<Box<dyn Method>>> {
    let all = methods::all();
    let known = || methods::all().iter().map(|method| method.name()).collect::<Vec<_>>().join(", ");
    if let Some(name) = names.iter().find(|name| !all.iter().any(|method| method.name() == **name)) {
        return Err(Failure::new(format_args!("there is no method '{name}'; there is {}", known())));
    }
    let is_chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    Ok(all.into_iter().filter(|method| is_chosen(method.name())).collect())
}

fn problem(options: &CompareOptions, gpu: &Gpu, seqlen: u32) -> Problem {
    let software = gpu.attention.capabilities().device_class == DeviceClass::Cpu;
    let num_heads = options.heads.unwrap_or(if software { 2 } else { 16 });
    Problem {
        batch: options.batch,
        num_heads,
        num_heads_kv: options.heads_kv.unwrap_or(num_heads),
        seqlen,
        head_dim: options.head_dim,
        element: options.element,
        causal: options.causal,
    }
}

/// How far an answer may be from its twin, as a share of the largest |O|: sums are in f32, and O is rounded when it is
/// written.
pub fn tolerance(problem: &Problem) -> f64 {
    let roundoff = elements::unit_roundoff(problem.element);
    if roundoff < 1e-6 { 1e-4 } else { 1e-4 + 4.0 * roundoff }
}

/// The largest difference from the twin, as a share of the largest |O|.
fn against_twin(gpu: &Gpu, inputs: &Inputs, method: &dyn Method, prepared: &dyn Prepared) -> Result<f64> {
    let state = prepared.state(gpu)?;
    let problem = &inputs.problem;
    let (heads, rows) = sampled(problem);
    let (mut largest, mut difference) = (0.0f64, 0.0f64);
    for head in heads {
        let o = of_head(gpu, problem, prepared.output(), head)?;
        let expected = method.twin(inputs, &state, head, &rows);
        let d = problem.head_dim as usize;
        let found = rows.iter().flat_map(|row| o[*row as usize * d..][..d].iter().copied());
        difference = difference.max(elements::largest_error(found, expected.iter().copied()));
        largest = expected.iter().fold(largest, |largest, value| largest.max(value.abs()));
    }
    Ok(difference / largest.max(f64::MIN_POSITIVE))
}

/// Everything of short problems; the first and the last head and 64 rows of longer ones.
fn sampled(problem: &Problem) -> (Vec<Head>, Vec<u32>) {
    let heads: Vec<Head> = problem.heads().collect();
    if problem.seqlen <= 1024 {
        return (heads, (0..problem.seqlen).collect());
    }
    let last = heads.len() - 1;
    let mut ends = vec![heads[0], heads[last]];
    ends.dedup();
    let spread = |i: u64| (i * u64::from(problem.seqlen - 1) / 63) as u32;
    (ends, (0..64).map(spread).collect())
}

fn of_head(gpu: &Gpu, problem: &Problem, o: &wgpu::Buffer, head: Head) -> Result<Vec<f64>> {
    let len = problem.head_len();
    case::read(gpu, problem.element, o, head.of_q(problem) * len, len)
}

/// How far an answer is from exact attention.
struct Deviation {
    /// ‖O − exact‖ / ‖exact‖, Frobenius norms over all heads and rows.
    relative: f64,
    /// The largest of ‖O_i − exact_i‖ / ‖exact_i‖ over rows i.
    largest_row: f64,
}

fn against_exact(gpu: &Gpu, inputs: &Inputs, o: &wgpu::Buffer, exact: &[f32]) -> Result<Deviation> {
    let problem = &inputs.problem;
    let len = problem.head_len();
    let (mut difference, mut norm, mut largest_row) = (0.0, 0.0, 0.0f64);
    for head in problem.heads() {
        let found = of_head(gpu, problem, o, head)?;
        let exact = &exact[head.of_q(problem) * len..][..len];
        let d = problem.head_dim as usize;
        for (found, exact) in found.chunks_exact(d).zip(exact.chunks_exact(d)) {
            let row_norm: f64 = exact.iter().map(|e| f64::from(*e).powi(2)).sum();
            let row_difference: f64 = found.iter().zip(exact).map(|(f, e)| (f - f64::from(*e)).powi(2)).sum();
            norm += row_norm;
            difference += row_difference;
            largest_row = largest_row.max((row_difference / row_norm.max(f64::MIN_POSITIVE)).sqrt());
        }
    }
    Ok(Deviation { relative: (difference / norm.max(f64::MIN_POSITIVE)).sqrt(), largest_row })
}
