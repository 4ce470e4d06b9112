//! How fast bytes go from rank to rank.

use crate::arguments::TransferOptions;
use crate::launch::{Failure, Work, launch, spare, told};
use crate::words::answer;
use std::sync::Arc;
use std::time::Instant;
use wgpu_flash_attention_distributed::wgpu_flash_attention::FlashAttention;
use wgpu_flash_attention_distributed::{Bytes, Error, Transport, WriteOnly};

pub fn transfer(options: &TransferOptions) -> Result<(), Failure> {
    let Some((ranks, mut seconds)) = launch(&options.ranks, options)? else { return Ok(()) };
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    answer(&format!(
        "{ranks} ranks, each sends {} bytes to the next: {:.2} ms, {:.2} GB/s ({:.2} to {:.2} ms)",
        options.bytes,
        1e3 * median,
        options.bytes as f64 / median / 1e9,
        1e3 * seconds[0],
        1e3 * seconds[seconds.len() - 1],
    ))
}

impl Work for TransferOptions {
    /// How many ranks there are, and the seconds of each exchange.
    type Answer = (usize, Vec<f64>);

    fn rank<T: Transport>(&self, mut transport: T, _: FlashAttention) -> Result<Option<Self::Answer>, Error> {
        let (rank, ranks) = (transport.rank(), transport.ranks());
        let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        // What it sends, and what it receives.
        told(&mut transport, spare(&self.ranks, (self.bytes as u64).checked_mul(2)))?;
        let of = |rank: usize| (0..self.bytes).map(move |byte| (byte % 251 + rank) as u8);
        let sent: Bytes = Arc::new(of(rank).collect::<Vec<u8>>());
        let mut received = vec![0; self.bytes];
        let mut seconds = Vec::new();
        // The first one touches all memory for the first time.
        for exchange in 0..=self.repeats {
            transport.barrier()?;
            let start = Instant::now();
            transport.exchange(next, sent.clone(), previous, WriteOnly::from_mut(&mut received[..]))?;
            transport.barrier()?;
            if exchange > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        let is_whole = received.iter().copied().eq(of(previous));
        let other = || Error::Transport(format!("rank {previous} sent other bytes than came"));
        told(&mut transport, is_whole.then_some(()).ok_or_else(other))?;
        Ok((rank == 0).then_some((ranks, seconds)))
    }
}
