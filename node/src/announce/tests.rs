//! The announcer beside a store and other nodes of the table of the local network.

use super::*;
use crate::cache::unix_now;
use crate::dag::read::{Sources, block};
use crate::network::{BlockSource, Config, Keypair, Network, PeerId, Profile, Session};
use crate::node::Settings;
use crate::store::{CidPin, GcOptions, Keep, NarRecord, Op, PathRecord, Store};
use futures::FutureExt as _;
use nipfs_proto::block::{Block, RAW};
use nipfs_proto::dag::unixfs::{Entity, Lookup};
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::store_path::StorePath;
use std::future::ready;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(60);

async fn network(bootstrap: Vec<crate::network::Multiaddr>) -> Network {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let config = Config { listen, profile: Profile::Public, bootstrap, ..Config::default() };
    Network::start(config, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap()
}

/// The record of a path that is published here.
pub(super) fn published(path: &StorePath, nar_hash: NarHash, added_unix: u64) -> PathRecord {
    PathRecord {
        store_path: path.clone(),
        narinfo: bytes::Bytes::new(),
        nar_hash,
        published: true,
        pinned: true,
        mirror: None,
        added_unix,
        keep: Keep::Copy,
    }
}

/// A node that announces.
struct Announcer {
    node: Node,
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

impl Announcer {
    async fn start(state: &Path, entry: &Network) -> Self {
        Self::telling(MAX_ROOTS, state, entry).await
    }

    /// One that tells at most so many roots.
    async fn telling(most: usize, state: &Path, entry: &Network) -> Self {
        let node = Node::open(Settings {
            state: state.to_owned(),
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            profile: Profile::Public,
            bootstrap: entry.listeners(),
            ..Settings::default()
        });
        let (node, stop) = (node.await.unwrap(), CancellationToken::new());
        let ended = tokio::spawn(announce_at_most(most, node.clone(), stop.clone()));
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

    /// Publishes the path of a number; greater numbers are newer.
    async fn publish_path(&self, number: u8) -> (StorePath, Cid) {
        let path = StorePath::from_base_name(&format!("{number:032}-path-{number}")).unwrap();
        let root = Block::v1(RAW, vec![number; 100].into()).unwrap();
        let nar_hash = NarHash::of(root.bytes());
        let lease = self.node.store().lease();
        lease.put(&root).unwrap();
        let nar = NarRecord { nar_hash, nar_size: 100, roots: vec![("unknown".to_owned(), *root.cid())] };
        let record = published(&path, nar_hash, number.into());
        lease.commit(vec![Op::PutNar(nar), Op::PutPath(record)]).unwrap();
        self.node.stored(Some(*root.cid())).await;
        (path, *root.cid())
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
            || session.search(cid, ready(Vec::new())).await && session.want(cid).await.is_ok()
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

/// Where a name leads, asked of peers.
async fn entry(session: &Session, directory: Cid, name: &str) -> Lookup {
    let (block, _) = session.want(directory).await.unwrap();
    let Entity::Directory(here) = Entity::decode(&directory, block.bytes()).unwrap() else { panic!("not a directory") };
    here.look_up(name, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_root_that_is_not_told_itself_is_found_by_the_index() {
    let (state, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let middle = network(Vec::new()).await;
    let seeker = network(middle.listeners()).await;
    let announcer = Announcer::telling(2, state.path(), &middle).await;
    let (_, second) = announcer.publish_path(2).await;
    let (last, _) = announcer.publish_path(3).await;
    announcer.until(2, 2).await;
    assert_eq!(announcer.node.index(), None);
    // The oldest comes last, so it is never told.
    let (path, root) = announcer.publish_path(1).await;
    announcer.until(3, 3).await;
    let index: Cid = announcer.node.index().unwrap().parse().unwrap();
    let ledger = std::fs::read_to_string(state.path().join("announced")).unwrap();
    assert!(ledger.contains(&index.to_string()) && !ledger.contains(&root.to_string()), "{ledger}");

    // Over a peer that is not there, once as it was, and once with the index.
    let store = Store::open(own.path()).unwrap();
    let get = async |indexes: &[Cid], root| {
        let session = Arc::new(seeker.session(vec![PeerId::random()]));
        let sources = Sources {
            session: Some(session),
            indexes: Some(ready(Arc::from(indexes)).boxed().shared()),
            ..Sources::local(store.clone())
        };
        block(&sources, root, root).await
    };
    // The seeker may still be on its way into the table.
    let begun = Instant::now();
    while get(&[], second).await.is_err() {
        assert!(begun.elapsed() < LONG);
    }
    assert!(get(&[], root).await.is_err());
    assert_eq!(*get(&[index], root).await.unwrap().cid(), root);
    assert_eq!(*get(&[index], second).await.unwrap().cid(), second);

    // It leads from the name to the root.
    let session = seeker.session(vec![announcer.node.peer_id()]);
    let Lookup::Entry(below) = entry(&session, index, "00").await else { panic!("no directory") };
    assert_eq!(entry(&session, below, &format!("{}.nar", path.base_name())).await, Lookup::Entry(root));

    // No longer needed, it goes.
    announcer.node.store().commit(vec![Op::RemovePath(last.hash_part())]).unwrap();
    announcer.node.stored(None).await;
    announcer.until(2, 2).await;
    assert_eq!(announcer.node.index(), None);
    assert!(session.want(index).await.is_err());
    announcer.node.store().gc(&GcOptions::default()).unwrap();
    assert_eq!(announcer.node.store().block(&index).unwrap(), None);
    announcer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_stands_though_more_is_published_and_is_the_same_after_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let middle = network(Vec::new()).await;
    let announcer = Announcer::telling(2, state.path(), &middle).await;
    for number in 1..=2 {
        announcer.publish_path(number).await;
    }
    announcer.until(2, 2).await;
    announcer.publish_path(3).await;
    announcer.until(3, 3).await;
    let index = announcer.node.index().unwrap();
    let (_, fourth) = announcer.publish_path(4).await;
    let begun = Instant::now();
    let ledger = || std::fs::read_to_string(state.path().join("announced")).unwrap();
    while !ledger().contains(&fourth.to_string()) {
        assert!(begun.elapsed() < LONG, "{}", ledger());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(announcer.node.index().as_ref(), Some(&index));
    announcer.node.store().commit(vec![Op::RemovePath(format!("{:032}", 4).parse().unwrap())]).unwrap();
    announcer.end().await;

    // It is made of the same paths again, though nobody is there to be told.
    let nobody = network(Vec::new()).await;
    nobody.shutdown().await;
    let announcer = Announcer::telling(2, state.path(), &nobody).await;
    let begun = Instant::now();
    while announcer.node.index().is_none() {
        assert!(begun.elapsed() < LONG);
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(announcer.node.index(), Some(index));
    announcer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_made_anew_when_it_is_old_or_lacks_much_and_a_failure_leaves_what_stands() {
    let state = tempfile::tempdir().unwrap();
    let nobody = network(Vec::new()).await;
    let announcer = Announcer::start(state.path(), &nobody).await;
    let node = &announcer.node;
    let mut indexing = Indexing::default();
    assert_eq!(indexing.index(node, None).await, None);
    announcer.publish_path(1).await;
    let first = indexing.index(node, Some(6)).await.unwrap();
    announcer.publish_path(2).await;
    assert_eq!(indexing.index(node, Some(6)).await, Some(first));
    indexing.index.as_mut().unwrap().1 = 0;
    indexing.failed = Some(Instant::now());
    assert_eq!(indexing.index(node, Some(6)).await, Some(first));
    indexing.failed = None;
    let second = indexing.index(node, Some(6)).await.unwrap();
    assert_ne!(second, first);
    announcer.publish_path(3).await;
    assert_eq!(indexing.index(node, Some(8)).await, Some(second));
    let third = indexing.index(node, Some(12)).await.unwrap();
    assert_ne!(third, second);
    let is_public = |root| is_public(node.cache(), &root).unwrap();
    assert_eq!((is_public(second), is_public(third)), (false, true));
    assert_eq!(indexing.index(node, None).await, None);
    assert!(!is_public(third));
    announcer.end().await;
}
