//! Block masks: patterns by option, blocks and documents from the file.

use safetensors::tensor::Dtype;

use crate::entries::{Entries, answers, file, mask};
use crate::workplace::Workplace;

fn integers(name: &'static str, dtype: Dtype, shape: &[usize], of: impl Fn(usize) -> i64) -> Entries {
    let size = dtype.bitsize() / 8;
    let bytes = (0..shape.iter().product()).flat_map(|n| of(n).to_le_bytes()[..size].to_vec()).collect();
    Entries { name, dtype, shape: shape.to_vec(), bytes }
}

/// Options, tensors, and whether a position sees a key.
type Case<'a> = (&'a [&'a str], Vec<Entries>, &'a dyn Fn(usize, usize) -> bool);

/// The files have 9 rows and 40 keys: row i stands at key i + 31.
#[test]
fn patterns_are_the_masks_that_they_say() {
    let place = Workplace::new();
    let documents = |n: usize| n as i64 % 40 / 12 * 3;
    let cases: [Case; 7] = [
        (&["--block-mask", "local:5"], vec![], &|p, j| p.abs_diff(j) <= 5),
        (&["--block-mask", "longformer:3,4"], vec![], &|p, j| p.abs_diff(j) <= 3 || j < 4),
        (&["--block-mask", "strided:7"], vec![], &|p, j| p.abs_diff(j) < 7 || p.abs_diff(j) % 7 == 0),
        (&["--block-mask", "prefix:33"], vec![], &|p, j| j < 33 || j <= p),
        (&["--block-mask", "bigbird:1"], vec![], &|_, _| true),
        (
            &["--block-mask", "documents"],
            vec![integers("document_ids", Dtype::I16, &[1, 40], documents)],
            &move |p, j| documents(p) == documents(j),
        ),
        (
            &["--block-size", "4,16"],
            vec![integers("block_mask", Dtype::U8, &[1, 1, 3, 3], |n| [9, 0, 1, 0, 0, 0, 1, 1, 0][n])],
            &|p, j| [1, 0, 1, 0, 0, 0, 1, 1, 0][(p - 31) / 4 * 3 + j / 16] == 1,
        ),
    ];
    for (options, entries, sees) in cases {
        let found = answers(&place, &entries, options);
        let same = mask(Dtype::U8, [1, 1, 9, 40], |n| sees(n / 40 + 31, n % 40));
        let expected = answers(&place, &[same], &[]);
        for (found, expected) in found.iter().zip(&expected) {
            found.agrees(expected, 1e-5, &options.join(" "));
        }
    }
}

#[test]
fn documents_have_integers_of_any_type() {
    let place = Workplace::new();
    let run = |dtype| {
        let ids = integers("document_ids", dtype, &[1, 40], |n| n as i64 / 12 * 3);
        place.run(&place.write("ids", &file(&[ids])), &["--block-mask", "documents", "--algorithm", "reference"])
    };
    let expected = run(Dtype::I32);
    for dtype in [Dtype::I8, Dtype::U8, Dtype::I16, Dtype::U16, Dtype::U32, Dtype::I64, Dtype::U64] {
        run(dtype).agrees(&expected, 1e-9, "documents");
    }
    for dtype in [Dtype::I8, Dtype::I16, Dtype::I32, Dtype::I64] {
        let padded = integers("document_ids", dtype, &[1, 40], |n| if n < 30 { 1 } else { -1 });
        let (input, output) = (place.write("padded", &file(&[padded])), place.path("out"));
        let reason = "'document_ids' holds -1; only 0 to 4294967295 can be used";
        place.refuses(&["run", &input, &output, "--block-mask", "documents"], reason);
    }
}

#[test]
fn slopes_of_alibi_from_the_file() {
    let place = Workplace::new();
    let slopes = |shape: &[usize], factor: f32| {
        let values =
            (0..shape.iter().product::<usize>()).flat_map(|n| (factor * 0.25f32.powi(n as i32 % 4 + 1)).to_le_bytes());
        Entries { name: "alibi_slopes", dtype: Dtype::F32, shape: shape.to_vec(), bytes: values.collect() }
    };
    // Four heads have the slopes 2^-2, 2^-4, 2^-6, 2^-8.
    let expected = answers(&place, &[], &["--alibi"]);
    for shape in [&[4][..], &[2, 4]] {
        for (found, expected) in answers(&place, &[slopes(shape, 1.0)], &[]).iter().zip(&expected) {
            found.agrees(expected, 1e-5, "slopes");
        }
    }
    let (input, output) = (place.write("in", &file(&[slopes(&[4], 1.0)])), place.path("out"));
    place.refuses(&["run", &input, &output, "--alibi"], "has alibi_slopes: leave --alibi out");
    let (input, output) = (place.write("in", &file(&[slopes(&[3], 1.0)])), place.path("out"));
    place.refuses(&["run", &input, &output], "alibi_slopes is f32 of the shape [3]; it must be f32 of [4] or [2, 4]");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let place = Workplace::new();
    let refuses = |entries: Vec<Entries>, options: &[&str], reason: &str| {
        let (input, output) = (place.write("in", &file(&entries)), place.path("out"));
        place.refuses(&[&["run", &input, &output], options].concat(), reason);
    };
    let ids = || integers("document_ids", Dtype::U32, &[1, 40], |_| 1);
    let blocks = |shape: &[usize]| integers("block_mask", Dtype::BOOL, shape, |_| 1);
    refuses(vec![], &["--block-mask", "documents"], "has no document_ids, which --block-mask documents needs");
    refuses(vec![ids()], &["--block-mask", "local:3"], "has document_ids, which only --block-mask documents uses");
    refuses(vec![blocks(&[1, 1, 1, 1])], &["--block-mask", "local:3"], "has a block_mask: leave --block-mask out");
    refuses(vec![], &["--block-size", "16,16"], "has no block_mask, to whose blocks --block-size belongs");
    refuses(
        vec![blocks(&[1, 1, 2, 1])],
        &[],
        "in blocks of 128 rows and 128 keys it must be [2, 4, 1, 1], the first two or 1",
    );
    refuses(vec![blocks(&[1, 1, 1, 1])], &["--block-size", "0,16"], "give two whole numbers above 0");
    refuses(vec![integers("document_ids", Dtype::I8, &[1, 40], |_| -1)], &["--block-mask", "documents"], "holds -1");
    let short = integers("document_ids", Dtype::U8, &[3, 40], |_| 1);
    refuses(vec![short], &["--block-mask", "documents"], "it must be [batch or 1, seqlen_kv] = [2, 40]");
    for pattern in ["local", "local:-1", "strided:0", "longformer:3", "bigbird:x", "butterfly:3", "ring"] {
        refuses(vec![], &["--block-mask", pattern], "--block-mask");
    }
}
