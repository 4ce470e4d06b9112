//! Runs the calls of a prepared operation through buffers with poison around every tensor.

use std::collections::HashMap;

use wgpu_flash_attention::{Buffers, Call, Error, FlashAttention, Operand, Plan, Prepared};

use super::values::POISON;

/// The bytes of tensors.
pub type Tensors = HashMap<Operand, Vec<u8>>;

/// What an operation may write.
const WRITTEN: [Operand; 12] = [
    Operand::O,
    Operand::Lse,
    Operand::Dq,
    Operand::Dk,
    Operand::Dv,
    Operand::DSink,
    Operand::DBias,
    Operand::Probabilities,
    Operand::KCache,
    Operand::VCache,
    Operand::QRotated,
    Operand::NewCacheSeqlens,
];

/// One call: what it reads, or writes over.
pub struct Given {
    pub call: Call,
    pub tensors: Tensors,
}

/// A tensor between guards.
struct Guarded {
    buffer: wgpu::Buffer,
    first: u64,
    bytes: u64,
    /// Whether it may have changed.
    is_read_back: bool,
}

/// How calls are encoded.
pub struct Way {
    /// Poison before and behind a tensor, a multiple of 16 bytes.
    pub guard: u64,
    /// Each dispatch in a submission by itself.
    pub apart: bool,
    /// Q, K and V are views of Q's buffer.
    pub one_buffer: bool,
    /// Q is written over itself.
    pub writes_q: bool,
}

impl Guarded {
    fn new(device: &wgpu::Device, first: u64, bytes: u64, contents: &[u8], is_read_back: bool) -> Self {
        let size = first + bytes + first;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
        let buffer =
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: true });
        let mut all = vec![POISON; size as usize];
        all[first as usize..][..contents.len()].copy_from_slice(contents);
        if let Ok(mut mapped) = buffer.slice(..).get_mapped_range_mut() {
            mapped.copy_from_slice(&all);
        }
        buffer.unmap();
        Self { buffer, first, bytes, is_read_back }
    }

    fn slice(&self) -> wgpu::BufferSlice<'_> {
        self.buffer.slice(self.first..self.first + self.bytes)
    }
}

/// The buffers that an operation's constructor takes, from a function that gives the slice of a tensor.
pub type Start<D> = for<'a> fn(&dyn Fn(Operand) -> wgpu::BufferSlice<'a>) -> Buffers<'a, D>;

/// Runs all calls of an operation, in one encoder if they are not to be apart. What they wrote, or what went wrong.
pub fn run<D>(
    attention: &FlashAttention,
    prepared: &Prepared<D>,
    start: Start<D>,
    calls: &[Given],
    way: &Way,
) -> Result<Vec<Tensors>, String> {
    let (device, queue) = (attention.device(), attention.queue());
    let plan = prepared.plan();
    let all: Vec<_> = calls.iter().map(|given| buffers(device, plan, given, way)).collect();
    let new_encoder = || device.create_command_encoder(&Default::default());
    let mut encoder = new_encoder();
    for (given, tensors) in calls.iter().zip(&all) {
        let slice = |operand: Operand| {
            let is_view = way.one_buffer && matches!(operand, Operand::K | Operand::V);
            tensors[if is_view { &Operand::Q } else { &operand }].slice()
        };
        let has = |operand: &Operand| tensors.contains_key(operand);
        let buffers =
            plan.operands().filter(has).fold(start(&slice), |buffers, operand| buffers.with(operand, slice(operand)));
        let said = |error: Error| format!("encode: {error}");
        if !way.apart {
            prepared.encode_call(&mut encoder, &buffers, &given.call).map_err(said)?;
            continue;
        }
        for dispatch in 0..prepared.num_dispatches(&given.call).map_err(said)? {
            prepared.encode_dispatches(&mut encoder, &buffers, &given.call, dispatch..dispatch + 1).map_err(said)?;
            queue.submit([std::mem::replace(&mut encoder, new_encoder()).finish()]);
        }
    }
    read(device, queue, encoder, &all)
}

/// A buffer for each of the plan's tensors that is given or written.
fn buffers(device: &wgpu::Device, plan: &Plan, given: &Given, way: &Way) -> HashMap<Operand, Guarded> {
    use Operand::{Aux, CuSeqlensKv, CuSeqlensQ, KCache, Q, SeqlensKv, SeqlensQ, VCache};
    let mut all = HashMap::new();
    for operand in plan.operands() {
        let contents = given.tensors.get(&operand);
        let is_changed = matches!(operand, KCache | VCache) || operand == Q && way.writes_q;
        let is_written = is_changed || contents.is_none() && WRITTEN.contains(&operand);
        let contents = match contents {
            Some(contents) => contents.as_slice(),
            None if is_written => &[],
            // An optional one.
            None => continue,
        };
        // Views of one buffer may reach further than one tensor. No slice is empty.
        let views: &[Operand] = if way.one_buffer && operand == Q { &[Q, Operand::K, Operand::V] } else { &[operand] };
        let needed = views.iter().map(|view| plan.required_bytes(*view)).max().unwrap_or(0);
        let bytes = needed.max(contents.len() as u64).next_multiple_of(4).max(16);
        // Those start where a binding may start.
        let is_alone = matches!(operand, Aux | SeqlensQ | SeqlensKv | CuSeqlensQ | CuSeqlensKv);
        let first = if is_alone { 512 } else { way.guard };
        all.insert(operand, Guarded::new(device, first, bytes, contents, is_written));
    }
    all
}

/// Submits, and reads back what may have changed, whose guards must not have.
fn read(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    mut encoder: wgpu::CommandEncoder,
    all: &[HashMap<Operand, Guarded>],
) -> Result<Vec<Tensors>, String> {
    let written = || all.iter().enumerate().flat_map(|(n, tensors)| tensors.iter().map(move |tensor| (n, tensor)));
    let written = || written().filter(|(_, (_, tensor))| tensor.is_read_back);
    let size = written().map(|(_, (_, tensor))| tensor.buffer.size()).sum::<u64>().max(4);
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let copy = device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    let mut first = 0;
    for (_, (_, tensor)) in written() {
        encoder.copy_buffer_to_buffer(&tensor.buffer, 0, &copy, first, tensor.buffer.size());
        first += tensor.buffer.size();
    }
    let submission = queue.submit([encoder.finish()]);
    copy.slice(..).map_async(wgpu::MapMode::Read, |_| ());
    let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
    device.poll(wait).map_err(|error| format!("waiting for the GPU failed: {error}"))?;
    let mapped = copy.slice(..).get_mapped_range().map_err(|error| format!("nothing can be read back: {error}"))?;
    let mut read: Vec<Tensors> = all.iter().map(|_| Tensors::new()).collect();
    let mut first = 0;
    for (number, (operand, tensor)) in written() {
        let bytes = &mapped[first..first + tensor.buffer.size() as usize];
        first += bytes.len();
        let (before, rest) = bytes.split_at(tensor.first as usize);
        let (own, behind) = rest.split_at(tensor.bytes as usize);
        for (guard, place) in [(before, "before"), (behind, "behind")] {
            if guard.iter().any(|byte| *byte != POISON) {
                return Err(format!("bytes {place} {operand} were written"));
            }
        }
        read[number].insert(*operand, own.to_vec());
    }
    Ok(read)
}
