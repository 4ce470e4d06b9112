//! Reformer: N. Kitaev, Ł. Kaiser, A. Levskaya, "Reformer: The Efficient Transformer", ICLR 2020.
//!
//!     k_i = q_i / ‖q_i‖                                   shared Q and K; the scores are q · k / √head_dim
//!     in each of ROUNDS rounds:
//!       bucket = argmax [x R; −x R]                       a random R for each round
//!       tokens are sorted by (bucket, position), and cut into chunks of CHUNK
//!       each token sees its chunk and the one before, but not itself
//!     o = Σ_r exp(lse_r − logsumexp lse) · o_r
//!
//! Causal: a token sees earlier tokens only, by their own positions. The first chunk does not wrap to the last. A chunk is not
//! restricted to one bucket. A key that a row sees in several rounds counts several times. A token that sees nothing in any
//! round sees itself. V and O are those of every query head.

use wgpu_flash_attention::{AttentionProblem, BlockKind, BlockMask, KeyMask, Operand};

use super::sparse::{self, Attention, Gather, Nearest, Sort, Step};
use super::{Cost, Exact, Method, Prepared};
use crate::case::{Case, Head, Inputs, Problem, State, Tensor, given};
use crate::device::Gpu;
use crate::draws::Draws;
use crate::failure::{Failure, Result};

/// Tokens of a chunk, and of a bucket if all are equal.
const CHUNK: u32 = 64;

const MOST_ROUNDS: u32 = 16;

/// The state: the rows of R, `[rounds, buckets / 2, head_dim]`, and the bucket of each token, `[rounds, batch, num_heads, seqlen]`.
/// Loaded buckets are taken as they are.
const ROTATIONS: &str = "reformer.rotations";
const BUCKETS: &str = "reformer.buckets";

pub struct Reformer {
    pub rounds: u32,
}

impl Default for Reformer {
    fn default() -> Self {
        Self { rounds: 4 }
    }
}

/// Columns of R: half as many as buckets.
fn columns(problem: &Problem) -> u32 {
    problem.seqlen.div_ceil(2 * CHUNK).min(sparse::MOST_BUCKETS / 2)
}

impl Method for Reformer {
    fn name(&self) -> &'static str {
        "reformer"
    }

    fn supports(&self, problem: &Problem) -> std::result::Result<(), String> {
        sparse::takes_quads(problem)?;
        sparse::takes_blocks(1, problem.seqlen.div_ceil(CHUNK))
    }

    fn exact(&self) -> Exact {
        Exact::SharedQk
    }

    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>> {
        // What is loaded says how many rounds there are; shapes are judged there.
        let loaded = [BUCKETS, ROTATIONS].iter().find_map(|name| case.given.get(name));
        let rounds = loaded.map_or(self.rounds, |tensor| tensor.dims.first().map_or(1, |rounds| *rounds as u32));
        if !(1..=MOST_ROUNDS).contains(&rounds) {
            return Err(Failure::new(format_args!("{rounds} rounds are loaded; 1 to {MOST_ROUNDS} are possible")));
        }
        Ok(Box::new(Ready::new(gpu, case, rounds)?))
    }

    fn twin(&self, inputs: &Inputs, state: &State, head: Head, rows: &[u32]) -> Vec<f64> {
        let Problem { seqlen, head_dim, causal, .. } = inputs.problem;
        let (n, d) = (seqlen as usize, head_dim as usize);
        let [q, _, v] = inputs.of_head(head);
        let unit = |j: usize| {
            let row = sparse::row(q, j, d);
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.into_iter().map(|x| if length > 0.0 { x / length } else { 0.0 }).collect()
        };
        let buckets = state[BUCKETS].u32s();
        let lists = (inputs.problem.batch * inputs.problem.num_heads) as usize;
        let sorted = |round: usize| {
            let buckets = &buckets[(round * lists + head.of_q(&inputs.problem)) * n..][..n];
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by_key(|token| (buckets[*token], *token));
            order
        };
        let orders: Vec<Vec<usize>> = (0..buckets.len() / (lists * n)).map(sorted).collect();
        let of_row = |i: usize| {
            let of_round = |order: &Vec<usize>| {
                let place = order.iter().position(|token| *token == i).unwrap_or(0);
                let chunk = place / CHUNK as usize;
                let places = chunk.saturating_sub(1) * CHUNK as usize..((chunk + 1) * CHUNK as usize).min(n);
                let keys = places.map(|place| order[place]).filter(|j| if causal { *j < i } else { *j != i });
                sparse::attend(&sparse::row(q, i, d), unit, |j| sparse::row(v, j, d), keys)
            };
            let rounds: Vec<(Vec<f64>, f64)> = orders.iter().map(of_round).collect();
            let m = rounds.iter().map(|round| round.1).fold(f64::NEG_INFINITY, f64::max);
            if m == f64::NEG_INFINITY {
                return sparse::row(v, i, d);
            }
            let l: f64 = rounds.iter().map(|round| (round.1 - m).exp()).sum();
            (0..d).map(|e| rounds.iter().map(|(o, lse)| o[e] * (lse - m).exp() / l).sum()).collect()
        };
        rows.iter().flat_map(|i| of_row(*i as usize)).collect()
    }
}

