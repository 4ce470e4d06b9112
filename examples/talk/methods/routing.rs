//! Routing Transformer: A. Roy, M. Saffar, A. Vaswani, D. Grangier, "Efficient Content-Based Sparse Attention with Routing
//! Transformers", TACL 2021.
//!
//!     each head has √seqlen centroids μ_c of length 1
//!     each centroid takes the w = seqlen / centroids rows with the largest μ_c · q / ‖q‖, and the w keys with the largest
//!     μ_c · k / ‖k‖
//!     these rows attend to these keys, exactly
//!     o_i = mean over the centroids that took row i; 0 if none did
//!
//! Causal: a row sees the keys j ≤ i among them; where there is none it gets 0, which counts in the mean.
//!
//! A model learns its centroids in training. Here a few steps of spherical k-means over the unit vectors of Q and K, of all
//! sequences, stand for that: they are made once, and are not a part of the run.

use wgpu_flash_attention::{AttentionProblem, Operand};

use super::sparse::{self, Attention, Gather, Nearest, Sort, Step};
use super::{Cost, Method, Prepared};
use crate::case::{self, Case, Head, Inputs, Problem, State, Tensor, Values};
use crate::device::Gpu;
use crate::draws::Draws;
use crate::failure::{Failure, Result};

/// Bytes of scores that are made at a time, so that they may stay in a large GPU's cache until they are read.
const SCORES_AT_ONCE: u64 = 32 << 20;

/// But so many centroids at a time that they keep such a GPU busy.
const CENTROIDS_AT_ONCE: u32 = 512;

/// The state: centroids `[num_heads, centroids, head_dim]`, and the rows and keys that each took, rising,
/// `[batch, num_heads, centroids, w]`. Rows and keys are used only together with each other.
const CENTROIDS: &str = "routing.centroids";
const ROWS: &str = "routing.rows";
const KEYS: &str = "routing.keys";

pub struct Routing {
    /// Steps of k-means.
    pub steps: u32,
}

impl Default for Routing {
    fn default() -> Self {
        Self { steps: 4 }
    }
}

/// Centroids of a head.
fn centroids(problem: &Problem) -> u32 {
    (f64::from(problem.seqlen).sqrt().round() as u32).clamp(1, sparse::MOST_BUCKETS)
}

/// Rows, and keys, that a centroid takes.
fn length(problem: &Problem) -> u32 {
    problem.seqlen.div_ceil(centroids(problem))
}

fn dims_of_members(problem: &Problem) -> [u32; 4] {
    [problem.batch, problem.num_heads, centroids(problem), length(problem)]
}

impl Method for Routing {
    fn name(&self) -> &'static str {
        "routing"
    }

    fn supports(&self, problem: &Problem) -> std::result::Result<(), String> {
        sparse::takes_quads(problem)
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(Ready::new(gpu, case, self.steps)?))
    }

    fn twin(&self, inputs: &Inputs, state: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let Problem { head_dim, causal, .. } = inputs.problem;
        let d = head_dim as usize;
        let [q, k, v] = inputs.of_head(head);
        let [_, _, columns, len] = dims_of_members(&inputs.problem).map(|dim| dim as usize);
        let of_head = |name| &state[name].u32s()[head.of_q(&inputs.problem) * columns * len..][..columns * len];
        let (row_members, key_members) = (of_head(ROWS), of_head(KEYS));
        let of_row = |i: u32| {
            let mut sum = vec![0.0; d];
            let mut count = 0;
            for (rows, keys) in row_members.chunks_exact(len).zip(key_members.chunks_exact(len)) {
                if rows.contains(&i) {
                    let keys = keys.iter().filter(|j| !causal || **j <= i).map(|j| *j as usize);
                    let q = sparse::row(q, i as usize, d);
                    let (o, _) = sparse::attend(&q, |j| sparse::row(k, j, d), |j| sparse::row(v, j, d), keys);
                    sum.iter_mut().zip(o).for_each(|(sum, o)| *sum += o);
                    count += 1;
                }
            }
            sum.into_iter().map(move |sum| sum / f64::from(count.max(1)))
        };
        rows.iter().flat_map(|i| of_row(*i)).collect()
    }
}

/// What the steps share.
struct Making<'a> {
    gpu: &'a Gpu,
    case: &'a Case<'a>,
    problem: Problem,
    /// Of Q and of K.
    inverse: [wgpu::Buffer; 2],
    centroids: wgpu::Buffer,
    /// `[rows or keys, batch, num_heads, centroids, w]`
    members: wgpu::Buffer,
}

struct Ready {
    steps: Vec<Step>,
    problem: Problem,
    centroids: wgpu::Buffer,
    members: wgpu::Buffer,
    o: wgpu::Buffer,
    cost: Cost,
}

