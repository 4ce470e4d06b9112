use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element};
use wgpu_flash_attention_distributed::Scheme;

/// Exact attention of one problem on several GPUs.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Time per call, and what each rank did when
    Bench(BenchOptions),
    /// The answer of ranks beside that of one device and of the oracle
    Check(CheckOptions),
    /// How fast bytes go from rank to rank: X of docs/distributed.md
    Transfer(TransferOptions),
    /// Attention of a safetensors file: each rank reads its rows of q, k and v
    Run(RunOptions),
}

#[derive(Args)]
pub struct TransferOptions {
    #[command(flatten)]
    pub ranks: RankOptions,
    /// Bytes that each rank sends to the next
    #[arg(long, default_value_t = 1 << 27)]
    pub bytes: usize,
    /// Timed exchanges; the median counts
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
}

#[derive(Args)]
pub struct RunOptions {
    #[command(flatten)]
    pub ranks: RankOptions,
    /// A safetensors file with q, k and v, `[batch, seqlen, heads, head_dim]`
    pub input: PathBuf,
    /// The file to write, with o and lse
    pub output: PathBuf,
    /// Each rank writes its own rows, to OUTPUT.rank0, OUTPUT.rank1, …
    #[arg(long)]
    pub parts: bool,
    /// How the problem is cut
    #[arg(long, value_enum, default_value = "zigzag")]
    pub scheme: SchemeName,
    #[command(flatten)]
    pub mask: MaskOptions,
}

/// Which keys a row sees.
#[derive(Args, Clone)]
pub struct MaskOptions {
    /// Rows see keys up to their own
    #[arg(long)]
    pub causal: bool,
    /// Rows see so many keys before their own
    #[arg(long)]
    pub window_left: Option<u32>,
    /// Rows see so many keys after their own
    #[arg(long)]
    pub window_right: Option<u32>,
}

impl MaskOptions {
    pub fn of(&self, mut problem: AttentionProblem) -> AttentionProblem {
        if self.causal {
            problem = problem.with_causal();
        }
        if self.window_left.is_some() || self.window_right.is_some() {
            problem = problem.with_window(self.window_left, self.window_right);
        }
        problem
    }
}

#[derive(Args)]
pub struct CheckOptions {
    #[command(flatten)]
    pub ranks: RankOptions,
    #[command(flatten)]
    pub problem: ProblemOptions,
    /// A logit for each head joins the softmax's sum
    #[arg(long)]
    pub sink: bool,
    /// Also the gradients
    #[arg(long)]
    pub backward: bool,
    /// One JSON record, instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct BenchOptions {
    #[command(flatten)]
    pub ranks: RankOptions,
    #[command(flatten)]
    pub problem: ProblemOptions,
    /// Also the backward pass
    #[arg(long)]
    pub backward: bool,
    /// Timed calls; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Calls before the first timed one
    #[arg(long, default_value_t = 2)]
    pub warm_up: u32,
    /// Also on rank 0's device alone, for the efficiency
    #[arg(long)]
    pub one_device: bool,
    /// One JSON record, instead of text
    #[arg(long)]
    pub json: bool,
    /// A figure of what each rank did when, in the median call
    #[arg(long)]
    pub svg: Option<PathBuf>,
}

/// Which ranks there are.
#[derive(Args, Clone)]
pub struct RankOptions {
    /// So many ranks, as threads of this process; without it, the processes that mpirun started
    #[arg(long)]
    pub in_process: Option<usize>,
    /// Numbers of the adapters for ranks, one after another (all GPUs, in the order of `flash info`)
    #[arg(long, value_delimiter = ',')]
    pub adapters: Vec<usize>,
    /// Seconds after which a rank that waits for another gives up
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// MPI moves all bytes, not only those between hosts: for tests, and for hosts whose processes cannot share memory
    #[arg(long)]
    pub no_shared_memory: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchemeName {
    /// One piece of the sequence a rank
    Ring,
    /// Two pieces a rank: equal work under a causal mask
    Zigzag,
}

impl SchemeName {
    pub fn scheme(self) -> Scheme {
        match self {
            SchemeName::Ring => Scheme::Ring,
            SchemeName::Zigzag => Scheme::Zigzag,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ElementName {
    F32,
    F16,
    Bf16,
}

/// The whole problem.
#[derive(Args, Clone)]
pub struct ProblemOptions {
    /// How the problem is cut
    #[arg(long, value_enum, default_value = "zigzag")]
    pub scheme: SchemeName,
    /// Sequences
    #[arg(long, default_value_t = 1)]
    pub batch: u32,
    /// Rows of the whole
    #[arg(long, default_value_t = 65_536)]
    pub seqlen: u32,
    /// Keys of the whole, if they are not as many as rows
    #[arg(long)]
    pub seqlen_kv: Option<u32>,
    /// Query heads
    #[arg(long, default_value_t = 32)]
    pub num_heads: u32,
    /// KV heads
    #[arg(long, default_value_t = 8)]
    pub num_heads_kv: u32,
    /// Width of Q, K and V
    #[arg(long, default_value_t = 128)]
    pub head_dim: u32,
    /// The type of Q, K, V and O
    #[arg(long, value_enum, default_value = "f16")]
    pub element: ElementName,
    #[command(flatten)]
    pub mask: MaskOptions,
    /// Chance of dropout
    #[arg(long)]
    pub dropout: Option<f64>,
    /// Seed of inputs and dropout
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl ProblemOptions {
    pub fn problem(&self) -> AttentionProblem {
        let shape = AttentionShape::new(self.batch, self.num_heads, self.seqlen, self.head_dim)
            .with_num_heads_kv(self.num_heads_kv)
            .with_seqlen_kv(self.seqlen_kv.unwrap_or(self.seqlen));
        let element = match self.element {
            ElementName::F32 => Element::F32,
            ElementName::F16 => Element::F16,
            ElementName::Bf16 => Element::Bf16,
        };
        let problem = self.mask.of(AttentionProblem::new(shape).with_element(element));
        self.dropout.into_iter().fold(problem, |problem, p| problem.with_dropout(p, self.seed))
    }
}
