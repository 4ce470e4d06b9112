//! The oracle itself: hand-computed attention, masks, empty tensors and Philox's published answers. No GPU.

use approx::assert_relative_eq;
use wgpu_flash_attention::reference::{ReferenceOutput, forward, forward_row, keeps, philox4x32_10};
use wgpu_flash_attention::{AttentionLayout, AttentionProblem, AttentionShape, TensorLayout};

/// Distinct, irregular values in [−2, 2].
fn values(len: usize, first: usize) -> Vec<f64> {
    (first..first + len).map(|n| 2.0 * (n as f64 * 1.618).sin()).collect()
}

/// Q, K and V for a contiguous problem.
fn inputs(problem: &AttentionProblem) -> [Vec<f64>; 3] {
    let shape = problem.shape;
    let rows_kv = (shape.batch * shape.seqlen_kv * shape.num_heads_kv) as usize;
    [
        values((shape.batch * shape.seqlen_q * shape.num_heads * shape.head_dim) as usize, 0),
        values(rows_kv * shape.head_dim as usize, 1000),
        values(rows_kv * shape.head_dim_v as usize, 2000),
    ]
}

fn run(problem: &AttentionProblem) -> ReferenceOutput {
    let [q, k, v] = inputs(problem);
    forward(problem, &q, &k, &v)
}

/// Row by row, which keys reach O: each key in turn gets a V of 1 while all others have 0.
fn keys_reaching(problem: &AttentionProblem) -> Vec<Vec<u32>> {
    let [q, k, _] = inputs(problem);
    let mut reaching = vec![Vec::new(); problem.shape.seqlen_q as usize];
    for key in 0..problem.shape.seqlen_kv {
        let mut v = vec![0.0; problem.shape.seqlen_kv as usize];
        v[key as usize] = 1.0;
        for (row, o) in forward(problem, &q, &k, &v).o.iter().enumerate() {
            if *o != 0.0 {
                reaching[row].push(key);
            }
        }
    }
    reaching
}

/// Each sequence of packed ones, by itself in the rows that it has.
#[test]
fn packed_sequences_are_each_by_itself() {
    let shape = AttentionShape::new(4, 4, 7, 5).with_num_heads_kv(2).with_seqlen_kv(9).with_head_dim_v(3);
    let (sums_q, sums_kv) = ([0u32, 3, 3, 4, 11], [0u32, 9, 11, 11, 15]);
    let q = values(11 * 4 * 5, 0);
    let (k, v) = (values(15 * 2 * 5, 1000), values(15 * 2 * 3, 2000));
    let packed = AttentionProblem::new(shape).with_causal().with_cu_seqlens(sums_q.to_vec(), sums_kv.to_vec());
    let found = forward(&packed, &q, &k, &v);
    assert_eq!((found.o.len(), found.lse.len()), (11 * 4 * 3, 4 * 11));
    for n in 0..4 {
        let [rows, keys] = [sums_q, sums_kv].map(|sums| sums[n] as usize..sums[n + 1] as usize);
        let alone = AttentionShape { batch: 1, seqlen_q: rows.len() as u32, seqlen_kv: keys.len() as u32, ..shape };
        let alone = AttentionProblem::new(alone).with_causal();
        let expected = forward(&alone, &q[rows.start * 20..], &k[keys.start * 10..], &v[keys.start * 6..]);
        assert_eq!(found.o[rows.start * 12..rows.end * 12], expected.o, "sequence {n}");
        for head in 0..4 {
            let lse = &expected.lse[head * rows.len()..][..rows.len()];
            assert_eq!(found.lse[head * 11 + rows.start..head * 11 + rows.end], *lse, "sequence {n}, head {head}");
        }
    }
    // Dropout counts sequences, rows and keys as padded tensors do.
    let dropped = packed.with_dropout(0.5, 3);
    let (o, lse) = forward_row(&dropped, &q, &k, &v, 3, 1, 2);
    let padded = AttentionProblem::new(shape).with_causal().with_dropout(0.5, 3);
    let padded = padded.with_lengths(vec![3, 0, 1, 7], vec![9, 2, 0, 4]);
    let in_padded = |tensor: &[f64], first: usize, rows: usize, of_row: usize, all: usize| {
        let mut whole = vec![f64::NAN; 4 * all * of_row];
        whole[3 * all * of_row..][..rows * of_row].copy_from_slice(&tensor[first * of_row..][..rows * of_row]);
        whole
    };
    let [q, k, v] = [in_padded(&q, 4, 7, 20, 7), in_padded(&k, 11, 4, 10, 9), in_padded(&v, 11, 4, 6, 9)];
    assert_eq!((o, lse), forward_row(&padded, &q, &k, &v, 3, 1, 2));
}

