use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;

use crate::blocks::{BlockOptions, parse_sides};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use wgpu_flash_attention::{
    Algorithm, AttentionProblem, Element, ProbabilitiesProblem, ScoreMod, Tiles, Workload, alibi_slopes,
};

use crate::own_wgsl::{OwnWgsl, WgslFiles};

/// Exact attention on the GPU: compute, check, time.
#[derive(Parser)]
#[command(name = "flash", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The adapter to use: its number in `flash info`, or a part of its name.
    #[arg(long, global = true, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,
    /// Keep off cooperative matrices (tensor cores), where the adapter has them: slower, with all arithmetic in f32.
    #[arg(long, global = true)]
    pub no_matrices: bool,
    /// Use the tiles that `flash tune` measured on this adapter.
    #[arg(long, global = true, value_name = "FILE")]
    pub tuning: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Adapters, their limits and features, and the kernel and tiles chosen for a few shapes.
    Info,
    /// Attention on the bundled real input: errors, time and memory of flash beside standard.
    Demo,
    /// Computes O and LSE for the tensors q, k and v of a safetensors file, and dQ, dK and dV if it holds d_o.
    Run(RunOptions),
    /// Compares every kernel with the f64 oracle over a grid of problems. Exit status 1 if one is off.
    Check(CheckOptions),
    /// Checks, then times; table, JSON, CSV and figures.
    Bench(BenchOptions),
    /// Measures which tiles are the fastest on this adapter, for a file that --tuning takes.
    Tune(TuneOptions),
    /// Draws problems at random, over every feature, and compares with the f64 oracle. Exit status 1 if one is off.
    Fuzz(FuzzOptions),
}

/// What else the file of a run may hold.
const TENSORS: &str = "\
Tensors of IN.safetensors beside q, k and v; integers are of any type, I8 to U64:
  d_o           like o; gradients are computed too
  d_lse         F32 [batch, heads, seqlen_q], with d_o
  qkv           [batch, 3, heads, seqlen, dim] (bshd: [batch, seqlen, 3, heads, dim]), instead of q, k and v
  bias          F32 or the type of q, [batch, heads, seqlen_q, seqlen_kv], each of them or 1; added after softcap and ALiBi
  mask          BOOL or U8, like bias; not 0 = the row may see the key
  alibi_slopes  F32 [heads] or [batch, heads]; slopes for ALiBi, instead of --alibi
  sink          F32 [heads] of q; joins the softmax's sum
  seqlens_q, seqlens_kv
                integers [batch]; how long each sequence is in padded tensors
  cu_seqlens_q, cu_seqlens_kv
                integers [batch + 1], sums from 0 to all rows: sequences are packed. q, k, v and d_o are then 3-D, [all rows,
                heads, dim] whatever --layout says, d_lse is [heads, all rows], and a bias and a mask have the largest lengths
  seqused_q, seqused_kv
                integers [batch]; how many of its rows a packed sequence uses
  block_mask    BOOL or U8 [batch, heads, blocks of rows, blocks of keys], the first two or 1; which blocks of --block-size are
                computed
  document_ids  integers from 0, [batch or 1, seqlen_kv]; needs --block-mask documents: a row sees the keys of its document
  aux           of any shape; what --score-mod and --mask-mod read as aux[i]: f32 if it is F32, u32 if it holds integers from 0";

