//! Peers whose addresses the user gave us: whom to redial, and when.
//!
//! A peer is redialled while it is *kept*, or while a session names it. The pause before a redial
//! grows from [`FIRST_PAUSE`] to [`LAST_PAUSE`] and starts again once a connection has lived for
//! [`SETTLED`]: a peer that takes and drops us in a loop is not hammered.

use libp2p::{Multiaddr, PeerId};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

/// Peers that are remembered; the user names no more in one run of a sane script.
const MAX_PEERS: usize = 1024;
/// Addresses of one peer, newest first.
const MAX_ADDRS: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// How long a connection lives that was a good one.
const SETTLED: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Peer {
    addrs: Vec<Multiaddr>,
    keep: bool,
    state: State,
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connected {
        since: Instant,
    },
    Dialling,
    /// Not connected; to be dialled then, if anyone wants it.
    Away {
        until: Instant,
    },
}

/// The known peers.
#[derive(Debug, Default)]
pub(super) struct Known {
    peers: HashMap<PeerId, Peer>,
    /// How many open sessions name a peer, known or not.
    sessions: HashMap<PeerId, usize>,
}

impl Known {
    /// Remembers an address, as the first to try.
    pub(super) fn add(&mut self, peer: PeerId, addr: Multiaddr, keep: bool, now: Instant) {
        if !self.peers.contains_key(&peer) && self.peers.len() >= MAX_PEERS {
            self.peers.retain(|peer, known| known.keep || self.sessions.contains_key(peer));
            if self.peers.len() >= MAX_PEERS {
                return;
            }
        }
        let known = self.peers.entry(peer).or_insert_with(|| Peer {
            addrs: Vec::new(),
            keep: false,
            state: State::Away { until: now },
            pause: FIRST_PAUSE,
        });
        known.keep |= keep;
        known.addrs.retain(|old| *old != addr);
        known.addrs.insert(0, addr);
        known.addrs.truncate(MAX_ADDRS);
    }

    /// The peer's addresses, newest first.
    pub(super) fn addrs(&self, peer: &PeerId) -> &[Multiaddr] {
        self.peers.get(peer).map_or(&[], |known| &known.addrs)
    }

    /// A session names the peer from now on.
    pub(super) fn session_opened(&mut self, peer: PeerId) {
        *self.sessions.entry(peer).or_default() += 1;
    }

    /// A session that named the peer has closed.
    pub(super) fn session_closed(&mut self, peer: PeerId) {
        if let Entry::Occupied(mut sessions) = self.sessions.entry(peer) {
            *sessions.get_mut() -= 1;
            if *sessions.get() == 0 {
                sessions.remove();
            }
        }
    }

    /// Whether the peer is kept or in use: its connection shall outlive its idleness, and be redialled.
    pub(super) fn is_wanted(&self, peer: &PeerId) -> bool {
        self.sessions.contains_key(peer) || self.peers.get(peer).is_some_and(|known| known.keep)
    }

    pub(super) fn dialling(&mut self, peer: &PeerId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.state = State::Dialling;
        }
    }

    pub(super) fn connected(&mut self, peer: &PeerId, now: Instant) {
        if let Some(known) = self.peers.get_mut(peer).filter(|known| !matches!(known.state, State::Connected { .. })) {
            known.state = State::Connected { since: now };
        }
    }

    /// A dial failed, or the last connection closed.
    pub(super) fn away(&mut self, peer: &PeerId, now: Instant) {
        if let Some(known) = self.peers.get_mut(peer) {
            if matches!(known.state, State::Connected { since } if now.saturating_duration_since(since) >= SETTLED) {
                known.pause = FIRST_PAUSE;
            }
            known.state = State::Away { until: now + known.pause };
            known.pause = (known.pause * 2).min(LAST_PAUSE);
        }
    }

    /// When [`Self::due`] will have something; `None`: not without another event.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting().map(|(until, _, _)| until).min()
    }

    /// The peers to dial now, with their addresses.
    pub(super) fn due(&self, now: Instant) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let due = self.waiting().filter(|(until, _, _)| *until <= now);
        due.map(|(_, peer, known)| (*peer, known.addrs.clone())).collect()
    }

    fn waiting(&self) -> impl Iterator<Item = (Instant, &PeerId, &Peer)> {
        self.peers.iter().filter_map(|(peer, known)| match known.state {
            State::Away { until } if self.is_wanted(peer) => Some((until, peer, known)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn only_wanted_peers_are_redialled() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut known = Known::default();
        known.add(peer, addr(1), false, now);
        assert_eq!(known.next_due(), None);
        known.session_opened(peer);
        known.session_opened(peer);
        assert_eq!(known.due(now), [(peer, vec![addr(1)])]);
        known.session_closed(peer);
        assert!(known.is_wanted(&peer));
        known.session_closed(peer);
        assert!(!known.is_wanted(&peer));
        assert_eq!(known.due(now), []);
        known.add(peer, addr(2), true, now);
        assert_eq!(known.due(now), [(peer, vec![addr(2), addr(1)])]);
    }

    #[test]
    fn pauses_grow_until_a_connection_has_settled() {
        let (peer, mut now) = (PeerId::random(), Instant::now());
        let mut known = Known::default();
        known.add(peer, addr(1), true, now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            known.dialling(&peer);
            assert_eq!(known.next_due(), None);
            known.away(&peer, now);
            let due = known.next_due().unwrap();
            assert_eq!(known.due(due - Duration::from_millis(1)), []);
            pauses.push(due - now);
            now = due;
        }
        assert_eq!(pauses[..3], [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]);
        assert_eq!(pauses[11], LAST_PAUSE);
        known.connected(&peer, now);
        known.away(&peer, now + SETTLED / 2);
        assert_eq!(known.next_due(), Some(now + SETTLED / 2 + LAST_PAUSE));
        known.connected(&peer, now);
        known.connected(&peer, now + SETTLED);
        known.away(&peer, now + SETTLED);
        assert_eq!(known.next_due(), Some(now + SETTLED + FIRST_PAUSE));
    }

    #[test]
    fn the_book_is_bounded_and_forgets_the_unwanted_first() {
        let now = Instant::now();
        let mut known = Known::default();
        let kept = PeerId::random();
        known.add(kept, addr(1), true, now);
        for port in 0..3000 {
            known.add(PeerId::random(), addr(port), false, now);
            known.add(kept, addr(port), false, now);
        }
        assert!(known.peers.len() <= MAX_PEERS);
        assert_eq!(known.peers[&kept].addrs.len(), MAX_ADDRS);
    }
}
