//! The errors of dQ, dK and dV.

use super::forward::{Entry, Row};
use super::terms::{ErrorTerms, SMALLEST, Sum, U};
use crate::problem::AttentionProblem;
use crate::reference::case::Case;
use crate::reference::cores;
use crate::reference::forward::{k_index, k_slice, q_index, q_slice, row_cost};
use crate::reference::modifiers::Score;
use std::collections::BTreeMap;

/// What bounds the errors of the backward pass, in the problem's gradient layout.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BackwardErrors {
    /// Of each element of dQ.
    pub dq: Vec<ErrorTerms>,
    /// Of each element of dK.
    pub dk: Vec<ErrorTerms>,
    /// Of each element of dV.
    pub dv: Vec<ErrorTerms>,
    /// Of the gradient of each head's sink; empty without one.
    pub dsink: Vec<ErrorTerms>,
    /// Of each entry of the gradient of the bias; empty where it is not asked for. No kernel computes it on matrices.
    pub dbias: Vec<ErrorTerms>,
}

/// What bounds the errors of dQ, dK and dV for these inputs, against the gradients for the O given
/// ([`backward_for`](crate::reference::backward_for)), and with the LSE of these inputs in f32.
///
/// # Panics
///
/// As `backward_for`.
pub fn backward_errors<'a>(
    problem: impl Into<Case<'a>>,
    [q, k, v, o]: [&[f64]; 4],
    d_o: &[f64],
    d_lse: Option<&[f64]>,
) -> BackwardErrors {
    let problem = problem.into();
    let shape = problem.shape;
    let layout = problem.gradient_layout();
    let [dq, dk, dv] = [
        problem.len_in_q(&layout.q, shape.head_dim),
        problem.len_in_kv(&layout.k, shape.head_dim),
        problem.len_in_kv(&layout.v, shape.head_dim_v),
    ]
    .map(|len| vec![ErrorTerms::default(); len.expect("a gradient has an extent") as usize]);
    let mut errors = BackwardErrors { dq, dk, dv, dsink: Vec::new(), dbias: Vec::new() };
    let mut dsink = vec![Gathered::default(); if problem.has_sink() { shape.num_heads as usize } else { 0 }];
    let mut dbias = vec![Gathered::default(); problem.len_of_dbias()];
    if shape.num_heads_kv == 0 {
        return errors;
    }
    let given = Given { problem, inputs: [q, k, v, o, d_o], d_lse };
    let heads_per_kv = shape.num_heads / shape.num_heads_kv;
    let cost = 8 * u64::from(heads_per_kv * shape.seqlen_q) * row_cost(&problem);
    let groups = cores::map((shape.batch * shape.num_heads_kv) as usize, cost, |group| {
        of_kv_head(&given, (group as u32 / shape.num_heads_kv, group as u32 % shape.num_heads_kv))
    });
    for (group, Group { gradients: [dq, dk, dv], dsink: of_group, dbias: of_entries }) in groups.iter().enumerate() {
        of_entries.iter().for_each(|(entry, part)| dbias[*entry].append(part));
        let (batch, head_kv) = (group as u32 / shape.num_heads_kv, group as u32 % shape.num_heads_kv);
        let heads = dsink.iter_mut().skip((head_kv * heads_per_kv) as usize);
        heads.zip(of_group).for_each(|(whole, part)| whole.append(part));
        for (flat, row) in dq.chunks(shape.head_dim as usize).enumerate() {
            let rows = problem.rows_of(batch).0;
            let (member, i) = (flat as u32 / rows, flat as u32 % rows);
            let first = q_index(&problem, &layout.q, (batch, i, head_kv * heads_per_kv + member));
            errors.dq[first..first + row.len()].copy_from_slice(row);
        }
        for (tensor, layout, rows, dim) in
            [(&mut errors.dk, &layout.k, dk, shape.head_dim), (&mut errors.dv, &layout.v, dv, shape.head_dim_v)]
        {
            for (j, row) in rows.chunks(dim as usize).enumerate() {
                let first = k_index(&problem, layout, (batch, j as u32, head_kv));
                tensor[first..first + row.len()].copy_from_slice(row);
            }
        }
    }
    errors.dsink = dsink.into_iter().map(|dsink| dsink.finish(1.0)).collect();
    errors.dbias = dbias.into_iter().map(|dbias| dbias.finish(1.0)).collect();
    errors
}

