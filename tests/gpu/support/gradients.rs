//! The backward pass through the caller's own buffers, and how close its gradients must be.
//!
//! Each element has a bound of its own, as in the forward pass, against the gradients for the O that the kernels are given:
//! the oracle's, rounded to its element. (Rounding moves D = rowsum(dO ∘ O).)

use wgpu_flash_attention::reference::{self, Arithmetic, BackwardErrors, ErrorTerms, ReferenceGradients};
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, BackwardBuffers, Call, Element, ForwardBuffers, Operand, ScoreMod,
};

use super::data::{Inputs, Random, Rows, inputs};
use super::device::Library;
use super::run::{Guarded, POISON, arithmetic_of, from_bytes, problem_of, to_bytes, upload_entries};
use super::tolerance::{Share, check};

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
    let gaps = gaps(problem, Operand::DO);
    let mut value = |gap: bool| if gap { f64::NAN } else { problem.element.round(random.normal()) };
    let d_o = gaps.into_iter().map(&mut value).collect();
    // Every second problem has a gradient of LSE.
    let d_lse = (seed % 2 == 1).then(|| (0..problem.lse_len()).map(|_| Element::F32.round(value(false))).collect());
    GradientInputs { inputs: inputs(problem, seed), d_o, d_lse }
}

fn gaps(problem: &AttentionProblem, operand: Operand) -> Vec<bool> {
    let shape = problem.shape;
    let (layout, gradients) = (problem.layout, problem.gradient_layout());
    let (of_q, of_kv) = (Rows::of_q(problem), Rows::of_kv(problem));
    match operand {
        Operand::O => of_q.gaps(&layout.o, shape.num_heads, shape.head_dim_v),
        Operand::DO => of_q.gaps(&gradients.o, shape.num_heads, shape.head_dim_v),
        Operand::Dq => of_q.gaps(&gradients.q, shape.num_heads, shape.head_dim),
        Operand::Dk => of_kv.gaps(&gradients.k, shape.num_heads_kv, shape.head_dim),
        Operand::Dv => of_kv.gaps(&gradients.v, shape.num_heads_kv, shape.head_dim_v),
        other => panic!("{other} has no layout here"),
    }
}

/// dQ, dK and dV in the problem's gradient layout, bit for bit, and the gradients of the sink and of the bias, where there are
/// some.
#[derive(Clone, PartialEq)]
pub struct Gradients {
    element: Element,
    bytes: [Vec<u8>; 3],
    dsink: Vec<u8>,
    bias_element: Element,
    dbias: Vec<u8>,
    /// How the kernels computed them.
    arithmetic: Arithmetic,
}

impl Gradients {
    /// Gradients that came about in another way than [`run_backward`], in the bytes of their buffers.
    pub fn of(element: Element, bytes: [Vec<u8>; 3], arithmetic: Arithmetic) -> Self {
        Self { element, bytes, dsink: Vec::new(), bias_element: Element::F32, dbias: Vec::new(), arithmetic }
    }

    /// dQ, dK and dV.
    pub fn all(&self) -> [Vec<f64>; 3] {
        self.bytes.each_ref().map(|bytes| from_bytes(self.element, bytes))
    }

    /// Of the sink of each head.
    pub fn dsink(&self) -> Vec<f64> {
        from_bytes(Element::F32, &self.dsink)
    }

