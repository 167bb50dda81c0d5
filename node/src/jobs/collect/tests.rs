use super::*;
use crate::Settings;
use crate::cache::{Audience, Claim, unix_now};
use crate::control::client::{Client, Event};
use crate::control::frame::pair;
use crate::control::protocol::{MAX_FRAME, Request};
use crate::nix::dump::dump;
use crate::store::{Lease, NarRecord};
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::{PathInfo, Root};
use nipfs_proto::nix::{NarHash, base32};
use std::sync::Arc;

/// More names than one frame could carry.
const PATHS: u32 = 17_000;

#[tokio::test]
async fn gc_tells_what_it_dropped_however_much_that_is() {
    let state = tempfile::tempdir().unwrap();
    let node = Node::open(Settings { state: state.path().to_owned(), ..Settings::default() }).await.unwrap();
    let block = Block::v1(nipfs_proto::block::RAW, bytes::Bytes::from_static(b"a NAR")).unwrap();
    let lease = node.store().lease();
    lease.put(&block).unwrap();
    let nar_hash = NarHash::of(b"a NAR");
    let nar = NarRecord { nar_hash, nar_size: 5, roots: vec![("unknown".to_owned(), *block.cid())] };
    let path = |number: u32| {
        let mut hash = [0; 20];
        hash[..4].copy_from_slice(&number.to_le_bytes());
        let name = format!("{}-{}", base32::encode(&hash), "x".repeat(210));
        Op::PutPath(PathRecord {
            store_path: StorePath::from_base_name(&name).unwrap(),
            narinfo: bytes::Bytes::new(),
            nar_hash,
            published: false,
            pinned: false,
            mirror: None,
            added_unix: unix_now(),
            keep: Keep::Copy,
        })
    };
    lease.commit([Op::PutNar(nar)].into_iter().chain((0..PATHS).map(path)).collect()).unwrap();
    drop(lease);

    let (near, far) = pair();
    let serving = node.clone();
    tokio::spawn(async move { serving.handle(far).await });
    let mut client = Client::over(near);
    let mut exchange =
        client.request(Request::Gc { dry_run: false, max_size: None, require_mirror: None }).await.unwrap();
    let mut bytes = 0;
    for _ in 0..PATHS {
        let Event::Item(Item::Dropped { target, .. }) = exchange.next().await.unwrap() else { panic!("not an item") };
        bytes += target.len();
    }
    assert!(bytes > MAX_FRAME);
    assert!(matches!(exchange.next().await.unwrap(), Event::Done(Done::Gc { freed_bytes: 1.., kept_paths: 0 })));
}

/// Publishes a file of these bytes as the path of `number`.
fn publish(node: &Node, number: u8, keep: Keep) -> StorePath {
    publish_under_lease(node, number, keep).0
}

/// The same, with the lease that its blocks came under.
fn publish_under_lease(node: &Node, number: u8, keep: Keep) -> (StorePath, Arc<Lease>) {
    let dir = tempfile::tempdir().unwrap();
    let (file, mut nar) = (dir.path().join("file"), Vec::new());
    std::fs::write(&file, [number; 100]).unwrap();
    dump(&file, &mut nar).unwrap();
    let staged = node.cache().stage(&nar[..], Profile::UnixfsV0_2015).unwrap();
    let path = StorePath::from_base_name(&format!("{}-nipfs-test", base32::encode(&[number; 20]))).unwrap();
    let (nar_hash, nar_size) = (staged.nar_hash, staged.nar_size);
    let (references, signatures) = (Vec::new(), Vec::new());
    let info = PathInfo { path: path.clone(), nar_hash, nar_size, references, deriver: None, signatures, ca: None };
    let narinfo = NarInfo::new(&info).unwrap().with_ipfs(Root::new(staged.root, None).unwrap());
    node.cache().commit(Claim::Own(&narinfo, keep), Some(&staged), Audience::World).unwrap();
    (path, staged.lease())
}

#[tokio::test]
async fn what_was_in_use_when_a_store_was_too_large_goes_when_its_lease_ends() {
    let state = tempfile::tempdir().unwrap();
    let node = Node::open(Settings { state: state.path().to_owned(), ..Settings::default() }).await.unwrap();
    let (path, lease) = publish_under_lease(&node, 1, Keep::Copy);
    let (runs, mut ran) = tokio::sync::mpsc::channel(4);
    let stop = CancellationToken::new();
    let dropped = move |paths: &[StorePath]| runs.try_send(paths.to_vec()).unwrap();
    let holding = tokio::spawn(hold(node.clone(), 10, stop.clone(), dropped));
    assert_eq!(ran.recv().await.unwrap(), []);
    assert!(node.store().stored_bytes() > 10);
    // Others that come and go meanwhile are no reason to try again.
    drop(node.store().lease());
    tokio::task::yield_now().await;
    assert!(ran.is_empty());
    drop(lease);
    assert_eq!(ran.recv().await.unwrap(), [path]);
    assert_eq!(node.store().stored_bytes(), 0);
    stop.cancel();
    holding.await.unwrap();
    node.shutdown().await;
}

#[tokio::test]
async fn what_went_with_its_tree_is_told_apart_from_what_is_left_to_a_mirror() {
    let (state, mirrors) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = Node::open(Settings { state: state.path().to_owned(), ..Settings::default() }).await.unwrap();
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let settings = Settings { state: mirrors.path().to_owned(), listen, ..Settings::default() };
    let mirror = Node::open(settings).await.unwrap();
    mirror.network().await.unwrap();
    // Nix has no such path, so it is gone.
    let gone = publish(&node, 1, Keep::Weak);
    let held = publish(&node, 2, Keep::Copy);
    publish(&mirror, 2, Keep::Copy);

    let (near, far) = pair();
    let serving = node.clone();
    tokio::spawn(async move { serving.handle(far).await });
    let mut client = Client::over(near);
    let require_mirror = Some(mirror.addresses().remove(0));
    let request = Request::Gc { dry_run: false, max_size: Some(0), require_mirror };
    let mut exchange = client.request(request).await.unwrap();
    for (path, is_left) in [(&gone, false), (&held, true)] {
        let Event::Item(Item::Dropped { target, left }) = exchange.next().await.unwrap() else { panic!("not an item") };
        assert_eq!((target, left), (path.to_absolute_path(), is_left));
    }
    let paths = node.store().paths().map(|record| record.unwrap().store_path);
    assert_eq!(paths.collect::<Vec<_>>(), [held]);
    mirror.shutdown().await;
    node.shutdown().await;
}