impl Ready {
    fn new(gpu: &Gpu, case: &Case, steps_of_means: u32) -> Result<Self> {
        let problem = case.inputs.problem;
        let Problem { batch, num_heads, num_heads_kv, head_dim, .. } = problem;
        let (columns, len) = (centroids(&problem), length(&problem));
        let (of_q, q_inverse) = sparse::row_lengths(gpu, &problem, &case.q, batch * num_heads)?;
        let (of_k, k_inverse) = sparse::row_lengths(gpu, &problem, &case.k, batch * num_heads_kv)?;
        let lengths = [of_q, of_k];
        let dims = [num_heads, columns, head_dim];
        let given = case::given(case, CENTROIDS, &dims.map(|dim| dim as usize))?;
        let first =
            given.as_ref().map_or_else(|| first_centroids(case.inputs, case.seed), |given| given.f32s().to_vec());
        let making = Making {
            gpu,
            case,
            problem,
            inverse: [q_inverse, k_inverse],
            centroids: gpu.filled("centroids", bytemuck::cast_slice(&first))?,
            members: gpu.buffer("members", 8 * u64::from(batch * num_heads) * u64::from(columns * len))?,
        };
        if given.is_none() {
            sparse::run(gpu, &lengths)?;
            let means = making.means()?;
            (0..steps_of_means).try_for_each(|_| sparse::run(gpu, &means))?;
        }

        let mut steps = Vec::new();
        let mut extra_bytes = making.centroids.size() + making.members.size();
        let [rows, keys] = [ROWS, KEYS].map(|name| given_members(case, name));
        let has_members = match (rows?, keys?) {
            (Some(rows), Some(keys)) => {
                gpu.attention.queue().write_buffer(&making.members, 0, bytemuck::cast_slice(&[rows, keys].concat()));
                true
            }
            (Some(_), None) | (None, Some(_)) => {
                return Err(Failure::new(format_args!("{ROWS} and {KEYS} are loaded together or not at all")));
            }
            (None, None) => {
                steps.extend(lengths);
                extra_bytes +=
                    making.inverse.iter().map(wgpu::Buffer::size).sum::<u64>() + making.choose(&mut steps)?;
                false
            }
        };
        let o = case.output(gpu)?;
        extra_bytes += making.attend(&mut steps, &o)?;
        let cost = Cost { extra_bytes, ..cost(&problem, has_members) };
        let Making { centroids, members, .. } = making;
        Ok(Self { steps, problem, centroids, members, o, cost })
    }
}