#[derive(Args)]
#[command(after_long_help = TENSORS)]
pub struct RunOptions {
    /// A safetensors file with 4-D tensors q, k and v, or - for standard input. K and V may have fewer heads than Q, V another width. It
    /// may also hold d_o, for gradients, and bias, mask, alibi_slopes, sink, seqlens_q, seqlens_kv, cu_seqlens_q, cu_seqlens_kv, aux,
    /// block_mask, document_ids: their shapes and types stand at the end of `flash run --help`.
    ///
    /// With k_cache and v_cache, K and V are in a cache: batch × positions × heads × dim, or with a page_table (integers, batch ×
    /// pages of a sequence) pages × positions of a page × heads × dim; F32, F16, BF16, or U32 for int8, with 1 + ⌈dim / 4⌉ words for
    /// a row. cache_seqlens (integers, one for each sequence) says how many positions each has, before the append. k and v, if there
    /// are some, are appended first, behind these, or where slot_mapping (integers, one for each new token; 4294967295 and -1 are
    /// nowhere) says; a sequence then has its new tokens more, and the rows of q are the last of it. With cu_seqlens_q, q is packed,
    /// and so are k and v, by cu_seqlens_kv_new or the same sums. A bias and a mask have the cache's positions as keys. rotary_cos and
    /// rotary_sin (positions × rotary_dim / 2, or a row for each new token: batch × tokens × rotary_dim / 2, of packed ones 1 × all
    /// tokens × rotary_dim / 2) belong to --rotary. Nothing has a gradient over a cache or with --rotary.
    #[arg(value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// The file, or - for standard output, that gets o (like q, in V's width) and lse (f32, batch × heads × seqlen_q, of packed sequences heads × all rows), and with d_o
    /// also dq, dk and dv (like q, k and v), dsink, and dbias (like bias). Replaced only once it is complete.
    #[arg(value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// `reference` is the f64 oracle on the CPU: slow, and rounded only when it is written.
    #[arg(long, value_enum, default_value = "flash")]
    pub algorithm: RunAlgorithm,
    /// The order of the dimensions in the file (batch, heads, seqlen, dim), for q, k, v and o.
    #[arg(long, value_enum, default_value = "bhsd")]
    pub layout: Layout,
    #[command(flatten)]
    pub causal: CausalOption,
    #[command(flatten)]
    pub scores: ScoreOptions,
    #[command(flatten)]
    pub blocks: BlockOptions,
    /// Rows and keys of a block of the tensor block_mask. [default: 128,128]
    #[arg(long, value_name = "Q,KV", value_parser = parse_sides)]
    pub block_size: Option<[u32; 2]>,
    #[command(flatten)]
    pub wgsl: WgslFiles,
    /// Keys before and after the diagonal that a row may see, both included; `inf` leaves a side unlimited. With
    /// --causal the right side is 0.
    #[arg(long, value_name = "LEFT,RIGHT", value_parser = parse_window, allow_hyphen_values = true)]
    pub window: Option<Window>,
    /// The factor on QKᵀ, 1/√head_dim if not given.
    #[arg(long, value_name = "X", value_parser = parse_scale, allow_hyphen_values = true)]
    pub scale: Option<f64>,
    /// The chance to drop a probability, at least 0 and below 1.
    #[arg(long, value_name = "P", value_parser = parse_dropout, allow_hyphen_values = true)]
    pub dropout: Option<f64>,
    /// The seed of the dropout mask.
    #[arg(long, value_name = "S", requires = "dropout", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Computes in this element type instead of the file's. o is written in it. q, k, v and d_o may then be in several types, F64
    /// among them. Numbers that it cannot hold are refused.
    #[arg(long, value_name = "f32|f16|bf16", value_parser = elements())]
    pub element: Option<Element>,
    /// Other names in the file, such as q=query,k=key,v=value.
    #[arg(long, value_name = "NAME=OTHER,…", value_delimiter = ',', value_parser = parse_name)]
    pub names: Vec<(String, String)>,
    /// Writes dq, dk and dv in f32, the type they are summed in.
    #[arg(long)]
    pub f32_gradients: bool,
    /// Also writes probabilities (f32, batch × 1 × rows × seqlen_kv) of one head of q and its rows from FIRST to END − 1, both
    /// counted from 0: with all modifiers and masks, before dropout.
    #[arg(long, value_name = "HEAD:FIRST..END", value_parser = parse_chosen)]
    pub probabilities: Option<Chosen>,
    /// Puts the keys in N splits, whose results are merged; 1 for none. The planner chooses if this is not given.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub num_splits: Option<u32>,
    /// Rotates q and the new k by rotary_cos and rotary_sin: dimensions 2m and 2m + 1 together, or m and m + rotary_dim / 2.
    #[arg(long, value_enum, value_name = "PAIRS")]
    pub rotary: Option<Pairs>,
    /// Prints one JSON object instead of a summary.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct CheckOptions {
    /// A smaller grid.
    #[arg(long)]
    pub quick: bool,
    /// What to compare.
    #[arg(long = "pass", value_enum, value_name = "PASS", default_value = "both")]
    pub passes: Passes,
}