#[test]
fn philox_gives_the_published_answers() {
    // The known-answer file of Random123, philox 4x32, 10 rounds.
    let answers = [
        ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0xa409_3822, 0x299f_31d0],
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (key, counter, words) in answers {
        assert_eq!(philox4x32_10(key, counter), words, "key {key:x?}, counter {counter:x?}");
    }
}

#[test]
fn two_keys_by_hand() {
    // Scores ln 1 and ln 3, so P = (1/4, 3/4) and the sum of exponentials is 4.
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 1, 1).with_seqlen_kv(2).with_head_dim_v(2))
        .with_softmax_scale(0.5);
    let output = forward(&problem, &[2.0], &[0.0, 3f64.ln()], &[8.0, 0.0, 4.0, 100.0]);
    assert_relative_eq!(output.o[0], 5.0, max_relative = 1e-15);
    assert_relative_eq!(output.o[1], 75.0, max_relative = 1e-15);
    assert_relative_eq!(output.lse[0], 4f64.ln(), max_relative = 1e-15);
}

#[test]
fn the_scale_defaults_to_one_over_the_root_of_head_dim() {
    let problem = AttentionProblem::new(AttentionShape::new(2, 2, 5, 4));
    assert_eq!(run(&problem), run(&problem.clone().with_softmax_scale(0.5)));
    assert_ne!(run(&problem), run(&problem.clone().with_softmax_scale(0.25)));
}

#[test]
fn huge_scores_do_not_overflow() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 1, 1).with_seqlen_kv(2)).with_softmax_scale(1.0);
    let output = forward(&problem, &[1e3], &[1e3, 1e3 - 1.0], &[7.0, 9.0]);
    assert_eq!(output.o, [7.0]);
    assert_eq!(output.lse, [1e6]);
}

#[test]
fn one_row_is_the_same_row_of_the_whole() {
    let problem =
        AttentionProblem::new(AttentionShape::new(2, 4, 5, 3).with_num_heads_kv(2).with_head_dim_v(2)).with_causal();
    let [q, k, v] = inputs(&problem);
    let whole = forward(&problem, &q, &k, &v);
    for (batch, head, row) in [(0, 0, 0), (1, 3, 4), (1, 0, 2), (0, 2, 3)] {
        let (o, lse) = forward_row(&problem, &q, &k, &v, batch, head, row);
        let first = ((batch * 5 + row) * 4 + head) as usize * 2;
        assert_eq!(o, whole.o[first..first + 2]);
        assert_eq!(lse, whole.lse[((batch * 4 + head) * 5 + row) as usize]);
    }
}

