//! Every kernel against the f64 oracle.

mod caches;
mod cases;
mod gradients;
mod report;

use std::io::{IsTerminal, Write};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressStyle};
use wgpu_flash_attention::reference::{Arithmetic, ErrorTerms};
use wgpu_flash_attention::{
    Algorithm, AttentionLayout, AttentionProblem, DeviceClass, Element, ElementType, ForwardSlices, KeyMask, Plan,
    ScoreMod, TensorLayout, reference,
};

use crate::arguments::{CheckOptions, Pass, Passes};
use crate::device::{self, Gpu};
use crate::failure::{Failure, Result};
use crate::{elements, random};
use cases::Case;
use report::{F32_FLOOR, Report, print};

/// Each thread holds a problem and its oracle.
const MOST_THREADS: usize = 16;

pub async fn check(options: &CheckOptions, choice: device::Choice<'_>, out: &mut dyn Write) -> Result<bool> {
    let gpu = device::open(choice).await?;
    writeln!(out, "{}", gpu.describe())?;
    writeln!(
        out,
        "Each number is held to a bound of its own. The f64 oracle computes it: what rounding can do to this number in this \
         problem. 1.00 of its bound would be the most that is right.\n\
         Beside that, the largest error of flash attention over all cases may be twice that of standard attention in the \
         same precision (gradients: three times; f32: plus {F32_FLOOR:.0e} of the largest number)."
    )?;
    writeln!(out)?;
    out.flush()?;
    let is_software = gpu.attention.capabilities().device_class == DeviceClass::Cpu;
    let cases = cases::cases(options.quick, is_software);
    let in_element = |&element: &Element| {
        let of_it = cases.iter().filter(move |case| element == Element::F32 || !case.f32_only);
        of_it.map(move |case| (element, case))
    };
    let jobs: Vec<(Element, &Case)> = Element::ALL.iter().flat_map(in_element).collect();
    print(&compare_all(&gpu, &jobs, options.passes), out)
}

/// The report of all jobs, in their order. Most of the time is compilation, so all cores take part.
fn compare_all(gpu: &Gpu, jobs: &[(Element, &Case)], passes: Passes) -> Report {
    let progress = ProgressBar::new(jobs.len() as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {elapsed}  {msg}");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(element, case)) = jobs.get(position) else { return done };
            progress.set_message(format!("{} {}", element.name(), case.group));
            let mut report = Report::default();
            match element {
                Element::F32 => pollster::block_on(compare::<f32>(gpu, case, passes, &mut report)),
                Element::F16 => pollster::block_on(compare::<f16>(gpu, case, passes, &mut report)),
                Element::Bf16 => pollster::block_on(compare::<bf16>(gpu, case, passes, &mut report)),
                other => elements::unknown(other),
            }
            progress.inc(1);
            tell(progress.position(), jobs.len() as u64);
            done.push((position, report));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_THREADS));
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let of_each = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        of_each.flatten().collect::<Vec<_>>()
    });
    progress.finish_and_clear();
    done.sort_by_key(|(position, _)| *position);
    let mut report = Report::default();
    for (_, of_job) in done {
        report.absorb(of_job);
    }
    report
}

/// Tells a log, which shows no bar, how far the work is: ten times.
fn tell(done: u64, all: u64) {
    let tenths = |done: u64| done * 10 / all.max(1);
    if !std::io::stderr().is_terminal() && tenths(done) > tenths(done - 1) {
        let _ = writeln!(std::io::stderr(), "flash check: {done} of {all} cases are done");
    }
}

/// Computes one case with both algorithms and the oracle.
async fn compare<T: ElementType>(gpu: &Gpu, case: &Case, passes: Passes, report: &mut Report) {
    let problem = case.problem.clone().with_element(T::ELEMENT);
    if let Some(cached) = &case.cached {
        if passes.each().contains(&Pass::Forward) {
            caches::compare::<T>(gpu, case.group, &problem, cached, report).await;
        }
        return;
    }
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
    sink: Option<Vec<f32>>,
    exact_sink: Vec<f64>,
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
        let of_q = problem.total_q().map_or((shape.batch, shape.seqlen_q), |total| (1, total));
        let of_kv = problem.total_kv().map_or((shape.batch, shape.seqlen_kv), |total| (1, total));
        let tensor = |stream: u64, layout: TensorLayout, (batch, rows): (u32, u32), heads: u32, dim: u32| -> Vec<T> {
            let len = layout.required_len(batch, rows, heads, dim).unwrap_or(0);
            (0..len).map(|index| T::from_f64(random::normal_like(stream, index))).collect()
        };
        // The packed layout is three views of one tensor; V is the last.
        let packed = layout == AttentionLayout::packed_qkv(&shape);
        let stream = |own: u64| if packed { 0 } else { own };
        let v = tensor(stream(2), layout.v, of_kv, shape.num_heads_kv, shape.head_dim_v);
        let d_o = tensor(3, layout.o, of_q, shape.num_heads, shape.head_dim_v);
        let (q, k) = if packed {
            (v.clone(), v.clone())
        } else {
            (
                tensor(0, layout.q, of_q, shape.num_heads, shape.head_dim),
                tensor(1, layout.k, of_kv, shape.num_heads_kv, shape.head_dim),
            )
        };
        let (bias, key_mask) = (bias(problem), key_mask(problem));
        let exact_bias = bias.as_deref().map(exact).unwrap_or_default();
        let logits = || (0..u64::from(shape.num_heads)).map(|head| random::normal_like(6, head) as f32).collect();
        let sink: Option<Vec<f32>> = problem.has_sink().then(logits);
        let exact_sink = sink.as_deref().map(exact).unwrap_or_default();
        Self { q, k, v, d_o, bias, exact_bias, key_mask, sink, exact_sink }
    }

    /// The problem as the oracle takes it.
    fn case<'a>(&'a self, problem: &'a AttentionProblem) -> reference::Case<'a> {
        let words = self.key_mask.as_deref().unwrap_or_default();
        reference::Case::new(problem, &self.exact_bias, words).with_sink(&self.exact_sink)
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
    if let Some(sink) = &inputs.sink {
        slices = slices.with_sink(sink);
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
pub fn arithmetic(plan: Option<&Plan>) -> Arithmetic {
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
