//! The asking half.

use super::Peer;
use super::message::{Dropped, Message, Presence};
use crate::Cid;
use crate::block::Block;
use std::marker::PhantomData;
use std::time::Instant;

/// Names a session. The caller chooses it and never uses it twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What the caller shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<P> {
    /// Send wants and cancels. They are small and the peer waits for nothing else: put them before blocks.
    Send {
        /// The receiver.
        peer: P,
        /// Wants and cancels only.
        message: Message,
    },
    /// A wanted block, under the CID by which this session wanted it. The want is over.
    Deliver {
        /// The session that wanted it.
        session: SessionId,
        /// Who sent it.
        peer: P,
        /// The block.
        block: Block,
    },
    /// No candidate has the block: all said `DONT_HAVE`, went silent, or are not connected. The want is over.
    Missing {
        /// The session that wanted it.
        session: SessionId,
        /// The CID by which it was wanted.
        cid: Cid,
    },
    /// The peer went silent with wants open, which were asked elsewhere. For the log.
    Stalled {
        /// The silent peer.
        peer: P,
    },
    /// The peer sent too much that nobody asked for. Cut the connection, then call [`Client::disconnected`].
    Disconnect {
        /// The peer to cut.
        peer: P,
    },
}

/// The client machine.
#[derive(Debug)]
pub struct Client<P> {
    peer: PhantomData<P>,
}

impl<P: Peer> Default for Client<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Peer> Client<P> {
    /// A client without peers and sessions.
    #[must_use]
    pub fn new() -> Self {
        Self { peer: PhantomData }
    }

    /// A peer is there (its first connection).
    pub fn connected(&mut self, peer: P, now: Instant) {
        _ = (peer, now);
        todo!()
    }

    /// A peer has no connection left. What it was asked for is asked elsewhere.
    pub fn disconnected(&mut self, peer: P, now: Instant) {
        _ = (peer, now);
        todo!()
    }

    /// Opens a session whose candidates are `peers`, best first; none means all that are connected, now and later.
    pub fn open(&mut self, session: SessionId, peers: &[P]) {
        _ = (session, peers);
        todo!()
    }

    /// Adds candidates to a session that was opened with a list of them.
    pub fn add_peers(&mut self, session: SessionId, peers: &[P]) {
        _ = (session, peers);
        todo!()
    }

    /// Wants a block. Ends with exactly one `Deliver` or `Missing`, unless cancelled or closed before. Connect the
    /// candidates first: with none connected the block is missing at once.
    pub fn want(&mut self, session: SessionId, cid: Cid, now: Instant) {
        _ = (session, cid, now);
        todo!()
    }

    /// Takes a want back. Neither `Deliver` nor `Missing` follows.
    pub fn cancel(&mut self, session: SessionId, cid: &Cid) {
        _ = (session, cid);
        todo!()
    }

    /// Ends a session and all its wants.
    pub fn close(&mut self, session: SessionId) {
        _ = session;
        todo!()
    }

    /// A message came from `peer`: its blocks, its answers, and what had to be dropped of it.
    pub fn received(&mut self, peer: P, blocks: Vec<Block>, presences: &[Presence], dropped: &Dropped, now: Instant) {
        _ = (peer, blocks, presences, dropped, now);
        todo!()
    }

    /// `bytes` more of a message from `peer` came in that is not complete yet. Keeps a slow peer with long messages
    /// from looking silent; calls may be coalesced.
    pub fn progress(&mut self, peer: P, bytes: usize, now: Instant) {
        _ = (peer, bytes, now);
        todo!()
    }

    /// A stream with `peer` broke, in either direction: answers may be lost, so all that is open there is asked again.
    pub fn send_failed(&mut self, peer: P, now: Instant) {
        _ = (peer, now);
        todo!()
    }

    /// When [`Self::tick`] wants to be called at the latest; `None`: no clock is needed.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        todo!()
    }

    /// Looks at the clock: finds silent peers. May be called at any time.
    pub fn tick(&mut self, now: Instant) {
        _ = now;
        todo!()
    }

    /// The next thing to do. Call until `None`, after every other call.
    pub fn poll(&mut self, now: Instant) -> Option<Action<P>> {
        _ = now;
        todo!()
    }
}
