//! A small training loop: a model of one attention layer learns to say which token came before.
//!
//! `cargo run --example training_step -- [SEED]`
//!
//! Attention and its gradients run on the GPU, with dropout; embeddings, projections, loss and Adam are plain loops on the
//! host, so that every step of the chain rule can be read. The same seed gives the same losses, to the last digit.

use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, BackwardBuffers, Call, FlashAttention, ForwardBuffers, Operand, PreparedBackward,
    PreparedForward,
};

const BATCH: usize = 8;
const SEQLEN: usize = 24;
const HEADS: usize = 2;
/// Width of the model; a head has WIDTH / HEADS dimensions.
const WIDTH: usize = 32;
const TOKENS: usize = 12;
const STEPS: u32 = 200;
const DROPOUT_P: f64 = 0.1;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seed = std::env::args().nth(1).map_or(Ok(1), |text| text.parse())?;
    pollster::block_on(async {
        let mut random = Random(seed);
        let mut model = Model::new(&mut random);
        let attention = AttentionLayer::new(seed).await?;
        println!("step  loss (guessing: {:.3})", (TOKENS as f32).ln());
        for step in 0..STEPS {
            let tokens: Vec<usize> = (0..BATCH * SEQLEN).map(|_| random.below(TOKENS)).collect();
            let loss = model.train(&attention, &tokens, step)?;
            if step % 20 == 0 || step == STEPS - 1 {
                println!("{step:4}  {loss:.6}");
            }
        }
        Ok(())
    })
}

/// The attention of the model: prepared once, its buffers used in every step.
struct AttentionLayer {
    attention: FlashAttention,
    forward: PreparedForward,
    backward: PreparedBackward,
    /// Indexed by `Operand as usize`.
    buffers: Vec<wgpu::Buffer>,
}

impl AttentionLayer {
    async fn new(seed: u64) -> Result<Self, Box<dyn std::error::Error>> {
        let attention = FlashAttention::request().await?;
        let shape = AttentionShape::new(BATCH as u32, HEADS as u32, SEQLEN as u32, (WIDTH / HEADS) as u32);
        let problem = AttentionProblem::new(shape).with_causal().with_dropout(DROPOUT_P, seed);
        let forward = attention.prepare_forward(&problem).await?;
        let backward = attention.prepare_backward(&problem).await?;
        let buffer = |operand: &Operand| {
            attention.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some(operand.name()),
                size: backward.plan().required_bytes(*operand).max(16),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let buffers = Operand::ALL.iter().map(buffer).collect();
        Ok(Self { attention, forward, backward, buffers })
    }

    fn slice(&self, operand: Operand) -> wgpu::BufferSlice<'_> {
        self.buffers[operand as usize].slice(..)
    }

    /// O. Every step draws another dropout mask, by its number.
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], step: u32) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
        for (operand, values) in [(Operand::Q, q), (Operand::K, k), (Operand::V, v)] {
            self.write(operand, values);
        }
        let mut encoder = self.attention.device().create_command_encoder(&Default::default());
        let call = Call::new().with_philox_offset(step);
        self.forward.encode_call(&mut encoder, &self.forward_buffers(), &call)?;
        self.attention.queue().submit([encoder.finish()]);
        self.read(Operand::O)
    }

    fn forward_buffers(&self) -> ForwardBuffers<'_> {
        let [q, k, v, o, lse] =
            [Operand::Q, Operand::K, Operand::V, Operand::O, Operand::Lse].map(|operand| self.slice(operand));
        ForwardBuffers::new(q, k, v, o, lse)
    }

    /// dQ, dK and dV of the last forward pass, which has left Q, K, V, O and LSE in their buffers.
    fn backward(&self, d_o: &[f32], step: u32) -> Result<[Vec<f32>; 3], Box<dyn std::error::Error>> {
        self.write(Operand::DO, d_o);
        let mut encoder = self.attention.device().create_command_encoder(&Default::default());
        let [d_o, dq, dk, dv] = [Operand::DO, Operand::Dq, Operand::Dk, Operand::Dv].map(|operand| self.slice(operand));
        let buffers = BackwardBuffers::new(self.forward_buffers(), d_o, dq, dk, dv);
        let call = Call::new().with_philox_offset(step);
        self.backward.encode_call(&mut encoder, &buffers, &call)?;
        self.attention.queue().submit([encoder.finish()]);
        Ok([self.read(Operand::Dq)?, self.read(Operand::Dk)?, self.read(Operand::Dv)?])
    }

    fn write(&self, operand: Operand, values: &[f32]) {
        self.attention.queue().write_buffer(&self.buffers[operand as usize], 0, bytemuck::cast_slice(values));
    }

    fn read(&self, operand: Operand) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
        let source = &self.buffers[operand as usize];
        let device = self.attention.device();
        let target = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: source.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(source, 0, &target, 0, None);
        self.attention.queue().submit([encoder.finish()]);
        target.map_async(wgpu::MapMode::Read, .., |result| result.expect("the results can be read"));
        device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(bytemuck::cast_slice(&target.get_mapped_range(..)?).to_vec())
    }
}

