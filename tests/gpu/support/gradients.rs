//! The backward pass through the caller's own buffers, and how close its gradients must be.
//!
//! The rule is that of the forward pass with 3 for 2. With `max` the largest entry of the oracle's gradient:
//!
//! | | largest error of dQ, dK and dV allowed |
//! |---|---|
//! | both, f32 | 2e-5 · max |
//! | flash, f16 and bf16 | 3 · (error of standard, or of storing `max`; on matrices, or of rounding P and dS) + 1e-5 |
//! | standard, f16 and bf16 | half a unit in the last place of `max` + 2e-5 · max, against the gradients for the O given |
//!
//! A gradient that is 0 throughout, because each row sees one key or all keys are equal, may keep what f32 rounds of the dP
//! and D that cancel.
//!
//! O is rounded to its element before the backward pass sees it. That moves D = rowsum(dO ∘ O), as a gradient of LSE would:
//! so the gradients for the O given are the oracle's with the difference of D for one.

use wgpu_flash_attention::plan::{Call, Operand};
use wgpu_flash_attention::reference::{self, ReferenceGradients};
use wgpu_flash_attention::{Algorithm, AttentionProblem, BackwardBuffers, Element, TensorLayout};

use super::data::{Inputs, Random, gaps_of, inputs, places};
use super::device::Library;
use super::run::{Guarded, POISON, from_bytes, problem_of, to_bytes};
use super::tolerance::half_ulp;

/// What a backward pass takes.
#[derive(Clone)]
pub struct GradientInputs {
    pub inputs: Inputs,
    /// In the problem's gradient layout, NaN between its elements.
    pub d_o: Vec<f64>,
    pub d_lse: Option<Vec<f64>>,
}

/// Standard normal inputs and gradients, those of O rounded to the problem's element.
pub fn gradient_inputs(problem: &AttentionProblem, seed: u64) -> GradientInputs {
    let mut random = Random(seed ^ 0x9add_1e17);
    let shape = problem.shape;
    let gaps = gaps(problem, Operand::DO);
    let mut value = |gap: bool| if gap { f64::NAN } else { problem.element.round(random.normal()) };
    let d_o = gaps.into_iter().map(&mut value).collect();
    // Every second problem has a gradient of LSE.
    let d_lse = (seed % 2 == 1).then(|| (0..shape.lse_len()).map(|_| Element::F32.round(value(false))).collect());
    GradientInputs { inputs: inputs(problem, seed), d_o, d_lse }
}

fn layout_of(problem: &AttentionProblem, operand: Operand) -> (TensorLayout, [u32; 4]) {
    let shape = problem.shape;
    let (layout, gradients) = (problem.layout, problem.gradient_layout_in_force());
    match operand {
        Operand::O => (layout.o, [shape.batch, shape.seqlen_q, shape.num_heads, shape.head_dim_v]),
        Operand::DO => (gradients.o, [shape.batch, shape.seqlen_q, shape.num_heads, shape.head_dim_v]),
        Operand::Dq => (gradients.q, [shape.batch, shape.seqlen_q, shape.num_heads, shape.head_dim]),
        Operand::Dk => (gradients.k, [shape.batch, shape.seqlen_kv, shape.num_heads_kv, shape.head_dim]),
        Operand::Dv => (gradients.v, [shape.batch, shape.seqlen_kv, shape.num_heads_kv, shape.head_dim_v]),
        other => panic!("{other} has no layout here"),
    }
}

fn gaps(problem: &AttentionProblem, operand: Operand) -> Vec<bool> {
    let (layout, counts) = layout_of(problem, operand);
    gaps_of(&layout, counts)
}

/// dQ, dK and dV in the problem's gradient layout, bit for bit.
#[derive(Clone, PartialEq)]
pub struct Gradients {
    element: Element,
    bytes: [Vec<u8>; 3],
}

impl Gradients {
    /// With NaN in the gaps of the layout.
    pub fn dq(&self) -> Vec<f64> {
        from_bytes(self.element, &self.bytes[0])
    }

    pub fn dk(&self) -> Vec<f64> {
        from_bytes(self.element, &self.bytes[1])
    }

