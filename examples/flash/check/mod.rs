//! Every kernel against the f64 oracle.

mod cases;
mod gradients;

use std::io::Write;

use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressStyle};
use wgpu_flash_attention::plan::Direction;
use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, AttentionShape, Element, ElementType, Plan, TensorLayout, reference,
};

use crate::arguments::{CheckOptions, Pass, Passes};
use crate::device::{self, Gpu};
use crate::failure::{Failure, Result};
use crate::text::{self, Table, numbers, words};
use crate::{elements, random};
use cases::Case;

/// One table row: the cases of one option group with one element and the same kernels.
struct Row {
    group: &'static str,
    element: Element,
    kernels: String,
    cases: u32,
    /// Of the case that is closest to its bound, or past it.
    worst: Option<Deviation>,
    /// Which case and tensor that is.
    worst_at: String,
    /// What went wrong first, if not a number.
    failure: Option<String>,
}

/// How far an answer is from the oracle's, and how far it may be.
#[derive(Clone, Copy)]
struct Deviation {
    error: f64,
    bound: f64,
    /// Relative to max(1, |LSE|); the backward pass has none.
    lse_error: Option<f64>,
}

/// The largest error of LSE, relative to max(1, |LSE|), for every element: LSE is f32 throughout.
const LSE_BOUND: f64 = 1e-5;

pub async fn check(options: &CheckOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let gpu = device::open(choice).await?;
    let cases = cases::cases(options.quick);
    let narrow = cases.iter().filter(|case| case.f32_only).count();
    let progress = ProgressBar::new((cases.len() * Element::ALL.len() - narrow * (Element::ALL.len() - 1)) as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {elapsed}  {msg}");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));

    let mut rows: Vec<Row> = Vec::new();
    for element in Element::ALL {
        for case in cases.iter().filter(|case| element == Element::F32 || !case.f32_only) {
            progress.set_message(format!("{} {}", element.name(), case.group));
            match element {
                Element::F32 => compare::<f32>(&gpu, case, options.passes, &mut rows).await,
                Element::F16 => compare::<f16>(&gpu, case, options.passes, &mut rows).await,
                Element::Bf16 => compare::<bf16>(&gpu, case, options.passes, &mut rows).await,
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();

    writeln!(out, "{}", gpu.describe())?;
    writeln!(
        out,
        "Largest error against the f64 oracle. Standard attention may err by the rounding of its element; flash by \
         twice what standard attention errs (on matrices: standard attention that rounds P too, and dS), plus a floor of 1e-6 of the largest |O| (f16, bf16: 1e-5). LSE may err by \
         {LSE_BOUND:.0e} of max(1, |LSE|). Gradients: standard attention likewise, f32 2e-5 of the largest entry, flash in \
         f16 and bf16 three times what standard attention errs or the largest entry's rounding, plus 1e-5."
    )?;
    writeln!(out)?;
    print(&rows, out)
}

fn print(rows: &[Row], out: &mut dyn Write) -> Result<bool> {
    let columns = vec![
        words("options", 21),
        words("element", 7),
        words("kernels", 32),
        numbers("cases", 5),
        numbers("error", 7),
        numbers("bound", 7),
        numbers("of LSE", 7),
        words("", 4),
    ];
    let table = Table::new("", columns, out)?;
    let mut bad = 0;
    for row in rows {
        let good = row.failure.is_none() && row.worst.is_some_and(|worst| worst.closeness() <= 1.0);
        bad += u32::from(!good);
        let of = |number: fn(Deviation) -> Option<f64>| row.worst.and_then(number).map_or("–".to_owned(), text::error);
        let cells = [
            row.group.to_owned(),
            row.element.name().to_owned(),
            row.kernels.clone(),
            row.cases.to_string(),
            of(|worst| Some(worst.error)),
            of(|worst| Some(worst.bound)),
            of(|worst| worst.lse_error),
            match (&row.failure, good) {
                (Some(failure), _) => failure.clone(),
                (None, true) => "ok".to_owned(),
                (None, false) => format!("FAIL at {}", row.worst_at),
            },
        ];
        table.row(&cells, out)?;
    }
    writeln!(out)?;
    let compared: u32 = rows.iter().map(|row| row.cases).sum();
    match bad {
        0 => writeln!(out, "{compared} answers compared: all within their bounds")?,
        bad => writeln!(out, "{compared} answers compared: {bad} of {} rows FAIL", rows.len())?,
    }
    Ok(bad == 0)
}

/// Computes one case with both algorithms and the oracle.
async fn compare<T: ElementType>(gpu: &Gpu, case: &Case, passes: Passes, rows: &mut Vec<Row>) {
    let problem = case.problem.clone().element(T::ELEMENT);
    let inputs = Inputs::<T>::new(&problem);
    for pass in passes.each() {
        match pass {
            Pass::Forward => compare_forward(gpu, case.group, &problem, &inputs, rows).await,
            Pass::Backward => gradients::compare(gpu, case.group, &problem, &inputs, rows).await,
        }
    }
}

/// Q, K, V and dO of a case.
struct Inputs<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    d_o: Vec<T>,
}

impl<T: ElementType> Inputs<T> {
    fn new(problem: &AttentionProblem) -> Self {
        let (shape, layout) = (problem.shape, problem.layout);
        let tensor = |stream: u64, layout: TensorLayout, rows: u32, heads: u32, dim: u32| -> Vec<T> {
            let len = layout.required_len(shape.batch, rows, heads, dim).unwrap_or(0);
            (0..len).map(|index| T::from_f64(random::normal_like(stream, index))).collect()
        };
        // The packed layout is three views of one tensor; V is the last.
        let packed = layout == AttentionLayout::packed_qkv(&shape);
        let stream = |own: u64| if packed { 0 } else { own };
        let v = tensor(stream(2), layout.v, shape.seqlen_kv, shape.num_heads_kv, shape.head_dim_v);
        let d_o = tensor(3, layout.o, shape.seqlen_q, shape.num_heads, shape.head_dim_v);
        let (q, k) = if packed {
            (v.clone(), v.clone())
        } else {
            (
                tensor(0, layout.q, shape.seqlen_q, shape.num_heads, shape.head_dim),
                tensor(1, layout.k, shape.seqlen_kv, shape.num_heads_kv, shape.head_dim),
            )
        };
        Self { q, k, v, d_o }
    }
}

/// The values, exactly.
fn exact<T: ElementType>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()))
}

