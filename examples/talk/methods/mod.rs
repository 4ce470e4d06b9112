//! The methods: one file each, with its paper, its formula, its kernels (in `shaders/`) and its twin, which computes the same
//! on the CPU in f64 with plain loops.

mod bigbird;
mod butterfly;
mod dense;
mod linear;
mod linformer;
mod longformer;
mod performer;
mod ready;
mod reformer;
mod routing;
mod scatterbrain;
mod sparse;
pub mod whole;

use wgpu_flash_attention::Algorithm;

use crate::case::{Case, Head, Inputs, Problem, State};
use crate::device::Gpu;
use crate::failure::Result;

/// Every method, in the order of tables and figures.
pub fn all() -> Vec<Box<dyn Method>> {
    vec![
        Box::new(whole::Whole { algorithm: Algorithm::Flash }),
        Box::new(whole::Whole { algorithm: Algorithm::Standard }),
        Box::new(linear::Linear),
        Box::new(performer::Performer),
        Box::new(linformer::Linformer { pooled: false }),
        Box::new(linformer::Linformer { pooled: true }),
        Box::new(butterfly::Butterfly),
        Box::new(longformer::Longformer::default()),
        Box::new(bigbird::BigBird),
        Box::new(reformer::Reformer::default()),
        Box::new(routing::Routing::default()),
        Box::new(scatterbrain::Scatterbrain),
    ]
}

/// One of the methods.
pub trait Method: Sync {
    /// What `--methods` calls it.
    fn name(&self) -> &'static str;

    /// Why it is not defined for a problem, or not written for it.
    ///
    /// # Errors
    /// The reason, as half a sentence: "needs …".
    fn supports(&self, problem: &Problem) -> std::result::Result<(), String>;

    /// What exact attention it approximates.
    fn exact(&self) -> Exact {
        Exact::Attention
    }

    /// Compiles its kernels and makes its buffers. Everything that depends on Q, K and V belongs into
    /// [`Prepared::encode`], which is timed.
    fn prepare(&self, gpu: &Gpu, case: &Case) -> Result<Box<dyn Prepared>>;

    /// O of some rows (rising) of a head in f64, `[rows, head_dim]`. `state` is that of the GPU ([`Prepared::state`]).
    fn twin(&self, inputs: &Inputs, state: &State, head: Head, rows: &[u32]) -> Vec<f64>;
}

/// A method that is ready to run on the inputs of its case.
pub trait Prepared {
    /// Records the whole method, from Q, K and V to O. Nothing waits.
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()>;

    /// O, like Q.
    fn output(&self) -> &wgpu::Buffer;

    /// What one run costs.
    fn cost(&self) -> Cost;

    /// What it has drawn, learned or decided, read back after a run. Empty if it decides nothing.
    fn state(&self, gpu: &Gpu) -> Result<State> {
        let _ = gpu;
        Ok(State::new())
    }

    /// What else the reader should know of the last run, such as the share of tokens in no cluster: name and value.
    fn report(&self, gpu: &Gpu) -> Result<Vec<(String, String)>> {
        let _ = gpu;
        Ok(Vec::new())
    }
}

/// What exact attention a method approximates, and its error is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exact {
    /// softmax(Q Kᵀ / √head_dim) V, causal if the problem is.
    Attention,
    /// The same with K = rows of Q at length 1, and a token sees itself only if it sees nothing else (Reformer).
    SharedQk,
}

impl Exact {
    /// For records.
    pub fn name(self) -> &'static str {
        match self {
            Exact::Attention => "attention",
            Exact::SharedQk => "attention with K = Q / ‖Q‖",
        }
    }
}

/// What one run does, counted from the algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add is two, an exponential one.
    pub flops: f64,
    /// Bytes of device memory read and written, if caches hold nothing from one kernel to the next and everything inside.
    pub bytes: f64,
    /// Bytes allocated beyond Q, K, V and O.
    pub extra_bytes: u64,
}