#[derive(Args)]
pub struct BenchOptions {
    /// Lengths of Q, and of K and V. [default: 256 to 4096, on software adapters to 2048]
    #[arg(long, visible_alias = "seqlen-q", value_name = "LIST", value_delimiter = ',', value_parser = value_parser!(u32).range(1..))]
    pub seqlen: Option<Vec<u32>>,
    /// Times packed sequences of these lengths, one batch of them all: FlashAttention's variable length.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = value_parser!(u32).range(1..), conflicts_with_all = ["seqlen", "seqlen_kv", "batch", "bias"])]
    pub seqlens: Option<Vec<u32>>,
    /// One length of K and V for all lengths of Q.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub seqlen_kv: Option<u32>,
    /// Widths of Q, K and V.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64", value_parser = value_parser!(u32).range(1..=256))]
    pub head_dim: Vec<u32>,
    /// Sequences. [default: 2, on software adapters 1]
    #[arg(long, value_name = "B", value_parser = value_parser!(u32).range(1..))]
    pub batch: Option<u32>,
    /// Heads of Q. [default: 16, on software adapters 4]
    #[arg(long, value_name = "H", value_parser = value_parser!(u32).range(1..))]
    pub heads: Option<u32>,
    /// Heads of K and V. [default: as many as Q]
    #[arg(long, value_name = "H", value_parser = value_parser!(u32).range(1..))]
    pub heads_kv: Option<u32>,
    #[command(flatten)]
    pub causal: CausalOption,
    #[command(flatten)]
    pub scores: ScoreOptions,
    #[command(flatten)]
    pub blocks: BlockOptions,
    #[command(flatten)]
    pub wgsl: WgslFiles,
    /// Visits only the blocks of 128 × 128 in which --mask-mod shows something, and asks it only where it hides something: for
    /// masks that are the same for all sequences and heads. The first of them is looked at.
    #[arg(long, requires = "mask_mod")]
    pub mask_blocks: bool,
    /// Adds a bias, one for all sequences: heads × seqlen_q × seqlen_kv, in the type of Q.
    #[arg(long)]
    pub bias: bool,
    /// Times attention over a KV cache that holds these K and V, flash and forward alone: side by side, in pages of SIZE in a
    /// scrambled order, or in int8.
    #[arg(long, value_name = "contiguous|paged:SIZE|int8", value_parser = parse_cache, conflicts_with = "seqlens")]
    pub cache: Option<CacheChoice>,
    /// The type of Q, K, V and O.
    #[arg(long, value_name = "f32|f16|bf16", value_parser = elements(), default_value = "f32")]
    pub element: Element,
    /// What to time.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = algorithms(), default_value = "flash,standard")]
    pub algorithm: Vec<Algorithm>,
    /// What to time. The backward pass counts 2.5 times the forward's operations.
    #[arg(long = "pass", value_enum, value_name = "PASS", default_value = "forward")]
    pub passes: Passes,
    /// Tiles to time flash attention with, instead of those of the table: rows × keys × rows of an invocation × lanes, as
    /// 64x16x2x4; or, on matrices, rows × keys × rows of a subgroup × its size × side, as 128x32x16x32xm16; or, for
    /// decoding, rows × keys × lanes × groups of lanes, as 4x64xd8x16; or, where subgroups broadcast, rows × keys × rows of
    /// an invocation × size of a subgroup, as 128x32x4xb8. The backward pass takes those of dK and dV and of
    /// dQ, as 16x64x2x4/64x16x2x4.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_tiles)]
    pub tiles: Vec<TileChoice>,
    /// Splits of the keys to time flash attention with, instead of the planner's choice; 1 is none.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = value_parser!(u32).range(1..))]
    pub num_splits: Vec<u32>,
    /// Timed runs of each, instead of as many as fit into two seconds (3 to 20).
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub iterations: Option<u32>,
    /// Writes bench.json, bench.csv, time.svg, memory.svg and roofline.svg into this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Prints one JSON object a line instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct TuneOptions {
    /// Widths of Q, K and V to measure; each serves the narrower ones too.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64,128", value_parser = value_parser!(u32).range(1..=256))]
    pub head_dim: Vec<u32>,
    /// What to measure: decoding, few rows, many rows.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = workloads(), default_value = "decode,small,large")]
    pub workload: Vec<Workload>,
    /// Types of Q, K, V and O to measure.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = elements(), default_value = "f32,f16")]
    pub element: Vec<Element>,
    /// Writes the fastest tiles into this file.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Args)]
pub struct FuzzOptions {
    /// How long to draw; 1 if --problems is not given. Ctrl-C ends it too.
    #[arg(long, value_name = "M", value_parser = parse_minutes)]
    pub minutes: Option<f64>,
    /// How many problems to draw at most.
    #[arg(long, value_name = "N")]
    pub problems: Option<u64>,
    /// The seed of the draws, from the clock if not given. Problem n of a seed is the same on every machine.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Draws only these features beside shapes and types, by the names of their numbers in a case.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub features: Vec<String>,
    /// Runs this case alone: the line that a miss is reported with.
    #[arg(long, value_name = "LINE", conflicts_with_all = ["minutes", "problems", "seed", "features"])]
    pub case: Option<String>,
    /// Runs the cases that once were wrong.
    #[arg(long, conflicts_with_all = ["minutes", "problems", "seed", "features"])]
    pub kept: bool,
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct CausalOption {
    /// A row sees no key after its own: the last row meets the last key (bottom-right, the default), or the first row
    /// the first key (top-left).
    #[arg(
        long,
        value_enum,
        value_name = "ALIGNMENT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "bottom-right"
    )]
    pub causal: Option<Causal>,
}

