//! A NAR may have several DAGs here, cut in different ways.

use super::obtain::{Obtain, Places};
use super::places::{Whom, places};
use super::{Event, Events, pins, verify};
use crate::Node;
use crate::cache::{Audience, Claim, Purpose, Staged};
use crate::control::protocol::{Done, Item};
use crate::dag::read::{Sources, block};
use crate::network::{BlockSource, Config, Keypair, Network, Profile as Reach};
use crate::nix::dump::dump;
use crate::node::Settings;
use crate::store::Keep;
use crate::upstream::fake::{Fake, answer};
use crate::upstream::{NipfsInfo, Upstream};
use nipfs_proto::bitswap::server::Outcome;
use nipfs_proto::block::{Block, DAG_PB, RAW};
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::{NarInfo, PathInfo};
use nipfs_proto::nix::store_path::StorePath;
use nipfs_proto::nix::trust::TrustedNarInfo;
use sha2::{Digest as _, Sha256};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A node that published one NAR cut in two ways, a block each; the older DAG lies first in the pack.
struct Twice {
    _dir: tempfile::TempDir,
    node: Node,
    narinfo: NarInfo,
    older: Staged,
    newer: Staged,
    contents: Vec<u8>,
}

/// Bytes that do not compress, and the NAR of a file of them.
pub(super) fn noise(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    let contents: Vec<u8> = (0..128_u8).flat_map(|number| Sha256::digest([number])).collect();
    let (file, mut nar) = (dir.join("file"), Vec::new());
    std::fs::write(&file, &contents).unwrap();
    dump(&file, &mut nar).unwrap();
    (contents, nar)
}

impl Twice {
    async fn publish() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(Settings { state: dir.path().join("state"), ..Settings::default() }).await.unwrap();
        let (contents, nar) = noise(dir.path());
        let older = node.cache().stage(&nar[..], Profile::UnixfsV0_2015).unwrap();
        let newer = node.cache().stage(&nar[..], Profile::UnixfsV1_2025).unwrap();
        let (nar_hash, nar_size, references, signatures) = (older.nar_hash, older.nar_size, Vec::new(), Vec::new());
        let path = StorePath::from_base_name(&format!("{}-nipfs-test-twice", "2".repeat(32))).unwrap();
        let narinfo =
            NarInfo::new(&PathInfo { path, nar_hash, nar_size, references, deriver: None, signatures, ca: None });
        let narinfo = narinfo.unwrap();
        for staged in [&older, &newer] {
            let claim = Claim::Own(&narinfo, Keep::Copy);
            node.cache().commit(claim, Some(staged), Audience::World).unwrap();
        }
        assert_eq!(node.store().nar(&nar_hash).unwrap().unwrap().roots.len(), 2);
        Self { _dir: dir, node, narinfo, older, newer, contents }
    }

    /// Flips a bit in the block of one of the two.
    fn damage(&self, staged: &Staged) {
        let pack = self.node.state().join("store/packs/00000001.pack");
        let bytes = std::fs::read(&pack).unwrap();
        let mut found = bytes.windows(self.contents.len()).enumerate().filter(|(_, window)| *window == self.contents);
        let (at, _) = found.nth(usize::from(staged.root == self.newer.root)).unwrap();
        let pack = std::fs::OpenOptions::new().write(true).open(pack).unwrap();
        pack.write_all_at(&[!self.contents[0]], at as u64).unwrap();
        self.node.store().block(&staged.root).unwrap_err();
    }
}

#[tokio::test]
async fn damage_in_a_second_dag_of_a_nar_is_found() {
    let twice = Twice::publish().await;
    let (events, _receiver) = Events::channel();
    twice.damage(&twice.newer);
    let Done::Verify { damaged, broken_paths, .. } =
        verify::verify(&twice.node, false, false, &[], &events).await.unwrap()
    else {
        panic!("not the end of a verify")
    };
    assert_eq!(damaged, [twice.newer.root.to_string()]);
    assert_eq!(broken_paths, [twice.narinfo.store_path().to_absolute_path()]);
}

