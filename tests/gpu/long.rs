//! Long rows: sums that must not drift, and loops that some software drivers end after 65,535 turns without a word.

use wgpu_flash_attention::unstable::Kernel;
use wgpu_flash_attention::{Algorithm, AttentionProblem, AttentionShape, Element, Plan, reference};

use crate::support::{
    Inputs, Library, Variant, check, check_gradients, gradient_inputs, inputs, library, limited, run, run_backward,
    with_matrices,
};

/// The number of turns after which Mesa 22.3's software driver ends a shader.
const MOST_TURNS: u32 = 65_535;

fn with_few_turns() -> Library {
    limited(|capabilities| capabilities.max_loop_turns = Some(MOST_TURNS))
}

fn problem(seqlen_q: u32, seqlen_kv: u32, head_dim: u32) -> AttentionProblem {
    AttentionProblem::new(AttentionShape::new(1, 1, seqlen_q, head_dim).with_seqlen_kv(seqlen_kv))
}

#[test]
fn many_keys() {
    for problem in [problem(64, 8_192, 64), problem(256, 70_000, 16)] {
        check(library(Variant::Full), &problem, &inputs(&problem, 1));
    }
}

#[test]
fn many_rows_to_a_kv_head() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 8, 512, 64).with_num_heads_kv(1).with_seqlen_kv(64));
    check_gradients(library(Variant::Full), &problem, &gradient_inputs(&problem, 2));
    check_gradients(library(Variant::Full), &problem.clone().with_dropout(0.2, 3), &gradient_inputs(&problem, 3));
}

/// The largest length for which `plans` finds no refusal.
fn longest(plans: impl Fn(u32) -> bool) -> u32 {
    let (mut good, mut bad) = (1, 1 << 22);
    assert!(plans(good) && !plans(bad), "there is a longest length");
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        if plans(middle) { good = middle } else { bad = middle }
    }
    good
}

/// A count of turns that is too low would let a driver that ends shaders spoil the longest problem that is planned.
#[test]
fn the_longest_loops_of_forward_kernels() {
    let whole = with_few_turns();
    let no_subgroups = limited(|capabilities| {
        (capabilities.max_loop_turns, capabilities.subgroups) = (Some(MOST_TURNS), false);
    });
    // Decoding, few rows, many rows, dropout.
    let shapes = [(1, false), (40, false), (300, false), (40, true)];
    for library in [whole, no_subgroups] {
        for (rows, has_dropout) in shapes {
            let of_length = |keys: u32| {
                let problem = problem(rows, keys, 8);
                if has_dropout { problem.with_dropout(0.3, 1) } else { problem }
            };
            let capabilities = library.capabilities();
            // Keys beyond a binding go in chunks, whose loops are shorter.
            let is_one_loop = |plan: Plan| plan.passes().len() == 1;
            let keys = longest(|keys| {
                Plan::forward(&of_length(keys), capabilities).with_splits(1).build().is_ok_and(is_one_loop)
            });
            let problem = of_length(keys);
            println!("{rows} rows, dropout {has_dropout}: {keys} keys");
            check_forward(&library.clone().splits(1), &problem);
        }
    }
}

/// As `check`, without the other algorithm, whose longest length is another. A tile that is left out shows: each is more than
/// a thousandth of the answer.
fn check_forward(library: &Library, problem: &AttentionProblem) {
    let inputs = inputs(problem, 7);
    let expected = reference::forward(problem, &inputs.q, &inputs.k, &inputs.v);
    let found = run(library, problem, &inputs);
    for (found, expected) in found.lse().iter().zip(&expected.lse) {
        assert!((found - expected).abs() <= 1e-5 * expected.abs(), "LSE {found}, not {expected}\n{problem:?}");
    }
    are_near("O", &found.o(), &expected.o, problem);
}

/// As `check_gradients`, likewise.
fn check_backward(library: &Library, problem: &AttentionProblem) {
    let given = gradient_inputs(problem, 2);
    let Inputs { q, k, v, .. } = &given.inputs;
    let expected = reference::backward(problem, q, k, v, &given.d_o, given.d_lse.as_deref());
    let found = run_backward(library, problem, &given);
    are_near("dQ", &found.dq(), &expected.dq, problem);
    are_near("dK", &found.dk(), &expected.dk, problem);
    are_near("dV", &found.dv(), &expected.dv, problem);
}

fn are_near(name: &str, found: &[f64], expected: &[f64], problem: &AttentionProblem) {
    let max = expected.iter().fold(0.0f64, |max, value| max.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-3 * max, "{name} {found}, not {expected}\n{problem:?}");
    }
}

#[test]
fn the_longest_loops_of_standard_attention() {
    let library = with_few_turns();
    let standard = |keys: u32| problem(3, keys, 8).with_algorithm(Algorithm::Standard);
    let keys = longest(|keys| Plan::forward(&standard(keys), library.capabilities()).build().is_ok());
    println!("{keys} keys");
    check_forward(&library, &standard(keys));
}

