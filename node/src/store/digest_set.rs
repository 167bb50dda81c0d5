//! A set of digests in 8 bytes each.
//!
//! It holds a keyed 64-bit hash of every digest, so it may say "in" for a digest that is not (with odds of
//! about 2⁻⁶⁴ for each member), never the reverse. The key is random and secret to the process: nobody can
//! prepare two blocks that collide, which would make a walk pass over the second one's links.

use nipfs_proto::block::Digest;
use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// Digests that were seen, and those among them whose links were seen too.
#[derive(Debug, Clone)]
pub(super) struct DigestSet {
    key: RandomState,
    hashes: HashSet<u64, BuildHasherDefault<Verbatim>>,
}

impl DigestSet {
    /// An empty set. Only sets made with the same key can be merged.
    pub(super) fn new(key: &RandomState) -> Self {
        Self { key: key.clone(), hashes: HashSet::default() }
    }

    /// Adds a digest; false if it was in.
    pub(super) fn insert(&mut self, digest: &Digest) -> bool {
        self.hashes.insert(self.key.hash_one((digest, false)))
    }

    pub(super) fn remove(&mut self, digest: &Digest) {
        self.hashes.remove(&self.key.hash_one((digest, false)));
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.hashes.contains(&self.key.hash_one((digest, false)))
    }

    /// Notes that the links of this node are followed; false if they were before. The same bytes may be
    /// linked as a raw leaf and as a node, so this is apart from [`Self::insert`].
    pub(super) fn insert_node(&mut self, digest: &Digest) -> bool {
        self.hashes.insert(self.key.hash_one((digest, true)))
    }

    /// Adds all members of a set with the same key.
    pub(super) fn merge(&mut self, other: Self) {
        if self.hashes.is_empty() {
            self.hashes = other.hashes;
        } else {
            self.hashes.extend(other.hashes);
        }
    }
}

/// Passes a number that is a hash already.
#[derive(Debug, Default)]
struct Verbatim(u64);

impl Hasher for Verbatim {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