    /// Of the entries of the bias.
    pub fn dbias(&self) -> Vec<f64> {
        from_bytes(self.bias_element, &self.dbias)
    }

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

impl GradientInputs {
    /// The bytes of what a forward or a backward pass reads.
    pub fn tensors(&self, problem: &AttentionProblem, backward: bool) -> Vec<(Operand, Vec<u8>)> {
        let Inputs { q, k, v, .. } = &self.inputs;
        let mut tensors = vec![(Operand::Q, q.clone()), (Operand::K, k.clone()), (Operand::V, v.clone())];
        let mut in_f32 = Vec::new();
        if backward {
            let (o, lse) = given_forward(problem, &self.inputs);
            tensors.extend([(Operand::O, o), (Operand::DO, self.d_o.clone())]);
            in_f32.push((Operand::Lse, lse));
            in_f32.extend(self.d_lse.clone().map(|d_lse| (Operand::DLse, d_lse)));
        }
        let bytes = |element, tensors: Vec<(Operand, Vec<f64>)>| {
            tensors.into_iter().map(move |(operand, values)| (operand, to_bytes(element, &values)))
        };
        bytes(problem.element, tensors).chain(bytes(Element::F32, in_f32)).chain(self.inputs.entries(problem)).collect()
    }
}

/// O, rounded to its element and with NaN in its gaps, and LSE, from the oracle.
fn given_forward(problem: &AttentionProblem, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
    let forward = reference::forward(inputs.case(problem), &inputs.q, &inputs.k, &inputs.v);
    let round = |(o, gap): (&f64, bool)| if gap { f64::NAN } else { problem.element.round(*o) };
    (forward.o.iter().zip(gaps(problem, Operand::O)).map(round).collect(), forward.lse)
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
    /// Bias and mask.
    entries: Vec<(Operand, Guarded)>,
    outputs: [Guarded; 3],
    dsink: Option<Guarded>,
    dbias: Option<Guarded>,
}

/// Entries of the gradient of the bias, where it is asked for, and their type.
fn dbias_of(problem: &AttentionProblem) -> Option<(u64, Element)> {
    problem.scores().iter().filter(|_| problem.has_bias_gradient()).find_map(|modifier| match modifier {
        ScoreMod::Bias { layout, element } => {
            Some((layout.of_gradient(&problem.shape).required_len(&problem.shape), *element))
        }
        _ => None,
    })
}

const OUTPUTS: [Operand; 3] = [Operand::Dq, Operand::Dk, Operand::Dv];

impl GradientTensors {
    /// Inputs uploaded, with O and LSE from the oracle; outputs poisoned.
    pub fn new(library: &Library, problem: &AttentionProblem, given: &GradientInputs) -> Self {
        let upload = |values: &[f64]| Guarded::new(library, &to_bytes(problem.element, values));
        let upload_f32 = |values: &[f64]| Guarded::new(library, &to_bytes(Element::F32, values));
        let inputs = &given.inputs;
        let (o, lse) = given_forward(problem, inputs);
        let size = problem.gradient_element().size();
        Self {
            q: upload(&inputs.q),
            k_and_v: (!inputs.one_buffer).then(|| (upload(&inputs.k), upload(&inputs.v))),
            o: upload(&o),
            lse: upload_f32(&lse),
            d_o: upload(&given.d_o),
            d_lse: given.d_lse.as_deref().map(upload_f32),
            entries: upload_entries(library, problem, inputs),
            dsink: problem.has_sink().then(|| Guarded::poisoned(library, u64::from(problem.shape.num_heads) * 4)),
            dbias: dbias_of(problem).map(|(len, element)| Guarded::poisoned(library, len * element.size())),
            outputs: OUTPUTS.map(|operand| {
                let gaps = gaps(problem, operand);
                match problem.adds_gradients {
                    // The sum starts at 0.
                    true => upload_f32(&gaps.iter().map(|gap| if *gap { f64::NAN } else { 0.0 }).collect::<Vec<_>>()),
                    false => Guarded::poisoned(library, gaps.len() as u64 * size),
                }
            }),
        }
    }

    pub fn buffers(&self) -> BackwardBuffers<'_> {
        let (k, v) = self.k_and_v.as_ref().map_or((&self.q, &self.q), |(k, v)| (k, v));
        let [q, k, v, o, lse, d_o] = [&self.q, k, v, &self.o, &self.lse, &self.d_o].map(Guarded::slice);
        let [dq, dk, dv] = self.outputs.each_ref().map(Guarded::slice);
        let buffers = BackwardBuffers::new(ForwardBuffers::new(q, k, v, o, lse), d_o, dq, dk, dv);
        let buffers = buffers.with(Operand::DLse, self.d_lse.as_ref().map(Guarded::slice));
        let buffers = buffers.with(Operand::DSink, self.dsink.as_ref().map(Guarded::slice));
        let buffers = buffers.with(Operand::DBias, self.dbias.as_ref().map(Guarded::slice));
        self.entries.iter().fold(buffers, |buffers, (operand, tensor)| buffers.with(*operand, tensor.slice()))
    }