#[test]
fn the_longest_loops_of_backward_kernels() {
    let library = with_few_turns();
    for algorithm in [Algorithm::Flash, Algorithm::Standard] {
        for dropout in [0.0, 0.3] {
            let of = |problem: AttentionProblem| problem.with_algorithm(algorithm).with_dropout(dropout, 1);
            let plans = |problem: &AttentionProblem| Plan::backward(problem, library.capabilities()).build().is_ok();
            let keys = longest(|keys| plans(&of(problem(5, keys, 8))));
            let rows = longest(|rows| plans(&of(problem(rows, 5, 8))));
            println!("{algorithm:?}, dropout {dropout}: {keys} keys, {rows} rows");
            for problem in [of(problem(5, keys, 8)), of(problem(rows, 5, 8))] {
                check_backward(&library, &problem);
            }
        }
    }
}

/// Every pass of a plan says how many turns it takes; what passes the device's limit is refused.
#[test]
fn what_takes_too_many_turns_is_refused() {
    let library = with_few_turns();
    let message = |result: Result<Plan, wgpu_flash_attention::Error>| result.unwrap_err().to_string();
    let long = problem(4, 2_000_000, 8);
    let refused =
        message(Plan::forward(&long.clone().with_algorithm(Algorithm::Standard), library.capabilities()).build());
    assert!(refused.contains("65535 turns") && refused.contains("seqlen_kv"), "{refused}");
    let refused = message(Plan::backward(&problem(2_000_000, 4, 8), library.capabilities()).build());
    assert!(refused.contains("65535 turns") && refused.contains("seqlen_q"), "{refused}");
    assert!(Plan::forward(&long, library.capabilities()).build().is_ok_and(|plan| plan.num_splits() > 1));
}

/// 1,000,000 terms of one sign.
fn of_one_sign(problem: &AttentionProblem) -> Inputs {
    let mut inputs = inputs(problem, 3);
    inputs.v.iter_mut().for_each(|value| *value = problem.element.round(value.abs() + 0.5));
    inputs
}

