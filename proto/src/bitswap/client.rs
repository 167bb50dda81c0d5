//! The asking half of bitswap: whom to ask for which block, how much at once, and whom to give up.
//!
//! A [session](Client::open) wants blocks from its candidates. Wants of the same bytes share one
//! *request*, whatever their CIDs and sessions, and a request is asked of one peer at a time with
//! want-block. Who that is:
//!
//! - A session's only candidate, or one that delivered nearly all that the session asked it for: of
//!   these, the one that would have the block here soonest, even when that one has to be waited for.
//! - While there is no such peer, one is asked on a guess and the others are asked with want-have.
//! - Other candidates get want-have for what waits, and want-block for what they said they have.
//!
//! A peer is asked for as many bytes at once as its measured rate and round trip make useful, and for at
//! most 1,024 blocks. Within a session requests go out in the order they came; sessions take turns.
//!
//! Every wait ends. A block that another peer with room would have brought several times over is taken
//! back and asked of that one. A peer that owes answers and says nothing useful for 4 s is *silent*: its
//! requests go to others, and it is not asked for 10 s, then longer. A want that a peer passes over
//! while it answers much younger ones counts as refused. When no candidate is left (`DONT_HAVE`, silent,
//! gone) the want ends as [`Action::Missing`], so that the caller can turn elsewhere.
//!
//! A block is taken from anybody while it is wanted: it proves itself. Bytes that nobody wants are
//! dropped and counted, and a peer that sends far more of them than of others is cut. Answers to
//! questions that were not asked change nothing.

mod assign;
mod pace;
mod remote;
mod request;
mod session;
mod standing;

use self::remote::Remote;
use self::request::Request;
use self::session::Session;
use super::Peer;
use super::message::{Dropped, Message, Presence};
use crate::Cid;
use crate::block::{Block, Digest};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

/// Names a session. The caller chooses it and never uses it twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What the caller shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<P> {
    /// Send wants and cancels. They are small and a transfer waits for them: put them before blocks.
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
    /// No candidate has the block: all refused, went silent, or are not connected. The want is over.
    Missing {
        /// The session that wanted it.
        session: SessionId,
        /// The CID by which it was wanted.
        cid: Cid,
    },
    /// The peer went silent while it owed answers, which others are asked for now. For the log.
    Stalled {
        /// The silent peer.
        peer: P,
    },
    /// The peer sent too much that nobody asked for, and is forgotten here already. Cut its connections.
    Disconnect {
        /// The peer to cut.
        peer: P,
    },
}