#[test]
fn masks_show_the_keys_they_name() {
    let problem =
        |seqlen_q, seqlen_kv| AttentionProblem::new(AttentionShape::new(1, 1, seqlen_q, 1).with_seqlen_kv(seqlen_kv));
    let all_of =
        |ranges: &[std::ops::Range<u32>]| -> Vec<Vec<u32>> { ranges.iter().map(|r| r.clone().collect()).collect() };
    let cases = [
        (problem(2, 3), vec![0..3, 0..3]),
        (problem(2, 4).with_causal(), vec![0..3, 0..4]),
        (problem(2, 4).with_causal_top_left(), vec![0..1, 0..2]),
        (problem(4, 2).with_causal(), vec![0..0, 0..0, 0..1, 0..2]),
        (problem(4, 2).with_causal_top_left(), vec![0..1, 0..2, 0..2, 0..2]),
        (problem(4, 4).with_window(Some(0), Some(0)), vec![0..1, 1..2, 2..3, 3..4]),
        (problem(4, 4).with_window(Some(1), Some(2)), vec![0..3, 0..4, 1..4, 2..4]),
        (problem(3, 5).with_window(Some(1), None), vec![1..5, 2..5, 3..5]),
        (problem(3, 5).with_window(None, Some(1)), vec![0..4, 0..5, 0..5]),
        (problem(3, 5).with_window(Some(1), Some(7)).with_causal(), vec![1..3, 2..4, 3..5]),
        (problem(3, 5).with_causal_top_left().with_window(Some(1), Some(7)), vec![0..1, 0..2, 1..3]),
        (problem(3, 3).with_window(Some(u32::MAX), Some(u32::MAX)), vec![0..3, 0..3, 0..3]),
        (problem(5, 2).with_window(Some(0), Some(0)), vec![0..0, 0..0, 0..0, 0..1, 1..2]),
    ];
    for (problem, expected) in cases {
        assert_eq!(keys_reaching(&problem), all_of(&expected), "{:?} {:?}", problem.shape, problem.mask);
        let pairs: usize = expected.iter().map(|keys| keys.len()).sum();
        assert_eq!(problem.visible_pairs(), pairs as u64);
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 4, 1).with_seqlen_kv(2)).with_causal();
    let output = run(&problem);
    assert_eq!(output.o[..2], [0.0, 0.0]);
    assert_eq!(output.lse[..2], [f64::NEG_INFINITY; 2]);
    assert!(output.lse[2..].iter().all(|lse| lse.is_finite()));

    let output = run(&AttentionProblem::new(AttentionShape::new(2, 2, 3, 4).with_seqlen_kv(0)));
    assert_eq!(output.o, [0.0; 2 * 2 * 3 * 4]);
    assert_eq!(output.lse, [f64::NEG_INFINITY; 2 * 2 * 3]);
}

#[test]
fn empty_tensors_are_a_no_op() {
    let shape = AttentionShape::new(2, 2, 3, 4);
    let heads = AttentionShape { num_heads: 0, num_heads_kv: 0, ..shape };
    for shape in [AttentionShape { batch: 0, ..shape }, AttentionShape { seqlen_q: 0, ..shape }, heads] {
        let output = run(&AttentionProblem::new(shape));
        assert!(output.o.is_empty() && output.lse.is_empty());
    }
}

#[test]
fn grouped_heads_equal_repeated_heads() {
    let shape = AttentionShape::new(2, 6, 5, 3).with_num_heads_kv(2);
    let grouped = AttentionProblem::new(shape).with_causal();
    let [q, k, v] = inputs(&grouped);
    // [batch · row, kv head, dim] with each head three times over.
    let repeat = |tensor: &[f64]| -> Vec<f64> { tensor.chunks(3).flat_map(|head| head.repeat(3)).collect() };
    let repeated = AttentionProblem::new(shape.with_num_heads_kv(6)).with_causal();
    assert_eq!(forward(&grouped, &q, &k, &v), forward(&repeated, &q, &repeat(&k), &repeat(&v)));
}

#[test]
fn layouts_place_the_same_numbers_elsewhere() {
    let shape = AttentionShape::new(2, 3, 4, 2);
    let bshd = AttentionProblem::new(shape);
    let gaps = |shift| TensorLayout { offset: shift, stride_batch: 100, stride_row: 23, stride_head: 5 };
    let strided = AttentionLayout { q: gaps(1), k: gaps(2), v: gaps(3), o: gaps(4) };
    let [q, k, v] = inputs(&bshd);
    let expected = forward(&bshd, &q, &k, &v);
    for layout in [AttentionLayout::bhsd(&shape), strided] {
        let problem = bshd.clone().with_layout(layout);
        // Whatever lies between the elements must not matter.
        let place = |from: &[f64], to: &TensorLayout| {
            let mut placed = vec![f64::NAN; 300];
            each_row(shape, |batch, row, head| {
                let (from_first, to_first) = (bshd.layout.q.index(batch, row, head), to.index(batch, row, head));
                placed[to_first as usize..][..2].copy_from_slice(&from[from_first as usize..][..2]);
            });
            placed
        };
        let output = forward(&problem, &place(&q, &layout.q), &place(&k, &layout.k), &place(&v, &layout.v));
        assert_eq!(output.lse, expected.lse);
        each_row(shape, |batch, row, head| {
            let (at, expected_at) = (layout.o.index(batch, row, head), bshd.layout.o.index(batch, row, head));
            assert_eq!(output.o[at as usize..][..2], expected.o[expected_at as usize..][..2]);
        });
    }
}

