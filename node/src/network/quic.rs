//! QUIC, the second choice: TCP is dialled first, and a peer that can be reached over both is left with TCP alone.
//!
//! It costs more of the processor here, and Kubo up to 0.22 loses what it sends to us over it: it writes and
//! closes a stream whose protocol it has not waited to agree on, and tells us to stop, so that the stream is gone
//! before it can be read (multiformats/go-multistream#115). All that shows here is silence. So a peer that does
//! not answer within [`PATIENCE`] over QUIC is dialled over TCP, where the user named it or, on the same
//! host, where it says that it listens.
//!
//! Without the feature `quic` the transport knows no such address, and none of this happens.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::time::Duration;

/// How long a peer that is connected over QUIC alone may leave wants unanswered: much less than it has before
/// it counts as silent.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How long wants that were lost with a QUIC connection wait before they go out over TCP: Kubo would answer them over the
/// connection that it does not know to be closed yet.
pub(super) const SETTLE: Duration = Duration::from_millis(200);
/// Addresses of a peer on one host that are dialled.
const MAX_ADDRESSES: usize = 4;

/// Whether the address is one of QUIC's.
pub(super) fn is_quic(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::QuicV1)
}

/// Of the addresses that a peer says it listens on, those of plain TCP on the host at `remote`.
pub(super) fn tcp_beside(remote: &Multiaddr, listens: &[Multiaddr]) -> Vec<Multiaddr> {
    let host = remote.iter().next();
    let beside = listens.iter().filter(|addr| {
        let mut parts = addr.iter();
        parts.next() == host
            && matches!(parts.next(), Some(Protocol::Tcp(_)))
            && matches!(parts.next(), None | Some(Protocol::P2p(_)))
    });
    beside.take(MAX_ADDRESSES).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_tcp_on_the_same_host_is_beside() {
        let remote = "/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap();
        assert!(is_quic(&remote));
        let listens = [
            "/ip4/192.0.2.1/tcp/4001",
            "/ip4/192.0.2.2/tcp/4001",
            "/ip4/192.0.2.1/udp/4001/quic-v1",
            "/ip4/192.0.2.1/tcp/4002/ws",
            "/ip6/::1/tcp/4001",
        ];
        let listens = listens.map(|addr| addr.parse().unwrap());
        assert_eq!(tcp_beside(&remote, &listens), listens[..1]);
        let many: Vec<_> = (1..100).map(|port| format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()).collect();
        assert_eq!(tcp_beside(&remote, &many).len(), MAX_ADDRESSES);
    }
}
