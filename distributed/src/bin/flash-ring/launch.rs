//! Ranks: threads of this process, or the process that it is itself under `mpirun`.

use crate::arguments::RankOptions;
use crate::signals;
use crate::words::say;
#[cfg(feature = "mpi")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wgpu_flash_attention::FlashAttention;
use wgpu_flash_attention::wgpu::Adapter;
#[cfg(feature = "mpi")]
use wgpu_flash_attention_distributed::{Bytes, WriteOnly};
use wgpu_flash_attention_distributed::{Error, Transport, adapters, devices, run_in_process, wgpu_flash_attention};

/// Ranks of one process. No machine has more GPUs, and messages grow with the square of ranks.
const MOST_RANKS: usize = 64;

/// Bytes that a rank makes or reads at once, so that it needs no memory of the host for its whole part.
const AT_ONCE: u64 = 32 << 20;

/// Why the program ends.
pub enum Failure {
    /// Its ranks have said so.
    Said,
    /// Anything else.
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Other(error)
    }
}

/// What a rank does, over any transport.
pub trait Work: Sync {
    /// What rank 0 returns; other ranks return `None`.
    type Answer: Send;

    fn rank<T: Transport>(&self, transport: T, device: FlashAttention) -> Result<Option<Self::Answer>, Error>;
}

/// Runs all ranks of this process; what rank 0 returns, if it is here.
pub fn launch<W: Work>(options: &RankOptions, work: &W) -> Result<Option<W::Answer>, Failure> {
    signals::handle();
    let timeout = Duration::from_secs(options.timeout);
    let Some(ranks) = options.in_process else { return over_mpi(options, timeout, work) };
    let refuse = |reason: String| Err(Error::Unsupported { what: "--in-process", reason }.into());
    if ranks == 0 || ranks > MOST_RANKS {
        return refuse(format!("there must be a rank, and {MOST_RANKS} at most"));
    }
    if let Some(processes) = processes() {
        return refuse(format!(
            "mpirun started {processes} processes, and each would do all of the work; leave it out"
        ));
    }
    let devices = devices(&chosen(options)?, ranks)?;
    let mut results = run_in_process(devices, timeout, |transport, device| work.rank(transport, device));
    for (rank, result) in results.iter().enumerate() {
        let _ = result.as_ref().inspect_err(|error| say(&format!("rank {rank}: {error}")));
    }
    if results.iter().any(Result::is_err) { Err(Failure::Said) } else { Ok(results.swap_remove(0)?) }
}

/// How many processes an MPI has started, by its environment; `None` if this is the only one.
fn processes() -> Option<usize> {
    let of = |name: &str| std::env::var(name).ok()?.parse().ok();
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].into_iter().filter_map(of).find(|count| *count > 1)
}

fn chosen(options: &RankOptions) -> Result<Vec<Adapter>, Error> {
    let all = adapters()?;
    let number = |index: &usize| {
        let reason = format!("there are adapters 0 to {}", all.len() - 1);
        all.get(*index).cloned().ok_or(Error::Unsupported { what: "--adapters", reason })
    };
    if options.adapters.is_empty() { Ok(all) } else { options.adapters.iter().map(number).collect() }
}

/// The result, of whose error the other ranks are told.
pub fn told<T>(transport: &mut impl Transport, result: Result<T, Error>) -> Result<T, Error> {
    result.inspect_err(|error| {
        if !matches!(error, Error::Rank { .. }) {
            transport.fail(&error.to_string());
        }
    })
}

/// Whether the host can spare so many bytes for each rank of this process. Without this, an allocation that cannot be would end the
/// program. `None` is more than can be counted.
pub fn spare(options: &RankOptions, bytes: Option<u64>) -> Result<(), Error> {
    let ranks = options.in_process.unwrap_or(1);
    let all = bytes.and_then(|bytes| usize::try_from(bytes).ok()).and_then(|bytes| bytes.checked_mul(ranks));
    let mut room = Vec::<u8>::new();
    let is_there = all.is_some_and(|all| room.try_reserve_exact(all).is_ok());
    // Memory that nobody looks at need not be asked for.
    std::hint::black_box(&room);
    if is_there {
        return Ok(());
    }
    let needed = bytes.map_or("more of the host's than can be counted".into(), |bytes| {
        format!("about {:.1} GB of the host's", bytes as f64 / 1e9)
    });
    let reason = format!("a rank needs {needed}, and this process has {ranks} of them");
    Err(Error::Unsupported { what: "too little memory", reason })
}

/// How many rows a rank makes or reads at once: a multiple of 4, as tensors of a rank want it.
pub fn rows_at_once(row_bytes: u64) -> usize {
    (AT_ONCE / row_bytes.max(1) / 4 * 4).clamp(4, 1 << 20) as usize
}

#[cfg(feature = "mpi")]
fn over_mpi<W: Work>(options: &RankOptions, timeout: Duration, work: &W) -> Result<Option<W::Answer>, Failure> {
    use wgpu_flash_attention_distributed::OverMpi;
    let transport = match options.no_shared_memory {
        true => OverMpi::new_without_shared_memory(timeout),
        false => OverMpi::new(timeout),
    }?;
    let rank = transport.rank();
    signals::RANK.get_or_init(|| rank);
    let device = chosen(options).and_then(|adapters| {
        let adapter = adapters[transport.rank_of_host() % adapters.len()].clone();
        Ok(devices(&[adapter], 1)?.remove(0))
    });
    let has_said = AtomicBool::new(false);
    let mut transport = SaysFirst { transport, has_said: &has_said };
    let result = told(&mut transport, device).and_then(|device| work.rank(transport, device));
    result.map_err(|error| {
        if !has_said.into_inner() {
            say(&format!("rank {rank}: {error}"));
        }
        Failure::Said
    })
}

/// Says an error before the other ranks are told of it: they end, and with the first of them `mpirun` ends this rank.
#[cfg(feature = "mpi")]
struct SaysFirst<'a, T> {
    transport: T,
    has_said: &'a AtomicBool,
}

#[cfg(feature = "mpi")]
impl<T: Transport> Transport for SaysFirst<'_, T> {
    fn rank(&self) -> usize {
        self.transport.rank()
    }

    fn ranks(&self) -> usize {
        self.transport.ranks()
    }

    fn exchange(&mut self, to: usize, sent: Bytes, from: usize, received: WriteOnly<[u8]>) -> Result<(), Error> {
        self.transport.exchange(to, sent, from, received)
    }

    fn fail(&mut self, cause: &str) {
        if !self.has_said.swap(true, Ordering::Relaxed) {
            say(&format!("rank {}: {cause}", self.rank()));
        }
        self.transport.fail(cause);
    }
}

#[cfg(not(feature = "mpi"))]
fn over_mpi<W: Work>(_: &RankOptions, _: Duration, _: &W) -> Result<Option<W::Answer>, Failure> {
    let reason = "this program was built without MPI: say --in-process RANKS, or build it with --features mpi".into();
    Err(Error::Unsupported { what: "ranks", reason }.into())
}
