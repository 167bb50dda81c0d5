//! Walking: a root → the CIDs below it.
//!
//! The walks are machines that fetch nothing themselves: they name CIDs, the driver gets the blocks from wherever it
//! likes and feeds them. All are iterative and bounded.
//!
//! - [`Visit`] names each block of a DAG once: for pins, garbage collection and mirrors. Blocks come in any order.
//! - [`FileWalk`] reads a UnixFS file, or a range of it, in order. Blocks come in any order.
//! - [`PathWalk`] goes down a path of names through directories.
//! - [`Selection`] names what a gateway's client asked for, in the order of a CAR.
//!
//! Identity CIDs carry their block in themselves: only [`PathWalk`] asks for them.

mod file;
mod path;
mod scope;
mod selection;
mod visit;

pub use file::{FileWalk, MAX_DEPTH, MAX_OPEN};
pub use path::PathWalk;
pub use scope::{EntityBytes, NotEntityBytes, Scope};
pub use selection::{MAX_SELECTED, Selected, Selection};
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
    /// A file deeper than [`MAX_DEPTH`], or shards deeper than the hash of a name has bits for.
    #[error("DAG too deep at block {0} (a file's limit is {MAX_DEPTH} levels)")]
    TooDeep(Cid),
    /// More links wait than either walk keeps.
    #[error("DAG too wide at block {0}: too many links wait to be followed")]
    TooWide(Cid),
    /// More blocks than [`MAX_SELECTED`].
    #[error("more than {MAX_SELECTED} blocks are asked for (block {0} is the next)")]
    TooMany(Cid),
}