async fn compare_forward<T: ElementType>(
    gpu: &Gpu,
    group: &'static str,
    problem: &AttentionProblem,
    Inputs { q, k, v, .. }: &Inputs<T>,
    rows: &mut Vec<Row>,
) {
    let oracle = reference::forward(problem, &exact(q), &exact(k), &exact(v));
    let largest = largest(&oracle.o);

    let mut standard_error = f64::NAN;
    for algorithm in [Algorithm::Standard, Algorithm::Flash] {
        let problem = problem.clone().algorithm(algorithm);
        let row = row(rows, gpu, group, &problem, Pass::Forward);
        row.cases += 1;
        let answer = match gpu.attention.forward(&problem, q, k, v).await.map_err(Failure::from) {
            Ok(answer) => answer,
            Err(failure) => {
                row.failure.get_or_insert_with(|| failure.line().to_owned());
                continue;
            }
        };
        if let Err(failure) = gpu.fault() {
            row.failure.get_or_insert_with(|| failure.line().to_owned());
        }
        if answer.o.len() != oracle.o.len() || answer.lse.len() != oracle.lse.len() {
            row.failure.get_or_insert_with(|| "the answer has another length than the oracle's".to_owned());
            continue;
        }
        let error = elements::largest_error(exact(&answer.o), oracle.o.iter().copied());
        let bound = match algorithm {
            Algorithm::Standard => {
                standard_error = error;
                let rounding = if T::ELEMENT == Element::F32 { 0.0 } else { elements::unit_roundoff(T::ELEMENT) };
                (rounding + 1e-5) * largest
            }
            Algorithm::Flash if T::ELEMENT == Element::F32 => 2.0 * standard_error + 1e-6 * largest,
            // Held against standard attention in the same precision, which rounds P too.
            Algorithm::Flash if plan(gpu, &problem, Pass::Forward).is_some_and(|plan| plan.rounds_p()) => {
                let rounded = reference::forward_rounding_p(&problem, &exact(q), &exact(k), &exact(v));
                2.0 * elements::largest_error(rounded.o, oracle.o.iter().copied()).max(standard_error) + 1e-5
            }
            Algorithm::Flash => 2.0 * standard_error + 1e-5,
        };
        let lse_error = answer.lse.iter().zip(&oracle.lse);
        let lse_error = lse_error
            .map(|(found, expected)| elements::error(f64::from(*found), *expected) / relative_to(*expected))
            .fold(0.0, f64::max);
        row.add(Deviation { error, bound, lse_error: Some(lse_error) }, &problem, "o");
    }
}

