//! Leases: what keeps GC away from blocks that no commit refers to yet, and may show them to everybody before one does.

use super::digest_set::DigestSet;
use super::record::Form;
use super::{Op, Store, StoreError, lock};
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, Digest};
use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;
use std::sync::Arc;
use tokio::sync::oneshot;
use zstd::bulk::Compressor;

/// zstd level of blocks at rest: the fastest; higher ones gain little on 256 KiB.
const LEVEL: i32 = 1;
/// Compressors that are kept for the next block: they take 64 KiB and more, and leases by the hundred may be open.
const MAX_IDLE: usize = 2;

/// Everything put or touched under a lease stays until the lease is dropped; a GC that runs at that moment still
/// spares it. Commit before dropping.
#[must_use = "blocks are protected only as long as the lease lives"]
pub struct Lease {
    store: Store,
    number: u64,
    compresses: bool,
}

/// What [`Lease::put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// The store did not hold it before: neither its bytes nor, where only its place is stored, that.
    pub new: bool,
}

impl Lease {
    pub(super) fn new(store: Store) -> Self {
        let number = lock(&store.0.leases).open();
        Self { store, number, compresses: true }
    }

    /// Stores blocks as they are: for bytes that are known not to compress.
    pub fn uncompressed(mut self) -> Self {
        self.compresses = false;
        self
    }

    /// From now on, what is put under this lease is public until the lease is dropped: for blocks of a DAG that is going
    /// to be published when it is whole.
    pub fn show(&self) {
        lock(&self.store.0.leases).show(self.number);
    }

    /// From now on the lease may stand for as long as the node runs: GC counts what it protects among what is kept, without
    /// following its links, and nobody waits for it to end. For when all blocks have been put.
    pub fn standing(self) -> Self {
        lock(&self.store.0.leases).stand(self.number);
        self.store.0.changed.notify_one();
        self
    }

    /// Whether [`Self::show`] was called.
    #[must_use]
    pub fn shows(&self) -> bool {
        lock(&self.store.0.leases).shown.contains_key(&self.number)
    }

    /// Stores a block, unless its bytes are there, and protects it. It can be read at once and is durable after the
    /// next commit. Blocks of identity CIDs are never stored.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::ReadOnly`], I/O.
    pub fn put(&self, block: &Block) -> Result<Put, StoreError> {
        let Some(digest) = block.digest() else { return Ok(Put { new: false }) };
        self.protect(&digest);
        let new = if self.store.has_packed(&digest)? {
            false
        } else if let Some(packed) = self.pack(block.bytes())? {
            self.store.append(digest, block.bytes(), Form::Zstd, &packed)?
        } else {
            self.store.append(digest, block.bytes(), Form::Plain, block.bytes())?
        };
        if let Some(shown) = lock(&self.store.0.leases).shown.get_mut(&self.number) {
            shown.insert(&digest);
        }
        Ok(Put { new })
    }

    /// [`Self::put`] on the store's own thread, for who must not wait for the disk. The answer is an error of its own when
    /// that thread is gone.
    pub fn put_later(self: &Arc<Self>, block: Block) -> oneshot::Receiver<Result<Put, StoreError>> {
        let lease = Arc::clone(self);
        self.store.0.writer.run(move || lease.put(&block))
    }

    /// Protects a block if it is there, and tells so.
    ///
    /// # Errors
    /// I/O.
    pub fn touch(&self, digest: &Digest) -> Result<bool, StoreError> {
        // Protected first, looked up second: GC deletes what is not protected under the same lock.
        self.protect(digest);
        self.store.has(digest)
    }