struct Given<'a> {
    problem: Case<'a>,
    /// Q, K, V, O and dO.
    inputs: [&'a [f64]; 5],
    d_lse: Option<&'a [f64]>,
}

/// A sum of gradients, and the errors of its terms.
#[derive(Clone, Default)]
struct Gathered {
    sum: Sum,
    errors: ErrorTerms,
}

impl Gathered {
    /// Adds another sum behind this one.
    fn append(&mut self, other: &Gathered) {
        self.sum.append(&other.sum);
        self.errors.plain += other.errors.plain;
        self.errors.products += other.errors.products;
        self.errors.flushed += other.errors.flushed;
    }

    /// The errors of the sum and its terms, times `factor`.
    fn finish(mut self, factor: f64) -> ErrorTerms {
        self.errors.plain += self.sum.rounding() + 4.0 * self.sum.total.abs();
        self.errors.terms = self.sum.sizes;
        // Each term, and each partial sum, may be flushed.
        self.errors.flushed += 2.0 * SMALLEST * self.sum.count;
        self.errors.scale(factor);
        self.errors
    }
}

/// dS of one key of a row.
struct Ds {
    value: f64,
    /// Its errors that are its own, not its row's.
    plain: f64,
    products: f64,
    /// What is left of it where P is flushed to 0.
    flushed: f64,
}

/// What one row gives to all gradients.
struct RowGradients {
    row: Row,
    /// Of softmax_scale · q · k, and of the score to which a bias was added.
    ds: Vec<Ds>,
    of_bias: Vec<Ds>,
    /// D, and its error in units of U.
    delta_value: f64,
    delta: f64,
}

/// What one KV head, and the query heads that share it, have of all errors.
struct Group {
    /// Of dQ, dK and dV, each contiguous.
    gradients: [Vec<ErrorTerms>; 3],
    /// Of the sink of each query head.
    dsink: Vec<Gathered>,
    /// Of the entries of the bias that its scores have.
    dbias: BTreeMap<usize, Gathered>,
}

