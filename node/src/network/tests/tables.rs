//! Nodes of the DHT that lie, on the table of the local network, over loopback.

use super::allowance::{FOUND, NODES, Rate};
use super::attack::{assert_serves, server};
use super::finding::{nobody, public};
use super::raw::RawPeer;
use super::*;
use futures::{AsyncWriteExt as _, StreamExt as _};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig, RecordStore as _};
use libp2p::kad::{self, Mode, ProviderRecord, RecordKey};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use prost::Message as _;
use std::future::ready;
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

/// The keys that a table keeps.
const KEPT: u32 = 4096;

/// Leaves records of so many keys with a node.
async fn flood_with_records(keys: u32) {
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
    for key in 0..keys {
        stream.write_all(&record(&key.to_be_bytes(), own, ours)).await.unwrap();
    }
    // All have been read when this is answered. A provider is not told of itself, so somebody else asks the rest.
    assert_eq!(known(&mut stream, b"").await, 0);
    let mut other = RawPeer::speaking(TABLE, &server).await;
    let mut stream = other.open().await;
    assert_eq!((known(&mut stream, b"victim").await, known(&mut stream, b"somebody else").await), (0, 0));
    // The first stay, as far as there is room, and all others went nowhere.
    let spread = (0..keys).step_by(keys as usize / 1000);
    for key in spread.chain(KEPT - 10..KEPT + 10).chain(keys - 10..keys) {
        assert_eq!(known(&mut stream, &key.to_be_bytes()).await, usize::from(key < KEPT), "key {key}");
    }
    assert_serves(&server, &block).await;
}

#[tokio::test]
async fn a_flood_of_provider_records_is_kept_to_a_bound_and_points_at_no_other_network() {
    flood_with_records(5 * KEPT).await;
}

#[tokio::test]
#[ignore = "takes minutes without optimisation"]
async fn a_million_provider_records_are_kept_to_the_same_bound() {
    flood_with_records(1_000_000).await;
}

/// Places that nobody should connect to, and how often it happened.
async fn victims(count: usize) -> (Vec<Multiaddr>, Arc<AtomicUsize>) {
    let dials = Arc::new(AtomicUsize::new(0));
    let mut addrs = Vec::new();
    for _ in 0..count {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        addrs.push(format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port()).parse().unwrap());
        let counted = Arc::clone(&dials);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                drop(connection);
            }
        });
    }
    (addrs, dials)
}

/// The protocols of a server of the table that tells of others and dials nobody itself, so that the dials are the node's.
#[derive(NetworkBehaviour)]
struct Liar {
    kademlia: kad::Behaviour<MemoryStore>,
    limits: connection_limits::Behaviour,
}

/// A server of the table that says of each of `roots` that `providers` peers have it, and that `nodes` more are there that
/// may know: each of them at all of `bait`. Its address.
async fn liar(roots: &[Cid], bait: &[Multiaddr], providers: usize, nodes: usize) -> (Multiaddr, AbortHandle) {
    let keypair = Keypair::generate_ed25519();
    let own = keypair.public().to_peer_id();
    let config = MemoryStoreConfig { max_providers_per_key: providers, ..MemoryStoreConfig::default() };
    let mut store = MemoryStore::with_config(own, config);
    for root in roots {
        let key = RecordKey::new(&root.hash().to_bytes());
        for _ in 0..providers {
            store.add_provider(ProviderRecord::new(key.clone(), PeerId::random(), bait.to_vec())).unwrap();
        }
    }
    let mut kademlia = kad::Behaviour::with_config(own, store, kad::Config::new(TABLE));
    kademlia.set_mode(Some(Mode::Server));
    for _ in 0..nodes {
        let node = PeerId::random();
        for addr in bait {
            kademlia.add_address(&node, addr.clone());
        }
    }
    let limits = ConnectionLimits::default().with_max_pending_outgoing(Some(0));
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| Liar { kademlia, limits: connection_limits::Behaviour::new(limits) })
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

