use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, value_parser};
use wgpu_flash_attention::Element;

/// Approximate attention beside exact attention, on this GPU.
#[derive(Parser)]
#[command(name = "talk", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The adapter to use: its number in `flash info`, or a part of its name.
    #[arg(long, global = true, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Runs the methods, checks each against its f64 twin, and compares their time, memory and error with exact attention.
    /// Exit status 1 if an answer is not that of its twin, if a method fails, if one that --methods names is not defined for a
    /// problem, or if none ran.
    Compare(CompareOptions),
    /// Is attention compute-bound or memory-bound here? Times both exact algorithms under this adapter's measured ceilings.
    Bound(BoundOptions),
}

#[derive(Args)]
pub struct BoundOptions {
    /// Lengths, in tokens. [default: 512 to 16384, on software adapters 256 to 1024]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = value_parser!(u32).range(1..=1 << 20))]
    pub seqlen: Vec<u32>,
    /// Widths of Q, K and V.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64,128", value_parser = value_parser!(u32).range(1..=256))]
    pub head_dim: Vec<u32>,
    /// The types of Q, K, V and O.
    #[arg(long, value_name = "f32|f16|bf16", value_delimiter = ',', value_parser = elements(), default_value = "f32")]
    pub element: Vec<Element>,
    /// Heads. [default: 16, on software adapters 2]
    #[arg(long, value_name = "H", value_parser = value_parser!(u32).range(1..=1 << 10))]
    pub heads: Option<u32>,
    /// Sequences.
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1 << 10))]
    pub batch: u32,
    /// Writes bound.json and bound.svg into this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Prints one JSON object a line instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct CompareOptions {
    /// Lengths, in tokens. [default: 512 to 65536, on software adapters 256 and 512; of a file, its length]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = value_parser!(u32).range(1..=1 << 20))]
    pub seqlen: Vec<u32>,
    /// `random`: Q, K and V are normal, which flatters methods of low rank. `peaked`: the same, with Q and K four times as
    /// large, which flatters sparse ones. Or a safetensors file with q, k and v, batch × heads × seqlen × dim; lengths cut
    /// it short.
    #[arg(long, value_name = "random|peaked|FILE", default_value = "random")]
    pub input: String,
    /// The methods to run. [default: all that are defined for the problem]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub methods: Vec<String>,
    /// A row sees no key after its own. Methods that are not defined for it are left out.
    #[arg(long)]
    pub causal: bool,
    /// The width of Q, K and V. [default: 64]
    #[arg(long, value_name = "D", value_parser = value_parser!(u32).range(1..=256))]
    pub head_dim: Option<u32>,
    /// Heads of Q. [default: 16, on software adapters 2]
    #[arg(long, value_name = "H", value_parser = value_parser!(u32).range(1..=1 << 10))]
    pub heads: Option<u32>,
    /// Heads of K and V. [default: as many as Q]
    #[arg(long, value_name = "H", value_parser = value_parser!(u32).range(1..=1 << 10))]
    pub heads_kv: Option<u32>,
    /// Sequences. [default: 1]
    #[arg(long, value_name = "B", value_parser = value_parser!(u32).range(1..=1 << 10))]
    pub batch: Option<u32>,
    /// The types of Q, K, V and O.
    #[arg(long, value_name = "f32|f16|bf16", value_delimiter = ',', value_parser = elements(), default_value = "f32")]
    pub element: Vec<Element>,
    /// The key of all random draws: inputs, projections, hashes.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Timed runs of each, instead of as many as fit into 0.4 s (3 to 20).
    #[arg(long, value_name = "R", value_parser = value_parser!(u32).range(1..))]
    pub repeats: Option<u32>,
    /// Writes compare.json, compare.csv, time.svg, memory.svg and error.svg into this folder, after every method anew: what is
    /// interrupted leaves what is done.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// As --out, in f32 and f16, with tables in Markdown, in compare.md and on standard output, in place of the table.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "json", "element"])]
    pub record: Option<PathBuf>,
    /// Prints one JSON object a line instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Writes inputs, answers (METHOD.o, exact.o) and what methods draw, learn or decide (such as performer.omega) into a
    /// safetensors file, after every method anew. For one length and one element.
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// Takes what methods draw, learn or decide from such a file, as far as it is there. Which method took what stands in its
    /// notes; that none took anything is an error.
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
}

impl CompareOptions {
    /// The folder for files.
    pub fn folder(&self) -> Option<&PathBuf> {
        self.out.as_ref().or(self.record.as_ref())
    }
}

fn elements() -> impl TypedValueParser<Value = Element> {
    PossibleValuesParser::new(Element::ALL.iter().copied().map(Element::name)).map(|name| {
        Element::ALL.iter().copied().find(|element| element.name() == name).expect("the parser admits only these names")
    })
}
