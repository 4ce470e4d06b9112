use half::{bf16, f16};
use wgpu_flash_attention::reference::Arithmetic;
use wgpu_flash_attention::{AttentionProblem, Call, Element, ElementType, ForwardBuffers, Operand, Plan};

use super::data::{Inputs, Rows, gaps, lse_gaps};
use super::device::Library;

/// Fills outputs before a run and everything around the tensors: a NaN in every element type.
pub(super) const POISON: u8 = 0xff;
/// Poisoned bytes before and behind each tensor. Tensors may start at any multiple of 16 bytes; this one is no multiple
/// of the 256 bytes to which WebGPU aligns bindings.
const GUARD: u64 = 272;

/// A buffer with poison before and behind the bytes of its tensor.
pub struct Guarded {
    buffer: wgpu::Buffer,
    bytes: u64,
    /// Poisoned bytes before and behind it.
    guard: u64,
}

impl Guarded {
    /// A buffer around `contents`.
    pub fn new(library: &Library, contents: &[u8]) -> Self {
        Self::at(library, GUARD, contents)
    }

    /// As `new`, with so much poison.
    pub fn at(library: &Library, guard: u64, contents: &[u8]) -> Self {
        // Bindings and copies are multiples of 4 bytes.
        let bytes = (contents.len() as u64).next_multiple_of(4);
        let mut all = vec![POISON; (guard + bytes + guard) as usize];
        all[guard as usize..][..contents.len()].copy_from_slice(contents);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let descriptor =
            wgpu::BufferDescriptor { label: None, size: all.len() as u64, usage, mapped_at_creation: false };
        let buffer = library.device().create_buffer(&descriptor);
        library.queue().write_buffer(&buffer, 0, &all);
        Self { buffer, bytes, guard }
    }

    /// An output of `bytes` bytes, all poison.
    pub fn poisoned(library: &Library, bytes: u64) -> Self {
        Self::new(library, &vec![POISON; bytes as usize])
    }

    pub fn slice(&self) -> wgpu::BufferSlice<'_> {
        self.buffer.slice(self.guard..self.guard + self.bytes)
    }

    /// The tensor's bytes, after a check that nothing around them was written.
    pub fn read(&self, library: &Library) -> Vec<u8> {
        let size = self.buffer.size();
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let copy = library.device().create_buffer(&descriptor);
        let mut encoder = library.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.buffer, 0, &copy, 0, size);
        library.queue().submit([encoder.finish()]);
        copy.slice(..).map_async(wgpu::MapMode::Read, |result| result.expect("the copy can be mapped"));
        library.device().poll(wgpu::PollType::wait_indefinitely()).expect("the GPU finishes");
        let all = copy.slice(..).get_mapped_range().expect("the copy is mapped").to_vec();
        let (before, rest) = all.split_at(self.guard as usize);
        let (tensor, behind) = rest.split_at(self.bytes as usize);
        assert!(before.iter().all(|byte| *byte == POISON), "bytes before an output were written");
        assert!(behind.iter().all(|byte| *byte == POISON), "bytes behind an output were written");
        tensor.to_vec()
    }
}

/// O in the problem's layout, and LSE `[batch, num_heads, seqlen_q]`, bit for bit.
#[derive(Clone, PartialEq)]
pub struct Output {
    element: Element,
    o: Vec<u8>,
    lse: Vec<u8>,
    /// How the kernels computed them.
    pub arithmetic: Arithmetic,
}

/// How the kernels of a plan compute.
pub fn arithmetic_of(plan: &Plan) -> Arithmetic {
    let on_matrices = plan.passes().iter().any(|pass| pass.kernel.name().contains("cooperative"));
    let arithmetic = match (plan.rounds_p(), on_matrices) {
        (true, _) => Arithmetic::MATRICES,
        (false, true) => Arithmetic::MATRICES_IN_PARTS,
        (false, false) => Arithmetic::F32,
    };
    if plan.num_splits() > 1 { arithmetic.merging() } else { arithmetic }
}

impl Output {
    /// An answer that came about in another way than [`run`], in the bytes of its buffers.
    pub fn of(element: Element, o: Vec<u8>, lse: Vec<u8>, arithmetic: Arithmetic) -> Self {
        Self { element, o, lse, arithmetic }
    }

    /// O, with NaN in the gaps of its layout.
    pub fn o(&self) -> Vec<f64> {
        from_bytes(self.element, &self.o)
    }

    pub fn lse(&self) -> Vec<f64> {
        from_bytes(Element::F32, &self.lse)
    }
}

/// The problem that a call of a prepared one solves.
pub fn problem_of(problem: &AttentionProblem, call: &Call) -> AttentionProblem {
    let mut problem = problem.clone();
    problem.shape.seqlen_q = call.seqlen_q.unwrap_or(problem.shape.seqlen_q);
    problem.shape.seqlen_kv = call.seqlen_kv.unwrap_or(problem.shape.seqlen_kv);
    if let Some(dropout) = &mut problem.dropout {
        dropout.philox_seed = call.philox_seed.unwrap_or(dropout.philox_seed);
        dropout.philox_offset = call.philox_offset.unwrap_or(dropout.philox_offset);
    }
    problem
}

/// One run through the caller's own buffers, each at an offset and between guards.
pub fn run(library: &Library, problem: &AttentionProblem, inputs: &Inputs) -> Output {
    run_calls(library, problem, inputs, &[Call::default()]).pop().unwrap()
}

