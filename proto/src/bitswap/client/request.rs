//! A request: one block, whoever reads it; and what answers, silence and farewells do to it.

use super::remote::{Ask, Remote, State};
use super::{Action, Client, SessionId};
use crate::Cid;
use crate::bitswap::Peer;
use crate::block::{Block, Digest};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A block that some session waits for.
#[derive(Debug)]
pub(super) struct Request<P> {
    /// The CID that peers are asked for: the first reader's.
    cid: Cid,
    /// Age: what is older goes first.
    sequence: u64,
    readers: Vec<(SessionId, Cid)>,
    /// The peer that is asked for the block.
    at: Option<P>,
    /// It was taken from a slow peer once.
    rescued: bool,
    /// Peers with an [`Ask`] about it.
    asked: BTreeSet<P>,
    /// Peers that do not have it.
    refused: BTreeSet<P>,
}

impl<P: Peer> Request<P> {
    pub(super) fn new(cid: Cid, sequence: u64) -> Self {
        let (asked, refused) = (BTreeSet::new(), BTreeSet::new());
        Self { cid, sequence, readers: Vec::new(), at: None, rescued: false, asked, refused }
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn readers(&self) -> impl Iterator<Item = SessionId> {
        self.readers.iter().map(|(session, _)| *session)
    }

    pub(super) fn read_by(&mut self, session: SessionId, cid: Cid) {
        if !self.readers.contains(&(session, cid)) {
            self.readers.push((session, cid));
        }
    }

    /// No peer is asked for the block.
    pub(super) fn is_waiting(&self) -> bool {
        self.at.is_none()
    }

    /// The peer that is asked for the block, unless the request was rescued from one already.
    pub(super) fn rescuable(&self) -> Option<P> {
        self.at.filter(|_| !self.rescued)
    }

    pub(super) fn is_refused_by(&self, peer: &P) -> bool {
        self.refused.contains(peer)
    }

    pub(super) fn is_refused(&self) -> bool {
        !self.refused.is_empty()
    }
}

impl<P: Peer> Client<P> {
    /// Asks `peer` for the block; `estimate` bytes are expected.
    pub(super) fn ask_for_block(&mut self, peer: P, digest: Digest, estimate: usize, now: Instant) {
        let Some(request) = self.requests.get_mut(&digest) else { return };
        request.at = Some(peer);
        request.asked.insert(peer);
        for session in request.readers() {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.queue.remove(&request.sequence);
            }
        }
        for asked in &request.asked {
            if let Some(remote) = self.peers.get_mut(asked) {
                remote.offers.remove(&request.sequence);
            }
        }
        if let Some(remote) = self.peers.get_mut(&peer) {
            let had = remote.has_said_have(&digest);
            let state = State::Block { estimate, had };
            remote.want(digest, request.cid, Ask { sequence: request.sequence, at: now, state });
        }
    }

    /// Asks `peer` whether it has the block, unless it was asked before or has no room for questions.
    pub(super) fn ask_whether_there(&mut self, peer: P, digest: Digest, now: Instant) {
        let (Some(request), Some(remote)) = (self.requests.get_mut(&digest), self.peers.get_mut(&peer)) else { return };
        if remote.ask(&digest).is_none() && !request.refused.contains(&peer) && remote.has_room_for_question() {
            request.asked.insert(peer);
            let ask = Ask { sequence: request.sequence, at: now, state: State::Question };
            remote.want(digest, request.cid, ask);
        }
    }

    /// `peer` sent a block that somebody wants.
    pub(super) fn deliver(&mut self, peer: P, block: &Block, now: Instant) {
        let entry = block.digest().and_then(|digest| self.requests.remove_entry(&digest));
        let Some((digest, request)) = entry else { return };
        let bytes = block.bytes().len();
        let ask = self.peers.get(&peer).and_then(|remote| remote.ask(&digest));
        if let Some(remote) = self.peers.get_mut(&peer) {
            remote.offers.remove(&request.sequence);
            remote.sent(digest);
            remote.was_useful(ask, bytes, now);
        }
        self.forget(digest, &request);
        for (reader, cid) in request.readers {
            if let Some(session) = self.sessions.get_mut(&reader) {
                session.came(bytes);
                session.record_mut(peer).hit();
            }
            if let Ok(block) = block.clone().with_cid(cid) {
                self.news.push_back(Action::Deliver { session: reader, peer, block });
            }
        }
    }

