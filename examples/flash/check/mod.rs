//! Every kernel against the f64 oracle.

mod cases;
mod gradients;

use std::io::Write;

use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressStyle};
use wgpu_flash_attention::reference::{Arithmetic, ErrorTerms};
use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, AttentionShape, DeviceClass, Direction, Element, ElementType,
    ForwardSlices, KeyMask, Plan, ScoreMod, TensorLayout, reference,
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
    /// Of O, LSE or a gradient.
    largest_error: f64,
    /// The largest share of its own bound that an element's error takes up; above 1 is a fault.
    largest_share: f64,
    /// Which case and tensor that is.
    worst_at: String,
    /// What went wrong first, if not a number.
    failure: Option<String>,
}

/// What both algorithms err by over the whole check, in one pass and element.
struct Suite {
    pass: Pass,
    element: Element,
    flash: f64,
    /// Standard attention in the same precision: where flash attention rounds P, it does too.
    standard: f64,
    /// The largest number of all answers.
    largest: f64,
}

/// The table, and the suites below it.
#[derive(Default)]
struct Report {
    rows: Vec<Row>,
    suites: Vec<Suite>,
}

impl Suite {
    /// How many times standard attention's error flash attention's may be: the rule of FlashAttention's authors.
    fn most(&self) -> f64 {
        if self.pass == Pass::Forward { 2.0 } else { 3.0 }
    }

    /// f32 on matrices passes in two parts of f16, 23 bits, which the last term allows for.
    fn is_good(&self) -> bool {
        let parts = if self.element == Element::F32 { F32_FLOOR * self.largest } else { 0.0 };
        self.flash <= self.most() * self.standard + parts
    }
}

/// Four units in the 23rd bit: each factor loses one half, a product and its sum as much.
const F32_FLOOR: f64 = 1e-6;

