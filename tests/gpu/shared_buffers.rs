//! All tensors of a call as ranges of one buffer, as frameworks take them from pools: the same bits as in buffers of their own.

use wgpu::{BufferUsages, PollType};
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, AttentionShape, BackwardBuffers, Buffers, Call, Element, EntryLayout, Error,
    FlashAttention, ForwardBuffers, Operand, Plan, ScoreMod,
};

use crate::support::{Bytes, Variant, gradient_inputs, library, run_bytes};

/// Tensors one behind the other in one buffer.
struct Pool {
    buffer: wgpu::Buffer,
    ranges: Vec<(Operand, std::ops::Range<u64>)>,
}

impl Pool {
    /// What a plan reads, and room for what it writes.
    fn new(attention: &FlashAttention, plan: &Plan, given: &[(Operand, Vec<u8>)]) -> Self {
        let alignment = u64::from(attention.device().limits().min_storage_buffer_offset_alignment);
        let mut bytes = Vec::new();
        let mut ranges = Vec::new();
        for operand in plan.operands() {
            let contents = given.iter().find(|(other, _)| *other == operand).map(|(_, contents)| contents.clone());
            // Without a gradient of LSE.
            if contents.is_none() && operand == Operand::DLse {
                continue;
            }
            let mut contents = contents.unwrap_or_default();
            contents.resize(plan.required_bytes(operand) as usize, 0xff);
            bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0xff);
            ranges.push((operand, bytes.len() as u64..(bytes.len() + contents.len()) as u64));
            bytes.extend(contents);
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let size = bytes.len() as u64;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = attention.device().create_buffer(&descriptor);
        attention.queue().write_buffer(&buffer, 0, &bytes);
        Self { buffer, ranges }
    }

    fn slice(&self, operand: Operand) -> wgpu::BufferSlice<'_> {
        let (_, range) = self.ranges.iter().find(|(other, _)| *other == operand).expect("the plan has the operand");
        self.buffer.slice(range.clone())
    }

    fn with_all<'a, D>(&'a self, buffers: Buffers<'a, D>) -> Buffers<'a, D> {
        self.ranges.iter().fold(buffers, |buffers, (operand, _)| buffers.with(*operand, self.slice(*operand)))
    }

    fn forward(&self) -> ForwardBuffers<'_> {
        let [q, k, v, o, lse] =
            [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(|operand| self.slice(operand));
        self.with_all(ForwardBuffers::new(q, k, v, o, lse))
    }

    fn backward(&self) -> BackwardBuffers<'_> {
        let [d_o, dq, dk, dv] = [Operand::DO, Operand::Dq, Operand::Dk, Operand::Dv].map(|operand| self.slice(operand));
        self.with_all(BackwardBuffers::new(self.forward(), d_o, dq, dk, dv))
    }

    fn read(&self, attention: &FlashAttention) -> Bytes {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let size = self.buffer.size();
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let copy = attention.device().create_buffer(&descriptor);
        let mut encoder = attention.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.buffer, 0, &copy, 0, size);
        attention.queue().submit([encoder.finish()]);
        copy.slice(..).map_async(wgpu::MapMode::Read, |result| result.expect("the copy can be mapped"));
        attention.device().poll(PollType::wait_indefinitely()).expect("the GPU finishes");
        let all = copy.slice(..).get_mapped_range().expect("the copy is mapped");
        let part = |range: &std::ops::Range<u64>| all[range.start as usize..range.end as usize].to_vec();
        self.ranges.iter().map(|(operand, range)| (*operand, part(range))).collect()
    }
}

/// Problems whose kernels read and write in every way: by quads, one by one, halves of words, scores in memory, few rows.
fn problems() -> Vec<AttentionProblem> {
    let shape = |seqlen_q, head_dim| AttentionShape::new(2, 4, seqlen_q, head_dim).with_num_heads_kv(2);
    let modified = AttentionProblem::new(shape(33, 64).with_seqlen_kv(70)).with_element(Element::F16);
    let bias = EntryLayout::contiguous([1, 4, 33, 70]);
    vec![
        AttentionProblem::new(shape(70, 32)).with_causal(),
        AttentionProblem::new(shape(40, 31)).with_element(Element::F16),
        AttentionProblem::new(shape(40, 48)).with_element(Element::Bf16).with_algorithm(Algorithm::Standard),
        AttentionProblem::new(shape(1, 64).with_seqlen_kv(2000)),
        modified
            .with_score(ScoreMod::Bias { layout: bias, element: Element::F32 })
            .with_causal()
            .with_sink()
            .with_bias_gradient()
            .with_dropout(0.2, 5),
    ]
}

fn shared() -> FlashAttention {
    FlashAttention::clone(library(Variant::Full)).with_shared_buffers(true)
}

#[test]
fn tensors_in_one_buffer() {
    let attention = shared();
    for problem in problems() {
        let given = gradient_inputs(&problem, 7);
        for is_backward in [false, true] {
            let tensors = given.tensors(&problem, is_backward);
            let calls = [(tensors.clone(), Call::default())];
            let expected = run_bytes(library(Variant::Full), &problem, is_backward, &calls).remove(0);
            let mut encoder = attention.device().create_command_encoder(&Default::default());
            let pool = if is_backward {
                let prepared = pollster::block_on(attention.prepare_backward(&problem)).unwrap();
                let pool = Pool::new(&attention, prepared.plan(), &tensors);
                prepared.encode(&mut encoder, &pool.backward()).unwrap();
                pool
            } else {
                let prepared = pollster::block_on(attention.prepare_forward(&problem)).unwrap();
                let pool = Pool::new(&attention, prepared.plan(), &tensors);
                prepared.encode(&mut encoder, &pool.forward()).unwrap();
                pool
            };
            attention.queue().submit([encoder.finish()]);
            let found = pool.read(&attention);
            for (operand, range) in &pool.ranges {
                let len = expected[operand].len().min(found[operand].len());
                assert!(found[operand][..len] == expected[operand][..len], "{operand} at {range:?} of {problem:?}");
            }
        }
    }
}

/// What overlaps is refused if it is written, as before.
#[test]
fn ranges_that_overlap() {
    let attention = shared();
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 40, 32));
    let prepared = pollster::block_on(attention.prepare_forward(&problem)).unwrap();
    let pool = Pool::new(&attention, prepared.plan(), &gradient_inputs(&problem, 7).tensors(&problem, false));
    let encode = |buffers: ForwardBuffers| {
        let mut encoder = attention.device().create_command_encoder(&Default::default());
        prepared.encode(&mut encoder, &buffers)
    };
    let good = pool.forward();
    assert_eq!(encode(good), Ok(()));
    // Inputs may lie where others lie.
    assert_eq!(encode(good.with(Operand::K, good.get(Operand::Q))), Ok(()));
    let aliased = |output, other| Err(Error::BufferAliased { output, other });
    assert_eq!(encode(good.with(Operand::O, good.get(Operand::Q))), aliased(Operand::O, Operand::Q));
    assert_eq!(encode(good.with(Operand::Lse, good.get(Operand::V))), aliased(Operand::Lse, Operand::V));
    assert_eq!(encode(good.with(Operand::Lse, good.get(Operand::O))), aliased(Operand::O, Operand::Lse));
    // Prepared without it, an operation takes no such buffers.
    let apart = pollster::block_on(library(Variant::Full).prepare_forward(&problem)).unwrap();
    let mut encoder = attention.device().create_command_encoder(&Default::default());
    assert_eq!(apart.encode(&mut encoder, &good), aliased(Operand::O, Operand::Q));
}
