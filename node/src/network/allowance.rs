//! How many dials strangers may cause.
//!
//! Whoever writes into a DHT, answers as a router or is on the local network can name addresses that are not his, and
//! many of them: without a bound, a few lies would make this node knock at a victim's door as fast as it can. So each
//! address that is dialled because a stranger named it costs a token. When there are none, such a dial is not made:
//! a search finds fewer peers, a walk through a table passes over a node. Tokens come back evenly. What the user named
//! costs nothing.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::time::{Duration, Instant};

/// Addresses that are dialled, or remembered, of all that are named for one peer.
pub(super) const MAX_ADDRS: usize = 4;

/// So many at once, and so many a minute in the long run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) burst: u32,
    pub(super) a_minute: u32,
}

/// For peers that searches come upon: two searches' worth at once, so that one which is led astray leaves something for
/// the next, and afterwards four whole searches a minute. Who was found and is any good stays connected.
pub(super) const FOUND: Rate = Rate { burst: 64, a_minute: 128 };
/// For nodes that a table names. A walk dials some forty nodes at two or three addresses each, and the announcer makes
/// eight walks at once, of half a minute or so: that many fit, and hardly more.
pub(super) const NODES: Rate = Rate { burst: 1024, a_minute: 2400 };

/// The tokens that are there.
#[derive(Debug)]
pub(super) struct Allowance {
    burst: u32,
    /// After which a token comes back.
    pause: Duration,
    /// From then on it is full. Each token that is taken moves it on by a pause.
    full_at: Option<Instant>,
    /// That it is spent is in the log.
    named: bool,
}

impl Allowance {
    /// A full one.
    pub(super) fn new(rate: Rate) -> Self {
        Self { burst: rate.burst, pause: Duration::from_secs(60) / rate.a_minute, full_at: None, named: false }
    }

    /// Takes `count` tokens, all or none. Whether they were there.
    pub(super) fn take(&mut self, count: usize, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let then = full_at.checked_add(self.pause.saturating_mul(count));
        match then.filter(|then| *then - now <= self.pause * self.burst) {
            Some(then) => {
                self.full_at = Some(then);
                true
            }
            None => {
                if !std::mem::replace(&mut self.named, true) {
                    tracing::debug!("strangers name more addresses than are dialled for them");
                }
                false
            }
        }
    }
}

/// Of the addresses that are named for one peer, those that are dialled: each once, the ones that surely can be first.
pub(super) fn few(mut addrs: Vec<Multiaddr>) -> Vec<Multiaddr> {
    addrs.sort_by_key(|addr| !is_plain_tcp(addr));
    let mut few = Vec::with_capacity(MAX_ADDRS);
    for addr in addrs {
        if few.len() < MAX_ADDRS && !few.contains(&addr) {
            few.push(addr);
        }
    }
    few
}

fn is_plain_tcp(addr: &Multiaddr) -> bool {
    let mut rest = addr.iter().skip(1);
    let (first, second) = (rest.next(), rest.next());
    // What follows a peer is the way on from it: a relay.
    matches!((first, second), (Some(Protocol::Tcp(_)), None | Some(Protocol::P2p(_)))) && rest.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_addresses_a_few_are_dialled_those_of_plain_tcp_first() {
        let addr = |text: &str| -> Multiaddr { text.parse().unwrap() };
        let host = "/ip4/10.0.0.1";
        let quic = addr(&format!("{host}/udp/1/quic-v1"));
        let relay = addr(&format!("{host}/tcp/1/p2p/{}/p2p-circuit", libp2p::PeerId::random()));
        let tcp = addr(&format!("{host}/tcp/1"));
        let named = [&quic, &quic, &relay, &tcp, &tcp].map(Clone::clone).to_vec();
        assert_eq!(few(named), [tcp, quic, relay]);
        assert_eq!(few((1..100).map(|port| addr(&format!("/ip4/10.0.0.1/tcp/{port}"))).collect()).len(), MAX_ADDRS);
    }

    #[test]
    fn a_burst_is_there_at_once_and_comes_back_over_time() {
        let now = Instant::now();
        let mut allowance = Allowance::new(Rate { burst: 10, a_minute: 60 });
        assert_eq!((0..100).filter(|_| allowance.take(1, now)).count(), 10);
        assert!(!allowance.take(1, now + Duration::from_millis(999)));
        assert!(allowance.take(1, now + Duration::from_secs(1)));
        assert!(!allowance.take(1, now + Duration::from_secs(1)));
        // However long nobody takes any, there are no more than a burst.
        let later = now + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| allowance.take(1, later)).count(), 10);
    }

    #[test]
    fn tokens_are_taken_together_or_not_at_all() {
        let now = Instant::now();
        let mut allowance = Allowance::new(Rate { burst: 10, a_minute: 60 });
        assert!(allowance.take(8, now));
        assert!(!allowance.take(3, now));
        assert!(!allowance.take(usize::MAX, now));
        assert!(allowance.take(2, now));
        assert!(allowance.take(0, now), "nothing costs nothing");
    }

    #[test]
    fn in_the_long_run_no_more_are_taken_than_come_back() {
        let now = Instant::now();
        let mut allowance = Allowance::new(Rate { burst: 32, a_minute: 60 });
        let asked = (0..600_000).filter(|ms| allowance.take(1, now + Duration::from_millis(*ms)));
        assert_eq!(asked.count(), 32 + 599);
    }
}
