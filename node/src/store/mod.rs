//! What is on disk: blocks, and the records of NARs, paths and pins.
//!
//! ```text
//! STORE/lock      held while a process has the store open
//! STORE/format    version of the store, and its salt (see `record`)
//! STORE/packs/    00000001.pack …: append-only segments, the log of everything; the truth
//! STORE/index/    sled, derived from the packs
//! STORE/reserve   space for deletions on a full disk
//! ```
//!
//! Invariants:
//! - Acknowledged is durable: append → fdatasync → index → return. The index may have it in memory only: the log has it,
//!   and the packs alone rebuild the index.
//! - What a record refers to lies before it in the log, so one sync covers both.
//! - A block is hashed on its way out. Only to who hashes it himself, [`Store::get`] gives it after comparing checksums.
//! - What a record refers to lies in the packs, or, as leaves, in the tree of the record's own path (see [`Keep`]).
//! - GC deletes only what no pin reaches and no lease protects, and nothing deleted or unpublished comes back.
//! - Only blocks of published DAGs are public, and what came so far of those that a lease shows.
//!
//! Everything is synchronous, but [`Lease::put_later`]; callers of an async runtime use its blocking threads.

mod apply;
mod commit;
mod digest_set;
mod disk;
mod error;
mod gc;
mod index;
mod lease;
mod log;
mod open;
mod ops;
mod outside;
mod part;
mod public;
mod record;
mod replay;
mod segments;
mod sweep;
#[cfg(test)]
mod tests;
mod trees;
mod verify;
mod walk;
pub(crate) mod writer;

pub(crate) use commit::Commit;
pub use error::StoreError;
pub use gc::{GcOptions, GcReport};
pub use lease::{Lease, Put};
pub use ops::{CidPin, Keep, NarRecord, Op, PathRecord};
pub use replay::Recovery;
pub use verify::VerifyReport;

use bytes::Bytes;
use digest_set::DigestSet;
use index::BlockRow;
use lease::Leases;
use log::Log;
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, Digest, MAX_BLOCK};
use nipfs_proto::dag::codec::Node;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::store_path::StorePathHash;
use record::{Content, Form, Kind};
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::Notify;
use trees::Trees;
use writer::Writer;
use zstd::bulk::Compressor;

/// How often a read follows a block that GC moves before it gives up.
const MAX_MOVES: usize = 4;
/// Damaged blocks that are remembered, so that a fresh copy can take their place.
const MAX_DAMAGED: usize = 1 << 16;

/// Where the record of a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Location {
    /// Number of the pack segment.
    segment: u32,
    /// Byte offset of the record in the segment.
    offset: u32,
    /// Bytes of the payload.
    stored: u32,
    /// What the payload is.
    form: Form,
}

impl Location {
    /// The whole record: number of the segment, and bytes in it.
    fn record(&self) -> (u32, Range<u64>) {
        (self.segment, u64::from(self.offset)..record::end(self.offset, self.stored))
    }

    /// Whether the bytes of the block are not in the packs.
    fn is_outside(&self) -> bool {
        self.form == Form::Outside
    }
}

/// The open store. Clones share it; it closes with the last one.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    log: Log,
    leases: Mutex<Leases>,
    /// Read by commits until they are in the index, written by who must see no commit half done.
    commits: RwLock<()>,
    /// GC, repair and the like: one at a time.
    gc: Mutex<()>,
    /// While blocks are being hidden: what commits publish.
    publishing: Mutex<Option<DigestSet>>,
    /// Who hides blocks: one at a time.
    hiding: Mutex<()>,
    damaged: Mutex<HashSet<Digest>>,
    changed: Notify,
    trees: Trees,
    /// Those that no block is being compressed by.
    compressors: Mutex<Vec<Compressor<'static>>>,
    writer: Writer,
    recovery: Recovery,
    /// Last, so that it is unlocked after the index is closed.
    _lock: File,
}

/// What is in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks.
    pub blocks: u64,
    /// Bytes they take in the packs.
    pub stored_bytes: u64,
    /// Bytes they have.
    pub logical_bytes: u64,
    /// Pinned paths and pinned CIDs.
    pub roots: u64,
}

