//! `/dnsaddr` names: multiaddrs that stand in TXT records of `_dnsaddr.NAME`, which may be such names again. The system's
//! resolver does not answer for TXT records, so the name servers of `/etc/resolv.conf` are asked, over UDP.
//!
//! Whoever can forge an answer can send a dial astray, and no more: who is to be met there is part of the address.

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Names that are looked up for one address.
const MAX_LOOKUPS: usize = 8;
/// Addresses that come of it.
const MAX_ADDRS: usize = 16;
/// Name servers that are asked, one after the other.
const MAX_SERVERS: usize = 3;
/// How long each of them may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an answer: what passes unfragmented nearly everywhere (RFC 9715).
const MAX_ANSWER: u16 = 1232;

/// The name servers of this machine.
pub(super) async fn servers() -> Vec<SocketAddr> {
    let text = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    named.map(|ip| SocketAddr::new(ip, 53)).take(MAX_SERVERS).collect()
}

/// The addresses that a `/dnsaddr` stands for, ending as it does; any other address stands for itself.
///
/// # Errors
/// When no name server answers, or no address comes of it.
pub(super) async fn expand(addr: &Multiaddr, servers: &[SocketAddr]) -> io::Result<Vec<Multiaddr>> {
    let mut waiting = VecDeque::from([addr.clone()]);
    let (mut expanded, mut lookups) = (Vec::new(), 0);
    while let Some(next) = waiting.pop_front() {
        let Some(Protocol::Dnsaddr(name)) = next.iter().next() else {
            if !expanded.contains(&next) {
                expanded.push(next);
            }
            continue;
        };
        if lookups == MAX_LOOKUPS {
            break;
        }
        lookups += 1;
        let end: Multiaddr = next.iter().skip(1).collect();
        let found = look_up(&name, servers).await?.into_iter().filter(|found| found.ends_with(&end));
        let room = MAX_ADDRS.saturating_sub(waiting.len() + expanded.len());
        waiting.extend(found.take(room));
    }
    if expanded.is_empty() { Err(io::ErrorKind::AddrNotAvailable.into()) } else { Ok(expanded) }
}

/// What the TXT records of one name say.
async fn look_up(name: &str, servers: &[SocketAddr]) -> io::Result<Vec<Multiaddr>> {
    let name = Name::from_ascii(format!("_dnsaddr.{name}."))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let query = Query::query(name, RecordType::TXT);
    let mut failure = io::Error::new(io::ErrorKind::NotConnected, "no name server in /etc/resolv.conf");
    for server in servers {
        match timeout(PATIENCE, ask(&query, *server)).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => failure = error,
            Err(late) => failure = late.into(),
        }
    }
    Err(failure)
}

async fn ask(query: &Query, server: SocketAddr) -> io::Result<Vec<Multiaddr>> {
    let any = if server.is_ipv4() { [0; 4].into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_ANSWER);
    message.set_edns(edns);
    socket.send(&message.to_vec().map_err(io::Error::other)?).await?;
    let mut buffer = [0; MAX_ANSWER as usize];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is not for us.
        let Ok(answer) = Message::from_vec(&buffer[..length]) else { continue };
        if answer.metadata.id != message.metadata.id || answer.queries != message.queries {
            continue;
        }
        return match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(addresses(&answer)),
            code => Err(io::Error::other(format!("the name server answered {code}"))),
        };
    }
}

/// A record that is cut off or none of ours is passed over.
fn addresses(answer: &Message) -> Vec<Multiaddr> {
    let records = answer.answers.iter().filter_map(|record| match &record.data {
        RData::TXT(text) => Some(text.txt_data.concat()),
        _ => None,
    });
    let parse = |text: Vec<u8>| std::str::from_utf8(&text).ok()?.strip_prefix("dnsaddr=")?.parse().ok();
    records.filter_map(parse).take(MAX_ADDRS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::TXT;
    use libp2p::PeerId;
    use std::collections::HashMap;

    /// A name server with these TXT records; everything else does not exist.
    async fn server(records: HashMap<String, Vec<String>>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let mut answer = Message::from_vec(&buffer[..length]).unwrap().into_response();
                let name = answer.queries[0].name().clone();
                for text in records.get(&name.to_ascii()).into_iter().flatten() {
                    answer.add_answer(Record::from_rdata(name.clone(), 60, RData::TXT(TXT::new(vec![text.clone()]))));
                }
                // What somebody else slips in first does not count.
                socket.send_to(b"junk", from).await.unwrap();
                let mut forged = answer.clone();
                forged.metadata.id ^= 1;
                forged.answers.clear();
                socket.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn a_dnsaddr_leads_over_others_to_the_addresses_of_its_peer() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let name = |name: &str, records: &[String]| (format!("_dnsaddr.{name}."), records.to_vec());
        let records = [
            name(
                "all.example",
                &[
                    format!("dnsaddr=/dnsaddr/one.example/p2p/{peer}"),
                    format!("dnsaddr=/dnsaddr/two.example/p2p/{other}"),
                    "v=spf1 -all".to_owned(),
                    "dnsaddr=nonsense".to_owned(),
                ],
            ),
            name(
                "one.example",
                &[
                    format!("dnsaddr=/ip4/192.0.2.1/tcp/4001/p2p/{peer}"),
                    format!("dnsaddr=/dns4/one.example/tcp/4001/p2p/{peer}"),
                    format!("dnsaddr=/dnsaddr/one.example/p2p/{peer}"),
                ],
            ),
        ];
        let server = server(records.into()).await;
        let addr = format!("/dnsaddr/all.example/p2p/{peer}").parse().unwrap();
        let wanted: Vec<Multiaddr> = ["/ip4/192.0.2.1/tcp/4001", "/dns4/one.example/tcp/4001"]
            .map(|addr| format!("{addr}/p2p/{peer}").parse().unwrap())
            .into();
        let found = expand(&addr, &[server]).await.unwrap();
        assert!(wanted.iter().all(|addr| found.contains(addr)) && found.len() <= MAX_ADDRS, "{found:?}");
        assert!(found.iter().all(|addr| addr.ends_with(&format!("/p2p/{peer}").parse().unwrap())), "{found:?}");
        expand(&"/dnsaddr/nowhere.example".parse().unwrap(), &[server]).await.unwrap_err();
        expand(&addr, &[]).await.unwrap_err();
        assert_eq!(expand(&wanted[0], &[]).await.unwrap(), wanted[..1]);
    }
}
