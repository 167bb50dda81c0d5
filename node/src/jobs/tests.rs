//! A NAR may have several DAGs here, cut in different ways.

use super::obtain::{Obtain, Places};
use super::{Event, Events, pins, verify};
use crate::Node;
use crate::cache::{Audience, Claim, Purpose, Staged};
use crate::control::protocol::{Done, Item};
use crate::dag::read::Sources;
use crate::nix::dump::dump;
use crate::node::Settings;
use crate::store::Keep;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::{NarInfo, PathInfo};
use nipfs_proto::nix::store_path::StorePath;
use nipfs_proto::nix::trust::TrustedNarInfo;
use sha2::{Digest as _, Sha256};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

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
