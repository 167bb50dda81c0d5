//! Whom to ask next: the split of the waiting requests over the peers.

use super::remote::Ask;
use super::session::Session;
use super::{Client, SessionId};
use crate::bitswap::Peer;
use crate::block::Digest;
use std::ops::Bound;
use std::time::Instant;

/// One session's part in a round of turns.
struct Turn<P> {
    session: SessionId,
    /// Candidates that may be asked, in the session's order.
    candidates: Vec<P>,
    /// Those that get a want-block without a question.
    trusted: Vec<P>,
    /// Nobody has proven anything: the one trusted peer is a guess.
    guess: bool,
    /// Requests before this sequence cannot be assigned now.
    from: u64,
}

impl<P: Peer> Client<P> {
    /// Asks for all that may be asked for now.
    pub(super) fn assign(&mut self, now: Instant) {
        for digest in std::mem::take(&mut self.doubtful) {
            self.end_if_hopeless(digest, now);
        }
        self.take_offers(now);
        let mut turns = self.turns(now);
        while !turns.is_empty() {
            turns.retain_mut(|turn| self.take_turn(turn, now));
        }
        self.ask_around(now);
    }

    /// Asks peers for what they said they have.
    fn take_offers(&mut self, now: Instant) {
        let peers: Vec<P> =
            self.peers.iter().filter(|(_, remote)| remote.is_live(now)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            while let Some((digest, estimate)) = self.next_offer(peer) {
                self.ask_for_block(peer, digest, estimate, now);
            }
        }
    }

    fn next_offer(&mut self, peer: P) -> Option<(Digest, usize)> {
        let remote = self.peers.get_mut(&peer)?;
        while let Some((sequence, digest)) = remote.offers.first_key_value().map(|(s, d)| (*s, *d)) {
            let request = self.requests.get(&digest).filter(|request| request.is_waiting());
            let Some(request) = request.filter(|_| remote.ask(&digest) == Some(Ask::Has)) else {
                remote.offers.remove(&sequence);
                continue;
            };
            let session = request.readers().find_map(|session| self.sessions.get(&session))?;
            if !remote.has_room(session.block_size()) {
                remote.pace.window_is_full();
                return None;
            }
            return Some((digest, session.block_size()));
        }
        None
    }

    /// The sessions that wait for something, beginning after the one that came first last time.
    fn turns(&mut self, now: Instant) -> Vec<Turn<P>> {
        let after = self.sessions.range((Bound::Excluded(self.turn), Bound::Unbounded));
        let waiting = after.chain(self.sessions.range(..=self.turn)).filter(|(_, session)| !session.queue.is_empty());
        let turns: Vec<Turn<P>> = waiting.map(|(id, session)| self.turn_of(*id, session, now)).collect();
        self.turn = turns.first().map_or(self.turn, |turn| turn.session);
        turns
    }

    /// The peers that a session may ask now, in its order.
    pub(super) fn candidates(&self, session: &Session<P>, now: Instant) -> impl Iterator<Item = P> {
        let all = session.is_open().then_some(&self.peers).into_iter().flatten();
        let listed = session.listed().iter().filter_map(|peer| self.peers.get_key_value(peer));
        all.chain(listed).filter(move |(_, remote)| remote.is_live(now)).map(|(peer, _)| *peer)
    }

    fn turn_of(&self, id: SessionId, session: &Session<P>, now: Instant) -> Turn<P> {
        let candidates: Vec<P> = self.candidates(session, now).collect();
        let proven = candidates.iter().copied().filter(|peer| session.record(peer).is_proven());
        let mut trusted: Vec<P> = if candidates.len() == 1 { candidates.clone() } else { proven.collect() };
        let guess = trusted.is_empty();
        if guess {
            let unknown = candidates.iter().copied().filter(|peer| session.record(peer).is_unknown());
            trusted.extend(unknown.min_by_key(|peer| self.peers.get(peer).map(|remote| remote.expected(0))));
        }
        Turn { session: id, candidates, trusted, guess, from: 0 }
    }

    /// Assigns one request of a session. False when the session can have no more now.
    fn take_turn(&mut self, turn: &mut Turn<P>, now: Instant) -> bool {
        let Some(session) = self.sessions.get(&turn.session) else { return false };
        let estimate = session.block_size();
        let free = turn.trusted.iter().filter(|peer| self.peers.get(peer).is_some_and(|r| r.has_room(estimate)));
        let free: Vec<P> = free.copied().collect();
        if free.is_empty() {
            for peer in turn.trusted.iter().filter(|_| !session.queue.is_empty()) {
                self.peers.entry(*peer).and_modify(|remote| remote.pace.window_is_full());
            }
            return false;
        }
        for (sequence, digest) in session.queue.range(turn.from..) {
            turn.from = *sequence + 1;
            let Some(request) = self.requests.get(digest) else { continue };
            // A guess that failed is not followed by guesses at other peers, one round trip each: all are asked.
            if turn.guess && request.is_refused() {
                continue;
            }
            let able = free.iter().copied().filter(|peer| !request.is_refused_by(peer));
            let soonest = able.min_by_key(|peer| self.peers.get(peer).map(|remote| remote.expected(estimate)));
            let (Some(peer), digest) = (soonest, *digest) else { continue };
            self.ask_for_block(peer, digest, estimate, now);
            if turn.guess {
                for other in &turn.candidates {
                    self.ask_whether_there(*other, digest, now);
                }
            }
            return true;
        }
        false
    }

    /// Asks the candidates that have not proven themselves whether they have what waits.
    fn ask_around(&mut self, now: Instant) {
        let waiting = self.sessions.iter().filter(|(_, session)| !session.queue.is_empty());
        let turns: Vec<Turn<P>> = waiting.map(|(id, session)| self.turn_of(*id, session, now)).collect();
        for turn in turns.iter().filter(|turn| turn.candidates.len() > 1) {
            for peer in turn.candidates.iter().filter(|peer| turn.guess || !turn.trusted.contains(peer)) {
                while let Some(digest) = self.next_question(turn.session, *peer) {
                    self.ask_whether_there(*peer, digest, now);
                }
            }
        }
    }

    /// The next waiting request of a session to ask `peer` about. Those before the peer's cursor it was
    /// asked about, or has refused.
    fn next_question(&mut self, session: SessionId, peer: P) -> Option<Digest> {
        let remote = self.peers.get(&peer).filter(|remote| remote.has_room_for_question())?;
        let session = self.sessions.get_mut(&session)?;
        let mut cursor = session.record(&peer).cursor;
        let question = session.queue.range(cursor..).find_map(|(sequence, digest)| {
            cursor = *sequence + 1;
            let request = self.requests.get(digest)?;
            (remote.ask(digest).is_none() && !request.is_refused_by(&peer)).then_some(*digest)
        });
        session.record_mut(peer).cursor = cursor;
        question
    }
}
