//! Memory that the processes of a host share. Each rank has some places in it, which it fills for another rank.

#![expect(unsafe_code, reason = "MPI shares memory by functions of C")]

use crate::error::Error;
use crate::transport::WriteOnly;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::CommunicatorCollectives;
use std::ptr;
use std::sync::atomic::{Ordering, fence};

/// Bytes of a place: they stay in the cores' caches, and the time to copy them is many times that of a message.
pub(super) const PIECE: usize = 1 << 20;

/// Places of a rank: it fills some while the other rank empties some.
pub(super) const PLACES: usize = 4;

/// The places of all ranks of a host.
pub(super) struct Shared {
    window: ffi::MPI_Win,
    /// Ranks of the world, and where their places begin.
    ranks: Vec<(usize, *mut u8)>,
    own: usize,
}

impl Shared {
    /// All ranks of the host call this together.
    pub fn new(world: &SimpleCommunicator, host: &SimpleCommunicator) -> Result<Self, Error> {
        let mut ranks = vec![0; host.size() as usize];
        host.all_gather_into(&world.rank(), &mut ranks[..]);
        let bytes = (PIECE * PLACES) as ffi::MPI_Aint;
        let refused = |code| Error::Transport(format!("MPI shares no memory: error {code}"));
        let is_well = |code: i32| if code == ffi::MPI_SUCCESS as i32 { Ok(()) } else { Err(refused(code)) };
        let mut first = ptr::null_mut::<u8>();
        // SAFETY: a constant of MPI's.
        let mut window = unsafe { ffi::RSMPI_WIN_NULL };
        // SAFETY: all arguments are alive; MPI writes a pointer and a handle.
        is_well(unsafe {
            let at = (&raw mut first).cast();
            ffi::MPI_Win_allocate_shared(bytes, 1, ffi::RSMPI_INFO_NULL, host.as_raw(), at, &raw mut window)
        })?;
        let mut all = Vec::new();
        for (number, rank) in (0..).zip(ranks) {
            let (mut size, mut unit, mut first) = (0, 0, ptr::null_mut::<u8>());
            // SAFETY: the window is alive, and so is what MPI writes.
            is_well(unsafe {
                let at = (&raw mut first).cast();
                ffi::MPI_Win_shared_query(window, number, &raw mut size, &raw mut unit, at)
            })?;
            if first.is_null() || size < bytes {
                return Err(Error::Transport("MPI shares less memory than it was asked for".into()));
            }
            all.push((rank as usize, first));
        }
        Ok(Self { window, ranks: all, own: host.rank() as usize })
    }

    /// Whether a rank of the world is one of this host.
    pub fn has(&self, rank: usize) -> bool {
        self.ranks.iter().any(|(other, _)| *other == rank)
    }

    /// Fills a place of this rank. Nobody reads it: its last reader has said so.
    pub fn fill(&self, place: usize, bytes: &[u8]) {
        assert!(place < PLACES && bytes.len() <= PIECE);
        // SAFETY: the place is within the window, which lives as long as `self`; `bytes` are not. Its reader waits for a message
        // that is sent after the fence.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.ranks[self.own].1.add(place * PIECE), bytes.len()) };
        fence(Ordering::SeqCst);
    }

    /// Copies what another rank of the host has filled, and says so with a message.
    pub fn empty(&self, rank: usize, place: usize, mut to: WriteOnly<[u8]>) {
        assert!(place < PLACES && to.len() <= PIECE);
        fence(Ordering::SeqCst);
        if let Some((_, first)) = self.ranks.iter().find(|(other, _)| *other == rank) {
            // SAFETY: the place is within the window, which lives as long as `self`. Its owner does not write to it before this
            // rank tells it that it is empty.
            to.copy_from_slice(unsafe { std::slice::from_raw_parts(first.add(place * PIECE), to.len()) });
        }
        fence(Ordering::SeqCst);
    }

    /// Gives the memory back; all ranks of the host call this together.
    pub fn free(mut self) {
        // SAFETY: the window is alive, and nobody has its memory after this.
        unsafe { ffi::MPI_Win_free(&raw mut self.window) };
    }
}
