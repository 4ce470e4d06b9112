//! Caches in the input file: append, then attend, against the same problem with dense K and V.

use safetensors::tensor::{Dtype, TensorView};

use crate::workplace::{Workplace, text};

/// A tensor of the file.
struct Given {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn f32s(name: &'static str, shape: &[usize], values: impl Iterator<Item = f32>) -> Given {
    Given { name, dtype: Dtype::F32, shape: shape.to_vec(), bytes: values.flat_map(f32::to_le_bytes).collect() }
}

fn u32s(name: &'static str, shape: &[usize], values: &[u32]) -> Given {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Given { name, dtype: Dtype::U32, shape: shape.to_vec(), bytes }
}

fn file(tensors: &[Given]) -> Vec<u8> {
    let views = tensors.iter().map(|given| {
        (given.name, TensorView::new(given.dtype, given.shape.clone(), &given.bytes).expect("the bytes fit the shape"))
    });
    safetensors::serialize(views, None).expect("a safetensors file")
}

const BATCH: usize = 2;
const TOKENS: usize = 9;
const DIM: usize = 8;

/// Element (sequence, head, token, dim) of K or V; Q has other heads.
fn value(seed: f32, batch: usize, head: usize, token: usize, dim: usize) -> f32 {
    ((((batch * 7 + head) * TOKENS + token) * DIM + dim) as f32 * seed).sin() * 2.0
}

/// `[batch, heads, tokens, dim]` of some tokens.
fn rows(name: &'static str, seed: f32, heads: usize, tokens: std::ops::Range<usize>) -> Given {
    let places = (0..BATCH).flat_map(|batch| (0..heads).map(move |head| (batch, head)));
    let count = tokens.len();
    let values = places.flat_map(move |(batch, head)| {
        tokens.clone().flat_map(move |token| (0..DIM).map(move |dim| value(seed, batch, head, token, dim)))
    });
    f32s(name, &[BATCH, heads, count, DIM], values)
}

/// The first tokens in a cache of 16 positions, NaN behind them: `[batch, 16, 2, dim]`, or the same in pages of 4.
fn cache(name: &'static str, seed: f32, filled: usize, page_table: Option<&[u32]>) -> Given {
    let mut values = vec![f32::NAN; BATCH * 16 * 2 * DIM];
    for (batch, token) in (0..BATCH).flat_map(|batch| (0..filled).map(move |token| (batch, token))) {
        let place =
            page_table.map_or(batch * 16 + token, |table| table[batch * 4 + token / 4] as usize * 4 + token % 4);
        for (head, dim) in (0..2).flat_map(|head| (0..DIM).map(move |dim| (head, dim))) {
            values[(place * 2 + head) * DIM + dim] = value(seed, batch, head, token, dim);
        }
    }
    let shape = if page_table.is_some() { [8, 4, 2, DIM] } else { [BATCH, 16, 2, DIM] };
    f32s(name, &shape, values.into_iter())
}

/// Rows of Q from `first` on, over a cache of `filled` tokens to which the others are appended.
fn cached(first: usize, filled: usize, page_table: Option<&[u32]>) -> Vec<Given> {
    let mut tensors = vec![
        rows("q", 0.7, 4, first..TOKENS),
        cache("k_cache", 1.3, filled, page_table),
        cache("v_cache", 0.9, filled, page_table),
        u32s("cache_seqlens", &[BATCH], &[filled as u32; BATCH]),
    ];
    if filled < TOKENS {
        tensors.extend([rows("k", 1.3, 2, filled..TOKENS), rows("v", 0.9, 2, filled..TOKENS)]);
    }
    tensors.extend(page_table.map(|table| u32s("page_table", &[BATCH, 4], table)));
    tensors
}

fn dense(first: usize) -> Vec<Given> {
    vec![rows("q", 0.7, 4, first..TOKENS), rows("k", 1.3, 2, 0..TOKENS), rows("v", 0.9, 2, 0..TOKENS)]
}

/// Pages of their own; those that no token needs do not exist.
const PAGES: [u32; 8] = [5, 2, 7, 99, 0, 6, 3, u32::MAX];

#[test]
fn a_cache_is_what_dense_keys_are() {
    let place = Workplace::new();
    for options in [&["--causal"][..], &["--causal", "--window", "3,0", "--num-splits", "3"]] {
        let expected =
            place.run(&place.write("dense", &file(&dense(6))), &[&["--algorithm", "reference"], options].concat());
        for page_table in [None, Some(&PAGES[..])] {
            for filled in [0, 6, TOKENS] {
                let input = place.write("cached", &file(&cached(6, filled, page_table)));
                place.run(&input, options).agrees(&expected, 1e-5, &format!("{filled} filled, {options:?}"));
            }
        }
    }
    let bshd = place.run(&place.write("cached", &file(&cached(6, TOKENS, None))), &["--json"]);
    assert!(bshd.stdout.contains(r#""capacity":16"#) && bshd.stdout.contains(r#""cache":"f32""#), "{}", bshd.stdout);
}

#[test]
fn rotary_embeddings_with_and_without_a_cache() {
    let place = Workplace::new();
    let angle = |n: usize| (n / 3) as f32 / 10f32.powi((n % 3) as i32);
    let tables = || {
        [
            f32s("rotary_cos", &[16, 3], (0..48).map(|n| angle(n).cos())),
            f32s("rotary_sin", &[16, 3], (0..48).map(|n| angle(n).sin())),
        ]
    };
    for pairs in ["halves", "interleaved"] {
        let options = ["--causal", "--rotary", pairs];
        let mut whole = dense(0);
        whole.extend(tables());
        let expected = place.run(&place.write("dense", &file(&whole)), &options);
        let mut tensors = cached(0, 0, Some(&PAGES));
        tensors.extend(tables());
        let found = place.run(&place.write("cached", &file(&tensors)), &options);
        found.agrees(&expected, 1e-5, pairs);
        // The last rows alone stand at the last positions.
        let mut tensors = cached(6, 0, None);
        tensors.extend(tables());
        let last = place.run(&place.write("cached", &file(&tensors)), &options);
        for (head, rows) in found.o.chunks(TOKENS * DIM).zip(last.o.chunks(3 * DIM)) {
            assert!(head[6 * DIM..].iter().zip(rows).all(|(a, b)| (a - b).abs() < 1e-5), "{pairs}");
        }
    }
}

#[test]
fn packed_rows_and_slots() {
    let place = Workplace::new();
    let expected = place.run(&place.write("dense", &file(&dense(6))), &["--causal"]);
    // The same rows, one sequence behind the other: [total, heads, dim].
    let packed = |name, seed, heads: usize| {
        let places = (0..BATCH).flat_map(|batch| (6..TOKENS).map(move |token| (batch, token)));
        let values = places.flat_map(move |(batch, token)| {
            (0..heads).flat_map(move |head| (0..DIM).map(move |dim| value(seed, batch, head, token, dim)))
        });
        f32s(name, &[BATCH * 3, heads, DIM], values)
    };
    let mut tensors = vec![
        packed("q", 0.7, 4),
        packed("k", 1.3, 2),
        packed("v", 0.9, 2),
        cache("k_cache", 1.3, 6, Some(&PAGES)),
        cache("v_cache", 0.9, 6, Some(&PAGES)),
        u32s("cache_seqlens", &[BATCH], &[6; BATCH]),
        u32s("page_table", &[BATCH, 4], &PAGES),
        u32s("cu_seqlens_q", &[3], &[0, 3, 6]),
    ];
    let check = |tensors: &[Given]| {
        let found = place.run(&place.write("packed", &file(tensors)), &["--causal"]);
        assert_eq!((found.o_shape, found.lse_shape), (vec![6, 4, DIM], vec![4, 6]));
        for (n, value) in found.o.iter().enumerate() {
            let (row, head, dim) = (n / DIM / 4, n / DIM % 4, n % DIM);
            let other = expected.o[((row / 3 * 4 + head) * 3 + row % 3) * DIM + dim];
            assert!((value - other).abs() < 1e-5, "{n}: {value} for {other}");
        }
    };
    check(&tensors);
    // Tokens 6 to 8 of both sequences: pages 2 and 7, then 6 and 3.
    tensors.push(u32s("slot_mapping", &[6], &[10, 11, 28, 26, 27, 12]));
    check(&tensors);
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = Workplace::new();
    let refuses = |tensors: &[Given], options: &[&str], reason: &str| {
        let input = place.write("in", &file(tensors));
        let output = place.path("out");
        place.refuses(&[&["run", &input, &output], options].concat(), reason);
    };
    let replaced = |mut tensors: Vec<Given>, given: Given| {
        tensors.retain(|tensor| tensor.name != given.name);
        tensors.push(given);
        tensors
    };
    let lengths = |lengths: &[u32]| u32s("cache_seqlens", &[lengths.len()], lengths);
    refuses(&replaced(cached(6, 6, None), lengths(&[6, 14])), &[], "sequence 1 has 14 positions and 3 new");
    refuses(&replaced(cached(6, TOKENS, None), lengths(&[6, 17])), &[], "that of sequence 1 is 17");
    refuses(&replaced(cached(6, 6, None), lengths(&[6])), &[], "q has 2 sequences, cache_seqlens 1");
    let table = |pages: [u32; 8]| u32s("page_table", &[BATCH, 4], &pages);
    let missing = table([5, 2, 8, 99, 0, 6, 3, 9]);
    refuses(&replaced(cached(6, 6, Some(&PAGES)), missing), &[], "entry 2 of sequence 0 is page 8; there are 8 pages");
    let twice = table([5, 2, 7, 99, 5, 2, 7, 99]);
    refuses(&replaced(cached(6, 6, Some(&PAGES)), twice), &[], "two tokens go to one place");
    let short = u32s("page_table", &[BATCH, 2], &PAGES[..4]);
    refuses(
        &replaced(cached(6, 6, Some(&PAGES)), short),
        &[],
        "sequence 0 has 6 positions and 3 new; the cache has room for 8",
    );
    let mut none = cached(6, 6, None);
    none.retain(|tensor| tensor.name != "cache_seqlens");
    refuses(&none, &[], "has k_cache but no cache_seqlens");
    refuses(&cached(6, 6, None), &["--algorithm", "standard"], "only --algorithm flash reads a cache");
    refuses(&cached(6, 6, None), &["--rotary", "halves"], "has no tensor 'rotary_cos'");
}

#[test]
fn what_nothing_would_use_is_refused() {
    let place = Workplace::new();
    let refuses = |tensors: Vec<Given>, options: &[&str], reason: &str| {
        let input = place.write("in", &file(&tensors));
        let output = place.path("out");
        place.refuses(&[&["run", &input, &output], options].concat(), reason);
    };
    let without = |mut tensors: Vec<Given>, name: &str| {
        tensors.retain(|tensor| tensor.name != name);
        tensors
    };
    let with = |mut tensors: Vec<Given>, given: Given| {
        tensors.push(given);
        tensors
    };
    refuses(without(cached(6, 6, None), "v"), &[], "has k, which nothing uses over a cache without v");
    refuses(without(cached(6, 6, None), "k"), &[], "has v, which nothing uses over a cache without k");
    refuses(without(cached(6, 6, None), "k_cache"), &[], "has v_cache, which nothing uses without k_cache");
    let slots = u32s("slot_mapping", &[2], &[1, 2]);
    refuses(with(cached(6, TOKENS, None), slots), &[], "slot_mapping, which nothing uses over a cache without k");
    let padded = u32s("seqlens_kv", &[2], &[1, 2]);
    refuses(with(cached(6, 6, None), padded), &[], "has seqlens_kv, which nothing uses over a cache");
    let table = |rows: &[usize]| {
        let len = rows.iter().product();
        ["rotary_cos", "rotary_sin"].map(|name| f32s(name, rows, vec![1.0; len].into_iter()))
    };
    let turned = |tensors: Vec<Given>, rows: &[usize]| table(rows).into_iter().fold(tensors, with);
    refuses(turned(cached(6, 6, None), &[16, 3]), &[], "has rotary_cos, which nothing uses without --rotary");
    let halves = &["--rotary", "halves"];
    refuses(turned(cached(6, 6, None), &[3, 3, 3]), halves, "rows for 3 × 3 tokens; the new k has 2 × 3");
    refuses(turned(cached(0, 6, None), &[2, 3, 3]), halves, "rows for 2 × 3 tokens; q has 2 × 9");
    let short = without(cached(0, TOKENS, None), "cache_seqlens");
    let short = with(short, u32s("cache_seqlens", &[BATCH], &[TOKENS as u32, 8]));
    refuses(turned(short, &[16, 3]), halves, "sequence 1 has 9 rows of q and 8 positions");
    let mut d_o = rows("q", 0.3, 4, 0..TOKENS);
    d_o.name = "d_o";
    refuses(turned(with(dense(0), d_o), &[16, 3]), halves, "rotary embeddings have no gradient");
    let slopes = f32s("alibi_slopes", &[4], [0.5; 4].into_iter());
    refuses(with(cached(6, 6, None), slopes), &["--alibi"], "leave --alibi out");
    let rows_of = |q: usize, kv: usize| {
        let packed = |name, rows: usize, heads: usize| {
            f32s(name, &[rows, heads, DIM], (0..rows * heads * DIM).map(|n| (n as f32).sin()))
        };
        let sums = u32s("cu_seqlens_q", &[BATCH + 1], &[0, 2, 5]);
        let without_q = without(cached(6, 6, None), "q");
        let without_kv = without(without(without_q, "k"), "v");
        [packed("q", q, 4), packed("k", kv, 2), packed("v", kv, 2), sums].into_iter().fold(without_kv, with)
    };
    refuses(rows_of(6, 5), &[], "cu_seqlens_q ends at 5, and q has 6 rows");
    refuses(rows_of(5, 6), &[], "the new k and v have 6 rows, their sums end at 5");
}

/// As vLLM writes them: I32, with -1 where there is no page and where nothing is stored.
#[test]
fn minus_one_is_no_page_and_no_slot() {
    let place = Workplace::new();
    let signed = |name, shape: &[usize], values: &[i32]| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Given { name, dtype: Dtype::I32, shape: shape.to_vec(), bytes }
    };
    let replaced = |mut tensors: Vec<Given>, given: Given| {
        tensors.retain(|tensor| tensor.name != given.name);
        tensors.push(given);
        tensors
    };
    let expected = place.run(&place.write("dense", &file(&dense(6))), &["--causal"]);
    let table = signed("page_table", &[BATCH, 4], &[5, 2, 7, -1, 0, 6, 3, -1]);
    let tensors = replaced(cached(6, 6, Some(&PAGES)), table);
    place.run(&place.write("cached", &file(&tensors)), &["--causal"]).agrees(&expected, 1e-5, "pages");

    // Token 8 of both sequences is not stored: rows that are still NaN are not seen before it.
    let slots = signed("slot_mapping", &[BATCH, 3], &[10, 11, -1, 26, 27, -1]);
    let tensors = replaced(tensors, slots);
    let found = place.run(&place.write("cached", &file(&tensors)), &["--causal"]);
    for (found, expected) in found.o.chunks(3 * DIM).zip(expected.o.chunks(3 * DIM)) {
        let (seen, last) = found.split_at(2 * DIM);
        assert!(seen.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
        assert!(last.iter().all(|value| value.is_nan()), "{found:?}");
    }
    let used = signed("page_table", &[BATCH, 4], &[5, -1, 7, -1, 0, 6, 3, -1]);
    let input = place.write("in", &file(&replaced(cached(6, 6, Some(&PAGES)), used)));
    place.refuses(&["run", &input, &place.path("out")], "entry 1 of sequence 0 is page 4294967295");
}

#[test]
fn bench_checks_what_it_times() {
    let place = Workplace::new();
    for cache in ["contiguous", "paged:3", "int8"] {
        let sizes = [
            "--seqlen",
            "3",
            "--seqlen-kv",
            "40",
            "--batch",
            "2",
            "--heads",
            "4",
            "--heads-kv",
            "2",
            "--head-dim",
            "20",
        ];
        let done = place.flash(
            &[&["bench", "--cache", cache, "--element", "f16", "--iterations", "3", "--json"], &sizes[..]].concat(),
        );
        let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
        // One row: standard attention reads no cache.
        assert!(done.status.success() && stdout.lines().count() == 1, "{cache}: {stdout}{stderr}");
        assert!(stdout.contains("flash_decode") && stdout.contains(r#""error":null"#), "{cache}: {stdout}");
    }
    for other in [["--pass", "backward"], ["--pass", "both"], ["--algorithm", "standard"]] {
        let done = place.flash(&[&["bench", "--cache", "int8"], &other[..]].concat());
        assert!(!done.status.success() && text(&done.stderr).contains("flash attention alone reads one"), "{other:?}");
    }
    let done = place.flash(&["bench", "--cache", "paged:0"]);
    assert!(!done.status.success() && text(&done.stderr).contains("at least 1"));
}
