//! Which part of the world an address is good for.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A part of the world. No address belongs to both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// This machine and the networks that it is in: addresses that mean something else elsewhere.
    Lan,
    /// Everywhere.
    World,
}

impl Scope {
    /// Both, in the order in which they are asked.
    pub(crate) const ALL: [Self; 2] = [Self::Lan, Self::World];

    /// Whether the address belongs there. One that starts with a name belongs nowhere: a name can mean anything.
    pub(crate) fn contains(self, addr: &Multiaddr) -> bool {
        let (local, global) = match addr.iter().next() {
            Some(Protocol::Ip4(ip)) => (is_local4(ip), is_global4(ip)),
            Some(Protocol::Ip6(ip)) => match ip.to_ipv4_mapped() {
                Some(ip) => (is_local4(ip), is_global4(ip)),
                None => (is_local6(ip), is_global6(ip)),
            },
            _ => (false, false),
        };
        match self {
            Self::Lan => local,
            Self::World => global,
        }
    }
}

fn is_local4(ip: Ipv4Addr) -> bool {
    ip.is_private() || ip.is_loopback() || ip.is_link_local()
}

/// Ranges of the IANA registry of special-purpose addresses are not global.
fn is_global4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let carrier_nat = a == 100 && b & 0xc0 == 64;
    let benchmarks = a == 198 && b & 0xfe == 18;
    let protocols = (a, b, c) == (192, 0, 0);
    let none = a == 0 || a >= 224;
    !is_local4(ip) && !ip.is_documentation() && !carrier_nat && !benchmarks && !protocols && !none
}

fn is_local6(ip: Ipv6Addr) -> bool {
    ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
}

/// Global unicast is 2000::/3; 2001:db8::/32 and 3fff::/20 are for documentation.
fn is_global6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    a & 0xe000 == 0x2000 && (a, b) != (0x2001, 0xdb8) && !(a == 0x3fff && b < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_good_for_two_scopes_and_some_are_for_none() {
        let cases = [
            ("/ip4/127.0.0.1/tcp/1", Some(Scope::Lan)),
            ("/ip4/10.1.2.3/tcp/1", Some(Scope::Lan)),
            ("/ip4/172.31.0.1/tcp/1", Some(Scope::Lan)),
            ("/ip4/192.168.0.1/udp/1/quic-v1", Some(Scope::Lan)),
            ("/ip4/169.254.169.254/tcp/80", Some(Scope::Lan)),
            ("/ip6/::1/tcp/1", Some(Scope::Lan)),
            ("/ip6/fd00::1/tcp/1", Some(Scope::Lan)),
            ("/ip6/fe80::1/tcp/1", Some(Scope::Lan)),
            ("/ip6/::ffff:10.0.0.1/tcp/1", Some(Scope::Lan)),
            ("/ip4/8.8.8.8/tcp/1", Some(Scope::World)),
            ("/ip4/172.32.0.1/tcp/1", Some(Scope::World)),
            ("/ip6/2606:4700::1111/tcp/1", Some(Scope::World)),
            ("/ip6/::ffff:8.8.8.8/tcp/1", Some(Scope::World)),
            ("/ip4/0.0.0.0/tcp/1", None),
            ("/ip4/100.64.0.1/tcp/1", None),
            ("/ip4/192.0.2.1/tcp/1", None),
            ("/ip4/198.18.0.1/tcp/1", None),
            ("/ip4/224.0.0.251/udp/5353", None),
            ("/ip4/255.255.255.255/tcp/1", None),
            ("/ip6/::/tcp/1", None),
            ("/ip6/2001:db8::1/tcp/1", None),
            ("/ip6/ff02::fb/udp/5353", None),
            ("/dns4/localhost/tcp/1", None),
            ("/memory/1", None),
        ];
        for (text, scope) in cases {
            let addr = text.parse().unwrap();
            for each in Scope::ALL {
                assert_eq!(each.contains(&addr), scope == Some(each), "{text} {each:?}");
            }
        }
    }
}
