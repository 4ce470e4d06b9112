//! Texts and files of anybody: the doors of the program `flash`, and functions in WGSL. Whatever comes is taken or refused, soon,
//! in one line, and without a panic.

use std::cell::Cell;
use std::path::Path;

use clap::Parser;
use naga::valid::{Capabilities as NagaCapabilities, ValidationFlags, Validator};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use wgpu_flash_attention::unstable::{Dialect, ShaderSource, fault_in_browsers};
use wgpu_flash_attention::{
    AttentionProblem, AttentionShape, Capabilities, KeyMask, MaskWgsl, Plan, ScoreMod, ScoreWgsl, WgslFault,
};

use crate::arguments::{Arguments, Command, Layout, RunOptions, parse_one_tiles};
use crate::failure::{Failure, usage};
use crate::tensors::File;
use crate::tuning_file::TuningFile;
use crate::{capabilities, problem, runner};

/// What is told of a failure is one line, which a terminal only prints.
fn is_one_line(line: &str) -> Result<(), TestCaseError> {
    prop_assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
    Ok(())
}

// Changes.

/// A place (of 2³² in all), what to do there, and with what.
type Change = (u32, u8, u32);

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    prop_oneof![1 => Just(Vec::new()), 3 => prop::collection::vec(any::<Change>(), 1..most)]
}

/// Leaves out, doubles, exchanges or replaces pieces.
fn changed<T: Clone>(mut pieces: Vec<T>, changes: &[Change], others: &[T]) -> Vec<T> {
    for &(place, what, with) in changes {
        let scaled = |number: u32, len: usize| ((u64::from(number) * len as u64) >> 32) as usize;
        let (at, other) = (scaled(place, pieces.len()), others[scaled(with, others.len())].clone());
        match what % 6 {
            _ if pieces.is_empty() => pieces.push(other),
            0 => drop(pieces.remove(at)),
            1 => pieces.insert(at, pieces[at].clone()),
            2 => {
                let second = scaled(with, pieces.len());
                pieces.swap(at, second);
            }
            3 => pieces.truncate(at),
            4 => pieces.insert(at, other),
            _ => pieces[at] = other,
        }
    }
    pieces
}

// Files of tensors.

/// Names that the program knows, and some that it does not.
const NAMES: [&str; 21] = [
    "q",
    "k",
    "v",
    "qkv",
    "d_o",
    "d_lse",
    "bias",
    "mask",
    "sink",
    "seqlens_q",
    "seqlens_kv",
    "seqused_q",
    "seqused_kv",
    "cu_seqlens_q",
    "cu_seqlens_kv",
    "alibi_slopes",
    "document_ids",
    "block_mask",
    "aux",
    "\u{1b}[31mred",
    "",
];

/// Types and their bits.
const TYPES: [(&str, u64); 13] = [
    ("F32", 32),
    ("F16", 16),
    ("BF16", 16),
    ("F64", 64),
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("U16", 16),
    ("I32", 32),
    ("U32", 32),
    ("I64", 64),
    ("F4", 4),
    ("F8_E4M3", 8),
];

#[derive(Clone, Debug)]
struct DrawnTensor {
    name: usize,
    dtype: usize,
    dims: Vec<u64>,
}

/// Dimensions of the problem, or any.
fn dims() -> impl Strategy<Value = Vec<u64>> {
    let dim = prop_oneof![
        9 => prop::sample::select(vec![1, 2, 3, 4, 8]),
        1 => prop::sample::select(vec![0, 5, 1 << 16, u64::from(u32::MAX), 1 << 40, 1 << 63, u64::MAX]),
    ];
    prop::collection::vec(dim, 0..6)
}

