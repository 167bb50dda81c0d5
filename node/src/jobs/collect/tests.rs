use super::*;
use crate::Settings;
use crate::cache::unix_now;
use crate::control::client::{Client, Event};
use crate::control::frame::pair;
use crate::control::protocol::{MAX_FRAME, Request};
use crate::store::NarRecord;
use nipfs_proto::nix::{NarHash, base32};

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
        let Event::Item(Item::Dropped { target }) = exchange.next().await.unwrap() else { panic!("not an item") };
        bytes += target.len();
    }
    assert!(bytes > MAX_FRAME);
    assert!(matches!(exchange.next().await.unwrap(), Event::Done(Done::Gc { freed_bytes: 1.., kept_paths: 0 })));
}
