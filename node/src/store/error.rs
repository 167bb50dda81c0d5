//! What can go wrong in the store.

use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use nipfs_proto::nix::store_path::StorePath;
use std::io;
use std::path::{Path, PathBuf};

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the store open.
    #[error("store is in use by another process: {}", .0.display())]
    InUse(PathBuf),
    /// The store was written by a newer nipfs; nothing in it was touched.
    #[error("store {} has format {version}, which is newer than this nipfs", path.display())]
    Newer {
        /// The store's directory.
        path: PathBuf,
        /// The version found.
        version: String,
    },
    /// A file of the store does not hold what it must.
    #[error("store file is damaged: {}", .0.display())]
    BadFile(PathBuf),
    /// A stored block does not match its digest. It is never served; putting the block again heals it.
    #[error("block {digest:?} is damaged (segment {segment}, offset {offset})")]
    Damaged {
        /// The block.
        digest: Digest,
        /// Number of the pack segment.
        segment: u32,
        /// Byte offset of its record in the segment.
        offset: u32,
    },
    /// A DAG that should be complete lacks a block.
    #[error("DAG {root} is incomplete: {missing} is not in the store")]
    Incomplete {
        /// The root of the DAG.
        root: Box<Cid>,
        /// The block that is missing.
        missing: Box<Cid>,
    },
    /// A node of a DAG cannot be read.
    #[error("DAG {root} cannot be walked at {node}")]
    Unreadable {
        /// The root of the DAG.
        root: Box<Cid>,
        /// The node that could not be read.
        node: Box<Cid>,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file system is full, or nearly so.
    #[error("no space in {}: need {need} bytes, have {have}", path.display())]
    NoSpace {
        /// The store's directory.
        path: PathBuf,
        /// Bytes needed, the store's own margin included.
        need: u64,
        /// Bytes available.
        have: u64,
    },
    /// An earlier write or sync failed, so nothing is written any more until the store is opened again.
    #[error("store is read-only after a failed write")]
    ReadOnly,
    /// A path refers to a NAR that has no record.
    #[error("no record of the NAR of {0}")]
    UnknownNar(StorePath),
    /// A commit over the limit of one record.
    #[error("commit of {0} bytes is too large")]
    CommitTooLarge(usize),
    /// The derived index failed; it is rebuilt from the packs when the store is opened again.
    #[error("index failed; it will be rebuilt from the packs")]
    Index(#[source] sled::Error),
    /// An operation on a file failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    pub(super) fn incomplete(root: &Cid, missing: &Cid) -> Self {
        Self::Incomplete { root: Box::new(*root), missing: Box::new(*missing) }
    }

    /// Wraps an I/O error: `map_err(StoreError::io("read", path))`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
