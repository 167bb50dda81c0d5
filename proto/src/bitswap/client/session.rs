//! A session: blocks that belong together, and the peers that are thought to have them.

use crate::block::Digest;
use std::collections::{BTreeMap, BTreeSet};

/// Block size in bytes that is assumed before any block came.
const USUAL_BLOCK: usize = 64 << 10;
/// Blocks that a peer has to deliver for each one that it did not have, to be asked without a question.
const HITS_PER_MISS: u32 = 16;

/// What a peer did for a session.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Record {
    hits: u32,
    misses: u32,
    /// Requests from this sequence on were not considered for a want-have yet.
    pub(super) cursor: u64,
}

impl Record {
    pub(super) fn hit(&mut self) {
        self.hits = self.hits.saturating_add(1);
    }

    pub(super) fn miss(&mut self) {
        self.misses = self.misses.saturating_add(1);
    }

    /// It delivers nearly all that it is asked for.
    pub(super) fn is_proven(&self) -> bool {
        self.hits > 0 && self.misses.saturating_mul(HITS_PER_MISS) <= self.hits
    }

    /// It was not asked for anything yet, or has not answered.
    pub(super) fn is_unknown(&self) -> bool {
        self.hits == 0 && self.misses == 0
    }
}

#[derive(Debug)]
pub(super) struct Session<P> {
    /// Candidates, best first; none means all connected peers.
    peers: Vec<P>,
    /// Blocks it waits for.
    pub(super) wants: BTreeSet<Digest>,
    /// Those that no peer is asked for with a want-block, by sequence.
    pub(super) queue: BTreeMap<u64, Digest>,
    pub(super) records: BTreeMap<P, Record>,
    block_size: usize,
}

impl<P: Copy + Ord> Session<P> {
    pub(super) fn new(peers: &[P]) -> Self {
        let mut session = Self {
            peers: Vec::new(),
            wants: BTreeSet::new(),
            queue: BTreeMap::new(),
            records: BTreeMap::new(),
            block_size: USUAL_BLOCK,
        };
        session.add_peers(peers);
        session
    }

    pub(super) fn add_peers(&mut self, peers: &[P]) {
        for peer in peers {
            if !self.peers.contains(peer) {
                self.peers.push(*peer);
            }
        }
    }

    /// Candidates are all connected peers.
    pub(super) fn is_open(&self) -> bool {
        self.peers.is_empty()
    }

    pub(super) fn listed(&self) -> &[P] {
        &self.peers
    }

    pub(super) fn record(&self, peer: &P) -> Record {
        self.records.get(peer).copied().unwrap_or_default()
    }

    pub(super) fn record_mut(&mut self, peer: P) -> &mut Record {
        self.records.entry(peer).or_default()
    }

    /// Bytes that the next block probably has.
    pub(super) fn block_size(&self) -> usize {
        self.block_size
    }

    /// A block of `bytes` bytes came.
    pub(super) fn came(&mut self, bytes: usize) {
        self.block_size = ((7 * self.block_size + bytes) / 8).max(1);
    }

    /// A request waits for a peer again, or for the first time.
    pub(super) fn enqueue(&mut self, sequence: u64, digest: Digest) {
        self.queue.insert(sequence, digest);
        for record in self.records.values_mut() {
            record.cursor = record.cursor.min(sequence);
        }
    }
}
