//! Which part of the world an address is good for.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A part of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// This machine and the networks that it is in: addresses that mean something else elsewhere.
    Lan,
}

impl Scope {
    /// Whether the address belongs there. An address that starts with a name belongs nowhere.
    pub(super) fn contains(self, addr: &Multiaddr) -> bool {
        let local = match addr.iter().next() {
            Some(Protocol::Ip4(ip)) => is_local4(ip),
            Some(Protocol::Ip6(ip)) => ip.to_ipv4_mapped().map_or_else(|| is_local6(ip), is_local4),
            _ => return false,
        };
        match self {
            Self::Lan => local,
        }
    }
}

fn is_local4(ip: Ipv4Addr) -> bool {
    ip.is_private() || ip.is_loopback() || ip.is_link_local()
}

fn is_local6(ip: Ipv6Addr) -> bool {
    ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
}