fn of_kv_head(given: &Given, (batch, head_kv): (u32, u32)) -> Group {
    let Given { problem, inputs: [q, k, _, _, d_o], .. } = *given;
    let (shape, layout) = (problem.shape, &problem.layout);
    let (dim, dim_v) = (shape.head_dim as usize, shape.head_dim_v as usize);
    let heads_per_kv = shape.num_heads / shape.num_heads_kv;
    let scale = problem.softmax_scale().abs();
    let (num_rows, num_keys) = problem.rows_of(batch);
    let mut dq = Vec::with_capacity((heads_per_kv * num_rows) as usize * dim);
    // For each row, the unit of its dS; and the largest term of dQ in such units, of all rows.
    let mut units = Vec::with_capacity((heads_per_kv * num_rows) as usize);
    let mut largest_in_units = 0.0f64;
    let mut dk = vec![Gathered::default(); num_keys as usize * dim];
    let mut dv = vec![Gathered::default(); num_keys as usize * dim_v];
    // The largest terms, which share their unit of f16 with all others.
    let mut largest = [0.0f64; 3];
    let mut dsink = vec![Gathered::default(); heads_per_kv as usize];
    let mut dbias = BTreeMap::new();
    for (member, row) in (0..heads_per_kv).flat_map(|member| (0..num_rows).map(move |row| (member, row))) {
        let head = head_kv * heads_per_kv + member;
        let Some(gradients) = RowGradients::new(given, (batch, head, row)) else {
            dq.resize(dq.len() + dim, ErrorTerms::default());
            units.push(0.0);
            continue;
        };
        let d_o_row = q_slice(&problem, d_o, &problem.gradient_layout().o, (batch, row, head), shape.head_dim_v);
        let q_row = q_slice(&problem, q, &layout.q, (batch, row, head), shape.head_dim);
        gradients.add_to_dk(&mut dk, q_row);
        gradients.add_to_dv(&mut dv, d_o_row);
        gradients.add_to_dsink(&mut dsink[member as usize]);
        gradients.add_to_dbias(&mut dbias, &problem, (batch, head, row));
        let (of_row, largest_of_row) = gradients.dq(&problem, k);
        dq.extend(of_row.into_iter().map(|gathered| gathered.finish(scale)));
        let unit = gradients.unit_of_ds(d_o_row);
        units.push(unit);
        largest_in_units = largest_in_units.max(if unit == 0.0 { 0.0 } else { largest_of_row / unit });
        let largest_ds = gradients.sizes_of_ds().fold(0.0, f64::max);
        largest[0] = largest[0].max(largest_of_row);
        largest[1] = largest[1].max(largest_ds * max_of(q_row));
        largest[2] = largest[2].max(gradients.row.largest * max_of(d_o_row));
    }
    // The largest P or dS, in units of the rows that it meets, is scaled to between 2⁹ and 2¹⁰, and f16 leaves 2⁻²⁵ behind: 2⁻³⁴
    // of it. A row's unit is up to twice what its largest element says: 2⁻³³ of the largest term. P of f16 problems has the
    // scale 2¹⁴ throughout.
    const LEFT: f64 = 1.0 / (1u64 << 33) as f64;
    for (row, unit) in dq.chunks_mut(dim.max(1)).zip(units) {
        // f16 problems have no units. Where there are some, a row can be small beside others that share the scale of dS.
        let largest_term = largest[0] + 2.0 * largest_in_units * unit;
        row.iter_mut().for_each(|error| error.underflow = LEFT * scale * largest_term * f64::from(num_keys));
    }
    let rows = f64::from(heads_per_kv * num_rows);
    let keep_scale = problem.dropout.map_or(1.0, |dropout| dropout.keep_scale());
    let finish = |gathered: Gathered, factor: f64, underflow: f64| {
        let mut errors = gathered.finish(factor);
        errors.underflow += factor * underflow * rows;
        errors
    };
    let largest_d_o = largest[2].max(2f64.powi(-5) * largest_in(given, (batch, head_kv)));
    let dk = dk.into_iter().map(|dk| finish(dk, scale, LEFT * largest[1])).collect();
    let dv = dv.into_iter().map(|dv| finish(dv, keep_scale, LEFT * largest_d_o)).collect();
    Group { gradients: [dq, dk, dv], dsink, dbias }
}

/// The largest |dO| of the query heads that share a KV head.
fn largest_in(given: &Given, (batch, head_kv): (u32, u32)) -> f64 {
    let shape = given.problem.shape;
    let heads_per_kv = shape.num_heads / shape.num_heads_kv;
    let layout = given.problem.gradient_layout().o;
    let heads = head_kv * heads_per_kv..(head_kv + 1) * heads_per_kv;
    let rows = heads.flat_map(|head| (0..given.problem.rows_of(batch).0).map(move |row| (head, row)));
    let of_row =
        |(head, row)| max_of(q_slice(&given.problem, given.inputs[4], &layout, (batch, row, head), shape.head_dim_v));
    rows.map(of_row).fold(0.0, f64::max)
}

