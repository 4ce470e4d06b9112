use std::sync::Arc;
use wgpu_flash_attention::reference::{Case, Score};
use wgpu_flash_attention::{
    AttentionLayout, AttentionProblem, AttentionShape, Element, KeyMask, Operand, ScoreMod, TensorLayout,
};

use super::run::to_bytes;

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): the same numbers on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Uniform in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.word() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and variance 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// What functions in WGSL compute, for the oracle.
pub type ScoreClosure = Arc<dyn Fn(f64, [u32; 4]) -> Score + Send + Sync>;
pub type MaskClosure = Arc<dyn Fn([u32; 4]) -> bool + Send + Sync>;

/// Host values of Q, K and V in the problem's layouts. Whatever lies between a tensor's elements is NaN.
#[derive(Clone, Default)]
pub struct Inputs {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    /// The entries of the bias and the words of the mask, where the problem has them.
    pub bias: Vec<f64>,
    pub key_mask: Vec<u32>,
    /// The logit of each head's sink, where the problem has one.
    pub sink: Vec<f64>,
    /// What the caller's functions read, as f32, and what they compute, where the problem has them.
    pub aux: Vec<f32>,
    pub score_mod: Option<ScoreClosure>,
    pub mask_mod: Option<MaskClosure>,
    /// All three are views of one buffer, and hold the same values.
    pub one_buffer: bool,
}

/// Standard normal inputs, rounded to the problem's element.
pub fn inputs(problem: &AttentionProblem, seed: u64) -> Inputs {
    let mut random = Random(seed);
    let AttentionShape { num_heads, num_heads_kv, head_dim, head_dim_v, .. } = problem.shape;
    let layout = &problem.layout;
    let (of_q, of_kv) = (Rows::of_q(problem), Rows::of_kv(problem));
    let tensors = [
        (&layout.q, &of_q, num_heads, head_dim),
        (&layout.k, &of_kv, num_heads_kv, head_dim),
        (&layout.v, &of_kv, num_heads_kv, head_dim_v),
    ];
    let mut filled = tensors.map(|(layout, rows, heads, dim)| {
        let mut values = vec![f64::NAN; rows.len(layout, heads, dim)];
        for first in rows.firsts(layout, heads) {
            values[first..first + dim as usize].fill_with(|| problem.element.round(random.normal()));
        }
        values
    });
    let one_buffer = problem.layout == AttentionLayout::packed_qkv(&problem.shape);
    if one_buffer {
        let len = filled.iter().map(Vec::len).max().unwrap();
        let mut together = vec![f64::NAN; len];
        for tensor in &filled {
            tensor.iter().enumerate().filter(|(_, value)| !value.is_nan()).for_each(|(n, value)| together[n] = *value);
        }
        filled = [together.clone(), together.clone(), together];
    }
    let [q, k, v] = filled;
    let logits =
        |count: u32, mut random: Random| (0..count).map(|_| Element::F32.round(2.0 * random.normal())).collect();
    let sink = if problem.has_sink() { logits(num_heads, Random(seed ^ 0x51_4b)) } else { Vec::new() };
    let (bias, key_mask) = entries(problem, random);
    Inputs { q, k, v, bias, key_mask, sink, one_buffer, ..Inputs::default() }
}

/// A bias like the scores, and a mask that hides a quarter of the keys, and more of every fifth row.
fn entries(problem: &AttentionProblem, mut random: Random) -> (Vec<f64>, Vec<u32>) {
    let AttentionShape { seqlen_q, seqlen_kv, .. } = problem.shape;
    let bias = problem.scores().iter().find_map(|modifier| match modifier {
        ScoreMod::Bias { layout, element } => {
            Some((0..layout.required_len(&problem.shape)).map(|_| element.round(random.normal())).collect())
        }
        _ => None,
    });
    let key_mask = problem.key_masks().iter().find_map(|mask| match mask {
        KeyMask::Boolean(layout) => {
            let mut words = vec![0u32; layout.required_words(&problem.shape) as usize];
            words.iter_mut().for_each(|word| *word = (random.word() | random.word()) as u32);
            for row in (0..seqlen_q).step_by(5) {
                let first = (layout.offset + u64::from(row) * layout.stride_row) as usize;
                words[first..first + seqlen_kv.div_ceil(32).min(1) as usize].fill(0);
            }
            Some(words)
        }
        _ => None,
    });
    (bias.unwrap_or_default(), key_mask.unwrap_or_default())
}

impl Inputs {
    /// The problem with the values of its bias, mask and sink, as the oracle takes it.
    pub fn case<'a>(&'a self, problem: &'a AttentionProblem) -> Case<'a> {
        let mut case = Case::new(problem, &self.bias, &self.key_mask).with_sink(&self.sink);
        if let Some(score_mod) = &self.score_mod {
            case = case.with_score_mod(&**score_mod);
        }
        if let Some(mask_mod) = &self.mask_mod {
            case = case.with_mask_mod(&**mask_mod);
        }
        case
    }

