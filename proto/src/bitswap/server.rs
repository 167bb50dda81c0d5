//! The answering half of bitswap: what peers want, what to load for them, what to send.
//!
//! A want goes through a peer's ledger: *queued*, then *loading*, then answered and forgotten, or,
//! when the block is absent, *kept* until it is stored, cancelled, or the peer leaves. Nothing polls a
//! clock: a want that can be answered is loaded at once, [`Server::stored`] wakes the kept ones.
//!
//! - Rules of the answer: want-block gets the block; want-have gets `HAVE`, or the block itself when it
//!   has at most [`HAVE_REPLACED_BY_BLOCK`] bytes; an absent block gets `DONT_HAVE` if that was asked for,
//!   once, and silence otherwise. The block goes out under the CID by which it was wanted.
//! - Fairness: of the peers that wait, the one that got the fewest bytes is loaded for next; within a
//!   peer, higher priority first, then first come.
//! - Bounds: [`MAX_WANTS`] live wants a peer; at most [`MAX_LOADS`] loads of [`LOAD_BUDGET`] bytes at
//!   once, one a peer; no load for a peer while [`MAX_HELD`] bytes wait to be written to it, so that a
//!   peer that does not read holds that much and one message. Which peers there are is the caller's limit.

mod ledger;

use self::ledger::{Admission, Ledger};
use super::Peer;
use super::message::{Message, Want, WantKind};
use crate::Cid;
use crate::block::Digest;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most live wants of one peer. At the limit a new want takes the place of the oldest one whose block is
/// absent (it was answered, as far as it can be); when there is none, the new one is refused in silence,
/// because every want in the queue will be answered and its sender may ask again.
pub const MAX_WANTS: usize = 1024;
/// A want-have of a block of at most this many bytes is answered with the block itself.
pub const HAVE_REPLACED_BY_BLOCK: usize = 1024;
/// Bytes of blocks that one load may bring: what was loaded cannot be cancelled any more.
pub const LOAD_BUDGET: usize = 512 << 10;
/// Most loads that are in flight at once, over all peers.
pub const MAX_LOADS: usize = 8;
/// Bytes waiting to be written to a peer at which nothing more is loaded for it.
pub const MAX_HELD: usize = 1 << 20;

/// Names a [`Load`] until [`Server::loaded`] answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(u64);

/// Blocks to read from the store for a peer, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load<P> {
    /// To be given back with the result.
    pub id: LoadId,
    /// Who asks: what is visible may depend on it.
    pub peer: P,
    /// What is asked for. Every CID has a sha2-256 digest.
    pub wants: Vec<(Cid, WantKind)>,
    /// The loader stops after the block with which it has brought this many bytes. What it did not come to is loaded
    /// later.
    pub budget: usize,
}

/// What the loader found out about one want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The CID as it was in the [`Load`].
    pub cid: Cid,
    /// The finding.
    pub outcome: Outcome,
}

/// The loader's finding about a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The block's bytes: for a want-block, and for a want-have of at most [`HAVE_REPLACED_BY_BLOCK`] bytes.
    Block(Bytes),
    /// The block is here, and only that was asked.
    Have,
    /// The block is not here, or this peer shall not see it: one answer for both.
    Absent,
}

/// What the caller shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<P> {
    /// Read from the store, then call [`Server::loaded`]. Every load must be answered.
    Load(Load<P>),
    /// Send, then call [`Server::sent`] with the message's encoded length, whether it was written or lost.
    Send {
        /// The receiver.
        peer: P,
        /// At most [`TARGET_MESSAGE`](super::message::TARGET_MESSAGE) bytes, or a single block.
        message: Message,
    },
}

/// The server machine.
#[derive(Debug)]
pub struct Server<P> {
    ledgers: BTreeMap<P, Ledger>,
    wanted: Wanted<P>,
    loads: HashMap<LoadId, P>,
    next_load: u64,
    /// Peers with something to send.
    ready: BTreeSet<P>,
    /// What the peer that was loaded for last had been served by then, in bytes. A peer that begins to
    /// want starts from here: idleness earns no credit.
    clock: u64,
}

