use crate::operand::Operand;
use crate::problem::{AppendProblem, CacheElement, RotaryPairs, RotatedQ, TensorLayout};

/// The host values of what an append reads, each in its layout; empty where the problem has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppendCase<'a> {
    /// New keys.
    pub k: &'a [f64],
    /// New values.
    pub v: &'a [f64],
    /// Q, if it is rotated.
    pub q: &'a [f64],
    /// Lengths before the append, `[batch]`.
    pub cache_seqlens: &'a [u32],
    /// `[batch, max_pages]`.
    pub page_table: &'a [u32],
    /// A slot for each new token.
    pub slot_mapping: &'a [u32],
    /// `[batch + 1]`.
    pub cu_seqlens_new: &'a [u32],
    /// A row of rotary_dim / 2 for each position or new token.
    pub rotary_cos: &'a [f64],
    /// Likewise.
    pub rotary_sin: &'a [f64],
}

/// A row that an append writes.
#[derive(Clone, Debug, PartialEq)]
pub struct AppendedRow {
    /// `KCache`, `VCache`, or the tensor of the rotated Q.
    pub operand: Operand,
    /// The entry of this tensor at which it starts.
    pub first: u64,
    /// What it holds, before it is rounded to the type of the tensor.
    pub values: Vec<f64>,
    /// For each of them, how far a value in f32 may be from it.
    pub errors: Vec<f64>,
}

/// All rows that an append writes. What has no place is not among them.
///
/// # Panics
///
/// If a slice is shorter than the problem says.
pub fn append(problem: &AppendProblem, case: &AppendCase) -> Vec<AppendedRow> {
    let shape = &problem.shape;
    let mut rows = Vec::new();
    for batch in 0..shape.batch {
        for i in 0..tokens_of(problem, case, batch) {
            let token = token_of(problem, case, batch, i);
            let position =
                case.cache_seqlens.get(batch as usize).map(|length| u64::from((*length).min(shape.seqlen_kv)) + i);
            let angles = problem.rotary().map(|rotary| match rotary.positions {
                Some(positions) => position.expect("positions have lengths").min(u64::from(positions) - 1),
                None => token.number,
            });
            let layout = &problem.layout;
            if let Some((page, row)) = place_of(problem, case, batch, token.number, position) {
                for head in 0..shape.num_heads_kv {
                    let k = row_of(case.k, &layout.k, &token, head, shape.head_dim);
                    let v = row_of(case.v, &layout.v, &token, head, shape.head_dim_v);
                    let [k_first, v_first] =
                        [problem.cache.k, problem.cache.v].map(|layout| layout.index(page, row, head));
                    let (values, errors) = rotated(problem, case, k, angles);
                    rows.push(AppendedRow { operand: Operand::KCache, first: k_first, values, errors });
                    let errors = vec![0.0; v.len()];
                    rows.push(AppendedRow { operand: Operand::VCache, first: v_first, values: v, errors });
                }
            }
            let (operand, target) = match problem.rotated_q() {
                RotatedQ::None => continue,
                RotatedQ::InPlace => (Operand::Q, &layout.q),
                RotatedQ::Apart => (Operand::QRotated, &layout.o),
            };
            for head in 0..shape.num_heads {
                let q = row_of(case.q, &layout.q, &token, head, shape.head_dim);
                let (values, errors) = rotated(problem, case, q, angles);
                rows.push(AppendedRow { operand, first: target.index(token.batch, token.row, head), values, errors });
            }
        }
    }
    rows
}

/// A row in int8, as [`CacheElement::Int8`] says: its scale, then four bytes in each word.
pub fn quantized(values: &[f64]) -> Vec<u32> {
    let is_finite = values.iter().all(|value| value.is_finite());
    let largest = values.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let scale = if is_finite { (largest / 127.0) as f32 } else { f32::NAN };
    let byte = |value: &f64| match scale {
        0.0 => 0,
        scale => (value / f64::from(scale)).round_ties_even() as i8 as u8,
    };
    let bytes: Vec<u8> = values.iter().map(byte).collect();
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    [scale.to_bits()].into_iter().chain(bytes.chunks(4).map(word)).collect()
}