    pub fn dv(&self) -> Vec<f64> {
        from_bytes(self.element, &self.bytes[2])
    }
}

/// The buffers of one backward call.
pub struct GradientTensors {
    q: Guarded,
    /// `None` where K and V are views of Q's buffer.
    k_and_v: Option<(Guarded, Guarded)>,
    o: Guarded,
    lse: Guarded,
    d_o: Guarded,
    d_lse: Option<Guarded>,
    outputs: [Guarded; 3],
}

const OUTPUTS: [Operand; 3] = [Operand::Dq, Operand::Dk, Operand::Dv];

impl GradientTensors {
    /// Inputs uploaded, with O and LSE from the oracle; outputs poisoned.
    pub fn new(library: &Library, problem: &AttentionProblem, given: &GradientInputs) -> Self {
        let upload = |values: &[f64]| Guarded::new(library, &to_bytes(problem.element, values));
        let upload_f32 = |values: &[f64]| Guarded::new(library, &to_bytes(Element::F32, values));
        let inputs = &given.inputs;
        let forward = reference::forward(problem, &inputs.q, &inputs.k, &inputs.v);
        let gaps_of_o = gaps(problem, Operand::O);
        let o: Vec<f64> = forward.o.iter().zip(gaps_of_o).map(|(o, gap)| if gap { f64::NAN } else { *o }).collect();
        let size = problem.gradient_element_in_force().size();
        Self {
            q: upload(&inputs.q),
            k_and_v: (!inputs.one_buffer).then(|| (upload(&inputs.k), upload(&inputs.v))),
            o: upload(&o),
            lse: upload_f32(&forward.lse),
            d_o: upload(&given.d_o),
            d_lse: given.d_lse.as_deref().map(upload_f32),
            outputs: OUTPUTS.map(|operand| Guarded::poisoned(library, gaps(problem, operand).len() as u64 * size)),
        }
    }

    pub fn buffers(&self) -> BackwardBuffers<'_> {
        let (k, v) = self.k_and_v.as_ref().map_or((&self.q, &self.q), |(k, v)| (k, v));
        let [dq, dk, dv] = &self.outputs;
        BackwardBuffers {
            q: self.q.slice(),
            k: k.slice(),
            v: v.slice(),
            o: self.o.slice(),
            lse: self.lse.slice(),
            d_o: self.d_o.slice(),
            d_lse: self.d_lse.as_ref().map(Guarded::slice),
            dq: dq.slice(),
            dk: dk.slice(),
            dv: dv.slice(),
        }
    }

    /// Reads the gradients of a submitted call back, and checks that all that is not theirs still holds the poison.
    pub fn finish(&self, library: &Library, problem: &AttentionProblem, call: &Call) -> Gradients {
        let solved = problem_of(problem, call);
        let element = problem.gradient_element_in_force();
        let size = element.size() as usize;
        let mut bytes = [const { Vec::new() }; 3];
        for ((operand, buffer), bytes) in OUTPUTS.into_iter().zip(&self.outputs).zip(&mut bytes) {
            *bytes = buffer.read(library);
            // A shorter call leaves the rows behind its own alone.
            let own = gaps(&solved, operand);
            let mut gap = own.clone();
            gap.resize(gaps(problem, operand).len(), true);
            for (n, (bytes, gap)) in bytes.chunks(size).zip(&gap).enumerate() {
                let kept = bytes.iter().all(|byte| *byte == POISON);
                assert!(!gap || kept, "element {n} between the rows of {operand} was written\n{problem:?}");
            }
            bytes.truncate(own.len() * size);
        }
        Gradients { element, bytes }
    }
}

/// One run through the caller's own buffers, each at an offset and between guards.
pub fn run_backward(library: &Library, problem: &AttentionProblem, given: &GradientInputs) -> Gradients {
    run_backward_calls(library, problem, given, &[Call::default()]).pop().unwrap()
}