/// Tokens and positions are embedded, attention mixes the positions, and its output names a token.
struct Model {
    /// TOKENS × WIDTH and SEQLEN × WIDTH.
    token_embedding: Weights,
    position_embedding: Weights,
    /// WIDTH × WIDTH each.
    query: Weights,
    key: Weights,
    value: Weights,
    /// WIDTH × TOKENS.
    output: Weights,
}

impl Model {
    fn new(random: &mut Random) -> Self {
        Self {
            token_embedding: Weights::new(TOKENS, WIDTH, random),
            position_embedding: Weights::new(SEQLEN, WIDTH, random),
            query: Weights::new(WIDTH, WIDTH, random),
            key: Weights::new(WIDTH, WIDTH, random),
            value: Weights::new(WIDTH, WIDTH, random),
            output: Weights::new(WIDTH, TOKENS, random),
        }
    }

    /// One step of Adam on the loss of naming each token's predecessor; that loss.
    fn train(
        &mut self,
        attention: &AttentionLayer,
        tokens: &[usize],
        step: u32,
    ) -> Result<f32, Box<dyn std::error::Error>> {
        // Forward: X, Q, K, V, O, the logits.
        let rows = tokens.len();
        let mut x = vec![0.0; rows * WIDTH];
        for (n, row) in x.chunks_mut(WIDTH).enumerate() {
            add(row, self.token_embedding.row(tokens[n]));
            add(row, self.position_embedding.row(n % SEQLEN));
        }
        let q = product(&x, &self.query.values, rows, WIDTH, WIDTH);
        let k = product(&x, &self.key.values, rows, WIDTH, WIDTH);
        let v = product(&x, &self.value.values, rows, WIDTH, WIDTH);
        let o = attention.forward(&q, &k, &v, step)?;
        let mut logits = product(&o, &self.output.values, rows, WIDTH, TOKENS);

        // The loss, and its gradient in place of the logits. The first token of a sequence has no predecessor.
        let predictions = (rows - rows / SEQLEN) as f32;
        let mut loss = 0.0;
        for (n, row) in logits.chunks_mut(TOKENS).enumerate() {
            if n % SEQLEN == 0 {
                row.fill(0.0);
                continue;
            }
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = row.iter().map(|logit| (logit - max).exp()).sum();
            let target = tokens[n - 1];
            loss -= (row[target] - max - sum.ln()) / predictions;
            row.iter_mut().for_each(|logit| *logit = (*logit - max).exp() / sum / predictions);
            row[target] -= 1.0 / predictions;
        }
        let d_logits = logits;

        // Backward, in reverse order.
        let d_output = product_of_transposed(&o, &d_logits, rows, WIDTH, TOKENS);
        let d_o = product_with_transposed(&d_logits, &self.output.values, rows, TOKENS, WIDTH);
        let [dq, dk, dv] = attention.backward(&d_o, step)?;
        let mut d_x = vec![0.0; rows * WIDTH];
        for (weights, gradient) in [(&mut self.query, &dq), (&mut self.key, &dk), (&mut self.value, &dv)] {
            add(&mut d_x, &product_with_transposed(gradient, &weights.values, rows, WIDTH, WIDTH));
            weights.update(&product_of_transposed(&x, gradient, rows, WIDTH, WIDTH), step);
        }
        let mut d_tokens = vec![0.0; TOKENS * WIDTH];
        let mut d_positions = vec![0.0; SEQLEN * WIDTH];
        for (n, row) in d_x.chunks(WIDTH).enumerate() {
            add(&mut d_tokens[tokens[n] * WIDTH..][..WIDTH], row);
            add(&mut d_positions[n % SEQLEN * WIDTH..][..WIDTH], row);
        }
        self.output.update(&d_output, step);
        self.token_embedding.update(&d_tokens, step);
        self.position_embedding.update(&d_positions, step);
        Ok(loss)
    }
}