fn relative_error(library: &Library, problem: &AttentionProblem) -> f64 {
    let inputs = of_one_sign(problem);
    let expected = reference::forward(problem, &inputs.q, &inputs.k, &inputs.v);
    let found = run(library, problem, &inputs).o();
    found.iter().zip(&expected.o).map(|(found, expected)| (found / expected - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn sums_of_a_million_terms_do_not_drift() {
    for (rows, algorithm) in [(2, Algorithm::Flash), (40, Algorithm::Flash), (3, Algorithm::Standard)] {
        let problem = problem(rows, 1_000_000, 8).with_algorithm(algorithm);
        if library(Variant::Full).prepare(&problem).is_err() {
            println!("skipped: this driver's loops are too short for {algorithm:?}");
            continue;
        }
        let error = relative_error(library(Variant::Full), &problem);
        println!("{rows} rows, {algorithm:?}: {error:.1e}");
        assert!(error <= 1e-5, "{rows} rows, {algorithm:?}: {error:e}");
    }
}

#[test]
fn sums_of_a_million_terms_do_not_drift_on_matrices() {
    let Some(library) = with_matrices() else { return };
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let problem = problem(40, 1_000_000, 16).with_element(element);
        let kernel = library.prepare(&problem).unwrap().plan().passes()[0].kernel;
        assert_eq!(kernel, Kernel::FlashForwardCooperativeSplit);
        let error = relative_error(library, &problem);
        println!("{element:?}: {error:.1e}");
        // f16 and bf16 round P and the answer.
        let allowed = [1e-5, 1e-3, 8e-3][element as usize];
        assert!(error <= allowed, "{element:?}: {error:e}");
    }
}

/// The largest error of `found` relative to what is `expected` at each place.
fn largest_error(found: &[f64], expected: impl Fn(usize) -> f64) -> f64 {
    found.iter().enumerate().map(|(n, found)| (found / expected(n) - 1.0).abs()).fold(0.0, f64::max)
}

/// A value that is not a power of two, so that its sums are rounded.
const TERM: f64 = 1.1f32 as f64;

/// O where all P and all V are alike.
fn error_of_o(library: &Library, rows: u32, seqlen_kv: u32, algorithm: Algorithm) -> f64 {
    let problem = problem(rows, seqlen_kv, 16).with_algorithm(algorithm);
    let mut inputs = inputs(&problem, 3);
    inputs.k.fill(0.0);
    inputs.v.fill(TERM);
    largest_error(&run(library, &problem, &inputs).o(), |_| TERM)
}

/// dQ where all P are alike, dS < 0 in the first half of the keys, where K is not 0, and dS > 0 in the second, where it is.
fn error_of_dq(library: &Library, seqlen_kv: u32, algorithm: Algorithm) -> f64 {
    let problem = problem(8, seqlen_kv, 16).with_algorithm(algorithm);
    let mut given = gradient_inputs(&problem, 80);
    let half = seqlen_kv as usize / 2 * 16;
    given.inputs.q.fill(0.0);
    given.inputs.k.fill(0.0);
    given.inputs.k[..half].fill(TERM);
    given.inputs.v.fill(0.0);
    given.inputs.v[half..].fill(0.25);
    given.d_o.fill(TERM);
    // dP = 4 · TERM in the second half, D = 2 · TERM.
    let expected = -TERM * TERM * problem.softmax_scale();
    largest_error(&run_backward(library, &problem, &given).dq(), |_| expected)
}

/// dK and dV of eight keys, where all P are alike and dP is not 0 for the last key alone.
fn errors_of_dk_dv(library: &Library, rows: u32, num_heads: u32, algorithm: Algorithm) -> [f64; 2] {
    let shape = AttentionShape::new(1, num_heads, rows, 16).with_num_heads_kv(1).with_seqlen_kv(8);
    let problem = AttentionProblem::new(shape).with_algorithm(algorithm);
    let mut given = gradient_inputs(&problem, 80);
    given.inputs.k.fill(0.0);
    given.inputs.q.fill(TERM);
    given.inputs.v.fill(0.0);
    given.inputs.v[7 * 16..].fill(0.25);
    given.d_o.fill(TERM);
    let found = run_backward(library, &problem, &given);
    let terms = f64::from(rows) * f64::from(num_heads);
    // dP = 4 · TERM, D = TERM / 2.
    let ds_q = |ds: f64| terms * ds * TERM * TERM * problem.softmax_scale();
    let dk = largest_error(&found.dk(), |n| ds_q(if n / 16 == 7 { 3.5 / 8.0 } else { -0.5 / 8.0 }));
    [dk, largest_error(&found.dv(), |_| terms * TERM / 8.0)]
}

/// Terms that are all alike round the same way again and again: n of them drift by n · 2⁻²⁵ at most. No sum has more than
/// 32,768 of them; longer ones are sums of sums. A product of matrices adds up as many terms as a matrix has rows.
#[test]
fn sums_of_equal_terms_do_not_drift() {
    const LONGEST_SUM: u32 = 32_768;
    let drift = |terms: u32| f64::from(terms) * f64::from(2f32.powi(-25));
    let mut found = Vec::new();
    let mut check = |library: &str, algorithm: Algorithm, what: &str, terms: u32, error: f64, allowed: f64| {
        println!("{library}, {algorithm:?}, {what} of {terms} terms: {error:.1e} of {allowed:.1e}");
        found.push(error <= allowed);
    };
    let plain = &limited(|capabilities| capabilities.matrix_side = None);
    for (algorithm, lengths) in [(Algorithm::Flash, [8_192, 40_000]), (Algorithm::Standard, [8_192, 20_000])] {
        for terms in lengths {
            let alone = algorithm == Algorithm::Flash && terms <= LONGEST_SUM;
            let allowed = if alone { drift(terms) } else { 8e-6 };
            check("plain", algorithm, "dQ", terms, error_of_dq(plain, terms, algorithm), allowed);
            let [dk, dv] = errors_of_dk_dv(plain, terms / 4, 4, algorithm);
            check("plain", algorithm, "dK", terms, dk, allowed);
            check("plain", algorithm, "dV", terms, dv, allowed);
            let allowed = if algorithm == Algorithm::Flash { drift(terms.min(LONGEST_SUM)) } else { 8e-6 };
            check("plain", algorithm, "O of 40 rows", terms, error_of_o(plain, 40, terms, algorithm), allowed);
            // Groups of lanes share the keys, 2,048 for each.
            let allowed = if algorithm == Algorithm::Flash { drift(2048) } else { 8e-6 };
            check("plain", algorithm, "O of 2 rows", terms, error_of_o(plain, 2, terms, algorithm), allowed);
        }
    }
    if let Some(matrices) = with_matrices() {
        let side = matrices.capabilities().matrix_side.unwrap_or(1);
        let (terms, algorithm) = (20_000, Algorithm::Flash);
        let allowed = 2e-6 + drift(terms / side);
        check("matrices", algorithm, "dQ", terms, error_of_dq(matrices, terms, algorithm), allowed);
        let [dk, dv] = errors_of_dk_dv(matrices, terms / 4, 4, algorithm);
        check("matrices", algorithm, "dK", terms, dk, allowed);
        check("matrices", algorithm, "dV", terms, dv, allowed);
        check("matrices", algorithm, "O", terms, error_of_o(matrices, 40, terms, algorithm), allowed);
    }
    assert!(found.iter().all(|is_right| *is_right));
}
