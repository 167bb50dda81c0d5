use super::remote::{Ask, MAX_LIVE, State};
use super::*;

impl<P: Peer> Client<P> {
    /// What always holds between the parts.
    pub(in crate::bitswap) fn check(&self) {
        for (digest, request) in &self.requests {
            assert!(request.readers().next().is_some(), "a request without readers: {request:?}");
            let asks = |(peer, remote): (&P, &Remote)| {
                matches!(remote.ask(digest), Some(Ask { state: State::Block { .. }, .. })).then_some(*peer)
            };
            let at: Vec<P> = self.peers.iter().filter_map(asks).collect();
            assert!(at.len() <= 1 && at.is_empty() == request.is_waiting(), "asked of {at:?}: {request:?}");
        }
        for (id, session) in &self.sessions {
            for digest in &session.wants {
                assert!(self.requests[digest].readers().any(|reader| reader == *id));
            }
            for (sequence, digest) in &session.queue {
                assert!(session.wants.contains(digest));
                assert!(self.requests[digest].is_waiting() && self.requests[digest].sequence() == *sequence);
            }
            let waiting = session.wants.iter().filter(|digest| self.requests[*digest].is_waiting()).count();
            assert_eq!(session.queue.len(), waiting);
        }
        for remote in self.peers.values() {
            assert!(remote.live() <= MAX_LIVE);
            assert!(remote.asks().all(|(digest, _)| self.requests.contains_key(digest)), "an ask without a request");
            let due = remote.asks().filter(|(_, ask)| ask.is_due()).count();
            let kept = remote.asks().filter(|(_, ask)| ask.state == State::Kept).count();
            assert_eq!(remote.live(), due + kept);
            let offers =
                |(_, digest): (&u64, &Digest)| self.requests.contains_key(digest) && remote.has_said_have(digest);
            assert!(remote.offers.iter().all(offers), "an offer without a word of it");
            assert_eq!(remote.next_wake().is_some(), due > 0, "a clock runs while an answer is due");
        }
    }

    /// Requests that are not over.
    pub(in crate::bitswap) fn open_requests(&self) -> usize {
        self.requests.len()
    }
}
