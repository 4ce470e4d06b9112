//! Between hosts: MPI moves all bytes, in messages of some size.

use super::{Moves, pieces};
use crate::error::Error;
use crate::transport::WriteOnly;
use mpi::point_to_point::{Destination, Source};
use mpi::request::{Request, StaticScope};
use mpi::topology::Process;
use std::collections::VecDeque;

/// Bytes of one message. What a rank receives passes through memory of this size, which stays in the cores' caches.
const PIECE: usize = 4 << 20;

const DATA: i32 = 2;

/// Two, so that one fills while the other is emptied. MPI has them while a message is on its way, and for ever if it never came.
pub type Inboxes = Vec<&'static mut [u8]>;

pub fn inboxes() -> Inboxes {
    (0..2).map(|_| &mut *vec![0; PIECE].leak()).collect()
}

/// A message on its way. Dropped before it is done, it is forgotten: MPI keeps what it was lent.
struct Pending(Option<Request<'static, [u8], StaticScope>>);

impl Pending {
    fn is_done(&mut self) -> bool {
        self.0 = self.0.take().and_then(|request| request.test().err());
        self.0.is_none()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

pub struct Sending {
    going: VecDeque<Pending>,
}

impl Sending {
    pub fn new(to: Process<'_>, bytes: &'static [u8]) -> Self {
        let send = |piece: usize| {
            let bytes = &bytes[piece * PIECE..bytes.len().min((piece + 1) * PIECE)];
            Pending(Some(to.immediate_send_with_tag(StaticScope, bytes, DATA)))
        };
        Self { going: (0..pieces(bytes.len(), PIECE)).map(send).collect() }
    }
}

impl Moves for Sending {
    fn step(&mut self) -> Result<bool, Error> {
        let is_done = self.going.front_mut().is_some_and(Pending::is_done);
        if is_done {
            self.going.pop_front();
        }
        Ok(is_done)
    }

    fn is_done(&self) -> bool {
        self.going.is_empty()
    }
}

pub struct Receiving<'a> {
    from: Process<'a>,
    received: WriteOnly<'a, [u8]>,
    inboxes: &'a mut Inboxes,
    /// Messages that are to come, with the addresses of their inboxes.
    coming: VecDeque<(Pending, usize)>,
    posted: usize,
    taken: usize,
}

impl<'a> Receiving<'a> {
    pub fn new(from: Process<'a>, received: WriteOnly<'a, [u8]>, inboxes: &'a mut Inboxes) -> Self {
        let mut receiving = Self { from, received, inboxes, coming: VecDeque::new(), posted: 0, taken: 0 };
        receiving.post();
        receiving
    }

    /// Lends MPI all inboxes that are free, for messages that have none yet.
    fn post(&mut self) {
        while self.posted < pieces(self.received.len(), PIECE) {
            let Some(inbox) = self.inboxes.pop() else { break };
            let address = inbox.as_mut_ptr().expose_provenance();
            let inbox = &mut inbox[..self.received.len().min((self.posted + 1) * PIECE) - self.posted * PIECE];
            let request = self.from.immediate_receive_into_with_tag(StaticScope, inbox, DATA);
            self.coming.push_back((Pending(Some(request)), address));
            self.posted += 1;
        }
    }
}

impl Moves for Receiving<'_> {
    fn step(&mut self) -> Result<bool, Error> {
        let Some((pending, address)) = self.coming.front_mut() else { return Ok(false) };
        if !pending.is_done() {
            return Ok(false);
        }
        let inbox = inbox_at(*address);
        self.coming.pop_front();
        let bytes = self.taken * PIECE..self.received.len().min((self.taken + 1) * PIECE);
        self.received.slice(bytes.clone()).copy_from_slice(&inbox[..bytes.len()]);
        self.taken += 1;
        self.inboxes.push(inbox);
        self.post();
        Ok(true)
    }

    fn is_done(&self) -> bool {
        self.taken == pieces(self.received.len(), PIECE)
    }
}

/// The inbox that a completed request was lent.
#[expect(unsafe_code, reason = "requests do not give back what they were lent")]
fn inbox_at(address: usize) -> &'static mut [u8] {
    // SAFETY: the address is that of an inbox, PIECE bytes that were leaked in `inboxes`. It was lent to one request, which has
    // completed, and its reference was given up then: there is no other.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), PIECE) }
}
