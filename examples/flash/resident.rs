//! Tensors that stay on the device between runs.

use wgpu_flash_attention::{
    AttentionProblem, BackwardBuffers, ForwardBuffers, Operand, PreparedBackward, PreparedForward,
    ProbabilitiesBuffers, ProbabilitiesProblem, ScoreMod,
};

use crate::device::Gpu;
use crate::failure::{Failure, Result};

/// Uploads and readbacks go in pieces of this size, so that staging memory stays small.
pub const CHUNK: u64 = 32 << 20;

/// Q, K, V, O and LSE of one problem.
pub struct Resident {
    pub q: wgpu::Buffer,
    pub k: wgpu::Buffer,
    pub v: wgpu::Buffer,
    pub o: wgpu::Buffer,
    pub lse: wgpu::Buffer,
    /// Bias, mask and sink.
    entries: Vec<(Operand, wgpu::Buffer)>,
}

/// The gradients of one problem, in the layouts of their tensors.
pub struct ResidentGradients {
    pub d_o: wgpu::Buffer,
    pub d_lse: Option<wgpu::Buffer>,
    pub dq: wgpu::Buffer,
    pub dk: wgpu::Buffer,
    pub dv: wgpu::Buffer,
    pub dsink: Option<wgpu::Buffer>,
    pub dbias: Option<wgpu::Buffer>,
}

/// Elements of Q, K, V and O, or of their gradients.
struct Lengths {
    q: u64,
    k: u64,
    v: u64,
    o: u64,
}

impl Lengths {
    fn of(problem: &AttentionProblem) -> Result<Self> {
        let (shape, layout) = (problem.shape, problem.layout);
        let fits = |len: Option<u64>| {
            len.filter(|len| *len <= u64::MAX / 4)
                .ok_or_else(|| Failure::new("a tensor of this shape passes 2^64 bytes"))
        };
        let (batch_q, rows_q) = problem.total_q().map_or((shape.batch, shape.seqlen_q), |total| (1, total));
        let (batch_kv, rows_kv) = problem.total_kv().map_or((shape.batch, shape.seqlen_kv), |total| (1, total));
        Ok(Self {
            q: fits(layout.q.required_len(batch_q, rows_q, shape.num_heads, shape.head_dim))?,
            k: fits(layout.k.required_len(batch_kv, rows_kv, shape.num_heads_kv, shape.head_dim))?,
            v: fits(layout.v.required_len(batch_kv, rows_kv, shape.num_heads_kv, shape.head_dim_v))?,
            o: fits(layout.o.required_len(batch_q, rows_q, shape.num_heads, shape.head_dim_v))?,
        })
    }
}

impl Resident {
    /// Buffers for this problem's tensors, not yet filled.
    pub async fn new(gpu: &Gpu, problem: &AttentionProblem) -> Result<Self> {
        let lengths = Lengths::of(problem)?;
        let size = problem.element.size();
        let lse = buffer(gpu, "LSE", problem.lse_len().saturating_mul(4)).await?;
        if problem.total_q().is_some() {
            // That of rows that no sequence uses, which nothing writes.
            upload(gpu, &lse, 0, f32::NEG_INFINITY.to_le_bytes().repeat(problem.lse_len() as usize))?;
        }
        Ok(Self {
            q: buffer(gpu, "Q", lengths.q * size).await?,
            k: buffer(gpu, "K", lengths.k * size).await?,
            v: buffer(gpu, "V", lengths.v * size).await?,
            o: buffer(gpu, "O", lengths.o * size).await?,
            lse,
            entries: Vec::new(),
        })
    }

    /// Adds a buffer for so many bytes, not yet filled.
    pub async fn add_empty(&mut self, gpu: &Gpu, operand: Operand, bytes: u64) -> Result<()> {
        self.entries.push((operand, buffer(gpu, operand.name(), bytes).await?));
        Ok(())
    }

    /// Takes a buffer that was added.
    pub fn take(&mut self, operand: Operand) -> Option<wgpu::Buffer> {
        let place = self.entries.iter().position(|(other, _)| *other == operand)?;
        Some(self.entries.remove(place).1)
    }

    /// The buffer of a bias, a mask or a sink.
    pub fn entry(&self, operand: Operand) -> Option<&wgpu::Buffer> {
        self.entries.iter().find(|(other, _)| *other == operand).map(|(_, buffer)| buffer)
    }

