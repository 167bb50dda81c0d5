//! Trees of this machine's Nix store, as far as blocks are made of them.
//!
//! They belong to Nix: a tree may go, or change, at any time. Nothing that is read here is believed; who asks hashes
//! it. A tree that gave wrong bytes once gives none any more until it is trusted again.

mod listing;
#[cfg(test)]
mod tests;

use super::part::Part;
use super::{StoreError, lock};
use listing::{Listing, MAX_LISTING, is_change};
use nipfs_proto::nix::store_path::StorePath;
use std::collections::{HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Trees that are remembered for having changed or gone. When there are more, all are forgotten: they are found out
/// again.
const MAX_NOTED: usize = 4096;

/// Trees of which it is remembered where what of their NAR lies.
const MAX_LISTINGS: usize = 256;

/// All trees.
#[derive(Debug)]
pub(super) struct Trees {
    /// Where the store paths lie.
    dir: PathBuf,
    /// Most recently used last; together they take [`MAX_LISTING`] bytes at most.
    listings: Mutex<VecDeque<(StorePath, Arc<Listing>)>>,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    /// Are there, but are not what was published.
    changed: HashSet<StorePath>,
    /// The log says already that they are gone.
    gone: HashSet<StorePath>,
}

impl Trees {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), listings: Mutex::default(), noted: Mutex::default() }
    }

    pub(super) fn path(&self, tree: &StorePath) -> PathBuf {
        self.dir.join(tree.base_name())
    }

    /// Whether something lies at the path, as far as can be told.
    pub(super) fn exists(&self, tree: &StorePath) -> bool {
        !matches!(fs::symlink_metadata(self.path(tree)), Err(error) if is_change(&error))
    }

    /// Whether the tree is there and not known to have changed.
    pub(super) fn is_sound(&self, tree: &StorePath) -> bool {
        !lock(&self.noted).changed.contains(tree) && self.exists(tree)
    }

    /// The bytes of the block that is made of `part`, not hashed yet; `None` when the tree is gone or has changed.
    pub(super) fn read(&self, part: &Part) -> Result<Option<bytes::Bytes>, StoreError> {
        let path = self.path(&part.tree);
        let read = || self.listing(&part.tree)?.read(part.offset, part.length as usize);
        match read() {
            Ok(bytes) => Ok(bytes.map(|bytes| part.kind.wrap(&bytes))),
            Err(error) if is_change(&error) => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// Trusts a tree anew, if blocks can be made of it.
    ///
    /// # Errors
    /// Why they cannot.
    pub(super) fn take(&self, tree: &StorePath) -> Result<(), StoreError> {
        self.trust(tree);
        self.listing(tree).map(drop).map_err(StoreError::io("make blocks of", &self.path(tree)))
    }

    /// Notes that a tree did not give what was published, and says so, once.
    pub(super) fn distrust(&self, tree: &StorePath) {
        self.forget(tree);
        let exists = self.exists(tree);
        let mut noted = lock(&self.noted);
        let set = if exists { &mut noted.changed } else { &mut noted.gone };
        if set.len() == MAX_NOTED {
            set.clear();
        }
        if set.insert(tree.clone()) {
            let what = if exists { "has changed" } else { "is gone" };
            tracing::warn!("{tree} {what}: its blocks are not served from there");
        }
    }

    /// Takes back what is noted of a tree: its bytes are about to be compared anew.
    pub(super) fn trust(&self, tree: &StorePath) {
        self.forget(tree);
        let mut noted = lock(&self.noted);
        noted.changed.remove(tree);
        noted.gone.remove(tree);
    }

    /// The same for all trees.
    pub(super) fn trust_all(&self) {
        lock(&self.listings).clear();
        *lock(&self.noted) = Noted::default();
    }

    fn forget(&self, tree: &StorePath) {
        lock(&self.listings).retain(|(other, _)| other != tree);
    }

    fn listing(&self, tree: &StorePath) -> std::io::Result<Arc<Listing>> {
        let mut listings = lock(&self.listings);
        if let Some(at) = listings.iter().position(|(other, _)| other == tree)
            && let Some(found) = listings.remove(at)
        {
            listings.push_back(found.clone());
            return Ok(found.1);
        }
        // Made under the lock: readers of one tree want it at the same time, and once is enough.
        let fresh = Arc::new(Listing::of(&self.path(tree))?);
        let mut weight = fresh.weight;
        listings.push_back((tree.clone(), fresh.clone()));
        let keep = listings.iter().rev().take(MAX_LISTINGS).skip(1).take_while(|(_, listing)| {
            weight += listing.weight;
            weight <= MAX_LISTING
        });
        let keep = keep.count() + 1;
        let surplus = listings.len() - keep;
        listings.drain(..surplus);
        Ok(fresh)
    }
}
