//! The sparse methods of `talk`: what they decide on the GPU is what their definitions say, and loaded decisions are taken.

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use wgpu_flash_attention::{AttentionShape, BlockMask};

use crate::talk::{dumped, number, records, talk};
use crate::workplace::{Workplace, text};

const DECIDING: &str = "bigbird,reformer,routing,scatterbrain";

fn words(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

/// Σ a · b in f64, and how far a sum of these terms in f32 may be from it.
fn product(a: &[f32], b: &[f32]) -> (f64, f64) {
    let terms = || a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    (terms().sum(), terms().map(f64::abs).sum::<f64>() * a.len() as f64 * 2f64.powi(-24))
}

/// A file of tensors, each of 4 bytes an entry.
fn file(place: &Workplace, name: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> String {
    let views = tensors
        .iter()
        .map(|(name, dtype, dims, bytes)| (*name, TensorView::new(*dtype, dims.clone(), bytes).expect("a view")));
    place.write(name, &safetensors::serialize(views, None).expect("a file"))
}

fn bytes_of_words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_le_bytes).collect()
}

fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // NaN is the largest difference of all.
    difference.fold(0.0, |most: f32, next| if next > most || next.is_nan() { next } else { most }) / largest
}

/// The buckets of `lists` lists of tokens: argmax [R x; −R x], but where two are equal as far as f32 can tell.
fn check_buckets(q: &[f32], rotations: &[f32], buckets: &[u32], [lists, seqlen, d]: [usize; 3]) {
    let rounds = buckets.len() / lists / seqlen;
    let columns = rotations.len() / rounds / d;
    assert_eq!(columns, seqlen.div_ceil(128));
    for (place, bucket) in buckets.iter().enumerate() {
        let (round, token) = (place / (lists * seqlen), place % (lists * seqlen));
        let x = &q[token * d..][..d];
        let rotated = |column: usize| product(x, &rotations[(round * columns + column) * d..][..d]);
        let all: Vec<(f64, f64)> = (0..columns).map(rotated).collect();
        let (found, bound) = all[*bucket as usize % columns];
        let found = if (*bucket as usize) < columns { found } else { -found };
        for (product, error) in &all {
            assert!(product.abs() <= found + bound + error, "round {round}, token {token}: {bucket} of {columns}");
        }
    }
}

#[test]
fn reformers_buckets_are_those_of_the_hash() {
    let place = Workplace::new();
    let first = dumped(
        &place,
        "first",
        &[
            "--seqlen",
            "300",
            "--heads",
            "4",
            "--heads-kv",
            "2",
            "--batch",
            "2",
            "--head-dim",
            "40",
            "--methods",
            "reformer",
        ],
    );
    let rotations = first("reformer.rotations");
    check_buckets(&first("q"), &rotations, &words(first("reformer.buckets")), [8, 300, 40]);
    assert_eq!(rotations.len(), 4 * 3 * 40);
    // More columns, and more blocks of the sort, than one; the twin sorts these buckets by itself.
    let long = dumped(
        &place,
        "long",
        &["--seqlen", "8200", "--heads", "1", "--head-dim", "4", "--methods", "reformer", "--element", "f16"],
    );
    check_buckets(&long("q"), &long("reformer.rotations"), &words(long("reformer.buckets")), [1, 8200, 4]);
}

