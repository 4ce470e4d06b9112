//! What a call has written, against the oracle: each element within its bound, and nothing else touched.

use wgpu_flash_attention::reference::{self, Arithmetic, ErrorTerms};
use wgpu_flash_attention::{AttentionProblem, Element, Operand};

use super::values::{POISON, Side, lse_own};
use crate::elements;

/// What a tensor must hold.
pub struct Expected {
    pub operand: Operand,
    pub element: Element,
    pub values: Vec<f64>,
    pub errors: Vec<ErrorTerms>,
    /// Which elements are written; all behind these are not.
    pub own: Vec<bool>,
    pub arithmetic: Arithmetic,
}

impl Expected {
    /// A tensor of which all is written.
    pub fn whole(operand: Operand, element: Element, values: Vec<f64>, errors: Vec<ErrorTerms>) -> Self {
        let own = vec![true; values.len()];
        Self { operand, element, values, errors, own, arithmetic: Arithmetic::F32 }
    }

    /// Matrices of `own` rows and columns in places for more.
    pub fn spread(self, own: [u32; 2], places: [u32; 2]) -> Self {
        let [(rows, columns), (all_rows, all_columns)] = [own, places].map(|[rows, columns]| (rows, columns));
        let matrices = self.values.len() / (rows * columns).max(1) as usize;
        let mut whole = Self { values: Vec::new(), errors: Vec::new(), own: Vec::new(), ..self };
        for matrix in 0..matrices {
            for (row, column) in (0..all_rows).flat_map(|row| (0..all_columns).map(move |column| (row, column))) {
                let is_own = row < rows && column < columns;
                let from = (matrix as u32 * rows + row) * columns + column;
                let from = if is_own { from as usize } else { 0 };
                whole.values.push(self.values[from]);
                whole.errors.push(self.errors[from]);
                whole.own.push(is_own);
            }
        }
        whole
    }

    /// LSE of a call that solves `solved` and keeps the rows of `prepared` apart.
    pub fn lse(
        values: &[f64],
        errors: &[ErrorTerms],
        [solved, prepared]: [&AttentionProblem; 2],
        arithmetic: Arithmetic,
    ) -> Self {
        let own = lse_own(solved);
        Self {
            operand: Operand::Lse,
            element: Element::F32,
            values: spread(values, [solved, prepared], 0.0),
            errors: spread(errors, [solved, prepared], ErrorTerms::default()),
            own: spread(&own, [solved, prepared], false),
            arithmetic,
        }
    }

    /// The largest share of a bound that an error takes up, or what is wrong.
    pub fn judge(&self, bytes: &[u8]) -> Result<f64, String> {
        let size = self.element.size() as usize;
        let operand = self.operand;
        let mut largest = 0f64;
        for (index, value) in bytes.chunks_exact(size).enumerate() {
            if !self.own.get(index).is_some_and(|own| *own) {
                // The gradient of a bias is written in whole words.
                let is_padding = operand == Operand::DBias && index == self.own.len() && index % 2 == 1;
                if !is_padding && value.iter().any(|byte| *byte != POISON) {
                    return Err(format!("element {index} of {operand}, which is none of its own, was written"));
                }
                continue;
            }
            let found = elements::decode(self.element, value).next().unwrap_or(f64::NAN);
            let (expected, bound) = (self.values[index], self.errors[index].bound(&self.arithmetic));
            let error = reference::error_before_storing(self.element, found, expected);
            let share = if error == 0.0 { 0.0 } else { error / bound };
            if share.is_nan() || share > 1.0 {
                let reason = format!("{found:e}, not {expected:e}: {share:.3} times its bound of {bound:e}");
                return Err(format!("{operand}[{index}] is {reason}"));
            }
            largest = largest.max(share);
        }
        let written = bytes.len() / size;
        match self.own.iter().skip(written).any(|own| *own) {
            true => Err(format!("{operand} has {written} elements, not {}", self.own.len())),
            false => Ok(largest),
        }
    }
}

/// Entries of LSE of a call in their places, with `nothing` between: a shorter call keeps the prepared rows of each head apart.
pub fn spread<T: Clone>(values: &[T], [solved, prepared]: [&AttentionProblem; 2], nothing: T) -> Vec<T> {
    let rows = |problem: &AttentionProblem| problem.total_q().unwrap_or(problem.shape.seqlen_q) as usize;
    let (own, all) = (rows(solved), rows(prepared));
    if own == 0 {
        return vec![nothing; prepared.lse_len() as usize];
    }
    let mut spread = Vec::new();
    for head in values.chunks(own) {
        spread.extend_from_slice(head);
        spread.resize(spread.len() + all - own, nothing.clone());
    }
    spread
}

/// The tensors that a forward call writes.
pub fn forward(
    case: reference::Case<'_>,
    [q, k, v]: [&[f64]; 3],
    prepared: &AttentionProblem,
    arithmetic: Arithmetic,
) -> Vec<Expected> {
    let solved: &AttentionProblem = &case;
    let (answer, errors) = (reference::forward(case, q, k, v), reference::forward_errors(case, q, k, v));
    let shape = solved.shape;
    let o = Expected {
        operand: Operand::O,
        element: solved.element,
        values: answer.o,
        errors: errors.o,
        own: Side::Q.own(solved, &solved.layout.o, shape.num_heads, shape.head_dim_v),
        arithmetic,
    };
    vec![o, Expected::lse(&answer.lse, &errors.lse, [solved, prepared], arithmetic)]
}

/// The tensors that a backward call writes, for this O.
pub fn backward(
    case: reference::Case<'_>,
    tensors: [&[f64]; 4],
    d_o: &[f64],
    d_lse: Option<&[f64]>,
    arithmetic: Arithmetic,
) -> Vec<Expected> {
    let solved: &AttentionProblem = &case;
    let answer = reference::backward_for(case, tensors, d_o, d_lse);
    let errors = reference::backward_errors(case, tensors, d_o, d_lse);
    let (shape, layout, element) = (solved.shape, solved.gradient_layout(), solved.gradient_element());
    let of = |operand, values, errors, own| Expected { operand, element, values, errors, own, arithmetic };
    let (heads, heads_kv) = (shape.num_heads, shape.num_heads_kv);
    let dq = Side::Q.own(solved, &layout.q, heads, shape.head_dim);
    let dk = Side::Kv.own(solved, &layout.k, heads_kv, shape.head_dim);
    let dv = Side::Kv.own(solved, &layout.v, heads_kv, shape.head_dim_v);
    let mut all = vec![
        of(Operand::Dq, answer.dq, errors.dq, dq),
        of(Operand::Dk, answer.dk, errors.dk, dk),
        of(Operand::Dv, answer.dv, errors.dv, dv),
    ];
    if solved.has_sink() {
        let dsink = Expected::whole(Operand::DSink, Element::F32, answer.dsink, errors.dsink);
        all.push(Expected { arithmetic, ..dsink });
    }
    if let Some(element) = bias_element(solved).filter(|_| solved.has_bias_gradient()) {
        // No kernel computes it on matrices.
        all.push(Expected::whole(Operand::DBias, element, answer.dbias, errors.dbias));
    }
    all
}

fn bias_element(problem: &AttentionProblem) -> Option<Element> {
    problem.scores().iter().find_map(|modifier| match modifier {
        wgpu_flash_attention::ScoreMod::Bias { element, .. } => Some(*element),
        _ => None,
    })
}