/// Prepares once and encodes all calls into one encoder, each with outputs of its own.
pub fn run_calls(library: &Library, problem: &AttentionProblem, inputs: &Inputs, calls: &[Call]) -> Vec<Output> {
    let prepared = library.prepare(problem).expect("the problem can be prepared");
    let tensors: Vec<Tensors> = calls.iter().map(|_| Tensors::new(library, problem, inputs)).collect();
    let mut encoder = library.device().create_command_encoder(&Default::default());
    for (call, tensors) in calls.iter().zip(&tensors) {
        prepared.encode_call(&mut encoder, &tensors.buffers(), call).expect("the call can be encoded");
    }
    library.queue().submit([encoder.finish()]);
    calls.iter().zip(&tensors).map(|(call, tensors)| tensors.finish(library, problem, call)).collect()
}

/// One run that submits every dispatch on its own.
pub fn run_dispatch_by_dispatch(library: &Library, problem: &AttentionProblem, inputs: &Inputs) -> Output {
    let prepared = library.prepare(problem).expect("the problem can be prepared");
    let tensors = Tensors::new(library, problem, inputs);
    let call = Call::default();
    for dispatch in 0..prepared.num_dispatches(&call).unwrap() {
        let mut encoder = library.device().create_command_encoder(&Default::default());
        prepared.encode_dispatches(&mut encoder, &tensors.buffers(), &call, dispatch..dispatch + 1).unwrap();
        library.queue().submit([encoder.finish()]);
    }
    tensors.finish(library, problem, &call)
}

/// The buffers of one call.
pub struct Tensors {
    q: Guarded,
    /// `None` where K and V are views of Q's buffer.
    k_and_v: Option<(Guarded, Guarded)>,
    o: Guarded,
    lse: Guarded,
    /// Bias and mask.
    entries: Vec<(Operand, Guarded)>,
}

impl Tensors {
    /// Inputs uploaded, outputs poisoned.
    pub fn new(library: &Library, problem: &AttentionProblem, inputs: &Inputs) -> Self {
        let upload = |values| Guarded::new(library, &to_bytes(problem.element, values));
        let o_len = gaps(problem).len() as u64;
        Self {
            q: upload(&inputs.q),
            k_and_v: (!inputs.one_buffer).then(|| (upload(&inputs.k), upload(&inputs.v))),
            o: Guarded::poisoned(library, o_len * problem.output_element().size()),
            lse: Guarded::poisoned(library, problem.lse_len() * 4),
            entries: upload_entries(library, problem, inputs),
        }
    }

    pub fn buffers(&self) -> ForwardBuffers<'_> {
        let (k, v) = self.k_and_v.as_ref().map_or((&self.q, &self.q), |(k, v)| (k, v));
        let buffers = ForwardBuffers::new(self.q.slice(), k.slice(), v.slice(), self.o.slice(), self.lse.slice());
        self.entries.iter().fold(buffers, |buffers, (operand, tensor)| buffers.with(*operand, tensor.slice()))
    }

    /// Reads the outputs of a submitted call back, and checks that all that is not theirs still holds the poison.
    pub fn finish(&self, library: &Library, problem: &AttentionProblem, call: &Call) -> Output {
        let solved = problem_of(problem, call);
        let size = problem.output_element().size() as usize;
        let mut o = self.o.read(library);
        // A shorter call leaves the rows behind its own alone.
        let own = gaps(&solved);
        let mut gap = own.clone();
        gap.resize(gaps(problem).len(), true);
        for (n, (bytes, gap)) in o.chunks(size).zip(&gap).enumerate() {
            let kept = bytes.iter().all(|byte| *byte == POISON);
            assert!(!gap || kept, "element {n} between the rows of O was written\n{problem:?}");
        }
        o.truncate(own.len() * size);

        // LSE keeps the prepared stride from head to head.
        let [prepared_rows, rows] = [problem, &solved].map(|problem| Rows::of_q(problem).count as usize * 4);
        let mut lse = Vec::new();
        for head in self.lse.read(library).chunks(prepared_rows.max(1)) {
            lse.extend_from_slice(&head[..rows]);
            let kept = head[rows..].iter().all(|byte| *byte == POISON);
            assert!(kept, "LSE rows behind a shorter call were written\n{problem:?}");
        }
        for (bytes, gap) in lse.chunks(4).zip(lse_gaps(&solved)) {
            let kept = bytes.iter().all(|byte| *byte == POISON);
            assert!(!gap || kept, "LSE of a row that no sequence has was written\n{problem:?}");
        }
        let arithmetic = library.prepare(problem).map_or(Arithmetic::F32, |prepared| arithmetic_of(prepared.plan()));
        Output { element: problem.output_element(), o, lse, arithmetic }
    }
}

/// Bias and mask, uploaded.
pub(super) fn upload_entries(
    library: &Library,
    problem: &AttentionProblem,
    inputs: &Inputs,
) -> Vec<(Operand, Guarded)> {
    // Aux starts where a binding may start.
    let guard = |operand| if operand == Operand::Aux { 512 } else { GUARD };
    let upload = |(operand, bytes): (Operand, Vec<u8>)| (operand, Guarded::at(library, guard(operand), &bytes));
    inputs.entries(problem).into_iter().map(upload).collect()
}

pub fn to_bytes(element: Element, values: &[f64]) -> Vec<u8> {
    match element {
        Element::F32 => values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect(),
        Element::F16 => values.iter().flat_map(|value| <f16 as ElementType>::from_f64(*value).to_le_bytes()).collect(),
        Element::Bf16 => {
            values.iter().flat_map(|value| <bf16 as ElementType>::from_f64(*value).to_le_bytes()).collect()
        }
        other => panic!("{other:?}"),
    }
}

pub fn from_bytes(element: Element, bytes: &[u8]) -> Vec<f64> {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match element {
        Element::F32 => bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()).into()).collect(),
        Element::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f64()).collect(),
        Element::Bf16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f64()).collect(),
        other => panic!("{other:?}"),
    }
}
