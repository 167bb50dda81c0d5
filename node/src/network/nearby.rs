//! Peers that showed themselves on the local network: a bounded book. They are dialled when somebody
//! looks for a block that no known peer has, not before.
//!
//! Whoever is on the local network can write here, so nothing is believed but that it may be worth a
//! dial: only addresses of the local network are kept, few of them, of few peers.

use crate::scope::Scope;
use libp2p::{Multiaddr, PeerId};
use std::collections::VecDeque;

/// Peers that are remembered; the oldest goes first.
const MAX_PEERS: usize = 64;
/// Addresses of one peer.
const MAX_ADDRS: usize = 4;

/// The book.
#[derive(Debug, Default)]
pub(super) struct Nearby {
    /// Oldest first.
    peers: VecDeque<(PeerId, Vec<Multiaddr>)>,
}

impl Nearby {
    /// A peer says that it can be reached there.
    pub(super) fn discovered(&mut self, peer: PeerId, addr: Multiaddr) {
        if !Scope::Lan.contains(&addr) {
            return;
        }
        match self.peers.iter_mut().find(|(known, _)| *known == peer) {
            Some((_, addrs)) if addrs.len() < MAX_ADDRS && !addrs.contains(&addr) => addrs.push(addr),
            Some(_) => {}
            None => {
                if self.peers.len() == MAX_PEERS {
                    self.peers.pop_front();
                }
                self.peers.push_back((peer, vec![addr]));
            }
        }
    }

    /// It has not said so for too long.
    pub(super) fn expired(&mut self, peer: &PeerId, addr: &Multiaddr) {
        self.peers.retain_mut(|(known, addrs)| {
            if known == peer {
                addrs.retain(|known| known != addr);
            }
            !addrs.is_empty()
        });
    }

    /// The peers, the newest first, each with at least one address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &[Multiaddr])> {
        self.peers.iter().rev().map(|(peer, addrs)| (*peer, addrs.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_is_known_until_its_last_address_expires() {
        let (mut nearby, peer) = (Nearby::default(), PeerId::random());
        let (one, two) = (addr("/ip4/192.168.1.2/tcp/4001"), addr("/ip6/fe80::2/tcp/4001"));
        nearby.discovered(peer, one.clone());
        nearby.discovered(peer, two.clone());
        nearby.discovered(peer, one.clone());
        assert_eq!(nearby.iter().collect::<Vec<_>>(), [(peer, [one.clone(), two.clone()].as_slice())]);
        nearby.expired(&peer, &one);
        assert_eq!(nearby.iter().collect::<Vec<_>>(), [(peer, [two.clone()].as_slice())]);
        nearby.expired(&peer, &two);
        nearby.expired(&peer, &two);
        assert_eq!(nearby.iter().count(), 0);
    }

    #[test]
    fn nobody_on_the_local_network_makes_us_dial_the_world() {
        let mut nearby = Nearby::default();
        for bait in ["/ip4/198.51.100.7/tcp/25", "/dns4/victim.example.org/tcp/443", "/ip6/2001:db8::1/tcp/1"] {
            nearby.discovered(PeerId::random(), addr(bait));
        }
        assert_eq!(nearby.iter().count(), 0);
    }

    #[test]
    fn the_book_is_bounded_and_forgets_the_oldest() {
        let mut nearby = Nearby::default();
        let newest = PeerId::random();
        for number in 0..1000 {
            nearby.discovered(PeerId::random(), addr(&format!("/ip4/10.0.0.1/tcp/{number}")));
        }
        for number in 0..1000 {
            nearby.discovered(newest, addr(&format!("/ip4/10.0.0.1/tcp/{number}")));
        }
        assert_eq!(nearby.iter().count(), MAX_PEERS);
        let (first, addrs) = nearby.iter().next().unwrap();
        assert_eq!((first, addrs.len()), (newest, MAX_ADDRS));
    }
}