    /// `peer` said `HAVE` or `DONT_HAVE`. Without a question it means nothing.
    pub(super) fn answered(&mut self, peer: P, digest: Digest, have: bool, now: Instant) {
        let (Some(request), Some(remote)) = (self.requests.get_mut(&digest), self.peers.get_mut(&peer)) else { return };
        let Some(ask) = remote.ask(&digest) else { return };
        match (ask.state, have) {
            (State::Question | State::Kept, true) => {
                remote.has(digest, ask);
                request.refused.remove(&peer);
                if request.is_waiting() {
                    remote.offers.insert(request.sequence, digest);
                }
            }
            (State::Question | State::Block { had: false, .. }, false) => {
                remote.keeps(digest, request.cid, ask);
                self.refuse(digest, peer);
            }
            // It said that it had the block: it is not believed a second time.
            (State::Has | State::Block { had: true, .. }, false) => {
                remote.take_back(digest, request.cid);
                request.asked.remove(&peer);
                self.refuse(digest, peer);
            }
            (State::Has | State::Block { .. }, true) | (State::Kept, false) => return,
        }
        if let Some(remote) = self.peers.get_mut(&peer) {
            remote.was_useful(Some(ask), 0, now);
        }
    }

    /// `peer` does not have the block, by its own word or because it passed over the want.
    fn refuse(&mut self, digest: Digest, peer: P) {
        let Some(request) = self.requests.get_mut(&digest) else { return };
        request.refused.insert(peer);
        for session in request.readers() {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.record_mut(peer).miss();
            }
        }
        if let Some(remote) = self.peers.get_mut(&peer) {
            remote.offers.remove(&request.sequence);
        }
        self.unassign(digest, peer);
    }

    /// The request waits for another peer if it was asked of `peer`, and may be without any now.
    fn unassign(&mut self, digest: Digest, peer: P) {
        self.doubtful.push(digest);
        self.unsettled = true;
        let Some(request) = self.requests.get_mut(&digest).filter(|request| request.at == Some(peer)) else { return };
        request.at = None;
        for session in request.readers() {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.enqueue(request.sequence, digest);
            }
        }
        for asked in &request.asked {
            if let Some(remote) = self.peers.get_mut(asked)
                && remote.has_said_have(&digest)
            {
                remote.offers.insert(request.sequence, digest);
            }
        }
    }

    /// `peer` is not asked for the block any more, and may be asked again.
    pub(super) fn lose(&mut self, digest: Digest, peer: P) {
        if let Some(request) = self.requests.get_mut(&digest) {
            request.asked.remove(&peer);
            request.refused.remove(&peer);
            self.unassign(digest, peer);
        }
    }

    /// As [`Self::lose`] for all that `peer` was asked. Requests that wait without having been asked may
    /// have hoped for this peer, too.
    pub(super) fn lose_all(&mut self, digests: Vec<Digest>, peer: P) {
        for digest in digests {
            self.lose(digest, peer);
        }
        for session in self.sessions.values_mut() {
            session.records.entry(peer).and_modify(|record| record.cursor = 0);
            self.doubtful.extend(session.queue.values());
        }
        self.unsettled = true;
    }

    /// A peer went silent: it is left alone, and all that it was asked is taken back.
    pub(super) fn give_up(&mut self, peer: P, now: Instant) {
        let digests = self.asks(peer, |_, _| true);
        let Some(remote) = self.peers.get_mut(&peer) else { return };
        remote.standing.was_silent(now);
        remote.offers.clear();
        for digest in &digests {
            self.take_back(*digest, peer);
        }
        self.lose_all(digests, peer);
        self.news.push_back(Action::Stalled { peer });
    }

    /// Takes back a block that `slow` was asked for `age` ago, once in a request's life.
    pub(super) fn rescue(&mut self, digest: Digest, slow: P, age: Duration, now: Instant) {
        self.take_back(digest, slow);
        if let Some(request) = self.requests.get_mut(&digest) {
            request.asked.remove(&slow);
            request.rescued = true;
        }
        self.unassign(digest, slow);
        if let Some(remote) = self.peers.get_mut(&slow) {
            remote.pace.late(age);
            remote.standing.was_late(now);
        }
    }

    /// Takes back what a peer passed over.
    pub(super) fn give_up_wants(&mut self, peer: P, now: Instant) {
        let Some(remote) = self.peers.get_mut(&peer) else { return };
        remote.standing.reviewed(now);
        let old: BTreeSet<Digest> = remote.passed_over().into_iter().collect();
        if old.is_empty() {
            return;
        }
        for digest in self.asks(peer, |digest, _| old.contains(digest)) {
            self.take_back(digest, peer);
            if let Some(request) = self.requests.get_mut(&digest) {
                request.asked.remove(&peer);
            }
            self.refuse(digest, peer);
        }
    }

    fn take_back(&mut self, digest: Digest, peer: P) {
        if let (Some(request), Some(remote)) = (self.requests.get(&digest), self.peers.get_mut(&peer)) {
            remote.take_back(digest, request.cid);
        }
    }

    /// A reader's wants of this block, those whose CID is `meant`, are over.
    pub(super) fn leave(&mut self, digest: Digest, reader: SessionId, meant: impl Fn(&Cid) -> bool) {
        let Some(request) = self.requests.get_mut(&digest) else { return };
        request.readers.retain(|(session, cid)| *session != reader || !meant(cid));
        if !request.readers().any(|session| session == reader)
            && let Some(session) = self.sessions.get_mut(&reader)
        {
            session.wants.remove(&digest);
            session.queue.remove(&request.sequence);
        }
        self.doubtful.push(digest);
        self.unsettled = true;
        if request.readers.is_empty()
            && let Some(request) = self.requests.remove(&digest)
        {
            self.forget(digest, &request);
        }
    }

    /// Ends a request that no candidate is left for.
    pub(super) fn end_if_hopeless(&mut self, digest: Digest, now: Instant) {
        if self.requests.get(&digest).is_some_and(|request| !request.is_waiting() || self.has_hope(request, now)) {
            return;
        }
        if let Some(request) = self.requests.remove(&digest) {
            self.forget(digest, &request);
            let missing = |(session, cid)| Action::Missing { session, cid };
            self.news.extend(request.readers.into_iter().map(missing));
        }
    }

    /// Whether some candidate may have the block.
    fn has_hope(&self, request: &Request<P>, now: Instant) -> bool {
        let mut sessions = request.readers().filter_map(|session| self.sessions.get(&session));
        sessions.any(|session| self.candidates(session, now).any(|peer| !request.is_refused_by(&peer)))
    }

    /// Takes an ended request out of sessions and peers.
    fn forget(&mut self, digest: Digest, request: &Request<P>) {
        for session in request.readers() {
            if let Some(session) = self.sessions.get_mut(&session) {
                session.wants.remove(&digest);
                session.queue.remove(&request.sequence);
            }
        }
        for peer in &request.asked {
            if let Some(remote) = self.peers.get_mut(peer) {
                remote.offers.remove(&request.sequence);
                remote.take_back(digest, request.cid);
            }
        }
    }

    /// What `peer` was asked, oldest request first.
    pub(super) fn asks(&self, peer: P, which: impl Fn(&Digest, &Ask) -> bool) -> Vec<Digest> {
        let asks = self.peers.get(&peer).into_iter().flat_map(Remote::asks);
        let meant = asks.filter(|(digest, ask)| which(digest, ask)).map(|(digest, _)| *digest);
        let mut digests: Vec<Digest> = meant.collect();
        digests.sort_unstable_by_key(|digest| self.requests.get(digest).map(Request::sequence));
        digests
    }
}
