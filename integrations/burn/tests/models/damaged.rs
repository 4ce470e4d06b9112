//! Damaged files are errors, never panics.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::files::{Header, small_gguf, small_safetensors};
use crate::gguf::Gguf;
use crate::minilm::MiniLm;
use crate::model::Config;
use crate::tokenizer::{Message, Tokenizer};

/// Reads all that a file has.
fn read(bytes: Vec<u8>) -> anyhow::Result<()> {
    let file = Gguf::parse(bytes)?;
    let config = Config::read(&file)?;
    file.tensor("token_embd.weight", &[config.vocabulary, config.hidden])?;
    file.tensor("blk.1.ffn_down.weight", &[config.hidden, config.inner])?;
    file.tensor("output_norm.weight", &[config.hidden])?;
    let tokenizer = Tokenizer::read(&file)?;
    tokenizer.encode("<|im_start|>hello 12")?;
    tokenizer.chat(&[Message { role: "user", content: "a".into() }])?;
    Ok(())
}

#[test]
fn gguf_files_that_end_early() {
    let bytes = small_gguf(1).bytes;
    read(bytes.clone()).unwrap();
    for length in (0..6_000).chain((6_000..bytes.len()).step_by(997)) {
        assert!(read(bytes[..length].to_vec()).is_err(), "the first {length} of {} bytes", bytes.len());
    }
}

#[test]
fn gguf_files_with_wrong_bytes() {
    let bytes = small_gguf(1).bytes;
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut refused = 0;
    for _ in 0..3_000 {
        let mut damaged = bytes.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..6_000);
            damaged[at] = if random.random() { 0xff } else { random.random() };
        }
        refused += usize::from(read(damaged).is_err());
    }
    assert!(refused > 1_000, "only {refused} of 3000 damaged files were refused");
}

#[test]
fn gguf_files_that_lie() {
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = small_gguf(1).bytes;
        change(&mut bytes);
        read(bytes).unwrap_err().to_string()
    };
    assert_eq!(refused(&|bytes| bytes[0] = b'X'), "not a GGUF file: it does not start with \"GGUF\"");
    assert_eq!(refused(&|bytes| bytes[4] = 4), "GGUF version 4 is not 2 or 3");
    // Counts of tensors and of values.
    refused(&|bytes| bytes[8..16].fill(0xff));
    refused(&|bytes| bytes[16..24].fill(0xff));
    // A list that has 2⁶³ entries of four bytes.
    let mut list = Header::default();
    list.integers("list", &[1]);
    let mut list = list.with_tensors(&[]);
    let end = list.iter().rposition(|&byte| byte != 0).unwrap();
    list[end - 1] = 0x80;
    assert!(Gguf::parse(list).is_err());
}

#[test]
fn safetensors_files() {
    let (file, config) = small_safetensors(1);
    let refused = |bytes: &[u8]| MiniLm::read(config.clone(), bytes, &crate::device()).is_err();
    assert!(!refused(&file.bytes));
    for length in [0, 7, 8, 100, file.bytes.len() / 2, file.bytes.len() - 1] {
        assert!(refused(&file.bytes[..length]), "the first {length} bytes");
    }
    let mut damaged = file.bytes.clone();
    damaged[..8].fill(0xff);
    assert!(refused(&damaged));
}