/// A matrix that Adam learns.
struct Weights {
    values: Vec<f32>,
    width: usize,
    mean: Vec<f32>,
    variance: Vec<f32>,
}

impl Weights {
    fn new(rows: usize, width: usize, random: &mut Random) -> Self {
        let scale = (1.0 / width as f32).sqrt();
        let values = (0..rows * width).map(|_| (random.unit() * 2.0 - 1.0) * 1.7 * scale).collect();
        Self { values, width, mean: vec![0.0; rows * width], variance: vec![0.0; rows * width] }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    /// Adam (Kingma and Ba 2015).
    fn update(&mut self, gradient: &[f32], step: u32) {
        const RATE: f32 = 0.01;
        const KEEP_MEAN: f32 = 0.9;
        const KEEP_VARIANCE: f32 = 0.99;
        let steps = step as i32 + 1;
        let (mean_scale, variance_scale) = (1.0 - KEEP_MEAN.powi(steps), 1.0 - KEEP_VARIANCE.powi(steps));
        for (n, gradient) in gradient.iter().enumerate() {
            self.mean[n] = KEEP_MEAN * self.mean[n] + (1.0 - KEEP_MEAN) * gradient;
            self.variance[n] = KEEP_VARIANCE * self.variance[n] + (1.0 - KEEP_VARIANCE) * gradient * gradient;
            let size = (self.variance[n] / variance_scale).sqrt() + 1e-8;
            self.values[n] -= RATE * self.mean[n] / mean_scale / size;
        }
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// A (rows × inner) times B (inner × columns).
fn product(a: &[f32], b: &[f32], rows: usize, inner: usize, columns: usize) -> Vec<f32> {
    let mut c = vec![0.0; rows * columns];
    for (c, a) in c.chunks_mut(columns).zip(a.chunks(inner)) {
        for (a, b) in a.iter().zip(b.chunks(columns)) {
            c.iter_mut().zip(b).for_each(|(c, b)| *c += a * b);
        }
    }
    c
}

/// Aᵀ times B, both with `rows` rows: the gradient of a factor on the right.
fn product_of_transposed(a: &[f32], b: &[f32], rows: usize, a_columns: usize, b_columns: usize) -> Vec<f32> {
    let mut c = vec![0.0; a_columns * b_columns];
    for row in 0..rows {
        for (column, a) in a[row * a_columns..][..a_columns].iter().enumerate() {
            let b = &b[row * b_columns..][..b_columns];
            c[column * b_columns..][..b_columns].iter_mut().zip(b).for_each(|(c, b)| *c += a * b);
        }
    }
    c
}

/// A (rows × inner) times Bᵀ, B having `columns` rows: the gradient of a factor on the left.
fn product_with_transposed(a: &[f32], b: &[f32], rows: usize, inner: usize, columns: usize) -> Vec<f32> {
    let mut c = Vec::with_capacity(rows * columns);
    for a in a.chunks(inner) {
        c.extend(b.chunks(inner).map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()));
    }
    c
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1u64 << 24) as f32
    }

    fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }
}