/// The client machine.
#[derive(Debug)]
pub struct Client<P> {
    peers: BTreeMap<P, Remote>,
    sessions: BTreeMap<SessionId, Session<P>>,
    requests: HashMap<Digest, Request<P>>,
    next_sequence: u64,
    /// The session whose turn came first last time.
    turn: SessionId,
    /// Something happened since requests were last assigned.
    unsettled: bool,
    /// Requests that may have lost their last candidate since.
    doubtful: Vec<Digest>,
    /// What the caller has to know, in order.
    news: VecDeque<Action<P>>,
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
        Self {
            peers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            requests: HashMap::new(),
            next_sequence: 0,
            turn: SessionId(0),
            unsettled: false,
            doubtful: Vec::new(),
            news: VecDeque::new(),
        }
    }

    /// A peer is there (its first connection).
    pub fn connected(&mut self, peer: P) {
        self.peers.entry(peer).or_default();
        self.unsettled = true;
    }

    /// A peer has no connection left. What it was asked for is asked elsewhere.
    pub fn disconnected(&mut self, peer: P) {
        if self.peers.remove(&peer).is_none() {
            return;
        }
        for session in self.sessions.values_mut() {
            session.records.remove(&peer);
        }
        let mut digests: Vec<(u64, Digest)> = self.requests.iter().map(|(digest, r)| (r.sequence(), *digest)).collect();
        digests.sort_unstable();
        for (_, digest) in digests {
            self.lose(digest, peer);
        }
    }

    /// Opens a session. Its candidates are `peers`, best first; none means all that are connected, now
    /// or later.
    pub fn open(&mut self, session: SessionId, peers: &[P]) {
        self.sessions.insert(session, Session::new(peers));
    }

    /// Adds candidates to a session that was opened with some.
    pub fn add_peers(&mut self, session: SessionId, peers: &[P]) {
        if let Some(session) = self.sessions.get_mut(&session).filter(|session| !session.is_open()) {
            session.add_peers(peers);
            self.unsettled = true;
        }
    }

    /// Wants a block. Ends with one `Deliver` or `Missing`, unless it is cancelled or the session closed
    /// before. Connect the candidates first: with none connected the block is missing at once. So is the
    /// block of an identity CID, which is nobody else's to send.
    pub fn want(&mut self, session: SessionId, cid: Cid) {
        let Some(state) = self.sessions.get_mut(&session) else { return };
        let Ok(Some(digest)) = Digest::of_cid(&cid) else {
            self.news.push_back(Action::Missing { session, cid });
            return;
        };
        let request = self.requests.entry(digest).or_insert_with(|| {
            self.next_sequence += 1;
            Request::new(cid, self.next_sequence)
        });
        request.read_by(session, cid);
        state.wants.insert(digest);
        if request.is_waiting() {
            state.enqueue(request.sequence(), digest);
        }
        self.unsettled = true;
        self.doubtful.push(digest);
    }

    /// Takes a want back. Neither `Deliver` nor `Missing` follows.
    pub fn cancel(&mut self, session: SessionId, cid: &Cid) {
        self.news.retain(|news| match news {
            Action::Deliver { session: reader, block, .. } => (reader, block.cid()) != (&session, cid),
            Action::Missing { session: reader, cid: missing } => (reader, missing) != (&session, cid),
            _ => true,
        });
        if let Ok(Some(digest)) = Digest::of_cid(cid) {
            self.leave(digest, session, |read| read == cid);
        }
    }

    /// Ends a session and all its wants.
    pub fn close(&mut self, session: SessionId) {
        self.news.retain(|news| match news {
            Action::Deliver { session: reader, .. } | Action::Missing { session: reader, .. } => *reader != session,
            _ => true,
        });
        let wants = self.sessions.get(&session).map(|session| session.wants.clone()).unwrap_or_default();
        for digest in wants {
            self.leave(digest, session, |_| true);
        }
        self.sessions.remove(&session);
    }

    /// A message came from `peer`: its blocks, its answers, and what had to be dropped of it. Ignored
    /// from a peer that is not connected.
    pub fn received(&mut self, peer: P, blocks: Vec<Block>, presences: &[Presence], dropped: &Dropped, now: Instant) {
        for block in blocks {
            let Some(remote) = self.peers.get_mut(&peer) else { return };
            if block.digest().is_some_and(|digest| self.requests.contains_key(&digest)) {
                self.deliver(peer, &block, now);
            } else {
                remote.sent_unwanted(block.bytes().len());
            }
        }
        for presence in presences {
            if let Ok(Some(digest)) = Digest::of_cid(&presence.cid) {
                self.answered(peer, digest, presence.have, now);
            }
        }
        self.unsettled = true;
        let Some(remote) = self.peers.get_mut(&peer) else { return };
        remote.standing.sent_useless(dropped.block_bytes);
        if remote.standing.is_flooding() {
            self.disconnected(peer);
            self.news.push_back(Action::Disconnect { peer });
        }
    }

    /// `bytes` more of a message from `peer` are here, but not all of it. Keeps a peer with long messages
    /// and a slow line from looking silent; calls may be coalesced.
    pub fn progress(&mut self, peer: P, bytes: usize, now: Instant) {
        if let Some(remote) = self.peers.get_mut(&peer) {
            remote.standing.progress(bytes, now);
        }
    }

    /// A stream with `peer` broke, in either direction. Answers may be lost with it, so that all that is
    /// open there is asked again: there, but not when it happens twice without a block between. Call once
    /// for a stream.
    pub fn stream_broke(&mut self, peer: P, now: Instant) {
        let digests = self.asks(peer, |_, _| true);
        let Some(remote) = self.peers.get_mut(&peer) else { return };
        remote.stream_broke(now);
        self.lose_all(digests, peer);
    }

    /// Blocks that `peer` was asked for, by a message that [`Self::poll`] gave out, and has not answered.
    #[must_use]
    pub fn owed(&self, peer: &P) -> usize {
        self.peers.get(peer).map_or(0, Remote::owed)
    }

    /// When [`Self::tick`] has to be called at the latest; `None`: nothing waits.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        self.peers.values().filter_map(|remote| remote.standing.next_wake()).min()
    }

    /// Looks at the clock: finds silent peers, and wants that were passed over. May be called at any time.
    pub fn tick(&mut self, now: Instant) {
        let due = |(peer, remote): (&P, &Remote)| {
            remote.standing.next_wake().is_some_and(|wake| wake <= now).then_some(*peer)
        };
        let peers: Vec<P> = self.peers.iter().filter_map(due).collect();
        for peer in peers {
            if self.peers.get(&peer).is_some_and(|remote| remote.standing.is_silent(now)) {
                self.give_up(peer, now);
            } else {
                self.give_up_wants(peer, now);
            }
        }
        self.rescue_late(now);
    }

    /// The next thing to do. Call until `None`, after every other call.
    pub fn poll(&mut self, now: Instant) -> Option<Action<P>> {
        if std::mem::take(&mut self.unsettled) {
            self.assign(now);
        }
        if let Some(news) = self.news.pop_front() {
            return Some(news);
        }
        self.peers.iter_mut().find_map(|(peer, remote)| {
            let message = remote.next_message()?;
            Some(Action::Send { peer: *peer, message })
        })
    }
}

#[cfg(test)]
mod tests;
