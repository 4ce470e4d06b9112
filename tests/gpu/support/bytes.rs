//! Runs through the caller's own buffers, whatever tensors an operation has.

use std::collections::HashMap;
use wgpu_flash_attention::{AttentionProblem, BackwardBuffers, Call, ForwardBuffers, Operand, Plan};

use super::device::Library;
use super::run::Guarded;

/// The bytes of tensors.
pub type Bytes = HashMap<Operand, Vec<u8>>;

/// What a call is given.
pub type Tensors = Vec<(Operand, Vec<u8>)>;

/// The buffers of one call: those that are given, and what the plan writes.
struct Given(HashMap<Operand, Guarded>);

impl Given {
    /// Outputs start as poison, or as what is given for them. Lengths start where a binding may start.
    fn new(library: &Library, plan: &Plan, given: &[(Operand, Vec<u8>)]) -> Self {
        let is_written =
            |operand: &Operand| WRITTEN.contains(operand) && plan.operands().any(|other| other == *operand);
        let is_left_out = |operand: &Operand| given.iter().all(|(other, _)| other != operand);
        let outputs = Operand::ALL.iter().filter(|operand| is_written(operand) && is_left_out(operand));
        let mut buffers: HashMap<_, _> =
            outputs.map(|operand| (*operand, Guarded::poisoned(library, plan.required_bytes(*operand)))).collect();
        for (operand, bytes) in given {
            buffers.insert(*operand, Guarded::at(library, 512, bytes));
        }
        Self(buffers)
    }

    fn slice(&self, operand: Operand) -> wgpu::BufferSlice<'_> {
        self.0[&operand].slice()
    }

    fn forward(&self) -> ForwardBuffers<'_> {
        let [q, k, v, o, lse] =
            [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(|operand| self.slice(operand));
        let buffers = ForwardBuffers::new(q, k, v, o, lse);
        self.0.iter().fold(buffers, |buffers, (operand, tensor)| buffers.with(*operand, tensor.slice()))
    }

    fn backward(&self) -> BackwardBuffers<'_> {
        let [d_o, dq, dk, dv] = [Operand::DO, Operand::Dq, Operand::Dk, Operand::Dv].map(|operand| self.slice(operand));
        let buffers = BackwardBuffers::new(self.forward(), d_o, dq, dk, dv);
        self.0.iter().fold(buffers, |buffers, (operand, tensor)| buffers.with(*operand, tensor.slice()))
    }

    fn read(&self, library: &Library) -> Bytes {
        self.0.iter().map(|(operand, tensor)| (*operand, tensor.read(library))).collect()
    }
}

const WRITTEN: [Operand; 7] =
    [Operand::O, Operand::Lse, Operand::Dq, Operand::Dk, Operand::Dv, Operand::DSink, Operand::DBias];

/// Prepares once and encodes all calls into one encoder, each with buffers of its own. All that they hold afterwards.
pub fn run_bytes(
    library: &Library,
    problem: &AttentionProblem,
    is_backward: bool,
    calls: &[(Tensors, Call)],
) -> Vec<Bytes> {
    let mut encoder = library.device().create_command_encoder(&Default::default());
    let given: Vec<Given> = if is_backward {
        let prepared = library.prepare_gradients(problem).expect("gradients can be prepared");
        let given: Vec<_> = calls.iter().map(|(given, _)| Given::new(library, prepared.plan(), given)).collect();
        for (given, (_, call)) in given.iter().zip(calls) {
            prepared.encode_call(&mut encoder, &given.backward(), call).expect("the call can be encoded");
        }
        given
    } else {
        let prepared = library.prepare(problem).expect("the problem can be prepared");
        let given: Vec<_> = calls.iter().map(|(given, _)| Given::new(library, prepared.plan(), given)).collect();
        for (given, (_, call)) in given.iter().zip(calls) {
            prepared.encode_call(&mut encoder, &given.forward(), call).expect("the call can be encoded");
        }
        given
    };
    library.queue().submit([encoder.finish()]);
    given.iter().map(|given| given.read(library)).collect()
}

/// The bytes of words.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