impl Making<'_> {
    fn lists(&self) -> u32 {
        self.problem.batch * self.problem.num_heads
    }

    /// A step of k-means: the nearest centroid of each token, tokens sorted by it, and the new centroids.
    fn means(&self) -> Result<Vec<Step>> {
        let Problem { batch, num_heads, num_heads_kv, seqlen, .. } = self.problem;
        let (lists, columns) = (self.lists(), centroids(&self.problem));
        let nearest = self.gpu.buffer("nearest centroids", 8 * u64::from(lists) * u64::from(seqlen))?;
        let mut steps = Vec::new();
        let tensors = [(&self.case.q, 1, 0), (&self.case.k, num_heads / num_heads_kv, lists)];
        for (x, heads_per_x, first_list) in tensors {
            let of_tensor = Nearest { is_signed: false, columns, rounds: 1, heads_per_x, sets: [0, 1], first_list };
            steps.push(of_tensor.step(self.gpu, &self.problem, [x, &self.centroids, &nearest])?);
        }
        let sort = Sort::new(self.gpu, 2 * lists, seqlen, columns, &nearest)?;
        let wgsl = sparse::text(&self.problem, &[], &[include_str!("../shaders/routing_centroids.wgsl")]);
        let params = [seqlen, columns, batch, num_heads, num_heads / num_heads_kv, sort.blocks];
        let [of_q, of_k] = &self.inverse;
        let buffers = [&self.case.q, &self.case.k, of_q, of_k, &sort.order, &sort.starts, &self.centroids];
        let update = self.gpu.kernel("routing_centroids", wgsl, &params, &buffers)?;
        steps.extend(sort.steps);
        steps.push(Step::Kernel(update, [columns, num_heads, 1]));
        Ok(steps)
    }

    /// Adds the steps that find the rows and keys of each centroid, some heads at a time. Returns the bytes of scores.
    fn choose(&self, steps: &mut Vec<Step>) -> Result<u64> {
        let Problem { num_heads, num_heads_kv, seqlen, .. } = self.problem;
        let (lists, columns, len) = (self.lists(), centroids(&self.problem), length(&self.problem));
        let of_list = u64::from(columns) * u64::from(seqlen) * 4;
        // The third dimension of a grid has 65,535 workgroups at most.
        let at_once = (SCORES_AT_ONCE / of_list).max(CENTROIDS_AT_ONCE.div_ceil(columns).into());
        let at_once = at_once.min(lists.min(1 << 15).into()) as u32;
        let scores = self.gpu.buffer("scores", u64::from(at_once) * of_list)?;
        let files = [include_str!("../shaders/products.wgsl"), include_str!("../shaders/routing_scores.wgsl")];
        let tensors =
            [(&self.case.q, &self.inverse[0], 1, 0), (&self.case.k, &self.inverse[1], num_heads / num_heads_kv, lists)];
        for first in (0..lists).step_by(at_once as usize) {
            let count = at_once.min(lists - first);
            for (x, inverse, heads_per_x, first_out) in tensors {
                let params = [seqlen, columns, num_heads, heads_per_x, first];
                let buffers = [x, &self.centroids, inverse, &scores];
                let wgsl = sparse::text(&self.problem, &[], &files);
                let kernel = self.gpu.kernel("routing_scores", wgsl, &params, &buffers)?;
                steps.push(Step::Kernel(kernel, [seqlen.div_ceil(64), columns.div_ceil(64), count]));
                let wgsl = include_str!("../shaders/routing_top.wgsl").to_owned();
                let params = [seqlen, columns, len, first_out + first];
                let kernel = self.gpu.kernel("routing_top", wgsl, &params, &[&scores, &self.members])?;
                steps.push(Step::Kernel(kernel, [columns, count, 1]));
            }
        }
        Ok(scores.size())
    }

    /// Adds the steps from members to O. Returns the bytes of its buffers.
    fn attend(&self, steps: &mut Vec<Step>, o: &wgpu::Buffer) -> Result<u64> {
        let Problem { num_heads, num_heads_kv, seqlen, .. } = self.problem;
        let (gpu, lists) = (self.gpu, self.lists());
        let (columns, len) = (centroids(&self.problem), length(&self.problem));
        let (words, num_members) = (columns.div_ceil(32), lists * columns * len);
        let taken = gpu.buffer("taken", u64::from(lists) * u64::from(seqlen) * u64::from(words) * 4)?;
        let wgsl = include_str!("../shaders/routing_marks.wgsl").to_owned();
        let params = [seqlen, columns, len, words, num_members];
        let marks = gpu.kernel("routing_marks", wgsl, &params, &[&self.members, &taken])?;
        steps.push(Step::Clear(taken.clone()));
        steps.push(Step::Kernel(marks, sparse::grid(num_members.into())));

        let rows = Gather {
            rows: &self.members,
            groups: lists * columns,
            length: len,
            groups_per_list: columns,
            first_row: 0,
        };
        let keys = Gather { first_row: num_members, ..rows };
        let heads_per_kv = num_heads / num_heads_kv;
        let (q_step, q) = rows.step(gpu, &self.problem, &self.case.q, 1, None)?;
        let (k_step, k) = keys.step(gpu, &self.problem, &self.case.k, heads_per_kv, None)?;
        let (v_step, v) = keys.step(gpu, &self.problem, &self.case.v, heads_per_kv, None)?;
        steps.extend([q_step, k_step, v_step]);
        let o_clusters = gpu.buffer("O of clusters", q.size())?;
        let problem = attention_of_clusters(&self.problem)?;
        let aux = self.problem.causal.then_some((Operand::Aux, &self.members));
        let attention = Attention::new(gpu, &problem, [&q, &k, &v, &o_clusters], aux)?;
        let bytes = attention.extra_bytes();
        steps.push(Step::Attention(Box::new(attention)));

        let wgsl = sparse::text(&self.problem, &[], &[include_str!("../shaders/routing_mean.wgsl")]);
        let params = [seqlen, columns, len, words, lists];
        let mean = gpu.kernel("routing_mean", wgsl, &params, &[&o_clusters, &self.members, &taken, o])?;
        steps.push(Step::Kernel(mean, sparse::grid(self.problem.q_len() as u64 / 4)));
        Ok(bytes + [&q, &k, &v, &o_clusters, &taken].iter().map(|buffer| buffer.size()).sum::<u64>())
    }
}

/// Attention inside the clusters, on the tokens' own positions if it is causal.
fn attention_of_clusters(problem: &Problem) -> Result<AttentionProblem> {
    let len = length(problem);
    let groups = problem.batch * problem.num_heads * centroids(problem);
    // aux: array<u32>, [rows or keys, groups, w], positions
    let mask = format!(
        "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {{
  return aux[{first_key}u + batch * {len}u + kv_idx] <= aux[batch * {len}u + q_idx];
}}",
        first_key = groups * len
    );
    sparse::gathered(problem, groups, len, problem.causal.then_some((&mask, Some(2 * groups * len))))
}