/// Prepares once and encodes all calls into one encoder, each with buffers of its own.
pub fn run_backward_calls(
    library: &Library,
    problem: &AttentionProblem,
    given: &GradientInputs,
    calls: &[Call],
) -> Vec<Gradients> {
    let prepared = library.prepare_gradients(problem).expect("the problem can be prepared");
    let tensors: Vec<_> =
        calls.iter().map(|call| GradientTensors::new(library, &padded(problem, call), given)).collect();
    let mut encoder = library.device().create_command_encoder(&Default::default());
    for (call, tensors) in calls.iter().zip(&tensors) {
        prepared.encode_call(&mut encoder, &tensors.buffers(), call).expect("the call can be encoded");
    }
    library.queue().submit([encoder.finish()]);
    calls.iter().zip(&tensors).map(|(call, tensors)| tensors.finish(library, problem, call)).collect()
}

/// One run that submits every dispatch on its own.
pub fn run_backward_dispatch_by_dispatch(
    library: &Library,
    problem: &AttentionProblem,
    given: &GradientInputs,
) -> Gradients {
    let prepared = library.prepare_gradients(problem).expect("the problem can be prepared");
    let tensors = GradientTensors::new(library, problem, given);
    let call = Call::default();
    for dispatch in 0..prepared.num_dispatches(&call).unwrap() {
        let mut encoder = library.device().create_command_encoder(&Default::default());
        prepared.encode_dispatches(&mut encoder, &tensors.buffers(), &call, dispatch..dispatch + 1).unwrap();
        library.queue().submit([encoder.finish()]);
    }
    tensors.finish(library, problem, &call)
}

/// The problem whose forward pass gave O and LSE: that of the call, but with the prepared problem's lengths where the call
/// keeps them.
fn padded(problem: &AttentionProblem, call: &Call) -> AttentionProblem {
    let mut padded = problem_of(problem, call);
    padded.shape = problem.shape;
    padded
}

/// Solves the problem with both algorithms, holds both to their bounds, and returns the flash kernels' gradients.
pub fn check_gradients(library: &Library, problem: &AttentionProblem, given: &GradientInputs) -> Gradients {
    let flash = run_backward(library, &problem.clone().algorithm(Algorithm::Flash), given);
    let standard = run_backward(library, &problem.clone().algorithm(Algorithm::Standard), given);
    let rounds_p = library.prepare_gradients(problem).is_ok_and(|prepared| prepared.plan().rounds_p());
    check_gradients_of(problem, given, &flash, &standard, rounds_p);
    flash
}

/// Holds the gradients of both algorithms to their bounds.
fn check_gradients_of(
    problem: &AttentionProblem,
    given: &GradientInputs,
    flash: &Gradients,
    standard: &Gradients,
    rounds_p: bool,
) {
    let exact = expected(problem, given, false, reference::backward);
    let for_o = expected(problem, given, true, reference::backward);
    // Standard attention in the same precision: for kernels that round P and dS, one that rounds them.
    let rounded = rounds_p.then(|| expected(problem, given, true, reference::backward_rounding_p));
    for (tensor, name) in OUTPUTS.into_iter().enumerate() {
        let max = largest(of(&exact, tensor));
        let cancellation = cancellation(problem, given);
        let floor = if max <= cancellation { cancellation } else { 2e-5 * max };
        let flash_error = largest_error(problem, tensor, flash, &exact);
        let standard_error = largest_error(problem, tensor, standard, &exact);
        let standard_for_o = largest_error(problem, tensor, standard, &for_o);
        let max_for_o = largest(of(&for_o, tensor));
        let rounding = match problem.gradient_element_in_force() {
            Element::F32 => 0.0,
            Element::F16 => half_ulp(max_for_o, 11),
            Element::Bf16 => half_ulp(max_for_o, 8),
        };
        let standard_allowed = rounding + floor.max(2e-5 * max_for_o);
        assert!(
            standard_for_o <= standard_allowed,
            "standard {name} errs by {standard_for_o:e}, allowed are {standard_allowed:e}; largest {max}\n{problem:?}"
        );
        // In f32 standard attention rounds nothing when it stores; the same precision is that of the element.
        let stored = match problem.element {
            Element::F32 => 0.0,
            Element::F16 => half_ulp(max, 11),
            Element::Bf16 => half_ulp(max, 8),
        };
        let rounded_error = rounded.as_ref().map_or(0.0, |rounded| {
            let errors =
                of(rounded, tensor).iter().zip(of(&exact, tensor)).map(|(found, wanted)| (found - wanted).abs());
            errors.fold(0.0, f64::max)
        });
        let standard_error = standard_error.max(stored).max(rounded_error);
        let flash_allowed = match problem.element {
            Element::F32 => floor,
            Element::F16 | Element::Bf16 => 3.0 * standard_error + 1e-5,
        };
        assert!(
            flash_error <= flash_allowed,
            "flash {name} errs by {flash_error:e}, allowed are {flash_allowed:e}; standard errs by \
             {standard_error:e}; largest {max}\n{problem:?}"
        );
    }
}

