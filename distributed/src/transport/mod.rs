//! How ranks reach each other.

mod in_process;
#[cfg(feature = "mpi")]
mod over_mpi;

pub use in_process::{InProcess, in_process, run_in_process};
#[cfg(feature = "mpi")]
pub use over_mpi::OverMpi;
pub use wgpu_flash_attention::wgpu::WriteOnly;

use crate::error::Error;
use std::sync::Arc;

/// Bytes that are sent: memory of the host, or a buffer that is mapped.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Ranks that do not agree on a message.
fn other_length(from: usize, found: usize, expected: usize) -> Error {
    Error::Transport(format!("rank {from} sent {found} bytes; {expected} were expected"))
}

/// A rank's way to the others. All ranks make the same calls in the same order. A call that cannot end fails, at the latest
/// after the transport's timeout, and names the rank at fault.
pub trait Transport {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Sends bytes to rank `to` while it receives from rank `from`, as many as `received` holds.
    fn exchange(&mut self, to: usize, sent: Bytes, from: usize, received: WriteOnly<[u8]>) -> Result<(), Error>;

    /// Tells the others that this rank ends, and why. They end too.
    fn fail(&mut self, cause: &str);

    /// Waits until all ranks are here.
    fn barrier(&mut self) -> Result<(), Error> {
        let (rank, ranks) = (self.rank(), self.ranks());
        let mut distance = 1;
        while distance < ranks {
            let (to, from) = ((rank + distance) % ranks, (rank + ranks - distance) % ranks);
            self.exchange(to, Arc::new([]), from, WriteOnly::from_mut(&mut []))?;
            distance *= 2;
        }
        Ok(())
    }

    /// What each rank gives, by rank. All give equally many bytes.
    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let (rank, ranks) = (self.rank(), self.ranks());
        let sent: Bytes = Arc::new(own.to_vec());
        let mut gathered = vec![own.to_vec(); ranks];
        for distance in 1..ranks {
            let (to, from) = ((rank + distance) % ranks, (rank + ranks - distance) % ranks);
            self.exchange(to, sent.clone(), from, WriteOnly::from_mut(&mut gathered[from][..]))?;
        }
        Ok(gathered)
    }
}
