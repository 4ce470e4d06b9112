//! Block masks: the option, and the tensors of the file that belong to it.

use clap::Args;
use wgpu_flash_attention::{AttentionProblem, AttentionShape, BlockKind, BlockMask, KeyMask};

/// Which blocks of the scores are computed.
#[derive(Args)]
pub struct BlockOptions {
    /// Block-sparse attention. With p the position of a row (that of the last row is the last key): local:W |p − j| ≤ W;
    /// strided:STEP |p − j| < STEP or p − j a multiple of STEP; longformer:W,GLOBAL |p − j| ≤ W or j < GLOBAL or p < GLOBAL;
    /// prefix:N j < N or j ≤ p; butterfly and bigbird:SEED on blocks of 64 × 64; documents where the ids of p and j
    /// are equal (`flash run` reads document_ids, `flash bench` takes eight documents of one length).
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    pub block_mask: Option<Pattern>,
}

/// A block mask, for problems of any shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    Local(u32),
    Strided(u32),
    Longformer(u32, u32),
    Prefix(u32),
    Butterfly,
    Bigbird(u64),
    Documents,
}

impl BlockOptions {
    /// The problem with the mask. `documents` are its ids: sequences, or 1 for all, and an id for each key.
    pub fn apply(&self, problem: AttentionProblem, documents: Option<(u32, &[u32])>) -> AttentionProblem {
        let shape = problem.shape;
        let mask = match &self.block_mask {
            None => return problem,
            Some(Pattern::Local(window)) => BlockMask::local(*window),
            Some(Pattern::Strided(step)) => BlockMask::strided(*step),
            Some(Pattern::Longformer(window, global)) => BlockMask::longformer(*window, *global),
            Some(Pattern::Prefix(len)) => BlockMask::prefix(*len),
            Some(Pattern::Butterfly) => BlockMask::butterfly(&shape),
            Some(Pattern::Bigbird(seed)) => BlockMask::bigbird(&shape, *seed),
            Some(Pattern::Documents) => match documents {
                Some((batch, ids)) => BlockMask::documents(batch, ids),
                None => BlockMask::documents(1, &eight_documents(shape.seqlen_kv)),
            },
        };
        problem.with_key_mask(KeyMask::Blocks(mask))
    }
}

/// Documents of an eighth of the keys each.
fn eight_documents(seqlen_kv: u32) -> Vec<u32> {
    (0..seqlen_kv).map(|key| key / seqlen_kv.div_ceil(8)).collect()
}

/// The mask of a tensor `block_mask`, not 0 where a block is seen, in blocks of `sides`.
pub fn of_tensor(counts: [u32; 4], sides: [u32; 2], bytes: &[u8]) -> BlockMask {
    let kind = |byte: &u8| if *byte != 0 { BlockKind::Partial } else { BlockKind::Absent };
    BlockMask::new(counts, sides, &bytes.iter().map(kind).collect::<Vec<_>>())
}

/// `[batch, heads, rows, keys]` in blocks of `sides`, the first two or 1.
pub fn counts_of(shape: &AttentionShape, sides: [u32; 2]) -> [u32; 4] {
    [shape.batch, shape.num_heads, shape.seqlen_q.div_ceil(sides[0]), shape.seqlen_kv.div_ceil(sides[1])]
}

fn parse_pattern(text: &str) -> Result<Pattern, String> {
    let (name, values) = text.split_once(':').unwrap_or((text, ""));
    let number = |text: &str| {
        let wrong = || format!("'{text}' is not a whole number from 0 to {}", u32::MAX);
        text.trim().parse::<u32>().map_err(|_| wrong())
    };
    match (name, values) {
        ("local", window) if !window.is_empty() => Ok(Pattern::Local(number(window)?)),
        ("strided", step) if !step.is_empty() => match number(step)? {
            0 => Err("the step of strided must be at least 1".into()),
            step => Ok(Pattern::Strided(step)),
        },
        ("longformer", both) if both.contains(',') => {
            let (window, global) = both.split_once(',').unwrap_or_default();
            Ok(Pattern::Longformer(number(window)?, number(global)?))
        }
        ("prefix", len) if !len.is_empty() => Ok(Pattern::Prefix(number(len)?)),
        ("butterfly", "") => Ok(Pattern::Butterfly),
        ("bigbird", seed) => {
            let wrong = || format!("'{seed}' is no seed: a whole number from 0 to {}", u64::MAX);
            Ok(Pattern::Bigbird(seed.trim().parse().map_err(|_| wrong())?))
        }
        ("documents", "") => Ok(Pattern::Documents),
        _ => Err(format!(
            "'{}' is no pattern: local:W, strided:STEP, longformer:W,GLOBAL, prefix:N, butterfly, bigbird:SEED or documents",
            text.chars().take(40).collect::<String>()
        )),
    }
}

/// Rows and keys of a block of the tensor `block_mask`.
pub fn parse_sides(text: &str) -> Result<[u32; 2], String> {
    let side = |text: &str| text.trim().parse::<u32>().ok().filter(|side| *side > 0);
    let sides = text.split_once(',').and_then(|(q, kv)| Some([side(q)?, side(kv)?]));
    sides.ok_or_else(|| "give two whole numbers above 0, rows and keys of a block, such as 128,128".into())
}
