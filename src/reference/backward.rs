use super::case::Case;
use super::cores;
use super::forward::{k_index, k_slice, keeps, q_index, q_slice, row_cost};
use super::modifiers::{modified, modified_from_bias};
use std::collections::BTreeMap;

/// What the backward pass computes, in f64, in the problem's gradient layout. Elements between the tensors' own are 0.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReferenceGradients {
    /// The gradient of Q.
    pub dq: Vec<f64>,
    /// The gradient of K.
    pub dk: Vec<f64>,
    /// The gradient of V.
    pub dv: Vec<f64>,
    /// The gradient of each head's sink; empty without one.
    pub dsink: Vec<f64>,
    /// The gradient of the bias, in the layout of [`EntryLayout::of_gradient`](crate::EntryLayout::of_gradient); empty where it is
    /// not asked for.
    pub dbias: Vec<f64>,
}

/// The gradients of Φ = Σ dO ∘ O + Σ dLSE ∘ LSE with respect to Q, K and V. Q, K and V lie in the problem's layouts, dO in that
/// of its gradients. O is computed here and not rounded.
///
/// # Panics
///
/// When a slice is shorter than its tensor, or the problem is one that [planning](crate::Plan) refuses.
pub fn backward<'a>(
    problem: impl Into<Case<'a>>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    d_o: &[f64],
    d_lse: Option<&[f64]>,
) -> ReferenceGradients {
    backward_with(problem.into(), [q, k, v, d_o], Given { o: None, d_lse }, |value| value)
}

/// As [`backward`], but D = rowsum(dO ∘ O) − dLSE is computed from the given O, in the problem's layout. This O may be rounded
/// to the element, as the kernels have it. Gradients differ by the difference of D, which does not cancel.
///
/// # Panics
///
/// As [`backward`].
pub fn backward_for<'a>(
    problem: impl Into<Case<'a>>,
    [q, k, v, o]: [&[f64]; 4],
    d_o: &[f64],
    d_lse: Option<&[f64]>,
) -> ReferenceGradients {
    backward_with(problem.into(), [q, k, v, d_o], Given { o: Some(o), d_lse }, |value| value)
}

/// As [`backward`], but P and dS are rounded to the 11 bits of an f16, whatever their size, before their products. This is what
/// exact standard attention gives if it keeps them so. Tests compare its error with that of kernels that round too (see
/// [`Plan::rounds_p`](crate::plan::Plan::rounds_p)).
///
/// # Panics
///
/// As [`backward`].
pub fn backward_rounding_p<'a>(
    problem: impl Into<Case<'a>>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    d_o: &[f64],
    d_lse: Option<&[f64]>,
) -> ReferenceGradients {
    backward_with(problem.into(), [q, k, v, d_o], Given { o: None, d_lse }, |value| {
        if value == 0.0 || !value.is_finite() {
            return value;
        }
        let unit = 2f64.powi(value.abs().log2().floor() as i32 - 10);
        (value / unit).round_ties_even() * unit
    })
}

/// What the caller has of the forward pass and of its loss.
#[derive(Clone, Copy)]
struct Given<'a> {
    o: Option<&'a [f64]>,
    d_lse: Option<&'a [f64]>,
}

fn backward_with(
    problem: Case<'_>,
    inputs: [&[f64]; 4],
    given: Given,
    round: impl Fn(f64) -> f64 + Copy + Send + Sync,
) -> ReferenceGradients {
    let shape = problem.shape;
    let layout = problem.gradient_layout();
    let zeros = |len: Option<u64>| vec![0.0; len.expect("a gradient has an extent") as usize];
    let mut gradients = ReferenceGradients {
        dq: zeros(problem.len_in_q(&layout.q, shape.head_dim)),
        dk: zeros(problem.len_in_kv(&layout.k, shape.head_dim)),
        dv: zeros(problem.len_in_kv(&layout.v, shape.head_dim_v)),
        dsink: if problem.has_sink() { vec![0.0; shape.num_heads as usize] } else { Vec::new() },
        dbias: vec![0.0; problem.len_of_dbias()],
    };
    if gradients.dq.is_empty() && gradients.dk.is_empty() {
        return gradients;
    }

    // KV heads are independent.
    let (heads_kv, rows) = (shape.num_heads_kv as usize, shape.seqlen_q as usize);
    let groups = shape.batch as usize * heads_kv;
    let rows_of_a_group = u64::from(shape.num_heads / shape.num_heads_kv) * u64::from(shape.seqlen_q);
    let computed: Vec<Group> = cores::map(groups, rows_of_a_group * 3 * row_cost(&problem), |group| {
        let (batch, head_kv) = ((group / heads_kv) as u32, (group % heads_kv) as u32);
        of_kv_head(problem, inputs, given, (batch, head_kv), round)
    });

    let heads_per_kv = shape.num_heads / shape.num_heads_kv;
    for (group, Group { dq, dk, dv, dsink, dbias }) in computed.iter().enumerate() {
        dbias.iter().for_each(|(entry, of_entry)| gradients.dbias[*entry] += of_entry);
        let (batch, head_kv) = ((group / heads_kv) as u32, (group % heads_kv) as u32);
        for (head, of_head) in (head_kv * heads_per_kv..).zip(dsink).filter(|_| problem.has_sink()) {
            gradients.dsink[head as usize] += of_head;
        }
        for (flat, row) in dq.chunks(shape.head_dim as usize).enumerate() {
            let (member, i) = ((flat / rows) as u32, (flat % rows) as u32);
            if i < problem.rows_of(batch).0 {
                let first = q_index(&problem, &layout.q, (batch, i, head_kv * heads_per_kv + member));
                gradients.dq[first..first + row.len()].copy_from_slice(row);
            }
        }
        for (tensor, layout, rows, dim) in
            [(&mut gradients.dk, &layout.k, dk, shape.head_dim), (&mut gradients.dv, &layout.v, dv, shape.head_dim_v)]
        {
            for (j, row) in rows.chunks(dim as usize).enumerate().take(problem.rows_of(batch).1 as usize) {
                let first = k_index(&problem, layout, (batch, j as u32, head_kv));
                tensor[first..first + row.len()].copy_from_slice(row);
            }
        }
    }
    gradients
}