    /// Adds a bias, a mask or a sink.
    pub async fn add(&mut self, gpu: &Gpu, operand: Operand, bytes: Vec<u8>) -> Result<()> {
        let buffer = buffer(gpu, operand.name(), bytes.len() as u64).await?;
        upload(gpu, &buffer, 0, bytes)?;
        self.entries.push((operand, buffer));
        Ok(())
    }

    fn buffers(&self) -> ForwardBuffers<'_> {
        let [q, k, v, o, lse] = [&self.q, &self.k, &self.v, &self.o, &self.lse].map(|buffer| buffer.slice(..));
        let buffers = ForwardBuffers::new(q, k, v, o, lse);
        self.entries.iter().fold(buffers, |buffers, (operand, buffer)| buffers.with(*operand, buffer.slice(..)))
    }

    /// Records the operation.
    pub fn encode(&self, prepared: &PreparedForward, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        Ok(prepared.encode(encoder, &self.buffers())?)
    }

    /// Records the backward pass.
    pub fn encode_backward(
        &self,
        gradients: &ResidentGradients,
        prepared: &PreparedBackward,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<()> {
        let ResidentGradients { d_o, d_lse, dq, dk, dv, dsink, dbias } = gradients;
        let [d_o, dq, dk, dv] = [d_o, dq, dk, dv].map(|buffer| buffer.slice(..));
        let buffers = BackwardBuffers::new(self.buffers(), d_o, dq, dk, dv);
        let more = [(Operand::DLse, d_lse), (Operand::DSink, dsink), (Operand::DBias, dbias)];
        let buffers = more.into_iter().fold(buffers, |buffers, (operand, buffer)| {
            buffers.with(operand, buffer.as_ref().map(|buffer| buffer.slice(..)))
        });
        Ok(prepared.encode(encoder, &buffers)?)
    }

    /// Computes probabilities from what a forward pass has left in LSE, and reads them back.
    pub async fn probabilities(&self, gpu: &Gpu, chosen: &ProbabilitiesProblem) -> Result<Vec<u8>> {
        let prepared = gpu.attention.prepare_probabilities(chosen).await?;
        let bytes = prepared.plan().required_bytes(Operand::Probabilities);
        let written = buffer(gpu, "probabilities", bytes).await?;
        let [q, k, lse, p] = [&self.q, &self.k, &self.lse, &written].map(|buffer| buffer.slice(..));
        // A sink is a part of LSE.
        let entries = self.entries.iter().filter(|(operand, _)| *operand != Operand::Sink);
        let buffers = ProbabilitiesBuffers::new(q, k, lse, p);
        let buffers = entries.fold(buffers, |buffers, (operand, buffer)| buffers.with(*operand, buffer.slice(..)));
        let mut encoder = gpu.attention.device().create_command_encoder(&Default::default());
        prepared.encode(&mut encoder, &buffers)?;
        gpu.attention.queue().submit([encoder.finish()]);
        read(gpu, &written, 0, bytes)
    }

    /// Fills O and LSE with NaN, so that an answer can only come from the next run.
    pub fn poison(&self, gpu: &Gpu) -> Result<()> {
        [&self.o, &self.lse].into_iter().try_for_each(|buffer| poison(gpu, buffer))
    }
}

impl ResidentGradients {
    /// Buffers for the gradients of this problem, not yet filled.
    pub async fn new(gpu: &Gpu, problem: &AttentionProblem, has_d_lse: bool) -> Result<Self> {
        let lengths = Lengths::of(problem)?;
        let size = problem.gradient_element().size();
        let d_lse = match has_d_lse {
            true => Some(buffer(gpu, "dLSE", problem.lse_len().saturating_mul(4)).await?),
            false => None,
        };
        let dsink = match problem.has_sink() {
            true => Some(buffer(gpu, "dsink", u64::from(problem.shape.num_heads) * 4).await?),
            false => None,
        };
        let dbias = match dbias_bytes(problem) {
            Some(bytes) => Some(buffer(gpu, "dbias", bytes).await?),
            None => None,
        };
        Ok(Self {
            dsink,
            dbias,
            d_o: buffer(gpu, "dO", lengths.o * problem.element.size()).await?,
            d_lse,
            dq: buffer(gpu, "dQ", lengths.q * size).await?,
            dk: buffer(gpu, "dK", lengths.k * size).await?,
            dv: buffer(gpu, "dV", lengths.v * size).await?,
        })
    }