type Oracle = fn(&AttentionProblem, &[f64], &[f64], &[f64], &[f64], Option<&[f64]>) -> ReferenceGradients;

/// The oracle's gradients; `for_o` of an O that was rounded to its element.
fn expected(problem: &AttentionProblem, given: &GradientInputs, for_o: bool, oracle: Oracle) -> ReferenceGradients {
    let Inputs { q, k, v, .. } = &given.inputs;
    let shape = problem.shape;
    let mut d_lse = given.d_lse.clone().unwrap_or_else(|| vec![0.0; shape.lse_len() as usize]);
    if for_o {
        let exact = reference::forward(problem, q, k, v);
        let gradients = problem.gradient_layout_in_force();
        for (batch, row, head) in places(shape.batch, shape.seqlen_q, shape.num_heads) {
            let (o, d_o) = (problem.layout.o.index(batch, row, head), gradients.o.index(batch, row, head));
            let flat = ((batch * shape.num_heads + head) * shape.seqlen_q + row) as usize;
            for dim in 0..shape.head_dim_v as usize {
                let o = exact.o[o as usize + dim];
                d_lse[flat] -= given.d_o[d_o as usize + dim] * (problem.element.round(o) - o);
            }
        }
    }
    oracle(problem, q, k, v, &given.d_o, Some(&d_lse))
}

/// The largest absolute value that is a number.
fn largest(values: &[f64]) -> f64 {
    values.iter().filter(|value| !value.is_nan()).fold(0.0, |max, value| max.max(value.abs()))
}

/// What the rounding of dP and D, sums of head_dim_v products, can leave in dQ and dK.
fn cancellation(problem: &AttentionProblem, given: &GradientInputs) -> f64 {
    let inputs = &given.inputs;
    let sum = f64::from(problem.shape.head_dim_v) * largest(&given.d_o) * largest(&inputs.v);
    let sum = sum * problem.dropout.map_or(1.0, |dropout| dropout.keep_scale());
    2f64.powi(-24) * sum * problem.softmax_scale().abs() * largest(&inputs.q).max(largest(&inputs.k))
}

fn of(gradients: &ReferenceGradients, tensor: usize) -> &[f64] {
    [&gradients.dq, &gradients.dk, &gradients.dv][tensor]
}

/// The largest error over the tensor's own elements; NaN must be where the oracle has it and nowhere else.
fn largest_error(problem: &AttentionProblem, tensor: usize, found: &Gradients, expected: &ReferenceGradients) -> f64 {
    let found = [Gradients::dq, Gradients::dk, Gradients::dv][tensor](found);
    let wanted = of(expected, tensor);
    assert_eq!(found.len(), wanted.len(), "length of {}", OUTPUTS[tensor]);
    let mut largest = 0.0f64;
    for (n, gap) in gaps(problem, OUTPUTS[tensor]).into_iter().enumerate().filter(|(_, gap)| !gap) {
        assert!(!gap);
        let (found, wanted) = (found[n], wanted[n]);
        assert_eq!(found.is_nan(), wanted.is_nan(), "{}[{n}] is {found}, not {wanted}\n{problem:?}", OUTPUTS[tensor]);
        if !wanted.is_nan() {
            largest = largest.max((found - wanted).abs());
        }
    }
    largest
}