    fn protect(&self, digest: &Digest) {
        lock(&self.store.0.leases).protect(self.number, digest);
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Protects from now on what `other` did, which protects nothing any more: many leases cost more than one.
    pub fn take_over(&self, other: &Self) {
        lock(&self.store.0.leases).take_over(self.number, other.number);
    }

    /// Protects every block of a DAG, and tells whether all of them are here and can be walked.
    ///
    /// # Errors
    /// I/O.
    pub fn touch_dag(&self, root: &Cid) -> Result<bool, StoreError> {
        let mut whole = true;
        let mut seen = lock(&self.store.0.leases).empty_set();
        let walked = self.store.walk(root, &mut seen, |_, digest, _| {
            whole &= self.touch(digest)?;
            Ok(())
        });
        match walked {
            Ok(()) => Ok(whole),
            Err(StoreError::Unreadable { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes changes to the records, all or none, and returns when they and all blocks put before are durable.
    ///
    /// Every DAG that is recorded, published or pinned must be complete; its blocks are protected by this lease.
    /// Blocks that become public are so when this returns, and those that no longer are, too.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`], [`StoreError::UnknownNar`], [`StoreError::NoSpace`],
    /// [`StoreError::ReadOnly`], I/O. After an error of the disk the changes may still be there when the store is
    /// opened again.
    pub fn commit(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        self.store.commit_under(self, ops)
    }

    /// The bytes as one zstd frame, where that saves a tenth, or where they are all zeros (see `record`).
    fn pack(&self, bytes: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if bytes.iter().all(|byte| *byte == 0) {
            let packed = zstd::bulk::compress(bytes, LEVEL);
            return packed.map(Some).map_err(StoreError::io("compress a block for", self.store.dir()));
        }
        if !self.compresses {
            return Ok(None);
        }
        let compressors = &self.store.0.compressors;
        let idle = lock(compressors).pop();
        // Without one blocks are stored as they are.
        let Some(mut compressor) = idle.or_else(|| Compressor::new(LEVEL).ok()) else { return Ok(None) };
        let packed = compressor.compress(bytes).ok();
        let mut idle = lock(compressors);
        if idle.len() < MAX_IDLE {
            idle.push(compressor);
        }
        drop(idle);
        Ok(packed.filter(|packed| packed.len() <= bytes.len() - bytes.len() / 10))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.store.0.leases).close(self.number);
        self.store.0.changed.notify_one();
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({})", self.number)
    }
}

/// All leases of a store.
#[derive(Debug, Default)]
pub(super) struct Leases {
    key: RandomState,
    next: u64,
    /// By number, the oldest first.
    open: BTreeMap<u64, DigestSet>,
    /// Those of them that nobody waits for.
    standing: HashMap<u64, DigestSet>,
    /// What was put under those of them that show it.
    shown: HashMap<u64, DigestSet>,
    /// While GC runs: what leases protected that have ended since it began.
    kept: Option<DigestSet>,
}

impl Leases {
    /// An empty set that can be compared with leases.
    pub(super) fn empty_set(&self) -> DigestSet {
        DigestSet::new(&self.key)
    }

    pub(super) fn protects(&self, digest: &Digest) -> bool {
        let leased = self.open.values().chain(self.standing.values());
        self.kept.iter().chain(leased).any(|set| set.contains(digest))
    }

    /// What standing leases protect; `None` when there is none.
    pub(super) fn standing(&self) -> Option<DigestSet> {
        let mut all = self.standing.values().cloned();
        let mut standing = all.next()?;
        all.for_each(|set| standing.merge(set));
        Some(standing)
    }

    /// The number of the newest lease that there has been.
    pub(super) fn newest(&self) -> u64 {
        self.next
    }

    /// Whether all leases up to that number have ended, but for those that stand.
    pub(super) fn ended(&self, number: u64) -> bool {
        self.open.first_key_value().is_none_or(|(oldest, _)| *oldest > number)
    }

    /// Whether some lease shows this block.
    pub(super) fn shows(&self, digest: &Digest) -> bool {
        self.shown.values().any(|set| set.contains(digest))
    }

    fn show(&mut self, number: u64) {
        let set = self.empty_set();
        self.shown.entry(number).or_insert(set);
    }

    /// From now on, nothing that a lease protects is let go when the lease ends.
    pub(super) fn keep(&mut self) {
        self.kept = Some(self.empty_set());
    }

    /// Ends what [`Self::keep`] began.
    pub(super) fn release(&mut self) {
        self.kept = None;
    }

    fn open(&mut self) -> u64 {
        self.next += 1;
        let set = self.empty_set();
        self.open.insert(self.next, set);
        self.next
    }

    fn stand(&mut self, number: u64) {
        self.standing.extend(self.open.remove(&number).map(|set| (number, set)));
    }

    fn protect(&mut self, number: u64, digest: &Digest) {
        if let Some(set) = self.open.get_mut(&number).or_else(|| self.standing.get_mut(&number)) {
            set.insert(digest);
        }
    }

    fn take_over(&mut self, number: u64, other: u64) {
        let empty = self.empty_set();
        let set = self.open.get_mut(&other).map(|set| std::mem::replace(set, empty));
        if let (Some(open), Some(set)) = (self.open.get_mut(&number), set) {
            open.merge(set);
        }
    }

    fn close(&mut self, number: u64) {
        self.shown.remove(&number);
        let set = self.open.remove(&number).or_else(|| self.standing.remove(&number));
        if let (Some(kept), Some(set)) = (&mut self.kept, set) {
            kept.merge(set);
        }
    }
}
