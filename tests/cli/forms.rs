//! The same inputs in other forms: through pipes, under other names, in several types, as one tensor.

use std::io::Write;
use std::process::Stdio;

use safetensors::tensor::{Dtype, SafeTensors};

use crate::workplace::{SHAPE, Workplace, file, one_line, qkv, text};

const KV: [usize; 4] = [1, 1, 7, 8];

#[test]
fn through_pipes() {
    let place = Workplace::new();
    let bytes = qkv(Dtype::F32, SHAPE, KV, KV);
    let expected = place.run(&place.write("in", &bytes), &["--causal"]);
    let mut command = place.command(&["run", "-", "-", "--causal"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(&bytes).expect("it reads");
    let done = child.wait_with_output().expect("it ends");
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(text(&done.stderr).contains("wrote o and lse"), "{}", text(&done.stderr));
    let tensors = SafeTensors::deserialize(&done.stdout).expect("a safetensors file and nothing else");
    let o = tensors.tensor("o").expect("o").data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    assert_eq!(o.map(f64::from).collect::<Vec<_>>(), expected.o);
    place.refuses(&["run", "-", &place.path("out")], "-: not a sound safetensors file");
}

#[test]
fn other_names_and_types() {
    let place = Workplace::new();
    let expected = place.run(&place.write("in", &qkv(Dtype::F32, SHAPE, KV, KV)), &[]);
    let named = file(&[("query", Dtype::F32, SHAPE), ("key", Dtype::F32, KV), ("value", Dtype::F32, KV)]);
    let named = place.write("named", &named);
    assert_eq!(place.run(&named, &["--names", "q=query,k=key,v=value"]).o, expected.o);
    place.refuses(&["run", &named, &place.path("out"), "--names", "q=queries"], "has no tensor 'queries'");

    let mixed = place.write("mixed", &file(&[("q", Dtype::F64, SHAPE), ("k", Dtype::F16, KV), ("v", Dtype::BF16, KV)]));
    let answer = place.run(&mixed, &["--element", "f32"]);
    assert_eq!(answer.dtype, Dtype::F32);
    // K has the bits of f16, and V those of bf16.
    for (found, expected) in answer.o.iter().zip(&expected.o) {
        assert!((found - expected).abs() < 1e-2, "{found} for {expected}");
    }
    place.refuses(&["run", &mixed, &place.path("out")], "stored as F64");
}

/// What a type cannot hold is no infinity without a word.
#[test]
fn numbers_too_large_for_the_type() {
    let place = Workplace::new();
    let mut bytes = qkv(Dtype::F32, [1, 1, 2, 4], [1, 1, 2, 4], [1, 1, 2, 4]);
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&70_000f32.to_le_bytes());
    let input = place.write("in", &bytes);
    place.refuses(&["run", &input, &place.path("out"), "--element", "f16"], "holds 7e4, which f16 cannot hold");
    place.run(&input, &["--element", "bf16"]);
}

/// Q, K and V in one tensor are three views of it.
#[test]
fn one_tensor() {
    let place = Workplace::new();
    for layout in ["bhsd", "bshd"] {
        // Two sequences of two heads, five rows, eight wide.
        let shape = [2usize, 5, 2, 8];
        let of = |number: usize, [batch, row, head, dim]: [usize; 4]| {
            ((number * 1000 + ((batch * 5 + row) * 2 + head) * 8 + dim) as f32 * 0.618).sin()
        };
        let order = |[b, r, h, d]: [usize; 4]| if layout == "bhsd" { [b, h, r, d] } else { [b, r, h, d] };
        let dims = order(shape);
        let tensor = |number: usize| -> Vec<u8> {
            let mut bytes = Vec::new();
            for flat in 0..160 {
                let at = [flat / (dims[1] * dims[2] * 8), flat / (dims[2] * 8) % dims[1], flat / 8 % dims[2], flat % 8];
                bytes.extend(of(number, order(at)).to_le_bytes());
            }
            bytes
        };
        let parts = [0, 1, 2].map(tensor);
        let view = |dims: Vec<usize>, bytes| safetensors::tensor::TensorView::new(Dtype::F32, dims, bytes).unwrap();
        let apart = ["q", "k", "v"].iter().zip(&parts).map(|(name, bytes)| (*name, view(dims.to_vec(), bytes)));
        let apart = place.write("apart", &safetensors::serialize(apart.collect::<Vec<_>>(), None).unwrap());
        let (runs, fused) = match layout {
            "bhsd" => (2, vec![2, 3, 2, 5, 8]),
            _ => (10, vec![2, 5, 3, 2, 8]),
        };
        let run = 640 / runs;
        let bytes: Vec<u8> =
            (0..runs).flat_map(|n| parts.iter().flat_map(move |part| part[n * run..][..run].to_vec())).collect();
        let whole = vec![("qkv", view(fused, &bytes))];
        let whole = place.write("whole", &safetensors::serialize(whole, None).unwrap());
        let options = ["--layout", layout, "--causal"];
        assert_eq!(place.run(&whole, &options).o, place.run(&apart, &options).o, "{layout}");
    }
}

#[test]
fn usage_errors_name_the_help_of_their_command() {
    let place = Workplace::new();
    for (arguments, help) in [
        (&["run", "a", "b", "--bogus"][..], "see `flash run --help`"),
        (&["bench", "--bogus"], "see `flash bench --help`"),
        (&["run", "a", "b", "--seed", "3"], "see `flash run --help`"),
        (&["run", "a", "b", "--seed", "x"], "see `flash run --help`"),
        (&["bench", "--block-mask", "moon:3"], "see `flash bench --help`"),
        (&["--bogus"], "see `flash --help`"),
    ] {
        one_line(arguments, &place.flash(arguments), help);
    }
}

#[test]
fn an_adapters_number_is_a_number() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, KV, KV));
    for adapter in ["", "25", "00099"] {
        place.refuses(&["run", &input, &place.path("out"), "--adapter", adapter], "there is no adapter '");
    }
}
