//! The announcer beside a store and other nodes of the table of the local network.

use super::*;
use crate::cache::unix_now;
use crate::network::{BlockSource, Config, Keypair, Network, Profile};
use crate::node::Settings;
use crate::store::{CidPin, Op};
use nipfs_proto::block::{Block, RAW};
use std::path::Path;
use std::time::Instant;
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(60);

async fn network(bootstrap: Vec<crate::network::Multiaddr>) -> Network {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let config = Config { listen, profile: Profile::Public, bootstrap, ..Config::default() };
    Network::start(config, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap()
}

/// A node that announces.
struct Announcer {
    node: Node,
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

impl Announcer {
    async fn start(state: &Path, entry: &Network) -> Self {
        let node = Node::open(Settings {
            state: state.to_owned(),
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            profile: Profile::Public,
            bootstrap: entry.listeners(),
            ..Settings::default()
        });
        let (node, stop) = (node.await.unwrap(), CancellationToken::new());
        let ended = tokio::spawn(announce(node.clone(), stop.clone()));
        Self { node, stop, ended }
    }

    async fn end(self) {
        self.stop.cancel();
        self.ended.await.unwrap();
        self.node.shutdown().await;
    }

    async fn publish(&self, content: &'static [u8]) -> Cid {
        let block = Block::v1(RAW, content.into()).unwrap();
        let lease = self.node.store().lease();
        lease.put(&block).unwrap();
        lease.commit(vec![Op::PutPin(CidPin { cid: *block.cid(), added_unix: unix_now() })]).unwrap();
        self.node.stored(Some(*block.cid())).await;
        *block.cid()
    }

    async fn until(&self, told: u64, roots: u64) {
        let begun = Instant::now();
        loop {
            let announced = self.node.status().await.unwrap().announced;
            if announced.as_ref().is_some_and(|announced| (announced.told, announced.roots) == (told, roots)) {
                return;
            }
            assert!(begun.elapsed() < LONG, "{announced:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_found_and_told_once_and_what_is_not_never() {
    let state = tempfile::tempdir().unwrap();
    let middle = network(Vec::new()).await;
    let seeker = network(middle.listeners()).await;
    let announcer = Announcer::start(state.path(), &middle).await;
    let secret = Block::v1(RAW, b"not published".as_slice().into()).unwrap();
    announcer.node.store().lease().put(&secret).unwrap();
    let root = announcer.publish(b"published").await;
    announcer.until(1, 1).await;
    let finds = async |cid| {
        let session = seeker.session(Vec::new());
        session.want(cid).await.is_ok()
            || session.search(cid, std::future::ready(Vec::new())).await && session.want(cid).await.is_ok()
    };
    // The seeker may still be on its way into the table.
    let begun = Instant::now();
    while !finds(root).await {
        assert!(begun.elapsed() < LONG);
    }
    assert!(!finds(*secret.cid()).await);

    // A restart tells nothing again, and forgets what was unpublished.
    announcer.end().await;
    let ledger = std::fs::read_to_string(state.path().join("announced")).unwrap();
    assert!(ledger.ends_with(&format!(" {root}\n")) && ledger.lines().count() == 1, "{ledger}");
    let nobody = network(Vec::new()).await;
    nobody.shutdown().await;
    let announcer = Announcer::start(state.path(), &nobody).await;
    announcer.until(1, 1).await;
    assert_eq!(announcer.node.status().await.unwrap().announced.unwrap().failure, None);
    announcer.node.store().commit(vec![Op::RemovePin(root)]).unwrap();
    announcer.node.stored(None).await;
    announcer.until(0, 0).await;
    announcer.end().await;
    assert_eq!(std::fs::read_to_string(state.path().join("announced")).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_to_announce_is_shown_and_made_good_later() {
    let state = tempfile::tempdir().unwrap();
    let gone = network(Vec::new()).await;
    gone.shutdown().await;
    let announcer = Announcer::start(state.path(), &gone).await;
    announcer.publish(b"later").await;
    announcer.until(0, 1).await;
    let failure = announcer.node.status().await.unwrap().announced.unwrap().failure;
    assert_eq!(failure.as_deref(), Some("no node of the DHT answered"));
    let middle = network(Vec::new()).await;
    announcer.node.network().await.unwrap().connect(middle.listeners().remove(0)).await.unwrap();
    announcer.until(1, 1).await;
    assert_eq!(announcer.node.status().await.unwrap().announced.unwrap().failure, None);
    announcer.end().await;
}
