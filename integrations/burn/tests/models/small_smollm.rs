//! A small llama from a seed: its file, its tokens, its logits in every way of reading, and what it generates.

use burn::tensor::DType;

use crate::cache::{Attention, Storage};
use crate::files::{CONTEXT, SmallFile, small_gguf, vocabulary};
use crate::gguf::Gguf;
use crate::model::SmolLm;
use crate::reference::{self, Rounding};
use crate::sampler::{Sampler, generate};
use crate::tokenizer::{Message, Tokenizer};
use crate::{device, error, largest, say, values};

fn model(file: &SmallFile, element: DType) -> SmolLm {
    SmolLm::read(&Gguf::parse(file.bytes.clone()).unwrap(), element, &device()).unwrap()
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length).map(|i| (i * i * 7 + i * 31 + 5) as u32 % vocabulary().len() as u32).collect()
}

/// Tokens that are read at once, one after another: a prompt, a second one that sees it, and single ones.
const READS: [usize; 6] = [11, 5, 1, 1, 9, 1];

/// The largest error of the logits after each read.
fn error_of(model: &SmolLm, attention: Attention, storage: Storage, expected: &[Vec<f64>]) -> f64 {
    let tokens = prompt(READS.iter().sum());
    let mut text = model.start(attention, storage, CONTEXT).unwrap();
    let mut most = 0.0_f64;
    for count in READS {
        let start = text.length();
        let logits = values(text.read(&tokens[start..start + count]).unwrap());
        most = most.max(error(&logits, &expected[start + count - 1]));
    }
    most
}

#[test]
fn logits_are_those_of_f64() {
    let file = small_gguf(1);
    let tokens = prompt(READS.iter().sum());
    let exact = reference::smollm(&file, &tokens, Rounding::None, READS[0]);
    let size = largest(&exact.concat());
    for (element, storage, floor) in [(DType::F32, Storage::F32, 1e-6), (DType::F16, Storage::F16, 1e-5)] {
        let model = model(&file, element);
        let flash = error_of(&model, Attention::Flash, storage, &exact);
        let burn = error_of(&model, Attention::Burn, storage, &exact);
        say(&format!(
            "small SmolLM {element:?}: logits to {size:.2}; error {flash:.1e}, with Burn's attention {burn:.1e}"
        ));
        assert!(flash <= 2.0 * burn + floor * size, "{flash:e} > 2 · {burn:e}");
    }
}

#[test]
fn a_rounded_cache_costs_what_rounding_costs() {
    let file = small_gguf(2);
    let tokens = prompt(READS.iter().sum());
    let exact = reference::smollm(&file, &tokens, Rounding::None, READS[0]);
    let size = largest(&exact.concat());
    let model = model(&file, DType::F32);
    for (storage, rounding) in [(Storage::F16, Rounding::F16), (Storage::Int8, Rounding::Int8)] {
        let rounded = reference::smollm(&file, &tokens, rounding, READS[0]);
        let ends = READS.iter().scan(0, |end, count| {
            *end += count;
            Some(*end - 1)
        });
        let apart = |(a, b): (&f64, &f64)| (a - b).abs();
        let cost = ends.flat_map(|end| rounded[end].iter().zip(&exact[end]).map(apart)).fold(0.0, f64::max);
        let flash = error_of(&model, Attention::Flash, storage, &exact);
        say(&format!("small SmolLM, cache in {storage:?}: error {flash:.1e}; rounding alone {cost:.1e}"));
        assert!(flash <= 2.0 * cost + 1e-6 * size, "{storage:?}: {flash:e} > 2 · {cost:e}");
        // It is this rounding, and not a cache in another type.
        assert!(flash >= 0.5 * cost, "{storage:?}: {flash:e} < {cost:e} / 2");
    }
}