/// The values that a row of int8 stands for: a scale, and four bytes in each word behind it.
pub fn dequantized(row: &[u32], dim: u32) -> Vec<f64> {
    let scale = f64::from(f32::from_bits(row[0]));
    let byte = |index: usize| (row[1 + index / 4] >> (8 * (index % 4))) as u8 as i8;
    (0..dim as usize).map(|index| scale * f64::from(byte(index))).collect()
}

/// The values that an int8 tensor holds, in a layout of words; contiguous `[batch, rows, heads, dim]`.
pub fn dequantized_tensor(words: &[u32], layout: &TensorLayout, [batch, rows, heads, dim]: [u32; 4]) -> Vec<f64> {
    let len = CacheElement::Int8.row_len(dim) as usize;
    let mut values = Vec::new();
    for (batch, row, head) in
        (0..batch).flat_map(|b| (0..rows).flat_map(move |row| (0..heads).map(move |head| (b, row, head))))
    {
        values.extend(dequantized(&words[layout.index(batch, row, head) as usize..][..len], dim));
    }
    values
}

/// Where a new token stands among the rows that are read.
struct NewToken {
    batch: u32,
    row: u32,
    /// Counted through all sequences.
    number: u64,
}

fn tokens_of(problem: &AppendProblem, case: &AppendCase, batch: u32) -> u64 {
    let Some(total) = problem.packed_tokens() else { return problem.shape.seqlen_q.into() };
    let [start, end] = [0, 1].map(|next| case.cu_seqlens_new[batch as usize + next].min(total));
    u64::from(end.saturating_sub(start).min(problem.shape.seqlen_q))
}

fn token_of(problem: &AppendProblem, case: &AppendCase, batch: u32, i: u64) -> NewToken {
    match problem.packed_tokens() {
        Some(total) => {
            let row = case.cu_seqlens_new[batch as usize].min(total) + i as u32;
            NewToken { batch: 0, row, number: row.into() }
        }
        None => NewToken { batch, row: i as u32, number: u64::from(batch) * u64::from(problem.shape.seqlen_q) + i },
    }
}

/// Page and row of a token, if it has a place.
fn place_of(
    problem: &AppendProblem,
    case: &AppendCase,
    batch: u32,
    number: u64,
    position: Option<u64>,
) -> Option<(u32, u32)> {
    let [pages, page_size] = problem.cache.counts(&problem.shape);
    let (page, row) = if problem.has_slot_mapping() {
        let slot = case.slot_mapping[number as usize];
        // A cache without positions has no slots.
        if slot == u32::MAX || page_size == 0 {
            return None;
        }
        (slot / page_size, slot % page_size)
    } else {
        let position = position.filter(|position| *position < u64::from(problem.shape.seqlen_kv))? as u32;
        match problem.cache.pages {
            Some(paged) => {
                let entry = batch as usize * paged.max_pages as usize + (position / page_size) as usize;
                (case.page_table[entry], position % page_size)
            }
            None => (batch, position),
        }
    };
    (page < pages).then_some((page, row))
}

fn row_of(values: &[f64], layout: &TensorLayout, token: &NewToken, head: u32, dim: u32) -> Vec<f64> {
    values[layout.index(token.batch, token.row, head) as usize..][..dim as usize].to_vec()
}

/// A row, rotated by the given row of the tables, and the errors of doing so in f32.
fn rotated(problem: &AppendProblem, case: &AppendCase, row: Vec<f64>, angles: Option<u64>) -> (Vec<f64>, Vec<f64>) {
    let (mut values, mut errors) = (row.clone(), vec![0.0; row.len()]);
    let Some((rotary, angles)) = problem.rotary().zip(angles) else { return (values, errors) };
    let half = rotary.rotary_dim as usize / 2;
    for pair in 0..half {
        let (first, second) = match rotary.pairs {
            RotaryPairs::Interleaved => (2 * pair, 2 * pair + 1),
            RotaryPairs::Halves => (pair, pair + half),
        };
        let entry = angles as usize * half + pair;
        let (cos, sin) = (case.rotary_cos[entry], case.rotary_sin[entry]);
        let (x, y) = (row[first], row[second]);
        values[first] = x * cos - y * sin;
        values[second] = x * sin + y * cos;
        // Two products and a sum, each rounded at worst by half a unit in the last place.
        let error = |a: f64, b: f64| 3.0 * 2f64.powi(-24) * (a.abs() + b.abs());
        errors[first] = error(x * cos, y * sin);
        errors[second] = error(x * sin, y * cos);
    }
    (values, errors)
}
