use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, value_parser};
use wgpu_flash_attention::Element;

/// Approximate attention beside exact attention, on this GPU.
#[derive(Parser)]
#[command(name = "talk", version)]
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
    Compare(CompareOptions),
}

#[derive(Args)]
pub struct CompareOptions {
    /// Lengths, in tokens.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "256,512", value_parser = value_parser!(u32).range(1..=1 << 20))]
    pub seqlen: Vec<u32>,
    /// The methods to run. [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub methods: Vec<String>,
    /// A row sees no key after its own. Methods that are not defined for it are left out.
    #[arg(long)]
    pub causal: bool,
    /// The width of Q, K and V.
    #[arg(long, value_name = "D", default_value_t = 64, value_parser = value_parser!(u32).range(1..=256))]
    pub head_dim: u32,
    /// Heads of Q. [default: 16, on software adapters 2]
    #[arg(long, value_name = "H", value_parser = value_parser!(u32).range(1..=1 << 10))]
    pub heads: Option<u32>,
    /// Heads of K and V. [default: as many as Q]
    #[arg(long, value_name = "H", value_parser = value_parser!(u32).range(1..=1 << 10))]
    pub heads_kv: Option<u32>,
    /// Sequences.
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1 << 10))]
    pub batch: u32,
    /// The type of Q, K, V and O.
    #[arg(long, value_name = "f32|f16|bf16", value_parser = elements(), default_value = "f32")]
    pub element: Element,
    /// The key of all random draws: inputs, projections, hashes.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
}

fn elements() -> impl TypedValueParser<Value = Element> {
    PossibleValuesParser::new(Element::ALL.iter().copied().map(Element::name)).map(|name| {
        Element::ALL.iter().copied().find(|element| element.name() == name).expect("the parser admits only these names")
    })
}
