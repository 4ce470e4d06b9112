//! Every wrong input gives one line on standard error and exit status 2, and leaves an existing OUT alone.

use safetensors::tensor::{Dtype, TensorView};

use crate::workplace::{SHAPE, Workplace, file, forged, one_line, qkv};

#[test]
fn options_that_make_no_sense_are_refused() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, SHAPE, SHAPE));
    let out = place.path("out");
    let run = ["run", input.as_str(), out.as_str()];
    for (options, reason) in [
        (&["--scale", "nan"][..], "finite"),
        (&["--scale", "inf"], "finite"),
        (&["--scale", "-inf"], "finite"),
        (&["--scale", "1e39"], "finite"),
        (&["--scale", "wide"], "finite"),
        (&["--dropout", "nan"], "below 1"),
        (&["--dropout", "1"], "below 1"),
        (&["--dropout", "-0.1"], "below 1"),
        (&["--dropout", "0.1", "--seed", "-1"], "--seed"),
        (&["--window", "-1,2"], "'-1'"),
        (&["--window", "2,-1"], "'-1'"),
        (&["--window", "1.5,2"], "'1.5'"),
        (&["--window", "nan,2"], "'nan'"),
        (&["--window", "2,-inf"], "'-inf'"),
        (&["--window", "4294967296,0"], "4294967296"),
        (&["--window", "3"], "two numbers"),
        (&["--causal=sideways"], "bottom-right"),
        (&["--element", "f64"], "bf16"),
        (&["--algorithm", "magic"], "reference"),
        (&["--layout", "sbhd"], "bhsd"),
        (&["--no-such-option"], "--no-such-option"),
        (&["--adapter", "no such adapter"], "no such adapter"),
        (&["--adapter", "99"], "99"),
        (&["third file"], "third file"),
    ] {
        place.refuses(&[&run, options].concat(), reason);
    }
    place.refuses(&[], "command");
    place.refuses(&["fly"], "fly");
    place.refuses(&["run"], "IN.safetensors");
    place.refuses(&["run", &input], "OUT.safetensors");
    place.refuses(&["bench", "--seqlen", "0"], "--seqlen");
    place.refuses(&["bench", "--pass", "sideways"], "--pass");
    place.refuses(&["bench", "--tiles", "64x16"], "64x16x2x4");
    place.refuses(&["bench", "--tiles", "64x16x16x32xmx"], "no tiles");
    place.refuses(&["bench", "--seqlen", "12,x"], "--seqlen");
    place.refuses(&["bench", "--head-dim", "257"], "--head-dim");
    place.refuses(&["bench", "--algorithm", "reference"], "standard");
    place.refuses(&["bench", "--out", &input], "folder");
}

