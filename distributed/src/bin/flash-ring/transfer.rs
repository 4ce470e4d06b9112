//! How fast bytes go from rank to rank.

use crate::arguments::TransferOptions;
use crate::launch::{Failure, Work, launch};
use std::sync::Arc;
use std::time::Instant;
use wgpu_flash_attention_distributed::wgpu_flash_attention::FlashAttention;
use wgpu_flash_attention_distributed::{Bytes, Error, Transport, WriteOnly};

pub fn transfer(options: &TransferOptions) -> Result<(), Failure> {
    let Some((ranks, mut seconds)) = launch(&options.ranks, options)? else { return Ok(()) };
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!(
        "{ranks} ranks, each sends {} bytes to the next: {:.2} ms, {:.2} GB/s ({:.2} to {:.2} ms)",
        options.bytes,
        1e3 * median,
        options.bytes as f64 / median / 1e9,
        1e3 * seconds[0],
        1e3 * seconds[seconds.len() - 1],
    );
    Ok(())
}

impl Work for TransferOptions {
    /// How many ranks there are, and the seconds of each exchange.
    type Answer = (usize, Vec<f64>);

    fn rank<T: Transport>(&self, mut transport: T, _: FlashAttention) -> Result<Option<Self::Answer>, Error> {
        let (rank, ranks) = (transport.rank(), transport.ranks());
        let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let of = |rank: usize| (0..self.bytes).map(|byte| (byte % 251 + rank) as u8).collect::<Vec<u8>>();
        let sent: Bytes = Arc::new(of(rank));
        let mut received = vec![0; self.bytes];
        let mut seconds = Vec::new();
        // The first one touches all memory for the first time.
        for exchange in 0..=self.repeats.max(1) {
            transport.barrier()?;
            let start = Instant::now();
            transport.exchange(next, sent.clone(), previous, WriteOnly::from_mut(&mut received[..]))?;
            transport.barrier()?;
            if exchange > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        if received != of(previous) {
            let error = Error::Transport(format!("rank {previous} sent other bytes than came"));
            transport.fail(&error.to_string());
            return Err(error);
        }
        Ok((rank == 0).then_some((ranks, seconds)))
    }
}