/// A node that gets into the table by way of `entry`.
async fn seeker(entry: Multiaddr) -> Network {
    let config = Config { profile: Profile::Public, bootstrap: vec![entry], ..config() };
    Network::start(config, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap()
}

/// Looks for `root`, in vain.
async fn search(seeker: &Network, root: Cid) {
    let session = seeker.session(vec![PeerId::random()]);
    session.want(root).await.unwrap_err();
    let begun = Instant::now();
    assert!(!session.search(root, nobody()).await);
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

/// Searches for `root` until a victim was dialled. How often it was.
async fn searched(seeker: &Network, root: &Cid, count: &AtomicUsize) -> usize {
    let begun = Instant::now();
    while count.load(Ordering::Relaxed) == 0 {
        assert!(begun.elapsed() < LONG, "the bait was not taken");
        search(seeker, *root).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    count.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_providers_at_one_address_are_dialled_a_few_times() {
    let [root] = blocks(1, 100).try_into().unwrap();
    let (bait, count) = victims(1).await;
    let (entry, liar) = liar(&[*root.cid()], &bait, 100, 0).await;
    let dials = searched(&seeker(entry).await, root.cid(), &count).await;
    assert!((1..=8).contains(&dials), "{dials} dials");
    liar.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_nodes_that_are_not_there_ends_the_search_with_nobody() {
    let [root] = blocks(1, 100).try_into().unwrap();
    let (bait, count) = victims(1).await;
    let (entry, liar) = liar(&[*root.cid()], &bait, 0, 200).await;
    let dials = searched(&seeker(entry).await, root.cid(), &count).await;
    assert!((1..=60).contains(&dials), "{dials} dials");
    liar.abort();
}

/// As many dials as `rate` lets through, and not far fewer: a dial that comes to nothing at once, as for want of room, has cost its tokens too.
fn assert_at_its_bound(count: &AtomicUsize, rate: Rate, begun: Instant) {
    let dials = count.load(Ordering::Relaxed);
    let back = (begun.elapsed().as_secs() + 1) * u64::from(rate.a_minute) / 60;
    let bounds = (rate.burst as usize / 2)..=(rate.burst as usize + usize::try_from(back).unwrap() + 1);
    assert!(bounds.contains(&dials), "{dials} dials and not {bounds:?} in {:?}", begun.elapsed());
}

/// Whom the user names is dialled as ever.
async fn assert_reaches_who_was_named(node: &Network) {
    let (server, block) = server().await;
    node.connect(server.listeners().remove(0)).await.unwrap();
    let want = node.session(vec![server.peer_id()]).want(*block.cid());
    assert_eq!(timeout(LONG, want).await.unwrap().unwrap().0, block);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_victims_named_as_hints_are_dialled_as_far_as_the_allowance_goes() {
    let (bait, count) = victims(16).await;
    let begun = Instant::now();
    let seeker = node(BlockSource::empty()).await;
    for root in blocks(30, 100) {
        let session = seeker.session(vec![PeerId::random()]);
        session.want(*root.cid()).await.unwrap_err();
        // Of 20 providers 8 are taken, each at 4 addresses.
        let hints = (0..20).map(|_| (PeerId::random(), bait.clone())).collect();
        assert!(!timeout(LONG, session.search(*root.cid(), ready(hints))).await.unwrap());
    }
    assert_at_its_bound(&count, FOUND, begun);
    assert_reaches_who_was_named(&seeker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_victims_named_by_a_table_are_dialled_as_far_as_the_allowance_goes() {
    let roots: Vec<Cid> = blocks(100, 100).iter().map(|root| *root.cid()).collect();
    let (bait, count) = victims(16).await;
    // As providers, of which Kademlia asks the way too, and as nodes.
    let (entry, liar) = liar(&roots, &bait, 20, 200).await;
    let begun = Instant::now();
    let node = seeker(entry).await;
    searched(&node, &roots[0], &count).await;
    let looks = roots.iter().map(|root| async { tokio::join!(search(&node, *root), node.provide(*root)) });
    futures::stream::iter(looks).buffer_unordered(8).collect::<Vec<_>>().await;
    let together = Rate { burst: FOUND.burst + NODES.burst, a_minute: FOUND.a_minute + NODES.a_minute };
    assert_at_its_bound(&count, together, begun);
    assert_reaches_who_was_named(&node).await;
    liar.abort();
}
