//! Ranks that are processes which `mpirun` started.

use super::{Bytes, Transport, WriteOnly};
use crate::error::Error;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination, Source, Status};
use mpi::request::{Request, StaticScope};
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::MatchedReceiveVec;
use std::time::{Duration, Instant};

/// Bytes of one MPI message. What a rank receives passes through memory of this size, which stays in the cores' caches.
const PIECE: usize = 4 << 20;

/// Tags of data, and of a rank's last words.
const DATA: i32 = 1;
const FAILURE: i32 = 2;

/// How long a rank that fails waits for the others to read why. Then `mpirun` ends them.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Pending = Request<'static, [u8], StaticScope>;

/// A rank that is a process. There can be one in a process.
pub struct OverMpi {
    /// `None` once a rank has failed: MPI would wait for it.
    universe: Option<Universe>,
    world: SimpleCommunicator,
    timeout: Duration,
    /// Two, so that one fills while the other is emptied. MPI has them while a message is on its way.
    inboxes: [Option<&'static mut [u8]>; 2],
    has_failed: bool,
}

impl OverMpi {
    /// The rank that this process is. A rank that waits longer than `timeout` for another fails.
    ///
    /// # Errors
    /// [`Error::Transport`] if MPI was started already.
    pub fn new(timeout: Duration) -> Result<Self, Error> {
        let universe = mpi::initialize().ok_or_else(|| Error::Transport("MPI was started already".into()))?;
        let world = universe.world();
        let inboxes = [(), ()].map(|()| Some(&mut *vec![0; PIECE].leak()));
        Ok(Self { universe: Some(universe), world, timeout, inboxes, has_failed: false })
    }

    /// The number of this rank among those of its host.
    pub fn rank_of_host(&self) -> usize {
        self.world.split_shared(self.world.rank()).rank() as usize
    }

    /// What another rank has said at its end, if one has.
    fn last_words(&self) -> Option<Error> {
        let (message, status) = self.world.any_process().immediate_matched_probe_with_tag(FAILURE)?;
        let rank = status.source_rank() as usize;
        let (cause, _): (Vec<u8>, Status) = (message, status).matched_receive_vec();
        Some(Error::Rank { rank, cause: String::from_utf8_lossy(&cause).into_owned() })
    }

    /// Waits for a request to rank `other`, or from it.
    fn wait(&self, mut request: Pending, other: usize) -> Result<Status, Error> {
        let start = Instant::now();
        loop {
            request = match request.test() {
                Ok(status) => return Ok(status),
                Err(request) => request,
            };
            let waited = start.elapsed();
            let silent = || Error::Timeout { rank: other, seconds: self.timeout.as_secs() };
            let failure = self.last_words().or_else(|| (waited > self.timeout).then(silent));
            if let Some(failure) = failure {
                // MPI keeps what it was lent: its memory is never given back.
                std::mem::forget(request);
                return Err(failure);
            }
            if waited > Duration::from_millis(1) {
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Receives all pieces.
    fn receive(&mut self, from: usize, mut received: WriteOnly<[u8]>) -> Result<(), Error> {
        let source = self.world.process_at_rank(from as i32);
        let lens = pieces(received.len());
        let mut coming: [Option<(Pending, usize)>; 2] = [None, None];
        let post = |inbox: Option<&'static mut [u8]>, len: Option<&usize>| {
            let (inbox, len) = inbox.zip(len)?;
            let address = inbox.as_mut_ptr();
            let request = source.immediate_receive_into_with_tag(StaticScope, &mut inbox[..*len], DATA);
            Some((request, address as usize))
        };
        for (slot, coming) in coming.iter_mut().enumerate() {
            if lens.len() > slot {
                *coming = post(self.inboxes[slot].take(), lens.get(slot));
            }
        }
        let mut at = 0;
        for (piece, len) in lens.iter().enumerate() {
            let Some((request, address)) = coming[piece % 2].take() else { break };
            let status = self.wait(request, from);
            let inbox = match status {
                Ok(_) => inbox_at(address),
                Err(error) => {
                    coming.into_iter().flatten().for_each(|(request, _)| std::mem::forget(request));
                    return Err(error);
                }
            };
            received.slice(at..at + len).copy_from_slice(&inbox[..*len]);
            at += len;
            coming[piece % 2] = match lens.get(piece + 2) {
                Some(next) => post(Some(inbox), Some(next)),
                None => {
                    self.inboxes[piece % 2] = Some(inbox);
                    None
                }
            };
        }
        Ok(())
    }
}

/// The lengths of the messages that so many bytes go in; at least one, so that somebody is waited for.
fn pieces(len: usize) -> Vec<usize> {
    (0..len.div_ceil(PIECE).max(1)).map(|piece| (len - piece * PIECE).min(PIECE)).collect()
}

/// The inbox that a completed request was lent.
#[expect(unsafe_code, reason = "requests do not give back what they were lent")]
fn inbox_at(address: usize) -> &'static mut [u8] {
    // SAFETY: the address is that of an inbox, PIECE bytes that were leaked in `new`. It was lent to one request, which has
    // completed, and its reference was given up then: there is no other.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), PIECE) }
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
        let bytes = lent(&sent);
        let target = self.world.process_at_rank(to as i32);
        let mut at = 0;
        let mut going = Vec::new();
        for len in pieces(bytes.len()) {
            going.push(target.immediate_send_with_tag(StaticScope, &bytes[at..at + len], DATA));
            at += len;
        }
        let mut result = self.receive(from, received);
        for request in going {
            match result {
                Ok(()) => result = self.wait(request, to).map(|_| ()),
                Err(_) => std::mem::forget(request),
            }
        }
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
        }
    }
}