/// Q, K and V of one shape, perhaps packed or in one tensor, and others, some as they should be.
fn tensors() -> impl Strategy<Value = Vec<DrawnTensor>> {
    let shape = prop::sample::select(vec![[1, 2, 3, 4], [2, 2, 3, 8], [2, 1, 0, 4], [0, 2, 3, 4], [1, 4, 2, 1]]);
    let sound =
        (shape, 0..3usize, 0..8u8, any::<u32>()).prop_map(|([batch, heads, rows, dim], dtype, form, others)| {
            let inputs: &[usize] = if form == 0 { &[3] } else { &[0, 1, 2] };
            let dims = match form {
                0 => vec![batch, 3, heads, rows, dim],
                1 => vec![batch * rows, heads, dim],
                _ => vec![batch, heads, rows, dim],
            };
            let mut tensors: Vec<_> =
                inputs.iter().map(|&name| DrawnTensor { name, dtype, dims: dims.clone() }).collect();
            let mut add = |name, dtype, dims| tensors.push(DrawnTensor { name, dtype, dims });
            let both = vec![batch, heads, rows, rows];
            for (bit, (name, dtype, dims)) in [
                (4, dtype, dims.clone()),
                (5, 0, dims[..dims.len() - 1].to_vec()),
                (6, 0, both.clone()),
                (7, 4, both),
                (8, 0, vec![heads]),
                (9, 8, vec![batch]),
                (10, 9, vec![batch]),
                (15, 0, vec![heads]),
                (16, 8, vec![batch, rows]),
                (17, 5, vec![batch, heads, 1, 1]),
                (18, 9, vec![7]),
            ]
            .into_iter()
            .enumerate()
            {
                if others >> bit & 1 == 1 && others >> (bit + 11) & 1 == 1 {
                    add(name, dtype, dims);
                }
            }
            if form == 1 {
                [13, 14].into_iter().for_each(|name| add(name, 8, vec![batch + 1]));
            }
            tensors
        });
    let any = (0..NAMES.len(), 0..TYPES.len(), dims());
    let any = any.prop_map(|(name, dtype, dims)| DrawnTensor { name, dtype, dims });
    let anything = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(any, 1..4)];
    (sound, anything).prop_map(|(sound, anything)| [sound, anything].concat())
}