    /// Reads the gradients of a submitted call back, and checks that all that is not theirs still holds the poison.
    pub fn finish(&self, library: &Library, problem: &AttentionProblem, call: &Call) -> Gradients {
        let solved = problem_of(problem, call);
        let element = problem.gradient_element();
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
        let prepared = library.prepare_gradients(problem);
        let arithmetic = prepared.map_or(Arithmetic::F32, |prepared| arithmetic_of(prepared.plan()));
        let dsink = self.dsink.as_ref().map_or(Vec::new(), |dsink| dsink.read(library));
        let mut dbias = self.dbias.as_ref().map_or(Vec::new(), |dbias| dbias.read(library));
        let (len, bias_element) = dbias_of(problem).unwrap_or((0, Element::F32));
        dbias.truncate((len * bias_element.size()) as usize);
        Gradients { element, bytes, dsink, bias_element, dbias, arithmetic }
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
    let flash = run_backward(library, &problem.clone().with_algorithm(Algorithm::Flash), given);
    let standard = run_backward(library, &problem.clone().with_algorithm(Algorithm::Standard), given);
    let answer = GradientAnswer::new(problem, given);
    for (algorithm, gradients) in [("flash", &flash), ("standard", &standard)] {
        for (share, tensor) in answer.shares(gradients).iter().zip(OUTPUTS) {
            share.assert(&format!("{algorithm}: {tensor}"), problem);
        }
        answer.share_of_dsink(gradients).assert(&format!("{algorithm}: dsink"), problem);
        answer.share_of_dbias(gradients).assert(&format!("{algorithm}: dbias"), problem);
    }
    flash
}

/// Forward and backward, flash and standard, within their bounds.
pub fn check_both(library: &Library, problem: &AttentionProblem, seed: u64) {
    check(library, problem, &inputs(problem, seed));
    check_gradients(library, problem, &gradient_inputs(problem, seed));
}

/// The oracle's gradients, and how far others may be from them.
pub struct GradientAnswer<'a> {
    problem: &'a AttentionProblem,
    expected: ReferenceGradients,
    errors: BackwardErrors,
}

impl<'a> GradientAnswer<'a> {
    pub fn new(problem: &'a AttentionProblem, GradientInputs { inputs, d_o, d_lse }: &GradientInputs) -> Self {
        let (o, _) = given_forward(problem, inputs);
        let tensors = [&inputs.q[..], &inputs.k, &inputs.v, &o];
        Self {
            problem,
            expected: reference::backward_for(inputs.case(problem), tensors, d_o, d_lse.as_deref()),
            errors: reference::backward_errors(inputs.case(problem), tensors, d_o, d_lse.as_deref()),
        }
    }

    /// The largest shares of their bounds that the errors of dQ, dK and dV take up.
    pub fn shares(&self, found: &Gradients) -> [Share; 3] {
        let all = found.all();
        [0, 1, 2].map(|tensor| {
            let expected = (of(&self.expected, tensor), errors_of(&self.errors, tensor));
            let gaps = gaps(self.problem, OUTPUTS[tensor]);
            Share::largest(found.element, &all[tensor], expected, &gaps, &found.arithmetic)
        })
    }

    /// The same of the sink's gradient.
    pub fn share_of_dsink(&self, found: &Gradients) -> Share {
        let expected = (&self.expected.dsink[..], &self.errors.dsink[..]);
        let gaps = vec![false; expected.0.len()];
        Share::largest(Element::F32, &found.dsink(), expected, &gaps, &found.arithmetic)
    }

    /// The same of the bias's gradient, which no kernel computes on matrices.
    pub fn share_of_dbias(&self, found: &Gradients) -> Share {
        let expected = (&self.expected.dbias[..], &self.errors.dbias[..]);
        let gaps = vec![false; expected.0.len()];
        Share::largest(found.bias_element, &found.dbias(), expected, &gaps, &Arithmetic::F32)
    }
}

fn of(gradients: &ReferenceGradients, tensor: usize) -> &[f64] {
    [&gradients.dq, &gradients.dk, &gradients.dv][tensor]
}

fn errors_of(errors: &BackwardErrors, tensor: usize) -> &[ErrorTerms] {
    [&errors.dq, &errors.dk, &errors.dv][tensor]
}
