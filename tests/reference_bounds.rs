//! The bounds that the oracle computes, in cases where one can say what they must be. No GPU.

use wgpu_flash_attention::reference::{
    Arithmetic, ErrorTerms, backward, backward_errors, backward_for, forward, forward_errors,
};
use wgpu_flash_attention::{AttentionProblem, AttentionShape};

/// Distinct, irregular values in [−1, 1].
fn values(len: u32, first: u32) -> Vec<f64> {
    (first..first + len).map(|n| (f64::from(n) * 1.618).sin()).collect()
}

fn bounds(errors: &[ErrorTerms], arithmetic: &Arithmetic) -> Vec<f64> {
    errors.iter().map(|error| error.bound(arithmetic)).collect()
}

#[test]
fn rows_that_see_nothing_are_exact() {
    // The first four of ten rows see none of the six keys.
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 10, 3).with_seqlen_kv(6)).with_causal();
    let [q, k, v, d_o] = [(30, 0), (18, 100), (18, 200), (30, 300)].map(|(len, first)| values(len, first));
    let errors = forward_errors(&problem, &q, &k, &v);
    let o = forward(&problem, &q, &k, &v).o;
    let gradients = backward_errors(&problem, [&q, &k, &v, &o], &d_o, None);
    for arithmetic in [Arithmetic::F32, Arithmetic::MATRICES.merging()] {
        for errors in [&errors.o, &gradients.dq] {
            let bounds = bounds(errors, &arithmetic);
            assert!(bounds[12..].iter().all(|bound| *bound > 0.0));
        }
        assert!(bounds(&errors.o, &arithmetic)[..12].iter().all(|bound| *bound == 0.0));
        assert!(bounds(&errors.lse, &arithmetic)[..4].iter().all(|bound| *bound == 0.0));
    }
    assert!(bounds(&gradients.dq, &Arithmetic::F32)[..12].iter().all(|bound| *bound == 0.0));
}

#[test]
fn a_million_values_of_one_sign_are_right_to_five_digits() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 1, 1).with_seqlen_kv(1_000_000));
    let [q, k] = [(1, 0), (1_000_000, 100)].map(|(len, first)| values(len, first));
    let v: Vec<f64> = values(1_000_000, 7).into_iter().map(|v| v.abs() + 0.5).collect();
    let o = forward(&problem, &q, &k, &v).o;
    let errors = forward_errors(&problem, &q, &k, &v);
    for arithmetic in [Arithmetic::F32, Arithmetic::MATRICES_IN_PARTS] {
        let bound = errors.o[0].bound(&arithmetic) / o[0];
        assert!((1e-6..1e-5).contains(&bound), "{bound:e}");
    }
}

#[test]
fn what_cancels_in_d_s_leaves_its_rounding() {
    // One key: dP = D, so that dS, dQ and dK are 0, and what f32 rounds of dP and D is left.
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 1, 4).with_seqlen_kv(1));
    let [q, k, v, d_o] = [(4, 0), (4, 100), (4, 200), (4, 300)].map(|(len, first)| values(len, first));
    let o = forward(&problem, &q, &k, &v).o;
    let gradients = backward_for(&problem, [&q, &k, &v, &o], &d_o, None);
    let errors = backward_errors(&problem, [&q, &k, &v, &o], &d_o, None);
    let dp: f64 = d_o.iter().zip(&v).map(|(d_o, v)| d_o * v).sum();
    for ((dq, error), k) in gradients.dq.iter().zip(&errors.dq).zip(&k) {
        let bound = error.bound(&Arithmetic::F32);
        assert!(dq.abs() < 1e-15);
        let one_rounding = 2f64.powi(-24) * dp.abs() * k.abs() * problem.softmax_scale();
        assert!(bound > 2.0 * one_rounding && bound < 100.0 * one_rounding, "{bound:e}, one rounding {one_rounding:e}");
    }
}

#[test]
fn gradients_for_the_exact_o_are_the_gradients() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 2, 5, 3).with_seqlen_kv(7).with_num_heads_kv(1))
        .with_dropout(0.3, 5);
    let [q, k, v, d_o] = [(30, 0), (21, 100), (21, 200), (30, 300)].map(|(len, first)| values(len, first));
    let d_lse = values(10, 400);
    let o = forward(&problem, &q, &k, &v).o;
    let exact = backward(&problem, &q, &k, &v, &d_o, Some(&d_lse));
    let found = backward_for(&problem, [&q, &k, &v, &o], &d_o, Some(&d_lse));
    for (found, exact) in [(&found.dq, &exact.dq), (&found.dk, &exact.dk), (&found.dv, &exact.dv)] {
        assert!(found.iter().zip(exact).all(|(found, exact)| (found - exact).abs() < 1e-14));
    }
    // D of another O moves dQ and dK, and no dV.
    let moved: Vec<f64> = o.iter().map(|o| o + 1e-3).collect();
    let moved = backward_for(&problem, [&q, &k, &v, &moved], &d_o, Some(&d_lse));
    assert!(moved.dv == found.dv && moved.dq != found.dq && moved.dk != found.dk);
}