/// The members of each centroid: rising, and as near as any token that was not taken.
fn check_members(x: &[f32], heads_per_x: usize, centroids: &[f32], members: &[u32], [batch, heads, d]: [usize; 3]) {
    let columns = centroids.len() / heads / d;
    let len = members.len() / batch / heads / columns;
    let seqlen = x.len() / (batch * heads / heads_per_x) / d;
    assert_eq!((columns, len), ((seqlen as f64).sqrt().round() as usize, seqlen.div_ceil(columns)));
    for (cluster, members) in members.chunks_exact(len).enumerate() {
        let (list, column) = (cluster / columns, cluster % columns);
        assert!(members.is_sorted_by(|a, b| a < b), "cluster {cluster}: {members:?}");
        let centroid = &centroids[(list % heads * columns + column) * d..][..d];
        let near = |token: usize| {
            let x = &x[(list / heads_per_x * seqlen + token) * d..][..d];
            let (near, error) = product(centroid, x);
            let length = product(x, x).0.sqrt();
            // The length is rounded too, and divided by.
            (near / length, error / length + 8.0 * 2f64.powi(-24))
        };
        let of_members = members.iter().map(|token| near(*token as usize)).map(|(near, error)| near + error);
        let least = of_members.fold(f64::INFINITY, f64::min);
        for token in (0..seqlen).filter(|token| members.binary_search(&(*token as u32)).is_err()) {
            let (near, error) = near(token);
            assert!(near <= least + 2.0 * error, "cluster {cluster}: token {token} was not taken");
        }
    }
}

#[test]
fn routing_takes_the_nearest_tokens_of_each_centroid() {
    let place = Workplace::new();
    let shared = ["--seqlen", "300", "--heads", "4", "--heads-kv", "2", "--batch", "2", "--head-dim", "40"];
    let first = dumped(&place, "first", &[&shared[..], &["--methods", "routing"]].concat());
    let centroids = first("routing.centroids");
    check_members(&first("q"), 1, &centroids, &words(first("routing.rows")), [2, 4, 40]);
    check_members(&first("k"), 2, &centroids, &words(first("routing.keys")), [2, 4, 40]);
    // More centroids than one tile of products has.
    let long = ["--seqlen", "4300", "--heads", "1", "--head-dim", "4", "--methods", "routing", "--causal"];
    let long = dumped(&place, "long", &long);
    let centroids = long("routing.centroids");
    check_members(&long("q"), 1, &centroids, &words(long("routing.rows")), [1, 1, 4]);
    check_members(&long("k"), 1, &centroids, &words(long("routing.keys")), [1, 1, 4]);
}

/// Eight stretches of tokens, each around a direction of its own: the first centroids come one from each, so k-means ends at
/// the directions of their means.
#[test]
fn centroids_are_the_means_of_their_tokens() {
    const DIM: usize = 12;
    let [batch, heads, seqlen] = [2, 2, 64];
    let place = Workplace::new();
    // Directions are axes; lengths differ, which must not matter.
    let value = |head: usize, token: usize, i: usize| {
        let noise = ((head * 977 + token * 61 + i * 17) as f32).sin() * 0.1;
        (noise + if i == token / 8 { 1.0 } else { 0.0 }) * (1 + token % 3) as f32
    };
    let tensor = |first: usize, heads: usize| -> Vec<f32> {
        let tokens = (0..batch * heads).flat_map(|head| (0..seqlen).map(move |token| (head, token)));
        tokens.flat_map(|(head, token)| (0..DIM).map(move |i| value(first + head, token, i))).collect()
    };
    let [q, k] = [tensor(0, heads), tensor(100, 1)];
    let bytes = |values: &[f32]| values.iter().copied().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let dims = |heads: usize| vec![batch, heads, seqlen, DIM];
    let input = file(
        &place,
        "input",
        &[
            ("q", Dtype::F32, dims(heads), bytes(&q)),
            ("k", Dtype::F32, dims(1), bytes(&k)),
            ("v", Dtype::F32, dims(1), bytes(&k)),
        ],
    );
    let found = dumped(&place, "found", &["--input", &input, "--methods", "routing"]);
    let centroids = found("routing.centroids");
    assert_eq!(centroids.len(), heads * 8 * DIM);
    for (cluster, centroid) in centroids.chunks_exact(DIM).enumerate() {
        let (head, column) = (cluster / 8, cluster % 8);
        let mut sum = [0.0f64; DIM];
        for (batch, token) in
            (0..batch).flat_map(|batch| (column * 8..(column + 1) * 8).map(move |token| (batch, token)))
        {
            for x in [&q[((batch * heads + head) * seqlen + token) * DIM..], &k[(batch * seqlen + token) * DIM..]] {
                let length = product(&x[..DIM], &x[..DIM]).0.sqrt();
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x) / length);
            }
        }
        let length = sum.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
        for (found, sum) in centroid.iter().zip(sum) {
            assert!(
                (f64::from(*found) - sum / length).abs() < 1e-5,
                "centroid {cluster}: {found} for {}",
                sum / length
            );
        }
    }
    // Each centroid takes its own stretch.
    for members in [words(found("routing.rows")), words(found("routing.keys"))] {
        assert!(members.iter().enumerate().all(|(place, token)| place % seqlen == *token as usize));
    }
}