    /// The bytes of bias, mask and sink, where the problem has them.
    pub fn entries(&self, problem: &AttentionProblem) -> Vec<(Operand, Vec<u8>)> {
        let element = problem.scores().iter().find_map(|modifier| match modifier {
            ScoreMod::Bias { element, .. } => Some(*element),
            _ => None,
        });
        let bias = element.map(|element| (Operand::Bias, to_bytes(element, &self.bias)));
        let words = || self.key_mask.iter().flat_map(|word| word.to_le_bytes()).collect();
        let has_words = problem.key_masks().iter().any(|mask| matches!(mask, KeyMask::Boolean(_)));
        let mask = has_words.then(|| (Operand::KeyMask, words()));
        let sink = problem.has_sink().then(|| (Operand::Sink, to_bytes(Element::F32, &self.sink)));
        let aux = problem.aux_len().map(|_| (Operand::Aux, bytemuck::cast_slice(&self.aux).to_vec()));
        bias.into_iter().chain(mask).chain(sink).chain(aux).collect()
    }
}

/// Which elements of the span of O belong to none of the tensor's own.
pub fn gaps(problem: &AttentionProblem) -> Vec<bool> {
    let shape = problem.shape;
    Rows::of_q(problem).gaps(&problem.layout.o, shape.num_heads, shape.head_dim_v)
}

/// Which entries of LSE belong to no sequence: there are some where packed sequences do not use all of their rows.
pub fn lse_gaps(problem: &AttentionProblem) -> Vec<bool> {
    let rows = Rows::of_q(problem);
    rows.gaps(&TensorLayout::bhsd(rows.count, problem.shape.num_heads, 1), problem.shape.num_heads, 1)
}

/// The rows of a tensor that a problem has: all, or those of packed sequences.
pub struct Rows {
    batch: u32,
    /// Of a sequence, or of all that are packed.
    pub count: u32,
    /// Sequence and row in the tensor.
    own: Vec<(u32, u32)>,
}

impl Rows {
    /// In Q and all that has its rows.
    pub fn of_q(problem: &AttentionProblem) -> Self {
        let AttentionShape { batch, seqlen_q, .. } = problem.shape;
        match problem.total_q() {
            Some(total) => {
                let rows = |batch| (0..problem.lengths_of(batch).0).map(move |row| problem.row_in_q(batch, row));
                Self { batch: 1, count: total, own: (0..batch).flat_map(rows).collect() }
            }
            None => Self::all(batch, seqlen_q),
        }
    }

    /// In K and V.
    pub fn of_kv(problem: &AttentionProblem) -> Self {
        let AttentionShape { batch, seqlen_kv, .. } = problem.shape;
        match problem.total_kv() {
            Some(total) => {
                let keys = |batch| (0..problem.lengths_of(batch).1).map(move |key| problem.row_in_kv(batch, key));
                Self { batch: 1, count: total, own: (0..batch).flat_map(keys).collect() }
            }
            None => Self::all(batch, seqlen_kv),
        }
    }

    fn all(batch: u32, count: u32) -> Self {
        let own = (0..batch).flat_map(|batch| (0..count).map(move |row| (batch, row))).collect();
        Self { batch, count, own }
    }

    /// Elements of a tensor.
    pub fn len(&self, layout: &TensorLayout, heads: u32, dim: u32) -> usize {
        layout.required_len(self.batch, self.count, heads, dim).unwrap() as usize
    }

    /// The first element of each row of each head.
    pub fn firsts(&self, layout: &TensorLayout, heads: u32) -> impl Iterator<Item = usize> {
        let of_row =
            move |&(batch, row): &(u32, u32)| (0..heads).map(move |head| layout.index(batch, row, head) as usize);
        self.own.iter().flat_map(of_row)
    }

    /// Which elements of the span of a tensor are none of its own.
    pub fn gaps(&self, layout: &TensorLayout, heads: u32, dim: u32) -> Vec<bool> {
        let mut gap = vec![true; self.len(layout, heads, dim)];
        self.firsts(layout, heads).for_each(|first| gap[first..first + dim as usize].fill(false));
        gap
    }
}

/// A layout with a gap after every head, row and sequence, and before the first element. `odd` gaps put rows on odd
/// elements; even ones keep pairs of elements together.
pub fn strided(shape: &AttentionShape, odd: bool) -> AttentionLayout {
    let odd = u64::from(odd);
    let layout = |rows: u32, heads: u32, dim: u32, offset: u64| {
        let stride_head = (u64::from(dim) + 4).next_multiple_of(2) + odd;
        let stride_row = (stride_head * u64::from(heads) + 6).next_multiple_of(2) + odd;
        let stride_batch = (stride_row * u64::from(rows) + 8).next_multiple_of(2) + odd;
        TensorLayout { offset: 2 * offset + odd, stride_batch, stride_row, stride_head }
    };
    AttentionLayout {
        q: layout(shape.seqlen_q, shape.num_heads, shape.head_dim, 1),
        k: layout(shape.seqlen_kv, shape.num_heads_kv, shape.head_dim, 2),
        v: layout(shape.seqlen_kv, shape.num_heads_kv, shape.head_dim_v, 3),
        o: layout(shape.seqlen_q, shape.num_heads, shape.head_dim_v, 4),
    }
}
