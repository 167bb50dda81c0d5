//! Names in addresses: `/dns`, `/dns4` and `/dns6` through the resolver of the system, so that
//! `/etc/hosts` and the rest of it count; `/dnsaddr` as its module says. Names are looked up anew for every dial.

mod dnsaddr;

use futures::future::join_all;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// How long a lookup may take; two follow each other for a `/dnsaddr` that names names.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are dialled.
const MAX_ADDRESSES: usize = 4;

/// Whether the address starts with a name.
pub(super) fn is_name(addr: &Multiaddr) -> bool {
    matches!(addr.iter().next(), Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)))
}

/// The addresses without names. Names that are not found are left out while any other address is left.
///
/// # Errors
/// When nothing is left; the last name's.
pub(super) async fn resolve(addrs: &[Multiaddr]) -> io::Result<Vec<Multiaddr>> {
    let mut resolved = Vec::new();
    let mut failure = None;
    for found in join_all(addrs.iter().map(resolve_one)).await {
        match found {
            Ok(found) => resolved.extend(found),
            Err(error) => failure = Some(error),
        }
    }
    failure.filter(|_| resolved.is_empty()).map_or(Ok(resolved), Err)
}

async fn resolve_one(addr: &Multiaddr) -> io::Result<Vec<Multiaddr>> {
    if !matches!(addr.iter().next(), Some(Protocol::Dnsaddr(_))) {
        return resolve_name(addr).await;
    }
    let named = timeout(LOOKUP_TIMEOUT, dnsaddr::expand(addr, &dnsaddr::servers().await)).await??;
    let found = join_all(named.iter().map(resolve_name)).await;
    Ok(found.into_iter().flatten().flatten().collect())
}

async fn resolve_name(addr: &Multiaddr) -> io::Result<Vec<Multiaddr>> {
    let (name, fits): (_, fn(&IpAddr) -> bool) = match addr.iter().next() {
        Some(Protocol::Dns(name)) => (name, |_| true),
        Some(Protocol::Dns4(name)) => (name, IpAddr::is_ipv4),
        Some(Protocol::Dns6(name)) => (name, IpAddr::is_ipv6),
        _ => return Ok(vec![addr.clone()]),
    };
    let found = timeout(LOOKUP_TIMEOUT, lookup_host((&*name, 0))).await??;
    let ips = found.map(|socket| socket.ip()).filter(fits).take(MAX_ADDRESSES);
    let addresses: Vec<_> =
        ips.map(|ip| std::iter::once(Protocol::from(ip)).chain(addr.iter().skip(1)).collect()).collect();
    if addresses.is_empty() { Err(io::ErrorKind::AddrNotAvailable.into()) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_become_addresses_and_the_rest_stays() {
        let plain: Multiaddr = "/ip4/192.0.2.1/tcp/4001".parse().unwrap();
        let name: Multiaddr = "/dns4/localhost/tcp/4001".parse().unwrap();
        let nowhere: Multiaddr = "/dns/nowhere.invalid/tcp/4001".parse().unwrap();
        assert!(is_name(&name) && is_name(&nowhere) && !is_name(&plain));
        let local: Multiaddr = "/ip4/127.0.0.1/tcp/4001".parse().unwrap();
        assert_eq!(resolve(&[name, nowhere.clone(), plain.clone()]).await.unwrap(), [local, plain]);
        resolve(&[nowhere]).await.unwrap_err();
    }
}
