//! Nodes in one process, on loopback.

mod attack;
mod deaf;
mod exchange;
mod finding;
mod flood;
mod handshake;
mod log;
#[cfg(feature = "nat")]
mod nat;
mod peers;
mod raw;
mod tables;
mod vectors;
mod wire;

use super::*;
use bytes::Bytes;
use nipfs_proto::bitswap::message::WantKind;
use nipfs_proto::bitswap::server::{HAVE_REPLACED_BY_BLOCK, Outcome};
use nipfs_proto::block::{Block, RAW};
use std::collections::HashMap;
use std::sync::Mutex;
use tokio::time::timeout;

/// Longer than anything here takes on a busy machine, shorter than patience.
const LONG: Duration = Duration::from_secs(60);

/// The blocks that a node has.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<HashMap<Cid, Bytes>>>);

impl Shelf {
    fn of(blocks: &[Block]) -> Self {
        let shelf = Self::default();
        blocks.iter().for_each(|block| shelf.put(block));
        shelf
    }

    fn put(&self, block: &Block) {
        self.0.lock().unwrap().insert(*block.cid(), block.bytes().clone());
    }

    fn source(&self) -> BlockSource {
        let shelf = self.clone();
        BlockSource::new(move |_, cid, kind| match shelf.0.lock().unwrap().get(cid) {
            None => Outcome::Absent,
            Some(bytes) if kind == WantKind::Have && bytes.len() > HAVE_REPLACED_BY_BLOCK => Outcome::Have,
            Some(bytes) => Outcome::Block(bytes.clone()),
        })
    }
}

/// `count` blocks of `size` bytes that nobody else has.
fn blocks(count: usize, size: usize) -> Vec<Block> {
    let mut bytes = vec![0; size];
    let fresh = || {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&rand::random::<[u8; 8]>()[..chunk.len()]);
        }
        Block::v1(RAW, Bytes::copy_from_slice(&bytes)).unwrap()
    };
    std::iter::repeat_with(fresh).take(count).collect()
}

fn config() -> Config {
    Config { listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()], ..Config::default() }
}

async fn node(source: BlockSource) -> Network {
    Network::start(config(), Keypair::generate_ed25519(), source).await.unwrap()
}

/// A node that has nothing, connected to all of `others`.
async fn client_of(others: &[&Network]) -> Network {
    let client = node(BlockSource::empty()).await;
    for other in others {
        client.connect(other.listeners().remove(0)).await.unwrap();
    }
    client
}

#[tokio::test]
async fn a_node_listens_on_a_real_port_until_it_is_shut_down() {
    let node = node(BlockSource::empty()).await;
    let [listener] = node.listeners().try_into().unwrap();
    assert!(listener.to_string().ends_with(&format!("/p2p/{}", node.peer_id())), "{listener}");
    assert!(!listener.to_string().contains("/tcp/0"), "{listener}");
    assert_eq!(node.peers().await.unwrap(), []);
    node.shutdown().await;
    node.shutdown().await;
    assert!(matches!(node.peers().await, Err(NetworkError::Stopped)));
}

#[tokio::test]
async fn an_address_that_cannot_be_listened_on_is_an_error() {
    let node = node(BlockSource::empty()).await;
    let mut taken = node.listeners().remove(0);
    taken.pop();
    for listen in [taken, "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()] {
        let config = Config { listen: vec![listen.clone()], ..Config::default() };
        let error = Network::start(config, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap_err();
        assert!(matches!(&error, NetworkError::Listen { addr, .. } if *addr == listen), "{error}");
    }
}