fn each_row(shape: AttentionShape, mut visit: impl FnMut(u32, u32, u32)) {
    for batch in 0..shape.batch {
        for row in 0..shape.seqlen_q {
            (0..shape.num_heads).for_each(|head| visit(batch, row, head));
        }
    }
}

#[test]
fn a_nan_reaches_only_the_rows_that_see_it() {
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 4, 2)).with_window(Some(1), Some(0));
    let [q, k, v] = inputs(&problem);
    let rows_with_nan = |q: &[f64], k: &[f64], v: &[f64]| -> Vec<usize> {
        let o = forward(&problem, q, k, v).o;
        (0..4).filter(|row| o[2 * row..][..2].iter().any(|o| o.is_nan())).collect()
    };
    let poisoned = |tensor: &[f64], row: usize| {
        let mut tensor = tensor.to_vec();
        tensor[2 * row] = f64::NAN;
        tensor
    };
    assert_eq!(rows_with_nan(&q, &k, &v), [] as [usize; 0]);
    assert_eq!(rows_with_nan(&poisoned(&q, 1), &k, &v), [1]);
    assert_eq!(rows_with_nan(&q, &poisoned(&k, 1), &v), [1, 2]);
    assert_eq!(rows_with_nan(&q, &k, &poisoned(&v, 3)), [3]);
    assert!(forward(&problem, &q, &poisoned(&k, 1), &v).lse[1].is_nan());
}

#[test]
fn dropout_drops_by_the_philox_words() {
    // Equal scores, and V the identity: O is the mask over seqlen_kv · (1 − p).
    let seqlen = 8;
    let mut problem =
        AttentionProblem::new(AttentionShape::new(2, 2, 3, 1).with_seqlen_kv(seqlen).with_head_dim_v(seqlen))
            .with_dropout(0.5, 0x0123_4567_89ab_cdef);
    problem.dropout.as_mut().unwrap().philox_offset = 9;
    // V is [batch, row, head, dim]: both heads of a row hold the same unit vector.
    let unit = |row: u32| (0..seqlen).map(move |dim| f64::from(u8::from(dim == row)));
    let v: Vec<f64> = (0..2 * seqlen).flat_map(|row| unit(row % seqlen).chain(unit(row % seqlen))).collect();
    let output = forward(&problem, &[0.0; 12], &[1.0; 32], &v);
    let mut kept = 0;
    for (batch, head, row) in [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 2)] {
        for key in 0..seqlen {
            let word = philox4x32_10([0x89ab_cdef, 0x0123_4567], [key / 4, row, batch * 2 + head, 9])[key as usize % 4];
            assert_eq!(keeps(&problem, batch, head, row, key), word >= 1 << 31);
            let o = output.o[(((batch * 3 + row) * 2 + head) * seqlen + key) as usize];
            assert_eq!(o, if word >= 1 << 31 { 0.25 } else { 0.0 });
            kept += (word >= 1 << 31) as u32;
        }
    }
    assert!((4..28).contains(&kept), "{kept} of 32 entries kept at p = 0.5");
    // LSE belongs to the softmax before dropout.
    let mut dry = problem.clone();
    dry.dropout = None;
    assert_eq!(output.lse, forward(&dry, &[0.0; 12], &[1.0; 32], &v).lse);
}

#[test]
fn dropout_keeps_the_share_it_should() {
    for p in [0.0, 0.1, 0.5, 0.999] {
        let problem = AttentionProblem::new(AttentionShape::new(1, 1, 64, 1).with_seqlen_kv(1024)).with_dropout(p, 7);
        let kept = (0..64).flat_map(|row| (0..1024).map(move |key| (row, key)));
        let kept = kept.filter(|(row, key)| keeps(&problem, 0, 0, *row, *key)).count() as f64;
        // Six standard deviations of a binomial draw.
        let n = 65536.0;
        let allowed = 6.0 * (n * p * (1.0 - p)).sqrt();
        assert!((kept - n * (1.0 - p)).abs() <= allowed, "p = {p}: {kept} kept");
    }
}