impl CausalOption {
    pub fn apply(&self, problem: AttentionProblem) -> AttentionProblem {
        match self.causal {
            None => problem,
            Some(Causal::BottomRight) => problem.with_causal(),
            Some(Causal::TopLeft) => problem.with_causal_top_left(),
        }
    }
}

/// How `flash bench` keeps K and V.
#[derive(Clone, Copy, PartialEq)]
pub enum CacheChoice {
    Contiguous,
    Paged(u32),
    Int8,
}

fn parse_cache(text: &str) -> Result<CacheChoice, String> {
    let size = |size: &str| size.parse().ok().filter(|size| *size > 0).map(CacheChoice::Paged);
    match text {
        "contiguous" => Some(CacheChoice::Contiguous),
        "int8" => Some(CacheChoice::Int8),
        _ => text.strip_prefix("paged:").and_then(size),
    }
    .ok_or_else(|| "contiguous, int8, or paged: and positions of a page, at least 1".to_owned())
}

/// Which dimensions rotary embeddings turn together.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Pairs {
    Interleaved,
    Halves,
}

/// What becomes of the scores before the mask. Softcap comes first, as in FlashAttention, cuDNN and ONNX.
#[derive(Args)]
pub struct ScoreOptions {
    /// Keeps scores between −X and X: each score s becomes X · tanh(s / X). 0 is off.
    #[arg(long, value_name = "X", value_parser = parse_softcap, allow_hyphen_values = true)]
    pub softcap: Option<f32>,
    /// Adds ALiBi: a score falls with the distance of its key from the diagonal, by the usual slope of its head.
    #[arg(long)]
    pub alibi: bool,
}

