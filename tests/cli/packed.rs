//! Packed sequences in the input file.

use safetensors::tensor::{Dtype, TensorView};

use crate::workplace::Workplace;

/// Nothing, five rows over nine keys, one row over none, three rows over four keys.
const CU_SEQLENS_Q: [i64; 5] = [0, 0, 5, 6, 9];
const CU_SEQLENS_KV: [i64; 5] = [0, 2, 11, 11, 15];

type Given = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn integers(name: &'static str, dtype: Dtype, numbers: &[i64]) -> Given {
    let size = dtype.bitsize() / 8;
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()[..size].to_vec()).collect();
    (name, dtype, vec![numbers.len()], bytes)
}

fn values(name: &'static str, shape: &[usize], seed: f32) -> Given {
    let value = |n: usize| (n as f32 * seed).sin() * 2.0;
    let bytes = (0..shape.iter().product()).flat_map(|n| value(n).to_le_bytes()).collect();
    (name, Dtype::F32, shape.to_vec(), bytes)
}

/// Q, K, V and dO, all rows × heads × dim, and their sums.
fn packed() -> Vec<Given> {
    vec![
        values("q", &[9, 4, 8], 0.7),
        values("k", &[15, 2, 8], 1.3),
        values("v", &[15, 2, 6], 0.9),
        values("d_o", &[9, 4, 6], 1.7),
        values("d_lse", &[4, 9], 2.3),
        integers("cu_seqlens_q", Dtype::I32, &CU_SEQLENS_Q),
        integers("cu_seqlens_kv", Dtype::I64, &CU_SEQLENS_KV),
    ]
}

fn file(given: &[Given]) -> Vec<u8> {
    let views = given.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("the bytes fit the shape"))
    });
    safetensors::serialize(views, None).expect("a safetensors file")
}

#[test]
fn flash_standard_and_reference_agree_on_packed_sequences() {
    let place = Workplace::new();
    let mut used = packed();
    used.push(integers("seqused_q", Dtype::U8, &[0, 4, 1, 0]));
    used.push(integers("seqused_kv", Dtype::U32, &[2, 7, 0, 4]));
    for given in [packed(), used] {
        let input = place.write("in", &file(&given));
        // --layout says nothing about packed sequences.
        for options in [&["--causal"][..], &["--layout", "bshd", "--dropout", "0.2", "--seed", "5"]] {
            let of = |algorithm| place.run(&input, &[&["--algorithm", algorithm], options].concat());
            let reference = of("reference");
            assert_eq!((&reference.o_shape[..], &reference.lse_shape[..]), (&[9, 4, 6][..], &[4, 9][..]));
            let shapes: Vec<_> = reference.gradients.iter().map(|(shape, _)| shape.clone()).collect();
            assert_eq!(shapes, [vec![9, 4, 8], vec![15, 2, 8], vec![15, 2, 6]]);
            // Row 5 has no keys.
            assert!(reference.lse.iter().skip(5).step_by(9).all(|lse| *lse == f64::NEG_INFINITY));
            of("flash").agrees(&reference, 1e-5, &format!("flash {options:?}"));
            of("standard").agrees(&reference, 1e-5, &format!("standard {options:?}"));
        }
    }
}

/// As the same sequence in a file of its own.
#[test]
fn a_packed_sequence_is_one_by_itself() {
    let place = Workplace::new();
    let together = place.run(&place.write("in", &file(&packed())), &["--causal"]);
    let part = |(name, dtype, shape, bytes): Given, rows: std::ops::Range<usize>| -> Given {
        let of_row = bytes.len() / shape[0];
        let bytes = bytes[rows.start * of_row..rows.end * of_row].to_vec();
        (name, dtype, vec![1, rows.len(), shape[1], shape[2]], bytes)
    };
    let [q, k, v] = <[Given; 3]>::try_from(packed().into_iter().take(3).collect::<Vec<_>>()).expect("three tensors");
    let alone = file(&[part(q, 6..9), part(k, 11..15), part(v, 11..15)]);
    let alone = place.run(&place.write("alone", &alone), &["--causal", "--layout", "bshd"]);
    let rows = 6 * 4 * 6..9 * 4 * 6;
    assert!(together.o[rows].iter().zip(&alone.o).all(|(found, expected)| (found - expected).abs() < 1e-5));
    for head in 0..4 {
        let found = &together.lse[head * 9 + 6..head * 9 + 9];
        assert!(found.iter().zip(&alone.lse[head * 3..]).all(|(found, expected)| (found - expected).abs() < 1e-5));
    }
}

#[test]
fn packed_sequences_that_cannot_be_are_refused() {
    let place = Workplace::new();
    let out = place.path("out");
    let refuses = |given: &[Given], reason: &str| {
        let input = place.write("in", &file(given));
        place.refuses(&["run", &input, &out], reason);
    };
    let with = |name: &str, numbers: &[i64]| -> Vec<Given> {
        let mut given = packed();
        let place = given.iter_mut().find(|(other, ..)| *other == name).expect("there is one");
        *place = integers(place.0, Dtype::I64, numbers);
        given
    };
    let and = |more: Given| packed().into_iter().chain([more]).collect::<Vec<_>>();
    refuses(&with("cu_seqlens_q", &[0, 0, 5, 6, 8]), "cu_seqlens_q ends at 8, and q has 9 rows");
    refuses(&with("cu_seqlens_kv", &[0, 2, 11, 11, 16]), "cu_seqlens_kv ends at 16, and k and v have 15 rows");
    refuses(&with("cu_seqlens_q", &[0, 6, 5, 6, 9]), "cu_seqlens_q: they fall from 6 to 5 at sequence 1");
    refuses(&with("cu_seqlens_q", &[1, 1, 5, 6, 9]), "cu_seqlens_q: they start at 1; the first sum is 0");
    refuses(&with("cu_seqlens_q", &[0, -5, 5, 6, 9]), "'cu_seqlens_q' holds -5");
    refuses(&with("cu_seqlens_q", &[0, 9]), "cu_seqlens_q and cu_seqlens_kv have 2 and 5 sums; both have batch + 1");
    refuses(&and(integers("seqused_q", Dtype::I32, &[0, 6, 1, 3])), "seqused_q: sequence 1 uses 6 of its 5 rows");
    refuses(&and(integers("seqlens_q", Dtype::I32, &[0, 5, 1, 3])), "packed sequences have seqused_q and seqused_kv");
    let missing = |name: &str| packed().into_iter().filter(|(other, ..)| *other != name).collect::<Vec<_>>();
    refuses(&missing("cu_seqlens_kv"), "has cu_seqlens_q and no cu_seqlens_kv; packed sequences need both");
    let dense: Vec<Given> = missing("cu_seqlens_kv").into_iter().filter(|(name, ..)| *name != "cu_seqlens_q").collect();
    refuses(&dense, "'q' has 3 dimensions [9, 4, 8]; 4 are needed, or 3 with cu_seqlens_q and cu_seqlens_kv");
    let four: Vec<Given> = packed()
        .into_iter()
        .map(|(name, dtype, shape, bytes)| match name {
            "q" => (name, dtype, vec![1, 9, 4, 8], bytes),
            _ => (name, dtype, shape, bytes),
        })
        .collect();
    refuses(&four, "'q' has 4 dimensions [1, 9, 4, 8]; packed sequences need 3: all rows, heads, dim");
    place.refuses(&["bench", "--seqlens", "3,9", "--batch", "2"], "--batch");
    place.refuses(&["bench", "--seqlens", "3,0"], "--seqlens");
}