#[test]
fn loaded_decisions_give_the_same_answers_again() {
    let place = Workplace::new();
    let options = ["--seqlen", "450", "--heads", "1", "--head-dim", "40", "--methods", DECIDING];
    let first = dumped(&place, "first", &[&options[..], &["--seed", "1"]].concat());
    let path = place.path("first");
    let input = ["--input", &path, "--methods", DECIDING, "--seed", "2"];
    let drawn = dumped(&place, "drawn", &input);
    let loaded = dumped(&place, "loaded", &[&["--load", &path], &input[..]].concat());
    for method in DECIDING.split(',') {
        let name = format!("{method}.o");
        assert_eq!(first(&name), loaded(&name), "{name}");
        assert_ne!(first(&name), drawn(&name), "{name}");
    }
    let blocks = words(first("bigbird.blocks"));
    let mask = BlockMask::bigbird(&AttentionShape::new(1, 1, 450, 40), 1);
    for (place, column) in blocks.iter().enumerate() {
        let [head, row] = [place / 3 / 8, place / 3 % 8].map(|n| n as u32);
        assert!(mask.sees(0, head, row * 64, column * 64, 0), "head {head}, row {row}: {column}");
    }
}

/// With the same centroids, the order of tokens changes nothing but the order of the answers.
#[test]
fn routing_does_not_depend_on_the_order_of_tokens() {
    const SHAPE: [usize; 4] = [1, 2, 70, 64];
    let place = Workplace::new();
    let first = dumped(&place, "first", &["--seqlen", "70", "--methods", "routing"]);
    let reversed = |values: Vec<f32>| -> Vec<f32> {
        assert_eq!(values.len(), SHAPE.iter().product::<usize>());
        values.chunks_exact(70 * 64).flat_map(|head| head.chunks_exact(64).rev().flatten().copied()).collect()
    };
    let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let inputs = ["q", "k", "v"].map(|name| (name, Dtype::F32, SHAPE.to_vec(), bytes(reversed(first(name)))));
    let input = file(&place, "reversed", &inputs);
    let centroids = first("routing.centroids");
    let dims = vec![2, centroids.len() / 2 / 64, 64];
    let load = file(&place, "centroids", &[("routing.centroids", Dtype::F32, dims, bytes(centroids))]);
    let second = dumped(&place, "second", &["--input", &input, "--load", &load, "--methods", "routing"]);
    assert!(relative_difference(&second("routing.o"), &reversed(first("routing.o"))) < 1e-5);
}

/// Sizes and rounds come with what is loaded; the program compares the answers with the twins'.
#[test]
fn loaded_sizes_are_taken() {
    let place = Workplace::new();
    let buckets: Vec<u32> = (0..140u32).map(|token| token * token / 7 % 2).collect();
    let load = file(
        &place,
        "load",
        &[
            ("longformer.sizes", Dtype::U32, vec![2], bytes_of_words(&[5, 3])),
            ("reformer.buckets", Dtype::U32, vec![1, 1, 2, 70], bytes_of_words(&buckets)),
        ],
    );
    for causal in [&[][..], &["--causal"]] {
        let options = ["--seqlen", "70", "--methods", "flash,longformer,reformer", "--head-dim", "8", "--load", &load];
        let found = dumped(&place, "found", &[&options[..], causal].concat());
        assert_eq!(words(found("longformer.sizes")), [5, 3]);
        assert_eq!(words(found("reformer.buckets")), buckets);
        // What Reformer stands for is another attention.
        assert_ne!(found("exact_shared_qk.o"), found("exact.o"));
        assert!(relative_difference(&found("flash.o"), &found("exact.o")) < 1e-5);
        assert!(relative_difference(&found("longformer.o"), &found("flash.o")) > 0.01);
    }
}

