//! Why something did not come into the cache.

use crate::store::StoreError;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::nar::NarError;

/// Why a NAR was not taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The input could not be read.
    #[error("cannot read the NAR")]
    Input(#[source] std::io::Error),
    /// The input is not a NAR.
    #[error("not a valid NAR: {0}")]
    Nar(#[from] NarError),
    /// The claim says otherwise than the bytes.
    #[error("{path}: {field} of the narinfo is {claimed}, the content's is {actual}")]
    Mismatch {
        /// The store path.
        path: String,
        /// The narinfo's field.
        field: &'static str,
        /// What it says.
        claimed: String,
        /// What is true.
        actual: String,
    },
    /// Neither staged nor held.
    #[error("{path}: its NAR {nar_hash} is not here")]
    NoNar {
        /// The store path.
        path: String,
        /// The NAR's hash.
        nar_hash: NarHash,
    },
    /// Whoever was to make the commit panicked, or the process is ending.
    #[error("a commit failed in an unexpected way; the log says more")]
    Abandoned,
}
