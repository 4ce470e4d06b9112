//! Ranks that are processes which `mpirun` started.

mod remote;
mod same_host;
mod shared;

use super::{Bytes, Transport, WriteOnly};
use crate::error::Error;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination, Source, Status};
use mpi::request::StaticScope;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::MatchedReceiveVec;
use shared::Shared;
use std::time::{Duration, Instant};

/// The tag of a rank's last words.
const FAILURE: i32 = 1;

/// How long a rank that fails waits for the others to read why. Then `mpirun` ends them.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// So long a rank that waits keeps its core. MPI moves messages only while it is called, so a rank that sleeps between two
/// pieces slows both down.
const AWAKE: Duration = Duration::from_millis(20);

/// A rank that is a process. There can be one in a process.
pub struct OverMpi {
    /// `None` once a rank has failed: MPI would wait for it.
    universe: Option<Universe>,
    world: SimpleCommunicator,
    rank_of_host: usize,
    timeout: Duration,
    /// `None` if all goes in messages.
    shared: Option<Shared>,
    inboxes: remote::Inboxes,
    has_failed: bool,
}

impl OverMpi {
    /// The rank that this process is. A rank that waits longer than `timeout` for another fails. What ranks of one host send each
    /// other passes through memory that they share.
    ///
    /// # Errors
    /// [`Error::Transport`] if MPI was started already, or shares no memory.
    pub fn new(timeout: Duration) -> Result<Self, Error> {
        Self::start(timeout, true)
    }

    /// As `new`, but MPI moves all bytes, as it does between hosts. All ranks must do this.
    ///
    /// # Errors
    /// [`Error::Transport`] if MPI was started already.
    pub fn new_without_shared_memory(timeout: Duration) -> Result<Self, Error> {
        Self::start(timeout, false)
    }

    fn start(timeout: Duration, shares: bool) -> Result<Self, Error> {
        let universe = mpi::initialize().ok_or_else(|| Error::Transport("MPI was started already".into()))?;
        let world = universe.world();
        let host = world.split_shared(world.rank());
        let shared = shares.then(|| Shared::new(&world, &host)).transpose()?;
        let (universe, rank_of_host) = (Some(universe), host.rank() as usize);
        Ok(Self { universe, world, rank_of_host, timeout, shared, inboxes: remote::inboxes(), has_failed: false })
    }

    /// The number of this rank among those of its host.
    pub fn rank_of_host(&self) -> usize {
        self.rank_of_host
    }

    /// What another rank has said at its end, if one has.
    fn last_words(&self) -> Option<Error> {
        let (message, status) = self.world.any_process().immediate_matched_probe_with_tag(FAILURE)?;
        let rank = status.source_rank() as usize;
        let (cause, _): (Vec<u8>, Status) = (message, status).matched_receive_vec();
        Some(Error::Rank { rank, cause: String::from_utf8_lossy(&cause).into_owned() })
    }

    /// Moves both ways until all is done.
    fn run(
        &self,
        (to, sending): (usize, &mut dyn Moves),
        (from, receiving): (usize, &mut dyn Moves),
    ) -> Result<(), Error> {
        let mut moved = Instant::now();
        loop {
            // Both, whatever the first says.
            let has_moved = receiving.step()? | sending.step()?;
            if sending.is_done() && receiving.is_done() {
                return Ok(());
            }
            if has_moved {
                moved = Instant::now();
                continue;
            }
            if let Some(failure) = self.last_words() {
                return Err(failure);
            }
            let waited = moved.elapsed();
            if waited > self.timeout {
                let rank = if receiving.is_done() { to } else { from };
                return Err(Error::Timeout { rank, seconds: self.timeout.as_secs() });
            }
            if waited > AWAKE { std::thread::sleep(Duration::from_micros(50)) } else { std::thread::yield_now() }
        }
    }
}

/// One direction of an exchange.
trait Moves {
    /// Does what can be done now; whether that was anything.
    fn step(&mut self) -> Result<bool, Error>;

    fn is_done(&self) -> bool;
}

/// In how many pieces so many bytes go; at least one, so that somebody is waited for.
fn pieces(len: usize, longest: usize) -> usize {
    len.div_ceil(longest).max(1)
}

/// Bytes that MPI may keep for as long as it likes.
#[expect(unsafe_code, reason = "requests want memory that lives on if they cannot be completed")]
fn lent(sent: &Bytes) -> &'static [u8] {
    // SAFETY: `exchange` gives up its `Bytes` only when all requests on them have completed. Otherwise it forgets them, and
    // they stay for ever.
    unsafe { std::mem::transmute::<&[u8], &'static [u8]>((**sent).as_ref()) }
}

impl Transport for OverMpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn ranks(&self) -> usize {
        self.world.size() as usize
    }

    fn exchange(&mut self, to: usize, sent: Bytes, from: usize, received: WriteOnly<[u8]>) -> Result<(), Error> {
        let mut inboxes = std::mem::take(&mut self.inboxes);
        let [target, source] = [to, from].map(|rank| self.world.process_at_rank(rank as i32));
        let near = |rank| self.shared.as_ref().filter(|shared| shared.has(rank));
        let mut sending: Box<dyn Moves> = match near(to) {
            Some(shared) => Box::new(same_host::Sending::new(shared, target, lent(&sent))),
            None => Box::new(remote::Sending::new(target, lent(&sent))),
        };
        let mut receiving: Box<dyn Moves> = match near(from) {
            Some(shared) => Box::new(same_host::Receiving::new(shared, source, from, received)),
            None => Box::new(remote::Receiving::new(source, received, &mut inboxes)),
        };
        let result = self.run((to, &mut *sending), (from, &mut *receiving));
        drop((sending, receiving));
        self.inboxes = inboxes;
        if result.is_err() {
            self.has_failed = true;
            std::mem::forget(sent);
        }
        result
    }

    fn fail(&mut self, cause: &str) {
        if self.has_failed && self.universe.is_none() {
            return;
        }
        self.has_failed = true;
        let words: &'static [u8] = cause.as_bytes().to_vec().leak();
        for rank in (0..self.world.size()).filter(|rank| *rank != self.world.rank()) {
            let target = self.world.process_at_rank(rank);
            std::mem::forget(target.immediate_send_with_tag(StaticScope, words, FAILURE));
        }
        std::mem::forget(self.universe.take());
        // MPI moves messages while it is called.
        let start = Instant::now();
        while start.elapsed() < LAST_WORDS {
            if let Some(failure) = self.last_words() {
                drop(failure);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for OverMpi {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail("its process panicked");
        }
        if self.has_failed {
            std::mem::forget(self.universe.take());
        } else if let Some(shared) = self.shared.take() {
            shared.free();
        }
    }
}
