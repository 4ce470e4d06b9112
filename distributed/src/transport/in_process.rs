//! Ranks that are threads of one process. A message is copied once, by its receiver.

use super::{Bytes, Transport, WriteOnly};
use crate::error::Error;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wgpu_flash_attention::FlashAttention;

/// A message on its way from one rank to another.
enum Message {
    Posted(Bytes),
    Taken,
    Copied,
}

/// What all ranks see.
#[derive(Default)]
struct Board {
    messages: HashMap<(usize, usize), Message>,
    /// The first rank that failed, and why.
    failed: Option<(usize, String)>,
    /// Ranks that have ended.
    ended: Vec<usize>,
}

#[derive(Default)]
struct World {
    board: Mutex<Board>,
    changed: Condvar,
}

impl World {
    /// A thread that panics leaves a board that is still in order: every change of it is one assignment.
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rank that is a thread.
pub struct InProcess {
    world: Arc<World>,
    rank: usize,
    ranks: usize,
    timeout: Duration,
}

/// The transports of `ranks` ranks of this process, each for a thread. A rank that waits longer than `timeout` for another fails.
pub fn in_process(ranks: usize, timeout: Duration) -> Vec<InProcess> {
    let world = Arc::new(World::default());
    (0..ranks).map(|rank| InProcess { world: world.clone(), rank, ranks, timeout }).collect()
}

/// Runs `work` as each rank on a thread, with its transport and its device; what they return, by rank. The thread that calls
/// waits for them.
pub fn run_in_process<R: Send>(
    devices: Vec<FlashAttention>,
    timeout: Duration,
    work: impl Fn(InProcess, FlashAttention) -> Result<R, Error> + Sync,
) -> Vec<Result<R, Error>> {
    let transports = in_process(devices.len(), timeout);
    let work = &work;
    std::thread::scope(|scope| {
        let start = |(transport, device)| scope.spawn(move || work(transport, device));
        let ranks: Vec<_> = transports.into_iter().zip(devices).map(start).collect();
        let panicked = |rank| Error::Rank { rank, cause: "its thread panicked".into() };
        let joined = ranks.into_iter().enumerate();
        joined.map(|(rank, thread)| thread.join().unwrap_or_else(|_| Err(panicked(rank)))).collect()
    })
}

impl InProcess {
    /// Waits until `ready` gives something of the board, which only rank `other` can bring about.
    fn wait<T>(&self, other: usize, mut ready: impl FnMut(&mut Board) -> Option<T>) -> Result<T, Error> {
        let start = Instant::now();
        let mut board = self.world.board();
        loop {
            if let Some((rank, cause)) = board.failed.clone() {
                return Err(Error::Rank { rank, cause });
            }
            if let Some(value) = ready(&mut board) {
                self.world.changed.notify_all();
                return Ok(value);
            }
            if board.ended.contains(&other) {
                return Err(Error::Rank { rank: other, cause: "it ended before the others".into() });
            }
            let left = self.timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Error::Timeout { rank: other, seconds: self.timeout.as_secs() });
            }
            (board, _) = self.world.changed.wait_timeout(board, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Transport for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn exchange(&mut self, to: usize, sent: Bytes, from: usize, mut received: WriteOnly<[u8]>) -> Result<(), Error> {
        let (there, back) = ((self.rank, to), (from, self.rank));
        self.world.board().messages.insert(there, Message::Posted(sent));
        self.world.changed.notify_all();
        let bytes = self.wait(from, |board| match board.messages.get_mut(&back) {
            Some(message @ Message::Posted(_)) => match std::mem::replace(message, Message::Taken) {
                Message::Posted(bytes) => Some(bytes),
                Message::Taken | Message::Copied => None,
            },
            _ => None,
        })?;
        let [found, expected] = [(*bytes).as_ref().len(), received.len()];
        if found != expected {
            return Err(super::other_length(from, found, expected));
        }
        received.copy_from_slice((*bytes).as_ref());
        // The sender may unmap what it lent.
        drop(bytes);
        self.world.board().messages.insert(back, Message::Copied);
        self.world.changed.notify_all();
        self.wait(to, |board| match board.messages.get(&there) {
            Some(Message::Copied) => board.messages.remove(&there),
            _ => None,
        })?;
        Ok(())
    }

    fn fail(&mut self, cause: &str) {
        self.world.board().failed.get_or_insert_with(|| (self.rank, cause.to_owned()));
        self.world.changed.notify_all();
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail("its thread panicked");
        }
        self.world.board().ended.push(self.rank);
        self.world.changed.notify_all();
    }
}
