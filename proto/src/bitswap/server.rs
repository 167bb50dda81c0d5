//! The answering half.

use super::Peer;
use super::message::{Message, Want, WantKind};
use crate::Cid;
use bytes::Bytes;
use std::marker::PhantomData;

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
    /// What is asked for.
    pub wants: Vec<(Cid, WantKind)>,
    /// The loader stops after the block that reaches this many bytes. What it did not come to stays queued.
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
    /// The block's bytes: for every want-block, and for a want-have of a block of at most [`HAVE_REPLACED_BY_BLOCK`] bytes.
    Block(Bytes),
    /// The block is here, and only that was asked.
    Have,
    /// The block is not here, or this peer shall not see it: one answer for both.
    Absent,
}

/// A want-have of a block of at most this many bytes is answered with the block itself.
pub const HAVE_REPLACED_BY_BLOCK: usize = 1024;

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
    peer: PhantomData<P>,
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
        Self { peer: PhantomData }
    }

    /// A peer is there.
    pub fn connected(&mut self, peer: P) {
        _ = peer;
        todo!()
    }

    /// A peer has no connection left: all that is kept for it goes.
    pub fn disconnected(&mut self, peer: P) {
        _ = peer;
        todo!()
    }

    /// A peer changed its wantlist, or replaced it (`full`).
    pub fn received(&mut self, peer: P, wants: &[Want], full: bool) {
        _ = (peer, wants, full);
        todo!()
    }

    /// Blocks became visible in the store: wants that wait for them are answered.
    pub fn stored(&mut self, cids: &[Cid]) {
        _ = cids;
        todo!()
    }

    /// Answers a [`Load`].
    pub fn loaded(&mut self, id: LoadId, loaded: Vec<Loaded>) {
        _ = (id, loaded);
        todo!()
    }

    /// A message of `bytes` bytes left the queue to `peer`: written, or lost with its stream.
    pub fn sent(&mut self, peer: P, bytes: usize) {
        _ = (peer, bytes);
        todo!()
    }

    /// The next thing to do. Call until `None`, after every other call.
    pub fn poll(&mut self) -> Option<Action<P>> {
        todo!()
    }
}
