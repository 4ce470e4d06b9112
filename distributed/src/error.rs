use wgpu_flash_attention::Error as AttentionError;

/// Why a rank ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library refused the problem, or the device failed.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// Another rank failed first.
    #[error("rank {rank} failed: {cause}")]
    Rank {
        /// Which one.
        rank: usize,
        /// What it said, or what is known of its end.
        cause: String,
    },
    /// Nothing came from a rank for as long as the transport waits.
    #[error("nothing came from rank {rank} for {seconds} s")]
    Timeout {
        /// Which one.
        rank: usize,
        /// How long this rank waited.
        seconds: u64,
    },
    /// Ranks that were started for different problems.
    #[error("rank {rank} has {name} = {found}, this rank {expected}; start all ranks alike")]
    Mismatch {
        /// The other rank.
        rank: usize,
        /// What differs.
        name: String,
        /// What the other rank has.
        found: String,
        /// What this rank has.
        expected: String,
    },
    /// A problem that cannot be cut over ranks this way.
    #[error("{what}: {reason}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be, and what to do.
        reason: String,
    },
    /// A tensor of another length than the rank's part has.
    #[error("{name} has {found} bytes; the part of this rank has {expected}")]
    Length {
        /// The tensor.
        name: &'static str,
        /// Bytes that were given.
        found: usize,
        /// Bytes that it has.
        expected: usize,
    },
    /// The device failed outside the library's own operations.
    #[error("the GPU failed: {0}")]
    Gpu(String),
    /// Something beside attention failed in what a rank does: in the caller's own part of it.
    #[error("{0}")]
    Work(String),
    /// The transport itself failed.
    #[error("transport: {0}")]
    Transport(String),
}
