//! What the sparse methods share: exact attention on parts of a problem, kernels over rows, and the counting sort.

use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, AuxType, DeviceClass, ForwardBuffers, KeyMask, MaskWgsl,
    Operand, PlanBuilder, PreparedForward, TensorLayout, WgslOptions,
};

use super::Cost;
use super::dense::element_text;
use crate::case::{Case, Problem, Tensor, Values};
use crate::device::{Gpu, Kernel};
use crate::failure::{Failure, Result};
use crate::resident;

/// Tokens of a block of the counting sort.
const SORT_BLOCK: u32 = 1024;

/// The most buckets of the counting sort: their counts lie in workgroup memory, of which WebGPU promises 16 KiB.
pub const MOST_BUCKETS: u32 = 2048;

/// What a method does in one run, in order.
pub enum Step {
    Kernel(Kernel, [u32; 3]),
    Attention(Box<Attention>),
    /// Fills a buffer with zeros.
    Clear(wgpu::Buffer),
}

/// Records steps in order.
pub fn encode(steps: &[Step], encoder: &mut wgpu::CommandEncoder) -> Result<()> {
    for step in steps {
        match step {
            Step::Kernel(kernel, workgroups) => kernel.encode(encoder, *workgroups),
            Step::Attention(attention) => attention.encode(encoder)?,
            Step::Clear(buffer) => encoder.clear_buffer(buffer, 0, None),
        }
    }
    Ok(())
}

/// Submits steps and waits for them.
pub fn run(gpu: &Gpu, steps: &[Step]) -> Result<()> {
    let mut encoder = gpu.attention.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encode(steps, &mut encoder)?;
    gpu.attention.queue().submit([encoder.finish()]);
    gpu.wait()
}

/// Exact attention of the library, with its buffers.
pub struct Attention {
    prepared: PreparedForward,
    /// Q, K, V, O and LSE.
    tensors: [wgpu::Buffer; 5],
    more: Option<(Operand, wgpu::Buffer)>,
}

impl Attention {
    /// Attention on these Q, K, V and O. `more` is `aux` or a bias, if the problem has one.
    pub fn new(
        gpu: &Gpu,
        problem: &AttentionProblem,
        tensors: [&wgpu::Buffer; 4],
        more: Option<(Operand, &wgpu::Buffer)>,
    ) -> Result<Self> {
        Self::planned(gpu, gpu.attention.plan_forward(problem), tensors, more)
    }

    /// As `new`, of few rows that meet all keys. So that they do not last longer than all other rows, their keys are split: 528
    /// workgroups are four for each core of an H200, and the planner splits on matrices only what it must.
    pub fn of_few_rows(gpu: &Gpu, problem: &AttentionProblem, tensors: [&wgpu::Buffer; 4]) -> Result<Self> {
        let shape = &problem.shape;
        let workgroups = shape.batch * shape.num_heads * shape.seqlen_q.div_ceil(64);
        let splits = (528 / workgroups.max(1)).min(shape.seqlen_kv / 512);
        let plan = gpu.attention.plan_forward(problem);
        // A software driver has one workgroup at a time on each core.
        let is_gpu = gpu.attention.capabilities().device_class != DeviceClass::Cpu;
        let plan = if is_gpu && splits > 1 { plan.with_splits(splits) } else { plan };
        Self::planned(gpu, plan, tensors, None)
    }

    fn planned(
        gpu: &Gpu,
        plan: PlanBuilder,
        [q, k, v, o]: [&wgpu::Buffer; 4],
        more: Option<(Operand, &wgpu::Buffer)>,
    ) -> Result<Self> {
        let plan = plan.build()?;
        let lse_len = plan.problem().shape.lse_len();
        let prepared = pollster::block_on(gpu.attention.prepare_forward_plan(plan))?;
        let lse = gpu.buffer("LSE", lse_len * 4)?;
        let more = more.map(|(operand, buffer)| (operand, buffer.clone()));
        Ok(Self { prepared, tensors: [q.clone(), k.clone(), v.clone(), o.clone(), lse], more })
    }

    /// LSE, f32 `[batch, num_heads, seqlen_q]`.
    pub fn lse(&self) -> &wgpu::Buffer {
        &self.tensors[4]
    }