#[test]
fn files_that_do_not_hold_attention_inputs_are_refused() {
    let place = Workplace::new();
    let out = place.path("out");
    let f32s = |q, k, v| qkv(Dtype::F32, q, k, v);
    let with_d_o = |dtype, shape| {
        file(&[("q", Dtype::F32, SHAPE), ("k", Dtype::F32, SHAPE), ("v", Dtype::F32, SHAPE), ("d_o", dtype, shape)])
    };
    let whole = f32s(SHAPE, SHAPE, SHAPE);
    let huge_dims =
        r#"{"q":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615,2,2],"data_offsets":[0,16]}}"#;
    let one = r#"{"dtype":"F32","shape":[4294967296,0,1,1],"data_offsets":[0,0]}"#;
    let past_u32 = format!(r#"{{"q":{one},"k":{one},"v":{one}}}"#);
    let backwards = r#"{"q":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[4,0]}}"#;
    let beyond = r#"{"q":{"dtype":"F32","shape":[1,1,1,1024],"data_offsets":[0,4096]}}"#;
    let mixed = file(&[("q", Dtype::F32, SHAPE), ("k", Dtype::F16, SHAPE), ("v", Dtype::F32, SHAPE)]);
    let f64s = file(&[("q", Dtype::F64, SHAPE), ("k", Dtype::F64, SHAPE), ("v", Dtype::F64, SHAPE)]);
    let flat = {
        let data = vec![0; 4 * 80];
        let views =
            ["q", "k", "v"].map(|name| (name, TensorView::new(Dtype::F32, vec![2, 5, 8], &data).expect("fits")));
        safetensors::serialize(views, None).expect("a file")
    };
    for (bytes, reason) in [
        (Vec::new(), "not a sound safetensors file"),
        (b"hello".to_vec(), "not a sound safetensors file"),
        (b"hello, this is no safetensors file".to_vec(), "not a sound safetensors file"),
        (whole[..whole.len() - 1].to_vec(), "not a sound safetensors file"),
        (whole[..20].to_vec(), "not a sound safetensors file"),
        ([&whole[..], b"more"].concat(), "not a sound safetensors file"),
        (u64::MAX.to_le_bytes().to_vec(), "not a sound safetensors file"),
        ([&200_000_000u64.to_le_bytes()[..], b"{}"].concat(), "not a sound safetensors file"),
        (forged("{\"q\":\n[]}", 0), "not a sound safetensors file"),
        (forged(huge_dims, 16), "not a sound safetensors file"),
        (forged(backwards, 4), "not a sound safetensors file"),
        (forged(beyond, 4), "not a sound safetensors file"),
        (forged(&past_u32, 0), "4294967295"),
        (forged("{}", 0), "no tensor 'q'"),
        (file(&[("q", Dtype::F32, SHAPE), ("k", Dtype::F32, SHAPE)]), "no tensor 'v'"),
        (mixed, "one type"),
        (f64s, "F64"),
        (flat, "3 dimensions"),
        (with_d_o(Dtype::F32, [1, 2, 6, 8]), "d_o has the shape"),
        (with_d_o(Dtype::F16, SHAPE), "d_o is stored as f16"),
        (
            file(&[
                ("q", Dtype::F32, SHAPE),
                ("k", Dtype::F32, SHAPE),
                ("v", Dtype::F32, SHAPE),
                ("d_lse", Dtype::F32, SHAPE),
            ]),
            "d_lse",
        ),
        (f32s(SHAPE, [2, 2, 5, 8], SHAPE), "batch"),
        (f32s(SHAPE, [1, 2, 6, 8], SHAPE), "seqlen"),
        (f32s(SHAPE, [1, 1, 5, 8], SHAPE), "heads"),
        (f32s(SHAPE, [1, 2, 5, 7], SHAPE), "last dimension"),
        (f32s([1, 3, 5, 8], SHAPE, SHAPE), "multiple"),
        (f32s([1, 2, 5, 0], [1, 2, 5, 0], SHAPE), "is 0"),
        (f32s([1, 1, 2, 300], [1, 1, 2, 300], [1, 1, 2, 8]), "256"),
    ] {
        let input = place.write("in", &bytes);
        for algorithm in ["flash", "reference"] {
            place.refuses(&["run", &input, &out, "--algorithm", algorithm], reason);
        }
    }
    place.refuses(&["run", &place.path("nowhere"), &out], "nowhere");
    place.refuses(&["run", place.0.path().to_str().expect("a plain path"), &out], "cannot read");
}

#[test]
fn places_that_cannot_be_written_are_refused() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, SHAPE, SHAPE));
    std::fs::create_dir(place.path("folder")).expect("the folder is writable");
    place.refuses(&["run", &input, &place.path("folder")], "regular file");
    place.refuses(&["run", &input, &place.path("missing/out")], "cannot write");
    place.refuses(&["run", &input, &place.path("in/out")], "cannot write");
    place.refuses(&["run", &input, "/"], "cannot write");
}

#[test]
#[cfg(target_os = "linux")]
fn without_an_adapter_every_command_says_so() {
    let place = Workplace::new();
    let input = place.write("in", &qkv(Dtype::F32, SHAPE, SHAPE, SHAPE));
    let out = place.path("out");
    for arguments in [&["info"][..], &["demo"], &["check"], &["bench"], &["run", &input, &out]] {
        let done = place
            .command(arguments)
            .env("VK_ICD_FILENAMES", "/nowhere.json")
            .env("VK_DRIVER_FILES", "/nowhere.json")
            .output()
            .expect("the program starts");
        one_line(arguments, &done, "no GPU adapter");
    }
    assert_eq!(place.files(), ["in"]);
}