struct Ready {
    steps: Vec<Step>,
    rotations: Tensor,
    buckets: wgpu::Buffer,
    dims: [u32; 4],
    o: wgpu::Buffer,
    cost: Cost,
}

impl Ready {
    fn new(gpu: &Gpu, case: &Case, rounds: u32) -> Result<Self> {
        let problem = case.inputs.problem;
        let Problem { batch, num_heads, num_heads_kv, seqlen, .. } = problem;
        let lists = batch * num_heads;
        let dims = [rounds, batch, num_heads, seqlen];
        let rotations = rotations(case, rounds)?;
        let (buckets, hash) = buckets(gpu, case, &rotations, dims)?;
        let has_hash = hash.is_some();
        let (length_step, inverse) = sparse::row_lengths(gpu, &problem, &case.q, lists)?;
        let mut steps: Vec<Step> = hash.into_iter().chain([length_step]).collect();
        let sort = Sort::new(gpu, rounds * lists, seqlen, 2 * columns(&problem), &buckets)?;
        let sort_bytes = sort.extra_bytes();
        steps.extend(sort.steps);

        let rows =
            Gather { rows: &sort.order, groups: rounds * lists, length: seqlen, groups_per_list: 1, first_row: 0 };
        let (q_step, q) = rows.step(gpu, &problem, &case.q, 1, None)?;
        let (k_step, k) = rows.step(gpu, &problem, &case.q, 1, Some(&inverse))?;
        let heads_per_kv = num_heads / num_heads_kv;
        let (v_step, v) = rows.step(gpu, &problem, &case.v, heads_per_kv, None)?;
        steps.extend([q_step, k_step, v_step]);

        let o_rounds = gpu.buffer("O of rounds", q.size())?;
        let sorted = attention_of_chunks(&problem, rounds * lists)?;
        let aux = problem.causal.then_some((Operand::Aux, &sort.order));
        let attention = Attention::new(gpu, &sorted, [&q, &k, &v, &o_rounds], aux)?;
        let attention_bytes = attention.extra_bytes();
        let o = case.output(gpu)?;
        let wgsl = sparse::text(&problem, &[], &[include_str!("../shaders/reformer_combine.wgsl")]);
        let buffers = [&o_rounds, attention.lse(), &sort.place_of, &case.v, &o];
        let combine = gpu.kernel("reformer_combine", wgsl, &[seqlen, rounds, lists, heads_per_kv], &buffers)?;
        steps.push(Step::Attention(Box::new(attention)));
        steps.push(Step::Kernel(combine, sparse::grid(problem.q_len() as u64 / 4)));
        let gathered: u64 = [&q, &k, &v, &o_rounds].iter().map(|buffer| buffer.size()).sum();
        let extra_bytes = gathered + attention_bytes + sort_bytes + buckets.size() + inverse.size();
        let cost = Cost { extra_bytes, ..cost(&problem, rounds, has_hash) };
        Ok(Self { steps, rotations, buckets, dims, o, cost })
    }
}