    /// Fills dQ, dK and dV with NaN.
    pub fn poison(&self, gpu: &Gpu) -> Result<()> {
        [&self.dq, &self.dk, &self.dv].into_iter().try_for_each(|buffer| poison(gpu, buffer))
    }
}

/// Bytes of the gradient of the bias, where it is asked for.
pub fn dbias_bytes(problem: &AttentionProblem) -> Option<u64> {
    let asked = problem.scores().iter().filter(|_| problem.has_bias_gradient());
    asked.into_iter().find_map(|modifier| match modifier {
        ScoreMod::Bias { layout, element } => {
            let len = layout.of_gradient(&problem.shape).required_len(&problem.shape);
            Some(len.saturating_mul(element.size()))
        }
        _ => None,
    })
}

fn poison(gpu: &Gpu, buffer: &wgpu::Buffer) -> Result<()> {
    let mut done = 0;
    while done < buffer.size() {
        let piece = CHUNK.min(buffer.size() - done);
        upload(gpu, buffer, done, vec![0xff; piece as usize])?;
        done += piece;
    }
    Ok(())
}

pub async fn buffer(gpu: &Gpu, name: &str, size: u64) -> Result<wgpu::Buffer> {
    let device = gpu.attention.device();
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(name),
        size: size.max(4).checked_next_multiple_of(4).unwrap_or(u64::MAX - 3),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    let (invalid, exhausted) = (validation.pop().await, memory.pop().await);
    if let Some(error) = invalid {
        return Err(Failure::new(format_args!("{name} does not fit into one buffer of this device: {error}")));
    }
    match exhausted {
        Some(_) => Err(Failure::new(format_args!("the device has no memory left for {name} ({size} bytes)"))),
        None => Ok(buffer),
    }
}

/// Writes bytes at an offset that is a multiple of 4. The last word of the buffer is filled up with zeros.
pub fn upload(gpu: &Gpu, buffer: &wgpu::Buffer, offset: u64, mut bytes: Vec<u8>) -> Result<()> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    for (i, piece) in bytes.chunks(CHUNK as usize).enumerate() {
        gpu.attention.queue().write_buffer(buffer, offset + i as u64 * CHUNK, piece);
        if piece.len() as u64 == CHUNK {
            // Sends the piece off and frees its staging memory.
            gpu.attention.queue().submit([]);
            gpu.wait()?;
        }
    }
    Ok(())
}

/// Reads `len` bytes at `offset`.
pub fn read(gpu: &Gpu, buffer: &wgpu::Buffer, offset: u64, len: u64) -> Result<Vec<u8>> {
    let device = gpu.attention.device();
    let mut bytes = Vec::with_capacity(len as usize);
    while (bytes.len() as u64) < len {
        let first = offset + bytes.len() as u64;
        let aligned = first & !3;
        let end = (offset + len).min(aligned + CHUNK);
        let size = (end - aligned).next_multiple_of(4);
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, aligned, &staging, 0, size);
        gpu.attention.queue().submit([encoder.finish()]);
        let piece = mapped(gpu, &staging)?;
        bytes.extend_from_slice(&piece[(first - aligned) as usize..(end - aligned) as usize]);
    }
    Ok(bytes)
}

/// Waits for a MAP_READ buffer and copies it out.
pub fn mapped(gpu: &Gpu, staging: &wgpu::Buffer) -> Result<Vec<u8>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    staging.slice(..).map_async(wgpu::MapMode::Read, move |result| {
        let _ = sender.send(result);
    });
    gpu.wait()?;
    let unreadable = |error: &dyn std::fmt::Display| Failure::new(format_args!("reading back failed: {error}"));
    receiver.recv().map_err(|error| unreadable(&error))?.map_err(|error| unreadable(&error))?;
    let view = staging.slice(..).get_mapped_range().map_err(|error| unreadable(&error))?;
    let bytes = view.to_vec();
    drop(view);
    staging.unmap();
    Ok(bytes)
}
