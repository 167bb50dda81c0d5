//! Dialling, keeping, and the end.

use super::*;
use futures::StreamExt as _;
use futures::future::join_all;
use libp2p::{SwarmBuilder, noise, ping, tcp, yamux};
use std::time::Instant;

#[tokio::test]
async fn connecting_twice_or_from_both_ends_is_one_peer() {
    let (a, b) = (node(BlockSource::empty()).await, node(BlockSource::empty()).await);
    let (to_a, to_b) = (a.listeners().remove(0), b.listeners().remove(0));
    let dials = join_all((0..6).map(|_| a.connect(to_b.clone()))).await;
    assert!(dials.into_iter().all(|dial| dial.unwrap() == b.peer_id()));
    assert_eq!(b.connect(to_a).await.unwrap(), a.peer_id());
    let [peer] = a.peers().await.unwrap().try_into().unwrap();
    assert_eq!(peer.peer, b.peer_id());
    assert_eq!(peer.addr.to_string(), to_b.to_string().rsplit_once("/p2p/").unwrap().0);
}

#[tokio::test]
async fn a_peer_says_what_it_is() {
    let server = node(BlockSource::empty()).await;
    let client = client_of(&[&server]).await;
    let deadline = Instant::now() + LONG;
    while client.peers().await.unwrap()[0].agent != concat!("nipfs/", env!("CARGO_PKG_VERSION")) {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_peer_that_does_not_speak_bitswap_has_nothing_and_stays_connected() {
    let node = node(BlockSource::empty()).await;
    let mut other = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| ping::Behaviour::default())
        .unwrap()
        .build();
    let peer = *other.local_peer_id();
    other.dial(node.listeners().remove(0)).unwrap();
    let other = tokio::spawn(async move { while other.next().await.is_some() {} });
    let there = async {
        while node.peers().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, there).await.unwrap();
    let [wanted] = blocks(1, 100).try_into().unwrap();
    let begun = Instant::now();
    let want = node.session(vec![peer]).want(*wanted.cid()).await;
    assert_eq!(want.unwrap_err(), WantError::Missing(*wanted.cid()));
    assert!(begun.elapsed() < Duration::from_secs(3), "only its silence told");
    assert_eq!(node.peers().await.unwrap().len(), 1);
    other.abort();
}

#[tokio::test]
async fn a_peer_can_be_named_by_its_host() {
    let server = node(BlockSource::empty()).await;
    let named = server.listeners().remove(0).to_string().replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    let client = node(BlockSource::empty()).await;
    assert_eq!(client.connect(named.parse().unwrap()).await.unwrap(), server.peer_id());
}

#[tokio::test]
async fn what_cannot_be_dialled_is_an_error() {
    let node = node(BlockSource::empty()).await;
    let stranger = PeerId::random();
    let unnamed: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    assert!(matches!(node.connect(unnamed.clone()).await, Err(NetworkError::NoPeerId(addr)) if addr == unnamed));

    let mut other_id = super::node(BlockSource::empty()).await.listeners().remove(0);
    other_id.pop();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for addr in [
        format!("/ip4/127.0.0.1/tcp/{closed}/p2p/{stranger}"),
        format!("{other_id}/p2p/{stranger}"),
        format!("/ip4/127.0.0.1/udp/1/quic-v1/p2p/{stranger}"),
        format!("/dns4/nowhere.invalid/tcp/1/p2p/{stranger}"),
        format!("{}/p2p/{}", other_id, node.peer_id()),
    ] {
        let begun = Instant::now();
        let error = node.connect(addr.parse().unwrap()).await.unwrap_err();
        assert!(matches!(&error, NetworkError::Dial { addr: at, .. } if at.to_string() == addr), "{error}");
        assert!(begun.elapsed() < DIAL_TIMEOUT, "{addr}");
    }
    assert_eq!(node.peers().await.unwrap(), []);
}

#[tokio::test]
async fn a_kept_peer_is_dialled_until_it_is_there_and_again_when_it_returns() {
    let keypair = Keypair::generate_ed25519();
    let first = Network::start(config(), keypair.clone(), BlockSource::empty()).await.unwrap();
    let addr = first.listeners().remove(0);
    first.shutdown().await;

    let node = node(BlockSource::empty()).await;
    assert!(matches!(node.keep(addr.clone()).await, Err(NetworkError::Dial { .. })));
    for _ in 0..2 {
        let mut listen = addr.clone();
        listen.pop();
        let config = Config { listen: vec![listen], ..Config::default() };
        let again = Network::start(config, keypair.clone(), BlockSource::empty()).await.unwrap();
        let there = async {
            while again.peers().await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, there).await.unwrap();
        again.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_idle_peers_are_left_but_none_that_a_session_names() {
    let config = Config { grace: Duration::ZERO, ..config() };
    let node = Network::start(config, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap();
    let mut peers = Vec::new();
    for _ in 0..trim::HIGH_WATER {
        peers.push(raw::RawPeer::connect(&node).await);
    }
    assert_eq!(node.peers().await.unwrap().len(), trim::HIGH_WATER);
    let named = peers[0].peer;
    let [wanted] = blocks(1, 100).try_into().unwrap();
    let want = tokio::spawn(node.session(vec![named]).want(*wanted.cid()));
    peers[0].accept().await;
    peers.push(raw::RawPeer::connect(&node).await);
    let left = async {
        while node.peers().await.unwrap().len() > trim::LOW_WATER {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, left).await.unwrap();
    let left: Vec<PeerId> = node.peers().await.unwrap().iter().map(|peer| peer.peer).collect();
    assert!(left.contains(&named) && left.len() == trim::LOW_WATER, "{left:?}");
    want.abort();
}

#[tokio::test]
async fn the_end_stops_what_waits() {
    let server = node(BlockSource::empty()).await;
    let mut peer = raw::RawPeer::connect(&server).await;
    let session = server.session(vec![peer.peer]);
    let [wanted] = blocks(1, 100).try_into().unwrap();
    let want = tokio::spawn(session.want(*wanted.cid()));
    peer.accept().await;
    let begun = Instant::now();
    server.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(8));
    assert_eq!(want.await.unwrap().unwrap_err(), WantError::Stopped);
    assert_eq!(session.want(*wanted.cid()).await.unwrap_err(), WantError::Stopped);
}