    /// Bytes of LSE, scratch memory and tables.
    pub fn extra_bytes(&self) -> u64 {
        self.prepared.plan().extra_bytes()
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let [q, k, v, o, lse] = self.tensors.each_ref().map(|buffer| buffer.slice(..));
        let buffers = ForwardBuffers::new(q, k, v, o, lse);
        let buffers = self.more.iter().fold(buffers, |all, (operand, buffer)| all.with(*operand, buffer.slice(..)));
        Ok(self.prepared.encode(encoder, &buffers)?)
    }
}

/// Attention of rows `first..first + count` with all keys; tensors are those of the whole problem. Not causal.
pub fn some_rows(problem: &Problem, first: u32, count: u32) -> AttentionProblem {
    let Problem { batch, num_heads, num_heads_kv, seqlen, head_dim, element, .. } = *problem;
    let shape =
        AttentionShape::new(batch, num_heads, count, head_dim).with_num_heads_kv(num_heads_kv).with_seqlen_kv(seqlen);
    let rows = TensorLayout {
        offset: u64::from(first) * u64::from(head_dim),
        ..TensorLayout::bhsd(seqlen, num_heads, head_dim)
    };
    let keys = TensorLayout::bhsd(seqlen, num_heads_kv, head_dim);
    let layout = AttentionLayout { q: rows, k: keys, v: keys, o: rows };
    AttentionProblem::new(shape).with_layout(layout).with_element(element)
}

/// Attention of `groups` groups of `len` gathered rows each, `[groups, len, head_dim]`. `mask` is a mask in WGSL, and how many
/// numbers of `aux` it has, if it reads that.
pub fn gathered(
    problem: &Problem,
    groups: u32,
    len: u32,
    mask: Option<(&str, Option<u32>)>,
) -> Result<AttentionProblem> {
    let attention =
        AttentionProblem::new(AttentionShape::new(groups, 1, len, problem.head_dim)).with_element(problem.element);
    let Some((text, aux_len)) = mask else { return Ok(attention) };
    let options = WgslOptions::new().with_aux(AuxType::U32);
    let mask = MaskWgsl::with_options(text, options).map_err(Failure::new)?;
    let attention = attention.with_key_mask(KeyMask::Wgsl(mask));
    Ok(aux_len.into_iter().fold(attention, AttentionProblem::with_aux))
}

/// The kernels take rows in quads, and count elements of Q, a few times over, in 32 bits.
pub fn takes_quads(problem: &Problem) -> std::result::Result<(), String> {
    let head_dim = problem.head_dim;
    match problem.q_len() < 1 << 27 {
        true if head_dim.is_multiple_of(4) => Ok(()),
        true => Err(format!("needs a head_dim that is a multiple of 4, not {head_dim}")),
        false => Err("needs fewer than 2^27 elements in Q".to_owned()),
    }
}

/// A kind for each block and head is made on the CPU.
pub fn takes_blocks(heads: u32, blocks: u32) -> std::result::Result<(), String> {
    let kinds = u64::from(heads) * u64::from(blocks).pow(2);
    if kinds <= 1 << 24 { Ok(()) } else { Err(format!("needs at most 2^24 blocks in its masks, not {kinds}")) }
}

/// The text of a kernel: its sizes, its element type and its files.
pub fn text(problem: &Problem, constants: &[(&str, String)], files: &[&str]) -> String {
    let constants = constants.iter().map(|(name, value)| format!("const {name} = {value};\n")).collect::<String>();
    let sizes = format!("const HEAD_DIM = {}u;\n", problem.head_dim);
    [&sizes, constants.as_str(), element_text(problem.element)].into_iter().chain(files.iter().copied()).collect()
}

/// Workgroups of 64 invocations for so many, folded into two dimensions.
pub fn grid(invocations: u64) -> [u32; 3] {
    let workgroups = invocations.div_ceil(64).max(1);
    let width = workgroups.min(1 << 15);
    [width as u32, workgroups.div_ceil(width) as u32, 1]
}

/// 1 / ‖x‖ of each row of a tensor with so many heads.
pub fn row_lengths(gpu: &Gpu, problem: &Problem, x: &wgpu::Buffer, heads: u32) -> Result<(Step, wgpu::Buffer)> {
    let rows = heads * problem.seqlen;
    let inverse = gpu.buffer("row lengths", u64::from(rows) * 4)?;
    let wgsl = text(problem, &[], &[include_str!("../shaders/row_lengths.wgsl")]);
    let kernel = gpu.kernel("row_lengths", wgsl, &[rows], &[x, &inverse])?;
    Ok((Step::Kernel(kernel, grid(rows.into())), inverse))
}