impl RowGradients {
    /// `None` for a row that sees nothing.
    fn new(given: &Given, (batch, head, row): (u32, u32, u32)) -> Option<Self> {
        let Given { problem, inputs: [q, k, v, o, d_o], d_lse } = *given;
        let (shape, layout) = (problem.shape, &problem.layout);
        let scores = Row::new(problem, [q, k], (batch, head, row));
        if scores.lse == f64::NEG_INFINITY {
            return None;
        }
        let d_o_row = q_slice(&problem, d_o, &problem.gradient_layout().o, (batch, row, head), shape.head_dim_v);
        let o_row = q_slice(&problem, o, &layout.o, (batch, row, head), shape.head_dim_v);
        let d_lse_row = d_lse.map_or(0.0, |d_lse| d_lse[problem.lse_index(batch, head, row)]);
        let mut delta = Sum::of(d_o_row.iter().zip(o_row).map(|(d_o, o)| d_o * o));
        delta.add(-d_lse_row);
        // O, a product of D or dP, and a sum of them, may be flushed.
        let flushed_of_delta = SMALLEST * (2.0 * delta.count + d_o_row.iter().map(|d_o| d_o.abs()).sum::<f64>());
        let of_entry = |entry: &Entry, score: Score| {
            let v_row = k_slice(&problem, v, &layout.v, (batch, entry.key, scores.head_kv), shape.head_dim_v);
            let kept = d_o_row.iter().zip(v_row).filter(|_| entry.factor != 0.0);
            let dp = Sum::of(kept.map(|(d_o, v)| entry.factor * d_o * v));
            let value = entry.p * (dp.total - delta.total);
            // Of S, and then, back through the modifiers, of softmax_scale · q · k or of the score to which a bias was added.
            let plain = value.abs() * (entry.plain + 2.0) + entry.p * 2.0 * dp.total.abs();
            let products = value.abs() * entry.products + entry.p * dp.rounding();
            let flushed_of_dp = SMALLEST * 2.0 * dp.count * entry.factor;
            let flushed =
                SMALLEST * (1.0 + (dp.total - delta.total).abs()) + entry.p * (flushed_of_delta + flushed_of_dp);
            let Score { slope, bend, slope_rounding, .. } = score;
            // Each modifier passes a product on.
            let passed = SMALLEST * problem.scores().len() as f64;
            Ds {
                value: value * slope,
                plain: plain * slope.abs() + value.abs() * (slope_rounding + bend.abs() * entry.product_plain),
                products: products * slope.abs() + value.abs() * bend.abs() * entry.product,
                flushed: flushed * slope.abs() + passed,
            }
        };
        let ds = scores.entries.iter().map(|entry| of_entry(entry, entry.score)).collect();
        let with_bias = scores.entries.iter().filter(|_| problem.has_bias_gradient());
        let of_bias = with_bias.map(|entry| of_entry(entry, entry.from_bias)).collect();
        Some(Self { ds, of_bias, row: scores, delta_value: delta.total, delta: delta.rounding() })
    }

    /// The relative error of all P of the row: LSE is rounded, and multiplied with log2(e), which is rounded too.
    fn of_lse(&self) -> f64 {
        3.0 * self.row.lse.abs()
    }

    /// The plain error of a dS, with what it shares with its row.
    fn plain_error_of(&self, entry: &Entry, ds: &Ds, slope: f64) -> f64 {
        ds.plain + entry.p * slope.abs() * self.delta + self.of_lse() * ds.value.abs()
    }

    /// What a kernel on matrices divides the row's dS by, but for less than a factor of 2: the size of dO, and 2⁻¹² of D.
    fn unit_of_ds(&self, d_o_row: &[f64]) -> f64 {
        max_of(d_o_row).max(2f64.powi(-12) * self.delta_value.abs())
    }

    /// How large each dS may be in a kernel: where dP − D cancels, what is left is rounding.
    fn sizes_of_ds(&self) -> impl Iterator<Item = f64> {
        self.row.entries.iter().zip(&self.ds).map(|(entry, ds)| {
            ds.value.abs() + U * self.plain_error_of(entry, ds, entry.score.slope) + 4.0 * U * ds.products
        })
    }

