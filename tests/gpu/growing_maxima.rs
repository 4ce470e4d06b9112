//! Rows whose greatest score comes late. On cooperative matrices P passes through f16, so m may lag behind only so far.

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element};

use crate::support::{Inputs, Library, Variant, check, inputs, library, run, with_matrices};

const DIM: usize = 16;
const KEYS: usize = 203;

/// Scores in powers of two: a row that counts `rows(i)` times gives `rows(i) · keys(j)` with key j. V stays as it is.
fn place(inputs: &mut Inputs, heads: usize, rows: impl Fn(usize) -> f64, keys: impl Fn(usize) -> f64) {
    for (tensor, first) in [(&mut inputs.q, &rows as &dyn Fn(usize) -> f64), (&mut inputs.k, &keys)] {
        let seqlen = tensor.len() / DIM / heads;
        for (n, row) in tensor.chunks_mut(DIM).enumerate() {
            row.fill(0.0);
            row[0] = first(n % seqlen);
        }
    }
}

fn problem(heads: u32, rows: u32) -> AttentionProblem {
    let shape = AttentionShape::new(1, heads, rows, DIM as u32).with_seqlen_kv(KEYS as u32);
    AttentionProblem::new(shape).with_softmax_scale(std::f64::consts::LN_2)
}

/// Each row grows by the same power of two, so that none leads another past a threshold; some rows shrink instead.
fn grow(library: &Library, problem: &AttentionProblem) {
    let heads = problem.shape.num_heads as usize;
    // Where the greatest scores are: in all keys of the last tile, in one, or further up in each tile.
    let places: [&dyn Fn(usize) -> f64; 4] =
        [&|key| f64::from(key >= KEYS - 8), &|key| f64::from(key == KEYS - 1), &|key| f64::from(key == 100), &|key| {
            (key / 8) as f64
        }];
    for growth in [8.0, 11.0, 12.0, 12.5, 13.0, 14.0, 14.875, 15.0, 15.125, 15.875, 16.0, 17.0, 20.0, 500.0] {
        for place_of in places {
            let mut inputs = inputs(problem, 11);
            place(&mut inputs, heads, |row| if row % 5 == 3 { -growth } else { growth }, place_of);
            check(library, problem, &inputs);
        }
    }
}

#[test]
fn every_growth_is_followed() {
    grow(library(Variant::Full), &problem(70, 130).with_element(Element::F16));
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        grow(library, &problem(1, 40).with_element(element));
        grow(library, &problem(1, KEYS as u32).with_element(element).with_causal());
    }
}

/// Rows of −∞ and of NaN lie beside rows that grow, and change nothing in them.
#[test]
fn rows_without_a_maximum_leave_others_alone() {
    let Some(library) = with_matrices() else { return };
    for &element in Element::ALL {
        for problem in [problem(1, 40), problem(1, KEYS as u32).with_causal()] {
            let problem = problem.with_element(element);
            let mut inputs = inputs(&problem, 12);
            let keys = |key| if key > 150 { 21.0 } else { 1.0 };
            place(&mut inputs, 1, |_| 1.0, keys);
            let clean = run(library, &problem, &inputs);
            place(&mut inputs, 1, |row| if row % 3 == 1 { f64::NEG_INFINITY } else { 1.0 }, keys);
            check(library, &problem, &inputs);
            place(&mut inputs, 1, |row| if row % 3 == 1 { f64::NAN } else { 1.0 }, keys);
            let output = run(library, &problem, &inputs);
            for (at, (o, clean)) in output.o().iter().zip(clean.o()).enumerate() {
                let row = at / DIM;
                assert!(if row % 3 == 1 { o.is_nan() } else { *o == clean }, "row {row}: {o}, {clean}\n{problem:?}");
            }
        }
    }
}