/// The gradients of one KV head and of the query heads that share it, each contiguous.
struct Group {
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
    /// Of the sink of each query head.
    dsink: Vec<f64>,
    /// Of the entries of the bias that its scores have.
    dbias: BTreeMap<usize, f64>,
}

fn of_kv_head(
    problem: Case<'_>,
    [q, k, v, d_o]: [&[f64]; 4],
    given: Given,
    (batch, head_kv): (u32, u32),
    round: impl Fn(f64) -> f64,
) -> Group {
    let (shape, layout) = (problem.shape, &problem.layout);
    let scale = problem.softmax_scale();
    let (dim, dim_v) = (shape.head_dim as usize, shape.head_dim_v as usize);
    let heads_per_kv = shape.num_heads / shape.num_heads_kv;
    let mut group = Group {
        dq: vec![0.0; heads_per_kv as usize * shape.seqlen_q as usize * dim],
        dk: vec![0.0; shape.seqlen_kv as usize * dim],
        dv: vec![0.0; shape.seqlen_kv as usize * dim_v],
        dsink: vec![0.0; heads_per_kv as usize],
        dbias: BTreeMap::new(),
    };
    for member in 0..heads_per_kv {
        let head = head_kv * heads_per_kv + member;
        for row in 0..problem.rows_of(batch).0 {
            let (_, lse) = super::forward_row(problem, q, k, v, batch, head, row);
            if lse == f64::NEG_INFINITY {
                continue;
            }
            let q_row = q_slice(&problem, q, &layout.q, (batch, row, head), shape.head_dim);
            let d_o_row = q_slice(&problem, d_o, &problem.gradient_layout().o, (batch, row, head), shape.head_dim_v);
            let d_lse_row = given.d_lse.map_or(0.0, |d_lse| d_lse[problem.lse_index(batch, head, row)]);

            let entries = entries_of(problem, [q_row, k, v, d_o_row], (batch, head, row), lse);
            let delta = match given.o {
                Some(o) => dot(d_o_row, q_slice(&problem, o, &layout.o, (batch, row, head), shape.head_dim_v)),
                None => entries.iter().map(|entry| entry.p * entry.dp).sum(),
            };
            if problem.has_sink() {
                group.dsink[member as usize] -= (problem.sink((batch, head, row)) - lse).exp() * (delta - d_lse_row);
            }
            let dq_first = (member as usize * shape.seqlen_q as usize + row as usize) * dim;
            for Entry { key, p, factor, dp, slope, slope_of_bias } in entries {
                let of_s = p * (dp - delta + d_lse_row);
                if let Some(entry) = problem.entry_of_dbias((batch, head, row, key)) {
                    *group.dbias.entry(entry).or_default() += of_s * slope_of_bias;
                }
                let ds = round(of_s * slope);
                let k_row = k_slice(&problem, k, &layout.k, (batch, key, head_kv), shape.head_dim);
                add(&mut group.dq[dq_first..dq_first + dim], scale * ds, k_row);
                add(&mut group.dk[key as usize * dim..][..dim], scale * ds, q_row);
                if factor != 0.0 {
                    add(&mut group.dv[key as usize * dim_v..][..dim_v], factor * round(p), d_o_row);
                }
            }
        }
    }
    group
}

/// Of each key that a row sees.
struct Entry {
    key: u32,
    p: f64,
    /// What dropout puts on P.
    factor: f64,
    /// The gradient of P.
    dp: f64,
    /// The derivative of S by softmax_scale · q · k, and by the score to which a bias was added.
    slope: f64,
    slope_of_bias: f64,
}

/// Those of a row of Q, with its dO and LSE.
fn entries_of(
    problem: Case<'_>,
    [q_row, k, v, d_o_row]: [&[f64]; 4],
    (batch, head, row): (u32, u32, u32),
    lse: f64,
) -> Vec<Entry> {
    let (shape, layout) = (problem.shape, &problem.layout);
    let head_kv = head / (shape.num_heads / shape.num_heads_kv);
    let entry = |key: u32| {
        let k_row = k_slice(&problem, k, &layout.k, (batch, key, head_kv), shape.head_dim);
        let v_row = k_slice(&problem, v, &layout.v, (batch, key, head_kv), shape.head_dim_v);
        let (product, cell) = (problem.softmax_scale() * dot(q_row, k_row), (batch, head, row, key));
        let s = modified(problem, product, cell);
        let slope_of_bias = modified_from_bias(problem, product, cell).slope;
        let kept = keeps(&problem, batch, head, row, key);
        let factor = problem.dropout.map_or(1.0, |dropout| if kept { dropout.keep_scale() } else { 0.0 });
        // What is dropped has no gradient, whatever it is.
        let dp = if kept { factor * dot(d_o_row, v_row) } else { 0.0 };
        // A score of −∞ has no gradient, however steep its modifiers are there.
        let of_score = |slope: f64| if s.value == f64::NEG_INFINITY { 0.0 } else { slope };
        let (slope, slope_of_bias) = (of_score(s.slope), of_score(slope_of_bias));
        Entry { key, p: (s.value - lse).exp(), factor, dp, slope, slope_of_bias }
    };
    problem.keys((batch, head, row)).map(entry).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], factor: f64, row: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += factor * value;
    }
}