    /// dQ of the row, without softmax_scale, and the size of its largest term.
    fn dq(&self, problem: &AttentionProblem, k: &[f64]) -> (Vec<Gathered>, f64) {
        let shape = problem.shape;
        let mut dq = vec![Gathered::default(); shape.head_dim as usize];
        let mut weighed = vec![0.0; shape.head_dim as usize];
        let mut largest = 0.0f64;
        for ((entry, ds), size) in self.row.entries.iter().zip(&self.ds).zip(self.sizes_of_ds()) {
            let position = (self.row.batch, entry.key, self.row.head_kv);
            let k_row = k_slice(problem, k, &problem.layout.k, position, shape.head_dim);
            for ((dq, weighed), k) in dq.iter_mut().zip(&mut weighed).zip(k_row) {
                dq.sum.add(ds.value * k);
                dq.errors.plain += ds.plain * k.abs();
                dq.errors.products += ds.products * k.abs();
                dq.errors.flushed += ds.flushed * k.abs() + SMALLEST * ds.value.abs();
                *weighed += entry.p * entry.score.slope * k;
            }
            largest = largest.max(size * max_of(k_row));
        }
        for (dq, weighed) in dq.iter_mut().zip(weighed) {
            dq.errors.plain += self.delta * weighed.abs() + self.of_lse() * dq.sum.total.abs();
        }
        (dq, largest)
    }

    fn add_to_dsink(&self, dsink: &mut Gathered) {
        let (share, of_share) = self.row.sink;
        let term = share * self.delta_value;
        dsink.sum.add(-term);
        dsink.errors.plain += term.abs() * (of_share + self.of_lse() + 2.0) + share * self.delta;
        dsink.errors.flushed += SMALLEST * (1.0 + self.delta_value.abs());
    }

    fn add_to_dbias(
        &self,
        dbias: &mut BTreeMap<usize, Gathered>,
        problem: &Case<'_>,
        (batch, head, row): (u32, u32, u32),
    ) {
        for (entry, ds) in self.row.entries.iter().zip(&self.of_bias) {
            let Some(number) = problem.entry_of_dbias((batch, head, row, entry.key)) else { return };
            let dbias = dbias.entry(number).or_default();
            dbias.sum.add(ds.value);
            dbias.errors.plain += self.plain_error_of(entry, ds, entry.from_bias.slope);
            dbias.errors.products += ds.products;
            dbias.errors.flushed += ds.flushed;
        }
    }

    fn add_to_dk(&self, dk: &mut [Gathered], q_row: &[f64]) {
        for (entry, ds) in self.row.entries.iter().zip(&self.ds) {
            let plain = self.plain_error_of(entry, ds, entry.score.slope);
            for (dk, q) in dk[entry.key as usize * q_row.len()..].iter_mut().zip(q_row) {
                dk.sum.add(ds.value * q);
                dk.errors.plain += plain * q.abs();
                dk.errors.products += ds.products * q.abs();
                dk.errors.flushed += ds.flushed * q.abs() + SMALLEST * ds.value.abs();
            }
        }
    }

    /// Without dropout's factor.
    fn add_to_dv(&self, dv: &mut [Gathered], d_o_row: &[f64]) {
        for entry in self.row.entries.iter().filter(|entry| entry.factor != 0.0) {
            for (dv, d_o) in dv[entry.key as usize * d_o_row.len()..].iter_mut().zip(d_o_row) {
                let term = entry.p * d_o;
                dv.sum.add(term);
                dv.errors.plain += term.abs() * (entry.plain + self.of_lse());
                dv.errors.products += term.abs() * entry.products;
                dv.errors.flushed += SMALLEST * d_o.abs();
            }
        }
    }
}

/// The largest absolute value that is a number.
fn max_of(row: &[f64]) -> f64 {
    row.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()))
}