/// For each token the column that is nearest.
pub struct Nearest {
    pub is_signed: bool,
    /// Columns of a set.
    pub columns: u32,
    pub rounds: u32,
    pub heads_per_x: u32,
    /// Sets from one round, and from one head, to the next.
    pub sets: [u32; 2],
    /// Where the first list goes.
    pub first_list: u32,
}

impl Nearest {
    /// Writes `nearest` from x and the columns.
    pub fn step(&self, gpu: &Gpu, problem: &Problem, [x, columns, nearest]: [&wgpu::Buffer; 3]) -> Result<Step> {
        let Problem { batch, num_heads, seqlen, .. } = *problem;
        let lists = batch * num_heads;
        let constants = [("IS_SIGNED", self.is_signed.to_string())];
        let files = [include_str!("../shaders/products.wgsl"), include_str!("../shaders/nearest_column.wgsl")];
        let [of_round, of_head] = self.sets;
        let params = [seqlen, self.columns, lists, num_heads, self.heads_per_x, of_round, of_head, self.first_list];
        let kernel =
            gpu.kernel("nearest_column", text(problem, &constants, &files), &params, &[x, columns, nearest])?;
        Ok(Step::Kernel(kernel, [seqlen.div_ceil(64), self.rounds * lists, 1]))
    }
}

/// Tokens sorted by bucket and position.
pub struct Sort {
    pub steps: Vec<Step>,
    /// The token at each place, `[lists, seqlen]`.
    pub order: wgpu::Buffer,
    /// The place of each token, `[lists, seqlen]`.
    pub place_of: wgpu::Buffer,
    /// `[lists, blocks, buckets]`: of the first block, where each bucket starts.
    pub starts: wgpu::Buffer,
    pub blocks: u32,
}

impl Sort {
    /// Sorts lists by their keys, `[lists, seqlen]`.
    pub fn new(gpu: &Gpu, lists: u32, seqlen: u32, buckets: u32, keys: &wgpu::Buffer) -> Result<Self> {
        let blocks = seqlen.div_ceil(SORT_BLOCK);
        let len = u64::from(lists) * u64::from(seqlen);
        let [order, place_of] = ["order", "places"].map(|name| gpu.buffer(name, len * 4));
        let (order, place_of) = (order?, place_of?);
        let starts = gpu.buffer("counts", u64::from(lists) * u64::from(blocks) * u64::from(buckets) * 4)?;
        let kernel = |name: &str, file: &str, params: &[u32], buffers: &[&wgpu::Buffer]| {
            let text = format!("const BUCKETS = {buckets}u;\nconst SORT_BLOCK = {SORT_BLOCK}u;\n{file}");
            gpu.kernel(name, text, params, buffers)
        };
        let params = [seqlen, blocks];
        let count = kernel("sort_count", include_str!("../shaders/sort_count.wgsl"), &params, &[keys, &starts])?;
        let scan = kernel("sort_scan", include_str!("../shaders/sort_scan.wgsl"), &[blocks], &[&starts])?;
        let buffers = [keys, &starts, &order, &place_of];
        let scatter = kernel("sort_scatter", include_str!("../shaders/sort_scatter.wgsl"), &params, &buffers)?;
        let steps = vec![
            Step::Kernel(count, [blocks, lists, 1]),
            Step::Kernel(scan, [lists, 1, 1]),
            Step::Kernel(scatter, [blocks, lists, 1]),
        ];
        Ok(Self { steps, order, place_of, starts, blocks })
    }

    pub fn extra_bytes(&self) -> u64 {
        self.order.size() + self.place_of.size() + self.starts.size()
    }
}

/// Which rows are gathered from where.
#[derive(Clone, Copy)]
pub struct Gather<'a> {
    /// `[groups, length]`
    pub rows: &'a wgpu::Buffer,
    pub groups: u32,
    pub length: u32,
    pub groups_per_list: u32,
    /// Where `rows` begin in their buffer.
    pub first_row: u32,
}