/// What the planner picks, if it does not refuse the problem.
fn plan(gpu: &Gpu, problem: &AttentionProblem, pass: Pass) -> Option<Plan> {
    let capabilities = gpu.attention.capabilities();
    match pass {
        Pass::Forward => Plan::new(problem, capabilities).ok(),
        Pass::Backward => Plan::backward(problem, capabilities).ok(),
    }
}

/// What an error of LSE is relative to; rows that see nothing have −∞.
fn relative_to(lse: f64) -> f64 {
    if lse.is_finite() { lse.abs().max(1.0) } else { 1.0 }
}

/// The row that this case belongs to.
fn row<'a>(
    rows: &'a mut Vec<Row>,
    gpu: &Gpu,
    group: &'static str,
    problem: &AttentionProblem,
    pass: Pass,
) -> &'a mut Row {
    let (element, kernels) = match plan(gpu, problem, pass) {
        Some(plan) => (problem.element, kernels(&plan)),
        None => (problem.element, problem.algorithm.name().to_owned()),
    };
    let same = |row: &Row| row.group == group && row.element == element && row.kernels == kernels;
    let position = rows.iter().position(same).unwrap_or_else(|| {
        rows.push(Row { group, element, kernels, cases: 0, worst: None, worst_at: String::new(), failure: None });
        rows.len() - 1
    });
    &mut rows[position]
}

/// The kernels of a plan in few words.
fn kernels(plan: &Plan) -> String {
    match (plan.direction(), plan.problem().algorithm) {
        (Direction::Backward, Algorithm::Standard) => "standard backward".to_owned(),
        (Direction::Backward, Algorithm::Flash) => text::kernels(plan).replace("backward_preprocess,", ""),
        _ => text::kernels(plan),
    }
}

impl Row {
    fn add(&mut self, deviation: Deviation, problem: &AttentionProblem, tensor: &str) {
        let errors = [self.worst.and_then(|worst| worst.lse_error), deviation.lse_error];
        let lse_error = errors.into_iter().flatten().reduce(f64::max);
        let closest = match self.worst {
            Some(worst) if worst.closeness() > deviation.closeness() => worst,
            _ => {
                let AttentionShape { seqlen_q, seqlen_kv, head_dim, .. } = problem.shape;
                self.worst_at = format!("{tensor}, {seqlen_q} rows, {seqlen_kv} keys, head_dim {head_dim}");
                deviation
            }
        };
        self.worst = Some(Deviation { lse_error, ..closest });
    }
}

impl Deviation {
    /// The larger share of a bound that is used up; above 1 is a failure, and so is no number at all.
    fn closeness(&self) -> f64 {
        let own = if self.error == 0.0 { 0.0 } else { self.error / self.bound };
        let share = own.max(self.lse_error.unwrap_or(0.0) / LSE_BOUND);
        if share.is_nan() || own.is_nan() { f64::INFINITY } else { share }
    }
}
