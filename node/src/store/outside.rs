//! Blocks that are made of files of this machine's Nix store when they are read.
//!
//! The record of such a block says where its bytes lie (see `part`). The files are Nix's: they may change or go. So
//! nothing is believed of them but by the hash, and a block whose file does not give it is not here. That damages
//! nothing of ours, and the next put makes it good.

use super::lease::{Lease, Put};
use super::part::Part;
use super::record::Form;
use super::{Keep, Location, PathRecord, Store, StoreError, lock};
use bytes::Bytes;
use nipfs_proto::block::{Block, Digest};
use nipfs_proto::dag::LeafKind;
use nipfs_proto::nix::store_path::StorePath;
use std::path::PathBuf;

impl Lease {
    /// Stores that a block is made of the tree of `tree` on this machine, `offset` bytes into its NAR, where the caller
    /// has just read it; unless its bytes are in the store, or can be had elsewhere. What is no leaf is stored as
    /// [`Self::put`] does it. Returns what was stored, and how many bytes of the NAR the block carries.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn put_outside(&self, block: &Block, tree: &StorePath, offset: u64) -> Result<(Put, u64), StoreError> {
        let leaf = block.digest().zip(LeafKind::of(block));
        let leaf = leaf.and_then(|(digest, (kind, part))| Some((digest, kind, u32::try_from(part.len()).ok()?)));
        let Some((digest, kind, length)) = leaf else { return Ok((self.put(block)?, 0)) };
        let part = Part { tree: tree.clone(), offset, length, kind };
        let known = self.touch(&digest)?;
        if !known || !self.store().is_right(&digest, &part)? {
            self.store().append(digest, block.bytes(), Form::Outside, &part.encode())?;
        }
        Ok((Put { new: !known }, u64::from(length)))
    }
}

impl Store {
    /// Where the tree of a store path lies on this machine.
    #[must_use]
    pub fn tree(&self, path: &StorePath) -> PathBuf {
        self.0.trees.path(path)
    }

    /// Takes a tree as it is now, whatever it was before: its blocks are about to be put.
    ///
    /// # Errors
    /// When no blocks can be made of it: it is not there, or has more files than can be kept track of.
    pub fn take_tree(&self, path: &StorePath) -> Result<(), StoreError> {
        self.0.trees.take(path)
    }

    /// Whether a path whose bytes are not in the store can be given out: its tree is there and not known to have
    /// changed. True for every other path.
    #[must_use]
    pub fn is_backed(&self, path: &PathRecord) -> bool {
        path.keep == Keep::Copy || self.0.trees.is_sound(&path.store_path)
    }

    /// Whether a path is kept only for as long as its tree is there, and it is not.
    #[must_use]
    pub fn has_vanished(&self, path: &PathRecord) -> bool {
        path.keep == Keep::Weak && !self.0.trees.exists(&path.store_path)
    }

    /// Whether a block that is here can be had without a new record that it is made of `part`.
    fn is_right(&self, digest: &Digest, part: &Part) -> Result<bool, StoreError> {
        let Some(row) = self.0.log.lookup(digest)? else { return Ok(false) };
        // The tree may have been another one when the record was made.
        let there = || self.part(&row.location).map(|recorded| recorded.as_ref() == Some(part));
        Ok(!row.location.is_outside() || there()? || self.is_sound(digest, &row)?)
    }

    /// What the record of a block that lies outside says; `None` when it is not readable.
    pub(super) fn part(&self, location: &Location) -> Result<Option<Part>, StoreError> {
        let payload = self.0.log.segments.payload(location)?;
        Ok(payload.and_then(|payload| Part::decode(&payload)))
    }

    /// Whether nothing is known against the place where the bytes of a block lie.
    pub(super) fn is_offered(&self, location: &Location) -> Result<bool, StoreError> {
        let part = if location.is_outside() { self.part(location)? } else { None };
        Ok(part.is_none_or(|part| self.0.trees.is_sound(&part.tree)))
    }

    /// The bytes of a block that lies outside, not hashed yet; `None` when they are not there, or the record is not
    /// readable.
    pub(super) fn read_outside(&self, location: &Location) -> Result<Option<Bytes>, StoreError> {
        match self.part(location)? {
            Some(part) => self.0.trees.read(&part),
            None => Ok(None),
        }
    }

    /// Notes that a block did not match its digest where it lies. In the packs that is damage, which is returned.
    pub(super) fn condemn(&self, digest: Digest, location: &Location) -> Result<Option<StoreError>, StoreError> {
        let part = if location.is_outside() { self.part(location)? } else { None };
        if let Some(part) = part {
            self.0.trees.distrust(&part.tree);
            return Ok(None);
        }
        let mut damaged = lock(&self.0.damaged);
        if damaged.len() < super::MAX_DAMAGED {
            damaged.insert(digest);
        }
        let Location { segment, offset, .. } = *location;
        Ok(Some(StoreError::Damaged { digest, segment, offset }))
    }

    /// Puts a block that lies outside into the packs, unless it lies in `own`, the tree of the path for which it is
    /// wanted. False when it cannot be had.
    pub(super) fn bring_in(
        &self,
        lease: &Lease,
        (digest, location): (&Digest, &Location),
        own: Option<&StorePath>,
    ) -> Result<bool, StoreError> {
        if !location.is_outside() || own.is_some() && self.part(location)?.as_ref().map(|part| &part.tree) == own {
            return Ok(true);
        }
        let block = self.block(&digest.raw_cid())?;
        block.map_or(Ok(false), |block| lease.put(&block).map(|_| true))
    }
}