#[test]
fn a_seed_repeats_its_draws() {
    let file = small_gguf(3);
    let model = model(&file, DType::F32);
    let drawn = |temperature, seed| {
        let mut text = model.start(Attention::Flash, Storage::F32, CONTEXT).unwrap();
        let mut sampler = Sampler::new(temperature, seed).unwrap();
        let mut seen = Vec::new();
        let each = |token| {
            seen.push(token);
            Ok(())
        };
        // No token ends this text.
        let tokens = generate(&mut text, &prompt(7), &mut sampler, 20, u32::MAX, each).unwrap();
        assert_eq!(tokens, seen);
        assert_eq!((tokens.len(), text.length()), (20, 27));
        tokens
    };
    assert_eq!(drawn(0.8, 5), drawn(0.8, 5));
    assert_ne!(drawn(0.8, 5), drawn(0.8, 6));
    // Greedy: the likeliest token after each one, as f64 has it.
    let greedy = drawn(0.0, 5);
    let all = [prompt(7), greedy.clone()].concat();
    let logits = reference::smollm(&file, &all, Rounding::None, all.len());
    let likeliest =
        |logits: &Vec<f64>| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
    assert_eq!(greedy, logits[6..all.len() - 1].iter().map(likeliest).collect::<Vec<_>>());
}

#[test]
fn generation_ends_with_the_end_token() {
    let file = small_gguf(3);
    let model = model(&file, DType::F32);
    let greedy = |end| {
        let mut text = model.start(Attention::Flash, Storage::F32, CONTEXT).unwrap();
        generate(&mut text, &prompt(7), &mut Sampler::new(0.0, 0).unwrap(), 20, end, |_| Ok(())).unwrap()
    };
    let all = greedy(u32::MAX);
    let first = all.iter().position(|&token| token == all[4]).unwrap();
    assert_eq!(greedy(all[4]), all[..=first]);
}

#[test]
fn text_becomes_tokens_and_comes_back() {
    let tokenizer = Tokenizer::read(&Gguf::parse(small_gguf(1).bytes).unwrap()).unwrap();
    let byte = |byte: u8| 3 + u32::from(byte);
    // A control token, merges in their order, and digits one by one.
    let tokens = tokenizer.encode("<|im_start|>hello hell12").unwrap();
    assert_eq!(tokens, [1, 261, byte(b'o'), 262, byte(b'1'), byte(b'2')]);
    assert_eq!((tokenizer.end, tokenizer.end_text.as_str()), (2, "<|im_end|>"));

    // A character comes with the last of its bytes.
    let mut decoder = tokenizer.decoder();
    let pieces: Vec<String> =
        tokenizer.encode("é<|im_end|>!").unwrap().into_iter().map(|id| decoder(id).unwrap()).collect();
    assert_eq!(pieces, ["", "é", "", "!"]);

    let message = |role, content: &str| Message { role, content: content.into() };
    let chat = tokenizer.chat(&[message("system", "a"), message("user", "b")]).unwrap();
    assert_eq!(chat, "<|im_start|>system a<|im_end|><|im_start|>user b<|im_end|><|im_start|>assistant ");
}

#[test]
fn misuse_is_an_error() {
    let file = small_gguf(1);
    let model = model(&file, DType::F32);
    let start = |attention, storage| model.start(attention, storage, 8);
    let mut text = start(Attention::Flash, Storage::F32).unwrap();
    let message = |error: anyhow::Error| error.to_string();
    assert_eq!(message(text.read(&[]).err().unwrap()), "the model needs a token to read");
    assert_eq!(message(text.read(&[263]).err().unwrap()), "token 263 is not one of 263");
    text.read(&[1; 5]).unwrap();
    assert_eq!(message(text.read(&[1; 4]).err().unwrap()), "5 tokens and 4 more are over 8");
    text.read(&[1; 3]).unwrap();
    let refused = start(Attention::Burn, Storage::Int8).err().unwrap();
    assert_eq!(message(refused), "Burn's own attention has no int8 cache");
    assert!(Sampler::new(f32::NAN, 0).is_err() && Sampler::new(-1.0, 0).is_err());
    assert!(Sampler::new(0.0, 0).unwrap().pick(&[0.0, f32::NAN]).is_err());
    assert_eq!(Sampler::new(0.0, 0).unwrap().pick(&[0.0, 2.0, 2.0]).unwrap(), 1);
}
