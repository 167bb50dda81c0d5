//! Walking: a root → the CIDs below it.
//!
//! Both walks are machines that fetch nothing themselves: they name CIDs, the driver gets the blocks
//! from wherever it likes, in any order, and feeds them. Both are iterative.
//!
//! - [`Visit`] names each block of a DAG once: for pins, garbage collection, mirrors and CARs.
//! - [`FileWalk`] reads a UnixFS file, or a range of it, in order.
//!
//! Identity CIDs carry their block in themselves: neither walk asks for them.

mod file;
mod visit;

pub use file::{FileWalk, MAX_DEPTH, MAX_OPEN};
pub use visit::Visit;

use super::codec::NodeError;
use crate::block::{Cid, CidError};

/// Why a walk cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The root's CID is refused.
    #[error("{root} cannot be the root of a walk")]
    Root {
        /// The root.
        root: Cid,
        /// Why.
        #[source]
        source: CidError,
    },
    /// A block is not the node it should be.
    #[error("block {cid} is not as it should be")]
    Node {
        /// The block.
        cid: Cid,
        /// Why.
        #[source]
        source: NodeError,
    },
    /// A block holds another number of bytes of the file than its parent says.
    #[error("block {cid} holds {found} bytes of the file where its parent declares {declared}")]
    Size {
        /// The block.
        cid: Cid,
        /// Bytes of the file, by the parent.
        declared: u64,
        /// Bytes of the file, by the block.
        found: u64,
    },
    /// A file deeper than [`MAX_DEPTH`].
    #[error("file DAG too deep at block {0} (the limit is {MAX_DEPTH} levels)")]
    TooDeep(Cid),
    /// More links wait than either walk keeps.
    #[error("DAG too wide at block {0}: too many links wait to be followed")]
    TooWide(Cid),
}