impl<P: Peer> Default for Server<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Peer> Server<P> {
    /// A server without peers.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ledgers: BTreeMap::new(),
            wanted: Wanted(HashMap::new()),
            loads: HashMap::new(),
            next_load: 0,
            ready: BTreeSet::new(),
            clock: 0,
        }
    }

    /// A peer is there (its first connection).
    pub fn connected(&mut self, peer: P) {
        self.ledgers.entry(peer).or_default();
    }

    /// A peer has no connection left: all that is kept for it goes.
    pub fn disconnected(&mut self, peer: P) {
        let Some(ledger) = self.ledgers.remove(&peer) else { return };
        self.ready.remove(&peer);
        for cid in ledger.cids() {
            self.wanted.remove(peer, *cid);
        }
    }

    /// A peer changed its wantlist, or replaced it (`full`). Ignored from a peer that is not connected.
    pub fn received(&mut self, peer: P, wants: &[Want], full: bool) {
        let Some(ledger) = self.ledgers.get_mut(&peer) else { return };
        if full {
            for cid in ledger.clear() {
                self.wanted.remove(peer, cid);
            }
        }
        ledger.serve_from(self.clock);
        for want in wants {
            let Ok(Some(digest)) = Digest::of_cid(&want.cid) else { continue };
            if want.cancel {
                ledger.cancel(&want.cid);
                self.wanted.remove(peer, want.cid);
                continue;
            }
            match ledger.admit(want) {
                Admission::Refused => {}
                Admission::Taken { evicted } => {
                    if let Some(cid) = evicted {
                        self.wanted.remove(peer, cid);
                    }
                    self.wanted.insert(peer, want.cid, digest);
                }
            }
        }
    }

    /// Blocks became visible in the store: wants that wait for them are answered.
    pub fn stored(&mut self, cids: &[Cid]) {
        for cid in cids {
            for (peer, cid) in self.wanted.of(cid) {
                if let Some(ledger) = self.ledgers.get_mut(peer) {
                    ledger.serve_from(self.clock);
                    ledger.wake(cid);
                }
            }
        }
    }

    /// Answers a [`Load`]. What is missing in `loaded` is loaded again; when all is missing, it is absent.
    pub fn loaded(&mut self, id: LoadId, loaded: Vec<Loaded>) {
        let Some(peer) = self.loads.remove(&id) else { return };
        let Some(ledger) = self.ledgers.get_mut(&peer) else { return };
        for cid in ledger.finish(id, loaded) {
            self.wanted.remove(peer, cid);
        }
        if ledger.has_answers() {
            self.ready.insert(peer);
        }
    }

    /// A message of `bytes` bytes left the queue to `peer`: written, or lost with its stream.
    pub fn sent(&mut self, peer: P, bytes: usize) {
        if let Some(ledger) = self.ledgers.get_mut(&peer) {
            ledger.sent(bytes);
        }
    }

    /// The next thing to do. Call until `None`, after every other call.
    pub fn poll(&mut self) -> Option<Action<P>> {
        while let Some(peer) = self.ready.first().copied() {
            match self.ledgers.get_mut(&peer).and_then(Ledger::next_message) {
                Some(message) => return Some(Action::Send { peer, message }),
                None => self.ready.remove(&peer),
            };
        }
        if self.loads.len() >= MAX_LOADS {
            return None;
        }
        let waiting = self.ledgers.iter_mut().filter(|(_, ledger)| ledger.may_load());
        let (peer, ledger) = waiting.min_by_key(|(peer, ledger)| (ledger.served(), **peer))?;
        let id = LoadId(self.next_load);
        self.next_load += 1;
        self.clock = ledger.served();
        self.loads.insert(id, *peer);
        Some(Action::Load(Load { id, peer: *peer, wants: ledger.start(id), budget: LOAD_BUDGET }))
    }

    /// Live wants of `peer`, queued, loading and kept.
    #[must_use]
    pub fn wants(&self, peer: P) -> usize {
        self.ledgers.get(&peer).map_or(0, |ledger| ledger.cids().len())
    }
}

/// Who wants a block, and under which CIDs: exactly the live wants of all ledgers.
#[derive(Debug)]
struct Wanted<P>(HashMap<Digest, BTreeSet<(P, Cid)>>);

impl<P: Peer> Wanted<P> {
    fn insert(&mut self, peer: P, cid: Cid, digest: Digest) {
        self.0.entry(digest).or_default().insert((peer, cid));
    }

    fn remove(&mut self, peer: P, cid: Cid) {
        let Ok(Some(digest)) = Digest::of_cid(&cid) else { return };
        if let Some(wants) = self.0.get_mut(&digest) {
            wants.remove(&(peer, cid));
            if wants.is_empty() {
                self.0.remove(&digest);
            }
        }
    }

    fn of(&self, cid: &Cid) -> impl Iterator<Item = &(P, Cid)> {
        let digest = Digest::of_cid(cid).ok().flatten();
        digest.and_then(|digest| self.0.get(&digest)).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests;