impl Store {
    /// The directory of the store.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// What opening the store found and did.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.0.recovery
    }

    /// Begins to write: see [`Lease`].
    pub fn lease(&self) -> Lease {
        Lease::new(self.clone())
    }

    /// Makes changes to the records that need no new blocks: see [`Lease::commit`].
    ///
    /// # Errors
    /// As [`Lease::commit`].
    pub fn commit(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        self.lease().commit(ops)
    }

    /// The bytes of a block as they were put, for somebody who will hash them; `None` when it is not here. Digest and
    /// checksums of their record are compared, which is a tenth of the work.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], I/O.
    pub fn get(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        self.whole(*digest, |BlockRow { location, size, .. }| {
            if location.form == Form::Outside {
                let block = self.read(location, *size)?.map(|bytes| Block::verify(digest.raw_cid(), bytes));
                return Ok(block.and_then(Result::ok).map(|block| block.into_parts().1));
            }
            let record = self.0.log.segments.record(location)?;
            let record = record.filter(|(header, _)| header.content.digest == *digest);
            Ok(record.and_then(|(_, payload)| plain(location.form, payload, *size)))
        })
    }

    /// The block of a CID, hashed on the way out; `None` when it is not here or its CID is not accepted. The block
    /// of an identity CID is always here.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], I/O.
    pub fn block(&self, cid: &Cid) -> Result<Option<Block>, StoreError> {
        let Ok(Some(digest)) = Digest::of_cid(cid) else { return Ok(Block::inline(cid)) };
        self.whole(digest, |row| {
            Ok(self.read(&row.location, row.size)?.and_then(|bytes| Block::verify(*cid, bytes).ok()))
        })
    }

    /// What `read` makes of a block where it lies; it makes nothing of one that is damaged.
    fn whole<T>(
        &self,
        digest: Digest,
        read: impl Fn(&BlockRow) -> Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut row = self.0.log.lookup(&digest)?;
        for _ in 0..MAX_MOVES {
            let Some(found) = row else { return Ok(None) };
            if !self.is_offered(&found.location)? {
                return Ok(None);
            }
            if let Some(made) = read(&found)? {
                return Ok(Some(made));
            }
            // GC may have moved or deleted it under the read: only a row that is still the same is damaged.
            let again = self.0.log.lookup(&digest)?;
            if again.is_some_and(|row| row.location == found.location) {
                return self.condemn(digest, &found.location)?.map_or(Ok(None), Err);
            }
            row = again;
        }
        Ok(None)
    }

    /// Whether a block is here and not known to be damaged.
    ///
    /// # Errors
    /// I/O.
    pub fn has(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.size(digest)?.is_some())
    }

    /// The size of a block in bytes; `None` when it is not here or known to be damaged.
    ///
    /// # Errors
    /// I/O.
    pub fn size(&self, digest: &Digest) -> Result<Option<u32>, StoreError> {
        let row = self.0.log.lookup(digest)?.filter(|_| !lock(&self.0.damaged).contains(digest));
        match row {
            Some(row) if self.is_offered(&row.location)? => Ok(Some(row.size)),
            _ => Ok(None),
        }
    }

    /// Whether a block may be here: false is certain. Never waits for the disk for long, reads no block.
    ///
    /// # Errors
    /// I/O.
    pub fn may_have(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.0.log.lookup(digest)?.is_some())
    }

    /// Whether the bytes of a block are in the packs, not known to be damaged.
    fn has_packed(&self, digest: &Digest) -> Result<bool, StoreError> {
        let row = self.0.log.lookup(digest)?;
        Ok(row.is_some_and(|row| !row.location.is_outside()) && !lock(&self.0.damaged).contains(digest))
    }

    /// Whether a block is here and belongs to a published DAG, or to one that is coming and will be: see [`Lease::show`].
    ///
    /// # Errors
    /// I/O.
    pub fn is_public(&self, digest: &Digest) -> Result<bool, StoreError> {
        // A block that GC moves is in the overlay without the flag.
        let is_published = || Ok(self.0.log.index.block(digest)?.is_some_and(|row| row.public));
        Ok(self.0.log.lookup(digest)?.is_some() && (lock(&self.0.leases).shows(digest) || is_published()?))
    }

    /// The record of a NAR.
    ///
    /// # Errors
    /// I/O.
    pub fn nar(&self, hash: &NarHash) -> Result<Option<NarRecord>, StoreError> {
        self.0.log.index.nar(hash)
    }

    /// The record of a path, by its hash part.
    ///
    /// # Errors
    /// I/O.
    pub fn path(&self, hash: &StorePathHash) -> Result<Option<PathRecord>, StoreError> {
        self.0.log.index.path(hash)
    }

    /// The records of all paths, in the order of their hash parts, read as they are asked for.
    pub fn paths(&self) -> impl Iterator<Item = Result<PathRecord, StoreError>> + use<> {
        self.0.log.index.paths()
    }

    /// The records of all NARs, in the order of their hashes, read as they are asked for.
    pub fn nars(&self) -> impl Iterator<Item = Result<NarRecord, StoreError>> + use<> {
        self.0.log.index.nars()
    }

    /// All pinned CIDs.
    pub fn pins(&self) -> impl Iterator<Item = Result<CidPin, StoreError>> + use<> {
        self.0.log.index.pins()
    }

    /// Tells one listener that a commit or a lease has ended since it listened last, or a lease is no longer waited for:
    /// there may be more here, or more that GC may take.
    #[must_use]
    pub fn changed(&self) -> &Notify {
        &self.0.changed
    }

    /// The number of the newest lease that there has been: see [`Self::leases_ended`].
    #[must_use]
    pub fn newest_lease(&self) -> u64 {
        lock(&self.0.leases).newest()
    }

    /// Whether all leases up to that number have ended, but for those that stand: see [`Lease::standing`].
    #[must_use]
    pub fn leases_ended(&self, number: u64) -> bool {
        lock(&self.0.leases).ended(number)
    }

    /// Bytes that the blocks take in the packs.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.0.log.index.state().totals.stored
    }

    /// Counts what is here. Reads all path records.
    ///
    /// # Errors
    /// I/O.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        let totals = self.0.log.index.state().totals;
        let mut roots = 0;
        for path in self.paths() {
            roots += u64::from(path?.pinned);
        }
        for pin in self.pins() {
            pin?;
            roots += 1;
        }
        Ok(Stats { blocks: totals.blocks, stored_bytes: totals.stored, logical_bytes: totals.plain, roots })
    }

    /// Appends a block unless it is there by now; `payload` gives its bytes in this form.
    fn append(&self, digest: Digest, bytes: &Bytes, form: Form, payload: &[u8]) -> Result<bool, StoreError> {
        let log = &self.0.log;
        log.relieve()?;
        let plain = u32::try_from(bytes.len()).map_err(|_| StoreError::CommitTooLarge(bytes.len()))?;
        // Whatever codec it comes with, the same bytes may be linked as dag-pb later.
        let leaf = Node::decode(bytes).is_ok_and(|node| node.links.is_empty());
        let content = Content { kind: Kind::Block, form, leaf, plain, digest };
        log.check_space(payload.len() as u64)?;
        let mut tail = log.tail();
        if self.has_packed(&digest)? {
            return Ok(false);
        }
        log.append_block(&mut tail, content, payload)?;
        drop(tail);
        lock(&self.0.damaged).remove(&digest);
        Ok(true)
    }

    /// The plain bytes at a location, not hashed yet; `None` when they cannot be what was stored.
    fn read(&self, location: &Location, size: u32) -> Result<Option<Bytes>, StoreError> {
        if location.stored as usize > MAX_BLOCK + 1024 {
            return Ok(None);
        }
        if location.form == Form::Outside {
            return Ok(self.read_outside(location)?.filter(|plain| plain.len() == size as usize));
        }
        let payload = self.0.log.segments.payload(location)?;
        Ok(payload.and_then(|payload| plain(location.form, payload.into(), size)))
    }
}

/// The plain bytes of a payload in a pack; `None` when they are not `size` bytes.
fn plain(form: Form, payload: Bytes, size: u32) -> Option<Bytes> {
    let size = size as usize;
    let plain = match form {
        _ if size > MAX_BLOCK => None,
        Form::Plain => Some(payload),
        Form::Zstd => zstd::bulk::decompress(&payload, size).ok().map(Bytes::from),
        Form::Outside => None,
    };
    plain.filter(|plain| plain.len() == size)
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.0.dir.display())
    }
}

/// Locks a mutex; what it guards stays valid when a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