#[test]
fn what_is_loaded_must_fit() {
    let place = Workplace::new();
    let cases = [
        ("reformer", "reformer.buckets", vec![4, 1, 2, 20], 2, "contains 2; must be below 2"),
        ("routing", "routing.keys", vec![1, 2, 4, 5], 7, "must rise for each centroid"),
        ("routing", "routing.rows", vec![1, 2, 4, 4], 0, "must be u32 of [1, 2, 4, 5] below 20"),
        ("scatterbrain", "scatterbrain.support", vec![1, 2], 0, "must have each row's own chunk"),
        ("bigbird", "bigbird.blocks", vec![2, 1, 3], 1, "contains 1; must be below 1"),
    ];
    for (method, name, dims, value, reason) in cases {
        let bytes = bytes_of_words(&vec![value; dims.iter().product()]);
        let load = file(&place, method, &[(name, Dtype::U32, dims, bytes)]);
        let found = talk(&place, &["compare", "--json", "--seqlen", "20", "--methods", method, "--load", &load]);
        assert_eq!(found.status.code(), Some(1), "{method}");
        let said = text(&found.stdout) + &text(&found.stderr);
        assert!(said.contains(reason), "{method}: {said}");
    }
}

#[test]
fn what_is_loaded_is_named() {
    let place = Workplace::new();
    let sizes = bytes_of_words(&[5, 3]);
    let load = file(&place, "sizes", &[("longformer.sizes", Dtype::U32, vec![2], sizes)]);
    let options = ["--seqlen", "20", "--methods", "flash,longformer", "--load", &load];
    let found = records(&place, &options);
    assert_eq!(found[0]["notes"], serde_json::json!([]));
    assert_eq!(found[1]["notes"], serde_json::json!([["loaded", "longformer.sizes"]]));

    let none = talk(&place, &["compare", "--seqlen", "20", "--methods", "flash", "--load", &load]);
    assert_eq!(none.status.code(), Some(2));
    assert!(text(&none.stderr).contains("no method took a tensor"), "{}", text(&none.stderr));

    let omega = [f32::NAN; 11 * 8].iter().copied().flat_map(f32::to_le_bytes).collect();
    let load =
        file(&place, "omega", &[("performer.omega", Dtype::F32, vec![17, 8], [omega, vec![0; 4 * 48]].concat())]);
    let nan = ["compare", "--json", "--seqlen", "20", "--head-dim", "8", "--methods", "performer", "--load", &load];
    let nan = talk(&place, &nan);
    assert_eq!(nan.status.code(), Some(1));
    assert!(text(&nan.stdout).contains("performer.omega has a NaN at element 0"), "{}", text(&nan.stdout));
}

/// Reformer's error is that of another attention than the others', and its record says so.
#[test]
fn records_say_what_their_errors_are_against() {
    let place = Workplace::new();
    let found = records(&place, &["--seqlen", "20", "--methods", "flash,reformer"]);
    assert_eq!(found[0]["exact"], "attention");
    assert_eq!(found[1]["exact"], "attention with K = Q / ‖Q‖");
    assert_eq!(found[1]["notes"][0][0], "error against");
}

