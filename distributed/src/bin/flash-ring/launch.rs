//! Ranks: threads of this process, or the process that it is itself under `mpirun`.

use crate::arguments::RankOptions;
use std::time::Duration;
use wgpu_flash_attention::FlashAttention;
use wgpu_flash_attention::wgpu::Adapter;
use wgpu_flash_attention_distributed::{Error, Transport, adapters, devices, run_in_process};

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

fn say(rank: usize, error: &Error) {
    eprintln!("flash-ring: rank {rank}: {error}");
}

/// What a rank does, over any transport.
pub trait Work: Sync {
    /// What rank 0 returns; other ranks return `None`.
    type Answer: Send;

    fn rank<T: Transport>(&self, transport: T, device: FlashAttention) -> Result<Option<Self::Answer>, Error>;
}

/// Runs all ranks of this process; what rank 0 returns, if it is here.
pub fn launch<W: Work>(options: &RankOptions, work: &W) -> Result<Option<W::Answer>, Failure> {
    let timeout = Duration::from_secs(options.timeout);
    let Some(ranks) = options.in_process else { return over_mpi(options, timeout, work) };
    if ranks == 0 {
        return Err(Error::Unsupported { what: "--in-process 0", reason: "there must be a rank".into() }.into());
    }
    let devices = devices(&chosen(options)?, ranks)?;
    let mut results = run_in_process(devices, timeout, |transport, device| work.rank(transport, device));
    for (rank, result) in results.iter().enumerate() {
        let _ = result.as_ref().inspect_err(|error| say(rank, error));
    }
    if results.iter().any(Result::is_err) { Err(Failure::Said) } else { Ok(results.swap_remove(0)?) }
}

fn chosen(options: &RankOptions) -> Result<Vec<Adapter>, Error> {
    let all = adapters()?;
    let number = |index: &usize| {
        let reason = format!("there are adapters 0 to {}", all.len() - 1);
        all.get(*index).cloned().ok_or(Error::Unsupported { what: "--adapters", reason })
    };
    if options.adapters.is_empty() { Ok(all) } else { options.adapters.iter().map(number).collect() }
}

#[cfg(feature = "mpi")]
fn over_mpi<W: Work>(options: &RankOptions, timeout: Duration, work: &W) -> Result<Option<W::Answer>, Failure> {
    use wgpu_flash_attention_distributed::OverMpi;
    let transport = match options.no_shared_memory {
        true => OverMpi::new_without_shared_memory(timeout),
        false => OverMpi::new(timeout),
    }?;
    say_when_ended(transport.rank());
    let adapters = chosen(options)?;
    let adapter = adapters[transport.rank_of_host() % adapters.len()].clone();
    let device = devices(&[adapter], 1)?.remove(0);
    let rank = transport.rank();
    let result = work.rank(transport, device);
    result.map_err(|error| {
        say(rank, &error);
        Failure::Said
    })
}

/// When a rank dies without a word, `mpirun` ends the others.
#[cfg(all(feature = "mpi", unix))]
fn say_when_ended(rank: usize) {
    let Ok(mut signals) = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]) else { return };
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!("flash-ring: rank {rank}: ended by mpirun, which says below which rank died");
            // At once: destructors of drivers and of MPI may wait for what has ended.
            signal_hook::low_level::exit(2);
        }
    });
}

#[cfg(all(feature = "mpi", not(unix)))]
fn say_when_ended(_: usize) {}

#[cfg(not(feature = "mpi"))]
fn over_mpi<W: Work>(_: &RankOptions, _: Duration, _: &W) -> Result<Option<W::Answer>, Failure> {
    let reason = "this program was built without MPI: say --in-process RANKS, or build it with --features mpi".into();
    Err(Error::Unsupported { what: "ranks", reason }.into())
}