#[tokio::test]
async fn a_pin_is_complete_when_all_dags_of_its_nar_are() {
    let twice = Twice::publish().await;
    let is_complete = async || {
        let (events, mut receiver) = Events::channel();
        pins::list(&twice.node, true, &events).await.unwrap();
        let Some(Event::Item(Item::Pin { complete, .. })) = receiver.recv().await else { panic!("not a pin") };
        complete
    };
    assert_eq!(is_complete().await, Some(true));
    twice.damage(&twice.newer);
    twice.node.store().verify(true, true).unwrap();
    assert_eq!(is_complete().await, Some(false));
}

#[tokio::test]
async fn a_nar_of_which_any_dag_is_whole_is_not_fetched_again() {
    let twice = Twice::publish().await;
    twice.damage(&twice.older);
    twice.node.store().verify(true, true).unwrap();
    let (events, _receiver) = Events::channel();
    let lease = Some(Arc::new(twice.node.store().lease()));
    let blocks = Sources { lease, ..Sources::local(twice.node.store().clone()) };
    let obtain = Obtain {
        cache: twice.node.cache(),
        trusted: &TrustedNarInfo::own(twice.narinfo.clone()),
        profile: None,
        places: Places { blocks, upstream: None, peers: None },
        events: &events,
        data: false,
        purpose: Purpose::Use(Audience::Loopback),
    };
    let obtained = obtain.run().await.unwrap();
    assert_eq!((obtained.root, obtained.source), (twice.newer.root, "local"));
}

const LONG: Duration = Duration::from_secs(60);

/// A node of the table of the local network, which it enters by `entry`.
async fn in_table(entry: &[&Network], source: BlockSource) -> Network {
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let bootstrap = entry.iter().map(|node| node.listeners().remove(0)).collect();
    let config = Config { listen, profile: Reach::Public, bootstrap, ..Config::default() };
    Network::start(config, Keypair::generate_ed25519(), source).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_what_nobody_tells_of_is_found_by_the_index_that_a_cache_names() {
    let old = Block::v1(RAW, bytes::Bytes::from_static(b"an old NAR")).unwrap();
    let index = *Block::v1(DAG_PB, bytes::Bytes::new()).unwrap().cid();
    let middle = in_table(&[], BlockSource::empty()).await;
    let held = old.clone();
    let holds = move |_: &_, cid: &_, _| match cid == held.cid() {
        true => Outcome::Block(held.bytes().clone()),
        false => Outcome::Absent,
    };
    let holder = in_table(&[&middle], BlockSource::new(holds)).await;
    let begun = Instant::now();
    while holder.provide(index).await.is_err() {
        assert!(begun.elapsed() < LONG);
    }
    let cache = async |index: &str| {
        let text = NipfsInfo::new(1, u64::MAX, Vec::new(), Some(index.to_owned())).to_text();
        let fake = Fake::start(move |_, _| answer("200 OK", "", text.as_bytes())).await;
        Upstream::new(&fake.url()).unwrap()
    };
    // The last is a block of its own, so nobody provides it.
    let caches = [cache("nonsense").await, cache(&index.to_string()).await, cache("bafkqaaa").await];

    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { profile: Reach::Public, bootstrap: middle.listeners(), ..Settings::default() };
    let node = Node::open(Settings { state: dir.path().to_owned(), ..settings }).await.unwrap();
    let (events, _receiver) = Events::channel();
    // A session that names a peer asks no other, though it may be connected.
    let peers = [middle.listeners()[0].to_string()];
    let get = async |caches: &[Upstream]| {
        let whom = Whom { peers: &peers, caches, ..Whom::default() };
        let sources = places(&node, &whom, &events).await.unwrap().blocks;
        assert_eq!(sources.indexes.clone().unwrap().await[..], [index][..caches.len().min(1)]);
        block(&sources, *old.cid(), *old.cid()).await
    };
    assert!(get(&[]).await.is_err());
    // The node may still be on its way into the table.
    let begun = Instant::now();
    while get(&caches).await.is_err() {
        assert!(begun.elapsed() < LONG);
    }
    node.shutdown().await;
}