pub async fn check(options: &CheckOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let gpu = device::open(choice).await?;
    let is_software = gpu.attention.capabilities().device_class == DeviceClass::Cpu;
    let cases = cases::cases(options.quick, is_software);
    let narrow = cases.iter().filter(|case| case.f32_only).count();
    let progress = ProgressBar::new((cases.len() * Element::ALL.len() - narrow * (Element::ALL.len() - 1)) as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {elapsed}  {msg}");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));

    let mut report = Report::default();
    for &element in Element::ALL {
        for case in cases.iter().filter(|case| element == Element::F32 || !case.f32_only) {
            progress.set_message(format!("{} {}", element.name(), case.group));
            match element {
                Element::F32 => compare::<f32>(&gpu, case, options.passes, &mut report).await,
                Element::F16 => compare::<f16>(&gpu, case, options.passes, &mut report).await,
                Element::Bf16 => compare::<bf16>(&gpu, case, options.passes, &mut report).await,
                other => elements::unknown(other),
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();

    writeln!(out, "{}", gpu.describe())?;
    writeln!(
        out,
        "Each number is held to a bound of its own. The f64 oracle computes it: what rounding can do to this number in this \
         problem. 1.00 of its bound would be the most that is right.\n\
         Beside that, the largest error of flash attention over all cases may be twice that of standard attention in the \
         same precision (gradients: three times; f32: plus {F32_FLOOR:.0e} of the largest number)."
    )?;
    writeln!(out)?;
    print(&report, out)
}

fn print(report: &Report, out: &mut dyn Write) -> Result<bool> {
    let columns = vec![
        words("options", 21),
        words("element", 7),
        words("kernels", 32),
        numbers("cases", 5),
        numbers("error", 7),
        numbers("of bound", 8),
        words("", 4),
    ];
    let table = Table::new("", columns, out)?;
    let mut bad = 0;
    for row in &report.rows {
        let good = row.failure.is_none() && row.largest_share <= 1.0;
        bad += u32::from(!good);
        let cells = [
            row.group.to_owned(),
            row.element.name().to_owned(),
            row.kernels.clone(),
            row.cases.to_string(),
            text::error(row.largest_error),
            format!("{:.2}", row.largest_share),
            match (&row.failure, good) {
                (Some(failure), _) => failure.clone(),
                (None, true) => "ok".to_owned(),
                (None, false) => format!("FAIL at {}", row.worst_at),
            },
        ];
        table.row(&cells, out)?;
    }
    writeln!(out)?;
    let mut bad_suites = 0;
    for suite in &report.suites {
        let name = if suite.pass == Pass::Forward { "forward" } else { "backward" };
        let (flash, standard) = (text::error(suite.flash), text::error(suite.standard));
        let (ratio, most) = (suite.flash / suite.standard, suite.most());
        let verdict = if suite.is_good() { "ok" } else { "FAIL" };
        bad_suites += u32::from(!suite.is_good());
        let element = suite.element.name();
        writeln!(
            out,
            "{element} {name}: flash errs by {flash}, standard by {standard}: {ratio:.2} of {most} times, {verdict}"
        )?;
    }
    writeln!(out)?;
    let compared: u32 = report.rows.iter().map(|row| row.cases).sum();
    match (bad, bad_suites) {
        (0, 0) => writeln!(out, "{compared} answers compared: all within their bounds")?,
        (0, bad) => {
            writeln!(out, "{compared} answers compared: flash errs too much beside standard in {bad} ways: FAIL")?
        }
        (bad, _) => writeln!(out, "{compared} answers compared: {bad} of {} rows FAIL", report.rows.len())?,
    }
    Ok(bad + bad_suites == 0)
}

/// Computes one case with both algorithms and the oracle.
async fn compare<T: ElementType>(gpu: &Gpu, case: &Case, passes: Passes, report: &mut Report) {
    let problem = case.problem.clone().with_element(T::ELEMENT);
    let inputs = Inputs::<T>::new(&problem);
    for pass in passes.each().iter().filter(|&&pass| pass == Pass::Forward || !case.forward_only) {
        match pass {
            Pass::Forward => compare_forward(gpu, case.group, &problem, &inputs, report).await,
            Pass::Backward => gradients::compare(gpu, case.group, &problem, &inputs, report).await,
        }
    }
}

/// Q, K, V and dO of a case, and its bias and mask, where it has them.
struct Inputs<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    d_o: Vec<T>,
    bias: Option<Vec<f32>>,
    exact_bias: Vec<f64>,
    key_mask: Option<Vec<u32>>,
}

/// The entries of a bias, normal.
fn bias(problem: &AttentionProblem) -> Option<Vec<f32>> {
    let len = problem.scores().iter().find_map(|modifier| match modifier {
        ScoreMod::Bias { layout, .. } => Some(layout.required_len(&problem.shape)),
        _ => None,
    });
    len.map(|len| (0..len).map(|index| random::normal_like(4, index) as f32).collect())
}

/// The words of a mask that hides a quarter of the keys.
fn key_mask(problem: &AttentionProblem) -> Option<Vec<u32>> {
    let words = problem.key_masks().iter().find_map(|mask| match mask {
        KeyMask::Boolean(layout) => Some(layout.required_words(&problem.shape)),
        _ => None,
    });
    let sees = |index: u64| random::normal_like(5, index) > -0.67;
    let word = |word: u64| (0..32).fold(0, |bits, bit| bits | u32::from(sees(word * 32 + bit)) << bit);
    words.map(|words| (0..words).map(word).collect())
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
        let (bias, key_mask) = (bias(problem), key_mask(problem));
        let exact_bias = bias.as_deref().map(exact).unwrap_or_default();
        Self { q, k, v, d_o, bias, exact_bias, key_mask }
    }

    /// The problem as the oracle takes it.
    fn case<'a>(&'a self, problem: &'a AttentionProblem) -> reference::Case<'a> {
        reference::Case::new(problem, &self.exact_bias, self.key_mask.as_deref().unwrap_or_default())
    }
}

/// The values, exactly.
fn exact<T: ElementType>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

async fn compare_forward<T: ElementType>(
    gpu: &Gpu,
    group: &'static str,
    problem: &AttentionProblem,
    inputs: &Inputs<T>,
    report: &mut Report,
) {
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|values| exact(values));
    let case = inputs.case(problem);
    let oracle = reference::forward(case, &q, &k, &v);
    let errors = reference::forward_errors(case, &q, &k, &v);
    let mut slices = ForwardSlices::new(&inputs.q, &inputs.k, &inputs.v);
    if let Some(bias) = &inputs.bias {
        slices = slices.with_bias(bias);
    }
    if let Some(words) = &inputs.key_mask {
        slices = slices.with_key_mask(words);
    }
    for algorithm in [Algorithm::Standard, Algorithm::Flash] {
        let problem = problem.clone().with_algorithm(algorithm);
        let row = report.row(gpu, group, &problem, Pass::Forward);
        row.cases += 1;
        let answer = match gpu.attention.forward_with(&problem, &slices).await.map_err(Failure::from) {
            Ok(answer) => answer,
            Err(failure) => {
                row.failure.get_or_insert_with(|| failure.line().to_owned());
                continue;
            }
        };
        if let Err(failure) = gpu.fault() {
            row.failure.get_or_insert_with(|| failure.line().to_owned());
        }
        let arithmetic = arithmetic(plan(gpu, &problem, Pass::Forward).as_ref());
        let o = exact(&answer.o);
        let lse: Vec<f64> = answer.lse.iter().map(|lse| f64::from(*lse)).collect();
        let bound = |errors: &[ErrorTerms]| errors.iter().map(|error| error.bound(&arithmetic)).collect::<Vec<_>>();
        row.add(T::ELEMENT, (&o, &oracle.o, &bound(&errors.o)), &problem, "o");
        row.add(Element::F32, (&lse, &oracle.lse, &bound(&errors.lse)), &problem, "lse");
        report.suite(Pass::Forward, T::ELEMENT, algorithm, (&o, &oracle.o));
    }
    if plan(gpu, problem, Pass::Forward).is_some_and(|plan| plan.rounds_p()) {
        let rounded = reference::forward_rounding_p(case, &q, &k, &v);
        report.suite(Pass::Forward, T::ELEMENT, Algorithm::Standard, (&rounded.o, &oracle.o));
    }
}

/// How the kernels of a plan compute.
fn arithmetic(plan: Option<&Plan>) -> Arithmetic {
    let Some(plan) = plan else { return Arithmetic::F32 };
    let on_matrices = plan.passes().iter().any(|pass| pass.kernel.name().contains("cooperative"));
    let arithmetic = match (plan.rounds_p(), on_matrices) {
        (true, _) => Arithmetic::MATRICES,
        (false, true) => Arithmetic::MATRICES_IN_PARTS,
        (false, false) => Arithmetic::F32,
    };
    if plan.num_splits() > 1 { arithmetic.merging() } else { arithmetic }
}

/// What the planner picks, if it does not refuse the problem.
fn plan(gpu: &Gpu, problem: &AttentionProblem, pass: Pass) -> Option<Plan> {
    let capabilities = gpu.attention.capabilities();
    match pass {
        Pass::Forward => Plan::forward(problem, capabilities).build().ok(),
        Pass::Backward => Plan::backward(problem, capabilities).build().ok(),
    }
}

impl Report {
    /// The row that this case belongs to.
    fn row(&mut self, gpu: &Gpu, group: &'static str, problem: &AttentionProblem, pass: Pass) -> &mut Row {
        let kernels = match plan(gpu, problem, pass) {
            Some(plan) => kernels(&plan),
            None => problem.algorithm.name().to_owned(),
        };
        let element = problem.element;
        let same = |row: &Row| row.group == group && row.element == element && row.kernels == kernels;
        let position = self.rows.iter().position(same).unwrap_or_else(|| {
            self.rows.push(Row {
                group,
                element,
                kernels,
                cases: 0,
                largest_error: 0.0,
                largest_share: 0.0,
                worst_at: String::new(),
                failure: None,
            });
            self.rows.len() - 1
        });
        &mut self.rows[position]
    }

    /// Adds what an algorithm errs by to the whole of its pass and element.
    fn suite(&mut self, pass: Pass, element: Element, algorithm: Algorithm, (found, expected): (&[f64], &[f64])) {
        let same = |suite: &Suite| suite.pass == pass && suite.element == element;
        let position = self.suites.iter().position(same).unwrap_or_else(|| {
            self.suites.push(Suite { pass, element, flash: 0.0, standard: 0.0, largest: 0.0 });
            self.suites.len() - 1
        });
        let suite = &mut self.suites[position];
        let error = elements::largest_error(found.iter().copied(), expected.iter().copied());
        let of_algorithm = if algorithm == Algorithm::Flash { &mut suite.flash } else { &mut suite.standard };
        *of_algorithm = of_algorithm.max(error);
        suite.largest = expected.iter().fold(suite.largest, |largest, value| largest.max(value.abs()));
    }
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
    /// Holds a tensor's numbers to their bounds.
    fn add(
        &mut self,
        element: Element,
        (found, expected, bounds): (&[f64], &[f64], &[f64]),
        problem: &AttentionProblem,
        tensor: &str,
    ) {
        if found.len() != expected.len() {
            self.failure.get_or_insert_with(|| format!("{tensor} has another length than the oracle's"));
            return;
        }
        for ((found, expected), bound) in found.iter().zip(expected).zip(bounds) {
            self.largest_error = self.largest_error.max(elements::error(*found, *expected));
            let error = reference::error_before_storing(element, *found, *expected);
            let share = if error == 0.0 { 0.0 } else { error / bound };
            let share = if share.is_nan() { f64::INFINITY } else { share };
            if share > self.largest_share {
                self.largest_share = share;
                let AttentionShape { seqlen_q, seqlen_kv, head_dim, .. } = problem.shape;
                self.worst_at = format!("{tensor}, {seqlen_q} rows, {seqlen_kv} keys, head_dim {head_dim}");
            }
        }
    }
}
