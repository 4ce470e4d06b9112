//! Between ranks of a host: bytes pass through shared memory, and messages say which places are full and which are empty.

use super::shared::{PIECE, PLACES, Shared};
use super::{Moves, pieces};
use crate::error::Error;
use crate::transport::{WriteOnly, other_length};
use mpi::point_to_point::{Destination, Source};
use mpi::topology::Process;

/// Tags: a place is full, with the bytes of the whole; a place is empty.
const FULL: i32 = 3;
const EMPTY: i32 = 4;

/// To another rank.
pub struct Sending<'a> {
    shared: &'a Shared,
    to: Process<'a>,
    bytes: &'a [u8],
    /// Pieces that were put into places, and of these those that were taken out.
    filled: usize,
    emptied: usize,
}

impl<'a> Sending<'a> {
    pub fn new(shared: &'a Shared, to: Process<'a>, bytes: &'a [u8]) -> Self {
        Self { shared, to, bytes, filled: 0, emptied: 0 }
    }
}

impl Moves for Sending<'_> {
    fn step(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        while let Some((message, _)) = self.to.immediate_matched_probe_with_tag(EMPTY) {
            let _: (u64, _) = message.matched_receive();
            self.emptied += 1;
            moved = true;
        }
        if self.filled < pieces(self.bytes.len(), PIECE) && self.filled - self.emptied < PLACES {
            let at = self.filled * PIECE;
            self.shared.fill(self.filled % PLACES, &self.bytes[at..self.bytes.len().min(at + PIECE)]);
            self.to.send_with_tag(&(self.bytes.len() as u64), FULL);
            self.filled += 1;
            moved = true;
        }
        Ok(moved)
    }

    fn is_done(&self) -> bool {
        self.emptied == pieces(self.bytes.len(), PIECE)
    }
}

/// From another rank.
pub struct Receiving<'a> {
    shared: &'a Shared,
    source: Process<'a>,
    from: usize,
    received: WriteOnly<'a, [u8]>,
    emptied: usize,
}

impl<'a> Receiving<'a> {
    pub fn new(shared: &'a Shared, source: Process<'a>, from: usize, received: WriteOnly<'a, [u8]>) -> Self {
        Self { shared, source, from, received, emptied: 0 }
    }
}

impl Moves for Receiving<'_> {
    fn step(&mut self) -> Result<bool, Error> {
        let len = self.received.len();
        if self.emptied == pieces(len, PIECE) {
            return Ok(false);
        }
        let Some((message, _)) = self.source.immediate_matched_probe_with_tag(FULL) else { return Ok(false) };
        let (found, _): (u64, _) = message.matched_receive();
        if found != len as u64 {
            return Err(other_length(self.from, found as usize, len));
        }
        let at = self.emptied * PIECE;
        self.shared.empty(self.from, self.emptied % PLACES, self.received.slice(at..len.min(at + PIECE)));
        self.source.send_with_tag(&0u64, EMPTY);
        self.emptied += 1;
        Ok(true)
    }

    fn is_done(&self) -> bool {
        self.emptied == pieces(self.received.len(), PIECE)
    }
}