/// Exponents far beyond those of f64: scores of about a thousand on Scatterbrain's support, and features of which none is
/// large in both Q and K. Values are whole numbers, so that f32 has the scores exactly.
#[test]
fn large_inputs_are_right() {
    const SHAPE: [usize; 4] = [1, 1, 300, 16];
    let place = Workplace::new();
    let tensor = |first: i32, scale: f32| -> Vec<u8> {
        let value = |i: i32| (((i + first) * 7919 % 101 - 50) as f32 / 64.0) * scale;
        (0..300 * 16).map(value).flat_map(f32::to_le_bytes).collect()
    };
    let tensors = [("q", tensor(0, 1024.0)), ("k", tensor(5, 4.0)), ("v", tensor(9, 1.0))];
    let input = file(&place, "large", &tensors.map(|(name, bytes)| (name, Dtype::F32, SHAPE.to_vec(), bytes)));
    for causal in [&[][..], &["--causal"]] {
        let found = records(&place, &[&["--input", &input, "--methods", "flash,scatterbrain"], causal].concat());
        assert_eq!(found.len(), 2);
        for record in found {
            assert!(number(&record, "twin_error") <= 1e-4, "{record}");
        }
    }
}

#[test]
fn scatterbrain_is_exact_on_its_support() {
    let place = Workplace::new();
    let dims = vec![4, 2];
    let support = |name: &str, ranges: [[u32; 2]; 4]| {
        let bytes = bytes_of_words(ranges.as_flattened());
        file(&place, name, &[("scatterbrain.support", Dtype::U32, dims.clone(), bytes)])
    };
    let of = |name: &str, load: &str, more: &[&str]| {
        let options =
            ["--seqlen", "450", "--heads", "2", "--head-dim", "40", "--methods", "scatterbrain", "--load", load];
        dumped(&place, name, &[&options[..], more].concat())
    };
    let all = support("all", [[0, 4]; 4]);
    let exact = of("exact", &all, &[]);
    assert!(relative_difference(&exact("scatterbrain.o"), &exact("exact.o")) < 1e-5);
    // Other ranges, of which the program compares the answer with the twin's: own chunks alone, and uneven ones.
    for (name, ranges) in [("own", [[0, 1], [1, 2], [2, 3], [3, 4]]), ("uneven", [[0, 3], [0, 3], [2, 4], [2, 4]])] {
        let load = support(name, ranges);
        for causal in [&[][..], &["--causal"]] {
            let found = of("found", &load, causal);
            assert_ne!(found("scatterbrain.o"), exact("scatterbrain.o"), "{name}");
        }
    }
}

/// Operations are counted for the pairs that are seen: what a method costs is in proportion to them.
#[test]
fn masks_count_the_pairs_that_they_show() {
    let place = Workplace::new();
    let seqlen = 700u32;
    let longformer = |i: u32, j: u32| i.abs_diff(j) <= 256 || i.min(j) < 64;
    let butterfly = |i: u32, j: u32| ((i / 64) ^ (j / 64)).count_ones() <= 1;
    let shape = AttentionShape::new(2, 2, seqlen, 8);
    let blocks = BlockMask::bigbird(&shape, 0);
    for causal in [false, true] {
        // BigBird has no causal form.
        let more: &[&str] =
            if causal { &["longformer,block-sparse", "--causal"] } else { &["longformer,block-sparse,bigbird"] };
        let options = ["--seqlen", "700", "--head-dim", "8", "--batch", "2", "--methods"];
        let found: Vec<Value> = records(&place, &[&options[..], more].concat());
        assert_eq!(found.len(), if causal { 2 } else { 3 });
        for record in &found {
            assert!(record["error"].is_null(), "{record}");
            let sees = |head: u32, i: u32, j: u32| match record["method"].as_str() {
                Some("longformer") => longformer(i, j),
                Some("block-sparse") => butterfly(i, j),
                _ => blocks.sees(0, head, i, j, 0),
            };
            let of_head = |head: u32| {
                let of_row = |i: u32| (0..seqlen).filter(|j| sees(head, i, *j) && (!causal || *j <= i)).count();
                (0..seqlen).map(of_row).sum::<usize>()
            };
            let pairs = 2 * (of_head(0) + of_head(1));
            assert_eq!(number(record, "flops"), pairs as f64 * (4.0 * 8.0 + 1.0), "{record}");
        }
    }
}
