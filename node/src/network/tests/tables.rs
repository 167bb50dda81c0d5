//! Nodes of the DHT that lie, on the table of the local network, over loopback.

use super::attack::assert_serves;
use super::finding::{nobody, public};
use super::raw::RawPeer;
use super::*;
use futures::{AsyncWriteExt as _, StreamExt as _};
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig, RecordStore as _};
use libp2p::kad::{self, Mode, ProviderRecord, RecordKey};
use libp2p::swarm::SwarmEvent;
use libp2p::{StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use prost::Message as _;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

const TABLE: StreamProtocol = StreamProtocol::new("/ipfs/lan/kad/1.0.0");

/// A message of the DHT, as far as these tests need it.
#[derive(Clone, PartialEq, prost::Message)]
struct Query {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(message, repeated, tag = "9")]
    providers: Vec<Provider>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Provider {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addrs: Vec<Vec<u8>>,
}

const ADD_PROVIDER: i32 = 2;
const GET_PROVIDERS: i32 = 3;

/// How many providers of the key the node knows.
async fn known(stream: &mut libp2p::Stream, key: &[u8]) -> usize {
    let query = Query { kind: GET_PROVIDERS, key: key.to_vec(), providers: Vec::new() };
    stream.write_all(&query.encode_length_delimited_to_vec()).await.unwrap();
    stream.flush().await.unwrap();
    let intake = frame::Intake::new(1 << 20, LONG);
    let answer = frame::read(stream, &intake).await.unwrap().unwrap();
    Query::decode(answer.bytes).unwrap().providers.len()
}

#[tokio::test]
async fn a_flood_of_provider_records_is_kept_to_a_bound_and_points_at_no_other_network() {
    let [block] = blocks(1, 2000).try_into().unwrap();
    let server = public(Shelf::of(std::slice::from_ref(&block)).source(), &[]).await;
    let mut peer = RawPeer::speaking(TABLE, &server).await;
    let mut stream = peer.open().await;
    let record = |key: &[u8], provider: PeerId, addr: &str| {
        let addr: Multiaddr = addr.parse().unwrap();
        let provider = Provider { id: provider.to_bytes(), addrs: vec![addr.to_vec()] };
        Query { kind: ADD_PROVIDER, key: key.to_vec(), providers: vec![provider] }.encode_length_delimited_to_vec()
    };
    let (ours, own) = ("/ip4/127.0.0.1/tcp/1", peer.peer);
    stream.write_all(&record(b"victim", own, "/ip4/8.8.8.8/tcp/53")).await.unwrap();
    stream.write_all(&record(b"somebody else", PeerId::random(), ours)).await.unwrap();
    for key in 0..10_000_u32 {
        stream.write_all(&record(&key.to_be_bytes(), own, ours)).await.unwrap();
    }
    // All have been read when this is answered. A provider is not told of itself, so somebody else asks the rest.
    assert_eq!(known(&mut stream, b"").await, 0);
    let mut other = RawPeer::speaking(TABLE, &server).await;
    let mut stream = other.open().await;
    let mut kept = Vec::new();
    for key in [&b"victim"[..], b"somebody else", &0_u32.to_be_bytes(), &9_999_u32.to_be_bytes()] {
        kept.push(known(&mut stream, key).await);
    }
    assert_eq!(kept, [0, 0, 1, 0]);
    assert_serves(&server, &block).await;
}

/// A place that nobody should connect to, and how often it happened.
async fn victim() -> (Multiaddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            drop(connection);
        }
    });
    (addr, count)
}

/// A server of the table that says of `root` that `providers` peers at `bait` have it, and that `nodes` more are
/// there that may know. Its address.
async fn liar(root: &Cid, bait: &Multiaddr, providers: usize, nodes: usize) -> (Multiaddr, AbortHandle) {
    let keypair = Keypair::generate_ed25519();
    let own = keypair.public().to_peer_id();
    let config = MemoryStoreConfig { max_providers_per_key: providers, ..MemoryStoreConfig::default() };
    let mut store = MemoryStore::with_config(own, config);
    for _ in 0..providers {
        let key = RecordKey::new(&root.hash().to_bytes());
        store.add_provider(ProviderRecord::new(key, PeerId::random(), vec![bait.clone()])).unwrap();
    }
    let mut kademlia = kad::Behaviour::with_config(own, store, kad::Config::new(TABLE));
    kademlia.set_mode(Some(Mode::Server));
    for _ in 0..nodes {
        kademlia.add_address(&PeerId::random(), bait.clone());
    }
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| kademlia)
        .unwrap()
        .build();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let addr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address.with_p2p(own).unwrap();
        }
    };
    let task = tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    (addr, task.abort_handle())
}

/// Searches for `root` by way of `entry` until the victim was dialled. How often it was.
async fn searched(root: &Cid, entry: Multiaddr, count: &AtomicUsize) -> usize {
    let config = Config { profile: Profile::Public, bootstrap: vec![entry], ..config() };
    let seeker = Network::start(config, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap();
    let begun = Instant::now();
    while count.load(Ordering::Relaxed) == 0 {
        assert!(begun.elapsed() < LONG, "the bait was not taken");
        let session = seeker.session(vec![PeerId::random()]);
        session.want(*root).await.unwrap_err();
        let begun = Instant::now();
        assert!(!session.search(*root, nobody()).await);
        assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    count.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_providers_at_one_address_are_dialled_a_few_times() {
    let [root] = blocks(1, 100).try_into().unwrap();
    let (bait, count) = victim().await;
    let (entry, liar) = liar(root.cid(), &bait, 100, 0).await;
    let dials = searched(root.cid(), entry, &count).await;
    assert!((1..=8).contains(&dials), "{dials} dials");
    liar.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_nodes_that_are_not_there_ends_the_search_with_nobody() {
    let [root] = blocks(1, 100).try_into().unwrap();
    let (bait, count) = victim().await;
    let (entry, liar) = liar(root.cid(), &bait, 0, 200).await;
    let dials = searched(root.cid(), entry, &count).await;
    assert!((1..=60).contains(&dials), "{dials} dials");
    liar.abort();
}