/// A safetensors file, if its tensors are small enough to be written.
fn file(tensors: &[DrawnTensor], number: u8) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for DrawnTensor { name, dtype, dims } in tensors {
        let (dtype, bits) = TYPES[*dtype];
        let len = dims.iter().try_fold(bits, |bits, dim| bits.checked_mul(*dim)).map_or(0, |bits| bits / 8);
        let first = end;
        end += if len > 4096 { 0 } else { len };
        let info = serde_json::json!({ "dtype": dtype, "shape": dims, "data_offsets": [first, end] });
        header.insert(NAMES[*name].into(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend((0..end).map(|at| if at % 4 == 0 { number } else { 0 }));
    bytes
}

fn run_options(options: &[&str]) -> RunOptions {
    let all = ["flash", "run", "in", "out"].iter().chain(options);
    match Arguments::try_parse_from(all).map(|arguments| arguments.command) {
        Ok(Command::Run(options)) => options,
        _ => panic!("{options:?} are options"),
    }
}

#[test]
fn any_file_is_read_or_refused() {
    let options: [&[&str]; 4] = [&[], &["--element", "f16"], &["--layout", "bshd"], &["--names", "q=k,other=v"]];
    let options = options.map(run_options);
    let (read, refused) = (Cell::new(0), Cell::new(0));
    let outcome = runner(4000).run(&(tensors(), 0..3u8, changes(4)), |(tensors, number, changes)| {
        let bytes = changed(file(&tensors, number), &changes, b"\x00\x01\x7f\xff09{}[]\",:-ex");
        for options in &options {
            let taken = File::of(Path::new("in"), bytes.clone())
                .and_then(|file| crate::rewritten::rewritten(file, options))
                .and_then(|file| {
                    for layout in [Layout::Bhsd, Layout::Bshd] {
                        let inputs = file.inputs(layout)?;
                        let (shape, element) = (inputs.shape, inputs.element);
                        let numbers = (inputs.q.len() + inputs.k.len() + inputs.v.len()) as u64 / element.size();
                        let problem = AttentionProblem::new(shape).with_element(element);
                        let _ = Plan::forward(&problem, &Capabilities::webgpu_defaults()).build()?;
                        if inputs.cu_seqlens.is_none() {
                            let [batch, heads, heads_kv] =
                                [shape.batch, shape.num_heads, shape.num_heads_kv].map(u64::from);
                            let [rows, keys] = [shape.seqlen_q, shape.seqlen_kv].map(u64::from);
                            let [dim, dim_v] = [shape.head_dim, shape.head_dim_v].map(u64::from);
                            assert_eq!(numbers, batch * (heads * rows * dim + heads_kv * keys * (dim + dim_v)));
                        }
                        let _ = file.block_mask(&shape, [2, 3])?;
                    }
                    Ok(())
                });
            match taken {
                Ok(()) => read.set(read.get() + 1),
                Err(failure) => {
                    refused.set(refused.get() + 1);
                    is_one_line(failure.line())?;
                }
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (read, refused) = (read.get(), refused.get());
    println!("{read} files were read, {refused} refused");
    assert!(read > 300 && refused > 1000, "{read} files were read, {refused} refused");
}

// Tiles and tuning files.

const SOUND_TILES: [&str; 5] = ["64x16x2x4", "128x32x32x32xm16", "4x64xd8x16", "128x32x4xb8", "64x16x2x4/64x16x4x4"];

fn tiles_text() -> impl Strategy<Value = String> {
    let others: Vec<char> = "0123456789xdbm/-+. \n\u{1b}é".chars().collect();
    (prop::sample::select(SOUND_TILES.to_vec()), changes(4))
        .prop_map(move |(text, changes)| changed(text.chars().collect(), &changes, &others).into_iter().collect())
}

#[test]
fn any_tiles_are_planned_or_refused() {
    let (planned, refused) = (Cell::new(0), Cell::new(0));
    let outcome = runner(2000).run(&(tiles_text(), problem(), capabilities()), |(text, problem, capabilities)| {
        if let Err(error) = Arguments::try_parse_from(["flash", "bench", &format!("--tiles={text}")]) {
            is_one_line(&usage(&error))?;
        }
        let Ok(tiles) = parse_one_tiles(&text) else {
            refused.set(refused.get() + 1);
            return Ok(());
        };
        let (usual, defaults) =
            (AttentionProblem::new(AttentionShape::new(1, 4, 256, 64)), Capabilities::webgpu_defaults());
        for (problem, capabilities) in [(&problem, &capabilities), (&usual, &defaults)] {
            for plan in [Plan::forward(problem, capabilities), Plan::backward(problem, capabilities)] {
                match plan.with_tiles(&[tiles]).build() {
                    Ok(_) => planned.set(planned.get() + 1),
                    Err(error) => is_one_line(Failure::from(error).line())?,
                }
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(planned.get() > 20 && refused.get() > 100, "{} plans, {} no tiles", planned.get(), refused.get());
}

const SOUND_TUNING: &str = r#"{"adapter": "a", "driver": "b", "workgroups": 264, "tiles": [
 {"workload": "large", "element": "f32", "head_dim": 64, "tiles": "64x16x2x4", "ms": 1.5, "ms_of_table": 2.0},
 {"workload": "small", "element": "f16", "head_dim": 128, "tiles": "128x32x32x32xm16", "ms": 1e3, "ms_of_table": 2}]}"#;

#[test]
fn any_tuning_file_is_read_or_refused() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let path = place.path().join("tuning.json");
    // Words of the file change places, and bytes of it become others.
    let words: Vec<String> = SOUND_TUNING.split_inclusive([' ', ',', ':', '"']).map(str::to_owned).collect();
    let others =
        ["null", "-1", "1e400", "4294967296", "\"\\u001b[2J\"", "[", "}", "\"large\"", "0", ","].map(str::to_owned);
    let (read, refused) = (Cell::new(0), Cell::new(0));
    let strategy = (changes(4), changes(3), problem(), capabilities());
    let outcome = runner(2000).run(&strategy, |(of_words, of_bytes, problem, capabilities)| {
        let text = changed(words.clone(), &of_words, &others).concat();
        let bytes = changed(text.into_bytes(), &of_bytes, b"0129-.eE\"\\{}[],:x\n\x00\xff");
        std::fs::write(&path, bytes).expect("the folder is writable");
        match TuningFile::read(&path).map(|file| file.tuning()) {
            Ok(tuning) => {
                let tuning = tuning.expect("a file that was read holds tiles");
                let _ = Plan::forward(&problem, &capabilities).with_tuning(&tuning).build();
                read.set(read.get() + 1);
            }
            Err(failure) => {
                refused.set(refused.get() + 1);
                is_one_line(failure.line())?;
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(read.get() > 100 && refused.get() > 200, "{} were read, {} refused", read.get(), refused.get());
}

// Functions in WGSL.

const SOUND_WGSL: [&str; 4] = [
    "fn score_mod ( score : f32 , batch : u32 , head : u32 , q_idx : u32 , kv_idx : u32 ) -> f32 { return score * 0.5 ; }
     fn score_mod_grad ( grad : f32 , score : f32 , batch : u32 , head : u32 , q_idx : u32 , kv_idx : u32 ) -> f32
     { return grad * 0.5 ; }",
    "const limit = 4u ; struct Pair { a : f32 , b : array < f32 , 4 > }
     fn least ( pair : ptr < function , Pair > ) -> f32 { return min ( ( * pair ) . a , ( * pair ) . b [ 2 ] ) ; }
     fn score_mod ( score : f32 , batch : u32 , head : u32 , q_idx : u32 , kv_idx : u32 ) -> f32 {
     var pair = Pair ( score , array < f32 , 4 > ( 1.0 , 2.0 , aux [ kv_idx ] , 4.0 ) ) ;
     for ( var n = 0u ; n < limit ; n ++ ) { pair . b [ n ] += f32 ( n / max ( head , 1u ) ) ; }
     return least ( & pair ) ; }",
    "fn score_mod ( score : f32 , batch : u32 , head : u32 , q_idx : u32 , kv_idx : u32 ) -> f32 {
     var x = score ; loop { x = x * x ; if x > 3.0 { break ; } continuing { x += 1.0 ; } }
     while x < 9.0 { x += 1.0 ; } switch kv_idx % 3u { case 0u : { return x ; } default : { return - x ; } } }",
    "fn mask_mod ( batch : u32 , head : u32 , q_idx : u32 , kv_idx : u32 ) -> bool {
     let near = abs ( i32 ( q_idx ) - i32 ( kv_idx ) ) < 7 ; return select ( near , kv_idx % 2u == 0u , head == 1u ) ; }",
];

/// Words that are worth trying anywhere.
const WORDS: [&str; 40] = [
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "<",
    ">",
    ",",
    ";",
    ":",
    "@",
    "&",
    "*",
    "-",
    "/",
    "/*",
    "*/",
    "//",
    "\"",
    "#",
    "aux",
    "wgsl_aux",
    "loop",
    "continue",
    "discard",
    "var<private>",
    "array<f32, 4294967295>",
    "u32",
    "0x",
    "1e39f",
    "1h",
    "4294967296u",
    "-2147483648i",
    "vec4<f32>",
    "atomic<u32>",
    "score_mod",
    "\u{0}",
    "𝟙é",
    "enable f16;",
];

fn wgsl() -> impl Strategy<Value = String> {
    let changed = (prop::sample::select(SOUND_WGSL.to_vec()), changes(4))
        .prop_map(|(text, changes)| changed(text.split_inclusive([' ', '\n']).collect(), &changes, &WORDS).join(" "));
    // So deep that a parser which calls itself runs out of stack.
    let deep = (0..WORDS.len(), prop::sample::select(vec![9usize, 200, 20_000])).prop_map(|(word, times)| {
        let score = SOUND_WGSL[0].replacen("score * 0.5", &format!("{} score", WORDS[word].repeat(times)), 1);
        score.replacen("return", &WORDS[word].repeat(times), usize::from(times == 200))
    });
    prop_oneof![9 => changed, 1 => deep]
}

/// A shader with the function is sound: what was taken cannot fail later.
fn is_compiled(problem: &AttentionProblem) -> Result<(), TestCaseError> {
    let plan = Plan::forward(problem, &Capabilities::webgpu_defaults()).build();
    let plan = plan.map_err(|error| TestCaseError::fail(error.to_string()))?;
    let source = ShaderSource::new(&plan.passes()[0].specialization, Dialect::Naga);
    let source = source.map_err(|error| TestCaseError::fail(error.to_string()))?;
    let module = naga::front::wgsl::parse_str(source.text());
    let module = module.map_err(|error| TestCaseError::fail(error.emit_to_string(source.text())))?;
    let checked = Validator::new(ValidationFlags::all(), NagaCapabilities::all()).validate(&module);
    checked.map(drop).map_err(|error| TestCaseError::fail(error.emit_to_string(source.text())))
}

#[test]
fn any_wgsl_is_compiled_or_refused() {
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let shape = AttentionShape::new(1, 2, 8, 8);
    let outcome = runner(2500).run(&wgsl(), |text| {
        let browsers = [fault_in_browsers("score_mod", &text), fault_in_browsers("mask_mod", &text)];
        let problem = |reads_aux: bool| {
            let problem = AttentionProblem::new(shape);
            if reads_aux { problem.with_aux(8) } else { problem }
        };
        let score = ScoreWgsl::new(&text).map(|of| problem(of.reads_aux()).with_score(ScoreMod::Wgsl(of)));
        let mask = MaskWgsl::new(&text).map(|of| problem(of.reads_aux()).with_key_mask(KeyMask::Wgsl(of)));
        for (judged, in_browsers) in [score, mask].into_iter().zip(browsers) {
            match judged {
                Ok(problem) => {
                    prop_assert!(in_browsers.is_none(), "browsers refuse {text}: {in_browsers:?}");
                    is_compiled(&problem)?;
                    taken.set(taken.get() + 1);
                }
                Err(fault) => {
                    refused.set(refused.get() + 1);
                    is_in(&text, &fault)?;
                }
            }
            in_browsers.map_or(Ok(()), |fault| is_in(&text, &fault))?;
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (taken, refused) = (taken.get(), refused.get());
    println!("{taken} texts were taken, {refused} refused");
    assert!(taken > 200 && refused > 500, "{taken} texts were taken, {refused} refused");
}

/// A fault is at a line of the text, or at its end.
fn is_in(text: &str, fault: &WgslFault) -> Result<(), TestCaseError> {
    let lines = text.split('\n').count() as u32;
    prop_assert!((1..=lines).contains(&fault.line()) && fault.column() > 0, "{fault} of {lines} lines");
    Ok(())
}