impl Gather<'_> {
    /// A step that gathers rows of x, whose heads `heads_per_x` lists share, and the rows `[groups, length, head_dim]`. With `inverse`
    /// they get length 1.
    pub fn step(
        &self,
        gpu: &Gpu,
        problem: &Problem,
        x: &wgpu::Buffer,
        heads_per_x: u32,
        inverse: Option<&wgpu::Buffer>,
    ) -> Result<(Step, wgpu::Buffer)> {
        let rows = self.groups * self.length;
        let len = u64::from(rows) * u64::from(problem.head_dim);
        let gathered = gpu.buffer("gathered rows", len * problem.element.size())?;
        let constants = [("IS_UNIT", inverse.is_some().to_string())];
        let wgsl = text(problem, &constants, &[include_str!("../shaders/gather.wgsl")]);
        let lists = problem.batch * problem.num_heads;
        let params = [problem.seqlen, rows, self.length, self.groups_per_list, lists, heads_per_x, self.first_row];
        // Without lengths, what is bound in their place is not read.
        let buffers = [x, self.rows, inverse.unwrap_or(self.rows), &gathered];
        let kernel = gpu.kernel("gather", wgsl, &params, &buffers)?;
        Ok((Step::Kernel(kernel, grid(len / 4)), gathered))
    }
}

/// The tensor that `--load` gives under this name: u32 below `end`, of this shape.
///
/// # Errors
/// It has another shape, another type, or larger numbers.
pub fn given_words<'a>(case: &Case<'a>, name: &str, dims: &[u32], end: u32) -> Result<Option<&'a [u32]>> {
    let Some(tensor) = case.given.get(name) else { return Ok(None) };
    let has_shape = tensor.dims.iter().copied().eq(dims.iter().map(|dim| *dim as usize));
    match &tensor.values {
        Values::U32(values) if has_shape => match values.iter().find(|value| **value >= end) {
            Some(value) => {
                Err(Failure::new(format_args!("the loaded {name} contains {value}; must be below {end} here")))
            }
            None => {
                case.given.take(name);
                Ok(Some(values))
            }
        },
        _ => Err(Failure::new(format_args!(
            "the loaded {name} has the shape {:?}, it must be u32 of {dims:?} below {end} here",
            tensor.dims
        ))),
    }
}

/// A buffer of u32 as a tensor.
pub fn read_u32(gpu: &Gpu, buffer: &wgpu::Buffer, dims: &[u32]) -> Result<Tensor> {
    let dims: Vec<usize> = dims.iter().map(|dim| *dim as usize).collect();
    let bytes = resident::read(gpu, buffer, 0, dims.iter().product::<usize>() as u64 * 4)?;
    let values = bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    Ok(Tensor { dims, values: Values::U32(values.collect()) })
}

/// A buffer of f32 as a tensor.
pub fn read_f32(gpu: &Gpu, buffer: &wgpu::Buffer, dims: &[u32]) -> Result<Tensor> {
    let words = read_u32(gpu, buffer, dims)?;
    let values = words.u32s().iter().map(|word| f32::from_bits(*word)).collect();
    Ok(Tensor { values: Values::F32(values), ..words })
}

/// Exact attention of row i with the keys that it sees: O and LSE; 0 and −∞ if there are none.
pub fn attend(
    q: &[f64],
    k: impl Fn(usize) -> Vec<f64>,
    v: impl Fn(usize) -> Vec<f64>,
    keys: impl Iterator<Item = usize>,
) -> (Vec<f64>, f64) {
    let d = q.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let keys: Vec<usize> = keys.collect();
    let scores: Vec<f64> = keys.iter().map(|j| dot(q, &k(*j)) / (d as f64).sqrt()).collect();
    let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if m == f64::NEG_INFINITY {
        return (vec![0.0; d], m);
    }
    let weights: Vec<f64> = scores.iter().map(|s| (s - m).exp()).collect();
    let l: f64 = weights.iter().sum();
    let mut o = vec![0.0; d];
    for (weight, j) in weights.iter().zip(&keys) {
        o.iter_mut().zip(v(*j)).for_each(|(o, v)| *o += weight * v / l);
    }
    (o, m + l.ln())
}

/// Row j of a head, in f64.
pub fn row(tensor: &[f32], j: usize, d: usize) -> Vec<f64> {
    tensor[j * d..][..d].iter().copied().map(f64::from).collect()
}

/// What exact attention over so many (row, key) pairs costs, if Q, K, V and O pass once.
pub fn cost_of_pairs(problem: &Problem, pairs: f64) -> Cost {
    Cost {
        flops: pairs * (4.0 * f64::from(problem.head_dim) + 1.0),
        bytes: problem.tensor_bytes() as f64,
        extra_bytes: 0,
    }
}