/// R, as it is loaded or drawn.
fn rotations(case: &Case, rounds: u32) -> Result<Tensor> {
    let problem = case.inputs.problem;
    let dims = [rounds, columns(&problem), problem.head_dim].map(|dim| dim as usize);
    if let Some(loaded) = given(case, ROTATIONS, &dims)? {
        return Ok(loaded);
    }
    let draws = Draws::new(case.seed, "reformer");
    let of_round = |round: u32| draws.normals(round, dims[1] * dims[2], |value| value as f32);
    Ok(Tensor::f32(&dims, (0..rounds).flat_map(of_round).collect()))
}

/// The bucket of each token and, unless they are loaded, the step that finds them.
fn buckets(gpu: &Gpu, case: &Case, rotations: &Tensor, dims: [u32; 4]) -> Result<(wgpu::Buffer, Option<Step>)> {
    let problem = case.inputs.problem;
    let columns = columns(&problem);
    if let Some(loaded) = sparse::given_words(case, BUCKETS, &dims, 2 * columns)? {
        return Ok((gpu.filled("buckets", bytemuck::cast_slice(loaded))?, None));
    }
    let rotations = gpu.filled("rotations", bytemuck::cast_slice(rotations.f32s()))?;
    let buckets = gpu.buffer("buckets", dims.iter().map(|dim| u64::from(*dim)).product::<u64>() * 4)?;
    let hash = Nearest { is_signed: true, columns, rounds: dims[0], heads_per_x: 1, sets: [1, 0], first_list: 0 };
    let step = hash.step(gpu, &problem, [&case.q, &rotations, &buckets])?;
    Ok((buckets, Some(step)))
}

/// Attention over sorted tokens: each chunk sees itself and the one before, each token other tokens (causal: earlier ones).
fn attention_of_chunks(problem: &Problem, groups: u32) -> Result<AttentionProblem> {
    let Problem { seqlen, causal, .. } = *problem;
    // Places tell whether two tokens are the same. aux: array<u32>, [groups, seqlen], the token at each place, tells which is
    // earlier.
    let sees = match causal {
        true => format!("aux[batch * {seqlen}u + kv_idx] < aux[batch * {seqlen}u + q_idx]"),
        false => "kv_idx != q_idx".to_owned(),
    };
    let mask = format!(
        "fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> bool {{
  return {sees};
}}"
    );
    let before = if causal { BlockKind::Partial } else { BlockKind::Full };
    let kind = |row: u32, column: u32| match row.checked_sub(column) {
        Some(0) => BlockKind::Partial,
        Some(1) => before,
        _ => BlockKind::Absent,
    };
    let chunks = seqlen.div_ceil(CHUNK);
    let kinds: Vec<BlockKind> = (0..chunks).flat_map(|row| (0..chunks).map(move |column| kind(row, column))).collect();
    let blocks = BlockMask::new([1, 1, chunks, chunks], [CHUNK; 2], &kinds);
    let sorted = sparse::gathered(problem, groups, seqlen, Some((&mask, causal.then_some(groups * seqlen))))?;
    Ok(sorted.with_key_mask(KeyMask::Blocks(blocks)))
}

fn cost(problem: &Problem, rounds: u32, has_hash: bool) -> Cost {
    let Problem { batch, num_heads, seqlen, head_dim, .. } = *problem;
    let rows = f64::from(rounds) * f64::from(batch * num_heads) * f64::from(seqlen);
    let d = f64::from(head_dim);
    let size = problem.element.size() as f64;
    let hash = if has_hash { rows * 2.0 * d * f64::from(columns(problem)) } else { 0.0 };
    let keys = f64::from((2 * CHUNK).min(seqlen));
    let attention = rows * keys * (4.0 * d + 1.0);
    // In each round: Q is read for the hash; Q, K and V are read and written by the gather; attention reads them and writes O,
    // which the merge reads. Buckets, order and places are words that are written and read about twice.
    let bytes = rows * (1.0 + 6.0 + 4.0 + 1.0) * d * size + rows * 12.0 * 4.0 + 3.0 * problem.q_len() as f64 * size;
    Cost { flops: hash + attention, bytes, extra_bytes: 0 }
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
        let buckets = sparse::read_u32(gpu, &self.buckets, &self.dims)?;
        Ok(State::from([(ROTATIONS.to_owned(), self.rotations.clone()), (BUCKETS.to_owned(), buckets)]))
    }
}
