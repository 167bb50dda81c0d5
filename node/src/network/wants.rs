//! Who waits for which block.
//!
//! The client machine knows a want by its session and CID; here is everyone who asked for it.

use super::session::{Outcome, WantError};
use libp2p::PeerId;
use nipfs_proto::Cid;
use nipfs_proto::bitswap::client::SessionId;
use nipfs_proto::block::Block;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use tokio::sync::oneshot;

/// One future that waits for a block.
#[derive(Debug)]
struct Waiter {
    want: u64,
    reply: oneshot::Sender<Outcome>,
}

/// Peers that may join one session.
const MAX_JOINED: usize = 64;

#[derive(Debug)]
struct Session {
    peers: Arc<[PeerId]>,
    /// Found while it was open.
    joined: Vec<PeerId>,
    waiters: HashMap<Cid, Vec<Waiter>>,
}

/// The open sessions and what they wait for.
#[derive(Debug, Default)]
pub(super) struct Wants {
    sessions: HashMap<SessionId, Session>,
}

impl Wants {
    /// Opens a session. False when it is open already.
    pub(super) fn open(&mut self, session: SessionId, peers: &Arc<[PeerId]>) -> bool {
        match self.sessions.entry(session) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(Session { peers: Arc::clone(peers), joined: Vec::new(), waiters: HashMap::new() });
                true
            }
        }
    }

    /// Notes that `want` waits for `cid`. True when it is the first that does: the machine is to be told.
    pub(super) fn add(&mut self, session: SessionId, cid: Cid, want: u64, reply: oneshot::Sender<Outcome>) -> bool {
        let Some(session) = self.sessions.get_mut(&session) else { return false };
        let waiters = session.waiters.entry(cid).or_default();
        waiters.push(Waiter { want, reply });
        waiters.len() == 1
    }

    /// Forgets a want that nobody waits for. True when it was the last for that block: the machine is
    /// to be told.
    pub(super) fn remove(&mut self, session: SessionId, cid: Cid, want: u64) -> bool {
        let Some(session) = self.sessions.get_mut(&session) else { return false };
        let Entry::Occupied(mut waiters) = session.waiters.entry(cid) else { return false };
        waiters.get_mut().retain(|waiter| waiter.want != want);
        if waiters.get().is_empty() {
            waiters.remove();
            return true;
        }
        false
    }

    /// Adds a peer to an open session that names its peers. False when it names it already, or asks whoever is
    /// connected.
    pub(super) fn join(&mut self, session: SessionId, peer: PeerId) -> bool {
        let Some(Session { peers, joined, .. }) = self.sessions.get_mut(&session) else { return false };
        let joins = !peers.is_empty() && !peers.contains(&peer) && !joined.contains(&peer) && joined.len() < MAX_JOINED;
        if joins {
            joined.push(peer);
        }
        joins
    }

    /// Closes a session; its peers, if it was open.
    pub(super) fn close(&mut self, session: SessionId) -> Option<Vec<PeerId>> {
        let Session { peers, joined, .. } = self.sessions.remove(&session)?;
        Some(peers.iter().copied().chain(joined).collect())
    }

    /// Hands a block to all who wait for it.
    pub(super) fn deliver(&mut self, session: SessionId, peer: PeerId, block: &Block) {
        for waiter in self.take(session, *block.cid()) {
            // Nobody there: dropped in this very moment.
            drop(waiter.reply.send(Ok((block.clone(), peer))));
        }
    }

    /// Tells all who wait for a block that it cannot be had.
    pub(super) fn missing(&mut self, session: SessionId, cid: Cid) {
        for waiter in self.take(session, cid) {
            drop(waiter.reply.send(Err(WantError::Missing(cid))));
        }
    }

    fn take(&mut self, session: SessionId, cid: Cid) -> Vec<Waiter> {
        self.sessions.get_mut(&session).and_then(|session| session.waiters.remove(&cid)).unwrap_or_default()
    }
}