/// The rows or keys that `--load` gives: of each centroid rising, so that none is there twice.
fn given_members<'a>(case: &Case<'a>, name: &str) -> Result<Option<&'a [u32]>> {
    let problem = &case.inputs.problem;
    let members = sparse::given_words(case, name, &dims_of_members(problem), problem.seqlen)?;
    let rises =
        |members: &&[u32]| members.chunks_exact(length(problem) as usize).all(|own| own.is_sorted_by(|a, b| a < b));
    match members.as_ref().is_none_or(rises) {
        true => Ok(members),
        false => Err(Failure::new(format_args!("the loaded {name} must rise for each centroid"))),
    }
}

/// Tokens to start from: centroid c of a head is the direction of a row of Q or, for odd c, of K, of the first sequence, drawn
/// from the c-th of as many stretches of the sequence as there are centroids.
fn first_centroids(inputs: &Inputs, seed: u64) -> Vec<f32> {
    let problem = &inputs.problem;
    let (columns, d) = (centroids(problem), problem.head_dim as usize);
    let draws = Draws::new(seed, "routing");
    let mut first = Vec::new();
    for head in 0..problem.num_heads {
        let [q, k, _] = inputs.of_head(Head { batch: 0, head });
        for column in 0..columns {
            let stretch = u64::from(column) << 32 | u64::from(draws.words(head, column.into())[0]);
            let token = (stretch as u128 * u128::from(problem.seqlen) / u128::from(columns)) >> 32;
            let token = sparse::row(if column % 2 == 0 { q } else { k }, token as usize, d);
            let length = token.iter().map(|x| x * x).sum::<f64>().sqrt();
            first.extend(token.iter().map(|x| if length > 0.0 { (x / length) as f32 } else { 0.0 }));
        }
    }
    first
}

fn cost(problem: &Problem, has_members: bool) -> Cost {
    let Problem { batch, num_heads, seqlen, head_dim, .. } = *problem;
    let lists = f64::from(batch * num_heads);
    let (columns, len) = (f64::from(centroids(problem)), f64::from(length(problem)));
    let (n, d, size) = (f64::from(seqlen), f64::from(head_dim), problem.element.size() as f64);
    let rows = lists * columns * len;
    let attention = rows * len * (4.0 * d + 1.0);
    // Q and K are read for lengths and for scores. Scores are written, and read four times for digits and twice for members.
    let chosen = if has_members { [0.0; 2] } else { [lists * 2.0 * n * columns * 2.0 * d, lists * 2.0 * n] };
    let choice = chosen[1] * (2.0 * d * size + columns * 4.0 * 7.0);
    // Q, K and V are read and written by the gather, read by attention, which writes O; the mean reads and writes O.
    let bytes = choice + rows * (6.0 + 4.0 + 1.0) * d * size + problem.q_len() as f64 * size;
    Cost { flops: attention + chosen[0], bytes, extra_bytes: 0 }
}

impl Prepared for Ready {
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        sparse::encode(&self.steps, encoder)
    }

    fn output(&self) -> &wgpu::Buffer {
        &self.o
    }

    fn cost(&self) -> Cost {
        self.cost
    }

    fn state(&self, gpu: &Gpu) -> Result<State> {
        let Problem { num_heads, head_dim, .. } = self.problem;
        let [batch, _, columns, len] = dims_of_members(&self.problem);
        let centroids = sparse::read_f32(gpu, &self.centroids, &[num_heads, columns, head_dim])?;
        let members = sparse::read_u32(gpu, &self.members, &[2, batch, num_heads, columns, len])?;
        let Values::U32(all) = members.values else { return Ok(State::new()) };
        let (rows, keys) = all.split_at(all.len() / 2);
        let tensor = |values: &[u32]| Tensor { dims: members.dims[1..].to_vec(), values: Values::U32(values.to_vec()) };
        Ok(State::from([
            (CENTROIDS.to_owned(), centroids),
            (ROWS.to_owned(), tensor(rows)),
            (KEYS.to_owned(), tensor(keys)),
        ]))
    }

    fn report(&self, gpu: &Gpu) -> Result<Vec<(String, String)>> {
        let state = self.state(gpu)?;
        let Problem { batch, num_heads, seqlen, .. } = self.problem;
        let of_head = (centroids(&self.problem) * length(&self.problem)) as usize;
        let mut missing = 0;
        for members in state[ROWS].u32s().chunks_exact(of_head) {
            let mut taken = vec![false; seqlen as usize];
            members.iter().for_each(|row| taken[*row as usize] = true);
            missing += taken.iter().filter(|taken| !**taken).count();
        }
        let rows = f64::from(batch * num_heads) * f64::from(seqlen);
        Ok(vec![("rows in no cluster".to_owned(), format!("{:.1} %", 100.0 * missing as f64 / rows))])
    }
}
