//! Tensors without elements are inputs like others.

use safetensors::tensor::Dtype;

use crate::workplace::{Workplace, file};

#[test]
fn counts_of_zero_give_empty_tensors_and_zeros() {
    let place = Workplace::new();
    // Batch, heads, KV heads, rows, keys: without query heads, without rows, without keys, without anything.
    for [batch, heads, heads_kv, rows, keys] in
        [[1, 0, 4, 5, 7], [2, 4, 2, 0, 7], [2, 4, 2, 5, 0], [0, 4, 2, 5, 7], [1, 0, 0, 5, 7], [0; 5]]
    {
        let (q, k, v) = ([batch, heads, rows, 8], [batch, heads_kv, keys, 8], [batch, heads_kv, keys, 5]);
        let o = [batch, heads, rows, 5];
        // All rows share its entries, even where there are none.
        let bias = [1, 1, 1, keys];
        let tensors = [("q", q), ("k", k), ("v", v), ("d_o", o), ("bias", bias)];
        let tensors = tensors.map(|(name, dims)| (name, Dtype::F32, dims));
        let input = place.write("in", &file(&tensors));
        for algorithm in ["flash", "standard", "reference"] {
            let answer = place.run(&input, &["--algorithm", algorithm]);
            assert_eq!((&answer.o_shape[..], &answer.lse_shape[..]), (&o[..], &o[..3]), "{algorithm}");
            assert!(answer.o.iter().all(|o| *o == 0.0), "{algorithm}");
            assert!(answer.lse.iter().all(|lse| *lse == f64::NEG_INFINITY), "{algorithm}");
            let shapes: Vec<_> = answer.gradients.iter().map(|(shape, _)| &shape[..]).collect();
            assert_eq!(shapes, [q, k, v, bias], "{algorithm}");
            assert!(answer.gradients.iter().flat_map(|(_, values)| values).all(|value| *value == 0.0), "{algorithm}");
        }
    }
}

#[test]
fn query_heads_without_keys_to_share_are_refused() {
    let place = Workplace::new();
    let tensors = [("q", [1, 4, 5, 8]), ("k", [1, 0, 7, 8]), ("v", [1, 0, 7, 8])];
    let input = place.write("in", &file(&tensors.map(|(name, dims)| (name, Dtype::F32, dims))));
    place.refuses(&["run", &input, &place.path("out")], "not a multiple");
}
