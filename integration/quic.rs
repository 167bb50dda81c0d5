//! QUIC to Kubo, Helia and our own, both ways; and TCP before it, and after it.

use crate::common::{Machine, STUCK, make_tree, noise};
use crate::helia::Helia;
use crate::kubo::Kubo;
use crate::wants::{Fetched, MANY, fetch_by_levels, logged, many_small_blocks_go_to_kubo_and_us};
use nipfs_node::network::{BlockSource, Config, Keypair, Multiaddr, Network};
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
/// Bytes of the files that travel: 96 blocks.
const SIZE: usize = 24 << 20;

/// Serves on QUIC alone and publishes a tree: the peer's address, the root, the tree's NAR.
fn publish(machine: &Machine) -> (crate::common::Serving, String, Vec<u8>) {
    machine.key();
    let serving = machine.serve_on(QUIC, &["-vv"]);
    assert!(serving.peer.contains("/quic-v1/"), "{}", serving.peer);
    let tree = machine.dir().join("tree");
    make_tree(&tree, 80, SIZE);
    let published = machine.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    let hash = published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let nar = serving.get(&format!("/nar/{hash}.nar")).body;
    (serving, published["root"].as_str().unwrap().to_owned(), nar)
}

#[test]
fn kubo_helia_and_we_fetch_from_us_over_quic() {
    let a = Machine::new();
    let (serving, root, nar) = publish(&a);
    Machine::new().run(&["pin", "add", &root, "--peer", &serving.peer]).ok();
    let mut helia = Helia::start();
    assert!(helia.get(&serving.peer, &root, &a.dir().join("helia")) == nar);
    let mut kubo = Kubo::start_with(&a.dir().join("kubo"), &json!({"quic": true}));
    kubo.connect(&serving.peer);
    kubo.pin(&root);
    let most = logged(&serving.end(), &helia.peer, "most_wants_in");
    assert!(most >= MANY, "{most}");
}

#[test]
fn kubo_and_we_ask_us_for_many_blocks_at_one_time_over_quic() {
    many_small_blocks_go_to_kubo_and_us(QUIC, &json!({"quic": true}));
}

#[test]
fn we_fetch_from_helia_over_quic() {
    let b = Machine::new();
    let file = b.dir().join("plain");
    fs::write(&file, noise(81, SIZE)).unwrap();
    let mut helia = Helia::start();
    let cid = helia.add(&file, 0, 256 << 10);
    b.run(&["pin", "add", &cid, "--peer", &helia.quic]).ok();
    let small = helia.add(&file, 0, 16 << 10);
    let Fetched { leaves, traffic } = fetch_by_levels(&helia.quic, &small);
    assert_eq!(leaves, SIZE >> 14);
    assert!(traffic.most_wants_out >= MANY, "{traffic:?}");
}

/// Kubo loses them nearly each time.
#[test]
fn a_kubo_that_loses_streams_over_quic_is_asked_again_over_tcp() {
    let machine = Machine::new();
    let mut kubo = Kubo::start_with(&machine.dir().join("kubo"), &json!({"quic": true}));
    let quic = kubo.peer.replace("/tcp/", "/udp/").replace("/p2p/", "/quic-v1/p2p/");
    let mut said = Vec::new();
    for seed in 82..87 {
        let file = machine.dir().join("plain");
        fs::write(&file, noise(seed, SIZE)).unwrap();
        let added = kubo.ask(&json!({"op": "add", "file": file}));
        let b = Machine::new();
        said.push(b.run(&["pin", "add", added["cid"].as_str().unwrap(), "--peer", &quic, "--verbose"]).ok().stderr);
    }
    assert!(said.iter().any(|said| said.contains("no answer over QUIC, dialling over TCP")), "{said:#?}");
}

/// A node that listens on these addresses.
async fn node(listen: &[&str]) -> Network {
    let listen = listen.iter().map(|addr| addr.parse().unwrap()).collect();
    let config = Config { listen, ..Config::default() };
    Network::start(config, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap()
}

fn address(node: &Network, part: &str) -> Multiaddr {
    node.listeners().into_iter().find(|addr| addr.to_string().contains(part)).unwrap()
}

/// Waits until `node` is connected to its one peer over `part`.
async fn connected_over(node: &Network, part: &str) {
    let begun = Instant::now();
    loop {
        let peers = node.peers().await.unwrap();
        if peers.iter().any(|peer| peer.addr.to_string().contains(part)) {
            return;
        }
        assert!(begun.elapsed() < STUCK, "{peers:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_peer_with_both_is_left_with_tcp() {
    let server = node(&[TCP, QUIC]).await;
    let client = node(&[]).await;
    client.connect(address(&server, "/quic-v1/")).await.unwrap();
    connected_over(&client, "/quic-v1").await;
    let dialled = node(&[]).await;
    let (tcp, quic) = (address(&server, "/tcp/"), address(&server, "/quic-v1/"));
    let (one, other) = tokio::join!(dialled.connect(tcp), dialled.connect(quic));
    assert_eq!((one.unwrap(), other.unwrap()), (server.peer_id(), server.peer_id()));
    connected_over(&dialled, "/tcp/").await;
}

#[tokio::test]
async fn quic_is_tried_when_tcp_fails() {
    let server = node(&[QUIC]).await;
    let client = node(&[]).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = format!("/ip4/127.0.0.1/tcp/{closed}/p2p/{}", server.peer_id()).parse().unwrap();
    let (one, other) = tokio::join!(client.connect(dead), client.connect(address(&server, "/quic-v1/")));
    assert_eq!((one.unwrap(), other.unwrap()), (server.peer_id(), server.peer_id()));
    connected_over(&client, "/quic-v1").await;
}