impl ScoreOptions {
    pub fn apply(&self, mut problem: AttentionProblem, own: &OwnWgsl) -> AttentionProblem {
        if let Some(softcap) = self.softcap.filter(|softcap| *softcap != 0.0) {
            problem = problem.with_score(ScoreMod::Softcap(softcap));
        }
        problem = own.modify(problem);
        // Without rows there are no scores, and any number of heads fits into a small file.
        if self.alibi && problem.shape.seqlen_q > 0 {
            let slopes = alibi_slopes(problem.shape.num_heads);
            problem = problem.with_score(ScoreMod::Alibi(slopes));
        }
        problem
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Passes {
    Forward,
    Backward,
    Both,
}

impl Passes {
    pub fn each(self) -> &'static [Pass] {
        match self {
            Passes::Forward => &[Pass::Forward],
            Passes::Backward => &[Pass::Backward],
            Passes::Both => &[Pass::Forward, Pass::Backward],
        }
    }
}

/// One of them.
#[derive(Clone, Copy, PartialEq)]
pub enum Pass {
    Forward,
    Backward,
}

impl Pass {
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        }
    }
}

/// Tiles of the caller's choice: of one kernel, or of dK and dV and of dQ.
#[derive(Clone, Copy, Debug)]
pub struct TileChoice {
    pub first: Tiles,
    pub dq: Option<Tiles>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Causal {
    BottomRight,
    TopLeft,
}

impl Causal {
    pub fn name(self) -> &'static str {
        match self {
            Causal::BottomRight => "bottom-right",
            Causal::TopLeft => "top-left",
        }
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum RunAlgorithm {
    Flash,
    Standard,
    Reference,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Layout {
    Bhsd,
    Bshd,
    /// All rows, heads, dim: packed sequences, whatever the option says.
    #[value(skip)]
    Packed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub left: Option<u32>,
    pub right: Option<u32>,
}

/// A head and its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    pub head: u32,
    pub rows: Range<u32>,
}

impl Chosen {
    pub fn of(&self, problem: &AttentionProblem) -> ProbabilitiesProblem {
        // Planning refuses what the problem has not.
        ProbabilitiesProblem::new(problem.clone(), self.head..self.head.saturating_add(1), self.rows.clone())
    }
}

/// `--causal` takes its value after a space as well, but only one of its two words: in `--causal in.safetensors` the
/// file stays a file.
pub fn join_causal(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut open = true;
    for argument in arguments {
        let is_value = Causal::value_variants().iter().any(|causal| argument == causal.name());
        match joined.last_mut() {
            Some(last) if open && is_value && *last == "--causal" => {
                last.push("=");
                last.push(argument);
            }
            _ => {
                open &= argument != "--";
                joined.push(argument);
            }
        }
    }
    joined
}

fn elements() -> impl TypedValueParser<Value = Element> {
    PossibleValuesParser::new(Element::ALL.iter().copied().map(Element::name)).map(|name| {
        Element::ALL.iter().copied().find(|element| element.name() == name).expect("the parser admits only these names")
    })
}

fn workloads() -> impl TypedValueParser<Value = Workload> {
    PossibleValuesParser::new(Workload::ALL.iter().copied().map(Workload::name)).map(|name| {
        Workload::ALL
            .iter()
            .copied()
            .find(|workload| workload.name() == name)
            .expect("the parser admits only these names")
    })
}

fn algorithms() -> impl TypedValueParser<Value = Algorithm> {
    const ALL: [Algorithm; 2] = [Algorithm::Flash, Algorithm::Standard];
    PossibleValuesParser::new(ALL.map(Algorithm::name)).map(|name| {
        ALL.into_iter().find(|algorithm| algorithm.name() == name).expect("the parser admits only these names")
    })
}

fn parse_window(text: &str) -> Result<Window, String> {
    let (left, right) = text.split_once(',').ok_or("give two numbers of keys, such as 128,0 or 256,inf")?;
    Ok(Window { left: parse_side(left)?, right: parse_side(right)? })
}

fn parse_chosen(text: &str) -> Result<Chosen, String> {
    let parts = text.split_once(':').and_then(|(head, rows)| Some((head, rows.split_once("..")?)));
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let chosen =
        parts.and_then(|(head, (first, end))| Some(Chosen { head: number(head)?, rows: number(first)?..number(end)? }));
    chosen.ok_or_else(|| format!("'{text}' is no head and range of rows: give them as 3:0..16, the end not included"))
}

fn parse_side(text: &str) -> Result<Option<u32>, String> {
    match text.trim() {
        "inf" => Ok(None),
        number => number
            .parse()
            .map(Some)
            .map_err(|_| format!("'{number}' is not a number of keys: a whole number from 0 to {}, or inf", u32::MAX)),
    }
}

fn parse_tiles(text: &str) -> Result<TileChoice, String> {
    match text.split_once('/') {
        Some((dkdv, dq)) => Ok(TileChoice { first: parse_one_tiles(dkdv)?, dq: Some(parse_one_tiles(dq)?) }),
        None => Ok(TileChoice { first: parse_one_tiles(text)?, dq: None }),
    }
}

/// The inverse of `text::tiles_option`.
pub fn parse_one_tiles(text: &str) -> Result<Tiles, String> {
    let reason = || {
        format!(
            "'{text}' are no tiles: give numbers such as 64x16x2x4, 128x32x32x32xm16 for matrices, 4x64xd8x16 for decoding"
        )
    };
    let number = |text: &str| text.parse::<u32>().map_err(|_| reason());
    match text.split('x').collect::<Vec<_>>()[..] {
        [tile_q, tile_kv, lanes, groups] if lanes.starts_with('d') => {
            let lanes = number(&lanes[1..])?;
            Ok(Tiles::decode(number(tile_q)?, number(tile_kv)?, lanes, number(groups)?))
        }
        [tile_q, tile_kv, rows, broadcast] if broadcast.starts_with('b') => {
            let broadcast = number(&broadcast[1..])?;
            Ok(Tiles::broadcasting(number(tile_q)?, number(tile_kv)?, number(rows)?, broadcast))
        }
        [tile_q, tile_kv, rows, lanes] => {
            Ok(Tiles::new(number(tile_q)?, number(tile_kv)?, number(rows)?, number(lanes)?))
        }
        [tile_q, tile_kv, rows, lanes, side] => {
            let side = number(side.strip_prefix('m').ok_or_else(reason)?)?;
            Ok(Tiles::cooperative(number(tile_q)?, number(tile_kv)?, number(rows)?, number(lanes)?, side))
        }
        _ => Err(reason()),
    }
}

fn parse_name(text: &str) -> Result<(String, String), String> {
    let both = text.split_once('=').filter(|(own, other)| !own.is_empty() && !other.is_empty());
    both.map(|(own, other)| (own.to_owned(), other.to_owned()))
        .ok_or_else(|| "give a name and the file's, as q=query".into())
}

fn parse_minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes.is_finite() && minutes > 0.0 => Ok(minutes),
        _ => Err("give a finite number of minutes above 0".to_owned()),
    }
}

fn parse_scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if (scale as f32).is_finite() => Ok(scale),
        _ => Err("give a finite number within the range of f32".to_owned()),
    }
}

fn parse_softcap(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        // What is not 0 and becomes 0 in f32 was not meant as off.
        Ok(softcap) if softcap == 0.0 && text.parse() != Ok(0.0f64) => {
            Err(format!("{text} is 0 in f32, which means none"))
        }
        Ok(softcap) if softcap.is_finite() && softcap >= 0.0 => Ok(softcap),
        _ => Err("give a finite number above 0, or 0 for none".to_owned()),
    }
}

fn parse_dropout(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(dropout_p) if (0.0..1.0).contains(&dropout_p) => Ok(dropout_p),
        _ => Err("give a chance of at least 0 and below 1".to_owned()),
    }
}
