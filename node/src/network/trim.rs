//! Which peers to leave when there are too many.
//!
//! Above [`HIGH_WATER`] connected peers the idle ones are disconnected, the longest idle first, until
//! [`LOW_WATER`] are left. Never one that is wanted (kept, or named by a session), and never one that
//! exchanged a message, or connected, within the grace ([`GRACE`]): what we ask of a peer, and what it asks of us,
//! is answered or given up sooner. When all are busy, nobody goes: the hard limits of `swarm` hold alone.

use libp2p::PeerId;
use std::time::{Duration, Instant};

/// Connected peers above which idle ones are disconnected.
pub(super) const HIGH_WATER: usize = 96;
/// How many are left then.
pub(super) const LOW_WATER: usize = 32;
/// Who was busy so lately is not idle, unless the configuration says otherwise.
pub(super) const GRACE: Duration = Duration::from_secs(20);

/// The peers to disconnect. `peers` are all that are connected: since when each is idle (`None`: it is busy now), and
/// whether it is wanted.
pub(super) fn surplus(
    peers: impl Iterator<Item = (PeerId, Option<Instant>, bool)>,
    grace: Duration,
    now: Instant,
) -> Vec<PeerId> {
    let mut connected = 0;
    let mut idle: Vec<(Instant, PeerId)> = Vec::new();
    for (peer, since, wanted) in peers {
        connected += 1;
        let since = since.filter(|since| !wanted && now.saturating_duration_since(*since) >= grace);
        idle.extend(since.map(|since| (since, peer)));
    }
    if connected <= HIGH_WATER {
        return Vec::new();
    }
    idle.sort();
    idle.into_iter().take(connected - LOW_WATER).map(|(_, peer)| peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` peers; the first has been idle longest, the last for `GRACE` and a second.
    fn idle(count: u64, now: Instant) -> Vec<(PeerId, Option<Instant>, bool)> {
        let since = |number| Some(now - GRACE - Duration::from_secs(count - number));
        (0..count).map(|number| (PeerId::random(), since(number), false)).collect()
    }

    #[test]
    fn up_to_the_high_water_mark_everybody_stays() {
        let now = Instant::now();
        assert_eq!(surplus(idle(96, now).into_iter(), GRACE, now), []);
    }

    #[test]
    fn above_it_the_longest_idle_go_until_the_low_water_mark() {
        let now = Instant::now();
        let peers = idle(97, now);
        let gone = surplus(peers.clone().into_iter().rev(), GRACE, now);
        let longest: Vec<PeerId> = peers[..65].iter().map(|(peer, _, _)| *peer).collect();
        assert_eq!(gone, longest);
    }

    #[test]
    fn the_wanted_the_busy_and_the_fresh_stay() {
        let now = Instant::now();
        let mut peers = idle(200, now);
        peers[..50].iter_mut().for_each(|(_, _, wanted)| *wanted = true);
        peers[50..100].iter_mut().for_each(|(_, since, _)| *since = None);
        peers[100..150].iter_mut().for_each(|(_, since, _)| *since = Some(now - GRACE / 2));
        let gone = surplus(peers.clone().into_iter(), GRACE, now);
        let rest: Vec<PeerId> = peers[150..].iter().map(|(peer, _, _)| *peer).collect();
        assert_eq!(gone, rest);
        peers.truncate(150);
        assert_eq!(surplus(peers.into_iter(), GRACE, now), []);
    }
}
