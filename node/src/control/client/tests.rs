use super::*;
use crate::control::frame::{Codec, pair};
use crate::nix::dump::dump;
use crate::store::{GcOptions, Keep, Op};
use crate::{Node, Settings};
use futures::{SinkExt, StreamExt};
use nipfs_proto::block::parse_cid;
use nipfs_proto::nix::narinfo::{NarInfo, PathInfo, Root};
use nipfs_proto::nix::store_path::StorePath;
use tokio_util::codec::Framed;

type Played = Framed<tokio::io::DuplexStream, Codec>;

/// A client, and the node that a test plays.
fn pipe() -> (Client, Played) {
    let (near, far) = tokio::io::duplex(1 << 10);
    (Client::over(End::over(near)), Framed::new(far, Codec))
}

fn stage() -> Request {
    Request::Stage { profile: "unixfs-v0-2015".to_owned() }
}

fn full() -> Failure {
    Failure { class: Class::NoSpace, message: "no space".to_owned(), causes: vec![], hint: None }
}

#[tokio::test]
async fn events_come_in_order_and_the_connection_is_used_again() {
    let (mut client, mut node) = pipe();
    let far = tokio::spawn(async move {
        for _ in 0..2 {
            assert_eq!(node.next().await.unwrap().unwrap(), Frame::Request(Request::Hello));
            let note = Report::Note { text: "x".to_owned() };
            for frame in [Frame::Report(note), Frame::Data(Bytes::from_static(b"nar")), Frame::Restart] {
                node.send(frame).await.unwrap();
            }
            node.send(Frame::Done(Done::Ok)).await.unwrap();
        }
    });
    let mut exchange = client.request(Request::Hello).await.unwrap();
    assert!(matches!(exchange.next().await.unwrap(), Event::Report(_)));
    assert_eq!(exchange.next().await.unwrap(), Event::Data(Bytes::from_static(b"nar")));
    assert_eq!(exchange.next().await.unwrap(), Event::Restart);
    assert_eq!(exchange.next().await.unwrap(), Event::Done(Done::Ok));
    assert_eq!(client.call(Request::Hello).await.unwrap(), Done::Ok);
    far.await.unwrap();
}

#[tokio::test]
async fn a_node_that_fails_in_mid_stage_ends_the_sending() {
    let (mut client, mut node) = pipe();
    let far = tokio::spawn(async move {
        node.next().await.unwrap().unwrap();
        node.next().await.unwrap().unwrap();
        node.send(Frame::Failed(full())).await.unwrap();
        node
    });
    let mut exchange = client.request(stage()).await.unwrap();
    let error = loop {
        if let Err(error) = exchange.send_data(Bytes::from(vec![0; 4 << 10])).await {
            break error;
        }
    };
    assert!(matches!(error, ClientError::Failed(failure) if failure == full()));
    drop(far.await.unwrap());
}

/// What is no NAR: the node finds out at the first bytes.
async fn send_garbage(exchange: &mut Exchange<'_>) -> Result<(), ClientError> {
    exchange.send_data(Bytes::from(vec![0xff; 4 << 10])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_staged_stays_however_the_next_nar_ends() {
    let state = tempfile::tempdir().unwrap();
    let node = Node::open(Settings { state: state.path().to_owned(), ..Settings::default() }).await.unwrap();
    let (dir, mut nar) = (tempfile::tempdir().unwrap(), Vec::new());
    std::fs::write(dir.path().join("file"), "content").unwrap();
    dump(&dir.path().join("file"), &mut nar).unwrap();
    let (socket, far) = tokio::io::duplex(1 << 10);
    let (near, within) = pair();
    for (mut client, far) in [(Client::over(End::over(socket)), End::over(far)), (Client::over(near), within)] {
        let serving = node.clone();
        let serving = tokio::spawn(async move { serving.handle(far).await });
        let mut exchange = client.request(stage()).await.unwrap();
        exchange.send_data(nar.clone().into()).await.unwrap();
        exchange.end_data().await.unwrap();
        let Done::Staged { root, nar_hash, nar_size, .. } = exchange.done().await.unwrap() else {
            panic!("not staged")
        };

        client.request(stage()).await.unwrap().give_up(full()).await.unwrap();
        for pieces in 0..100 {
            let mut exchange = client.request(stage()).await.unwrap();
            let mut sent = Ok(());
            for _ in 0..pieces % 5 {
                sent = sent.and(send_garbage(&mut exchange).await);
                tokio::task::yield_now().await;
            }
            // The node may have failed before it is told, and found out or not that somebody still sends.
            match sent {
                Ok(()) => exchange.give_up(full()).await.unwrap(),
                Err(ClientError::Failed(_)) => exchange.end_data().await.unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
        let mut exchange = client.request(stage()).await.unwrap();
        while send_garbage(&mut exchange).await.is_ok() {}
        exchange.end_data().await.unwrap();

        let path = StorePath::from_base_name(&format!("{}-nipfs-test", "1".repeat(32))).unwrap();
        let (nar_hash, references, signatures) = (nar_hash.parse().unwrap(), Vec::new(), Vec::new());
        let info = PathInfo { path, nar_hash, nar_size, references, deriver: None, signatures, ca: None };
        let narinfo = NarInfo::new(&info).unwrap().with_ipfs(Root::new(parse_cid(&root).unwrap(), None).unwrap());
        let request = Request::Commit { narinfos: vec![narinfo.text().to_owned()], keep: Keep::Copy };
        assert_eq!(client.call(request).await.unwrap(), Done::Committed { failures: vec![None] });
        node.cache()
            .change(&info.path.hash_part(), &node.store().lease(), |path| {
                Some(Op::RemovePath(path.store_path.hash_part()))
            })
            .unwrap();
        node.store().gc(&GcOptions::default()).unwrap();
        drop(client);
        serving.await.unwrap();
    }
    node.shutdown().await;
}

#[tokio::test]
async fn a_node_that_goes_away_is_an_error() {
    let (mut client, mut node) = pipe();
    let far = tokio::spawn(async move {
        node.next().await.unwrap().unwrap();
    });
    let exchange = client.request(Request::Status).await.unwrap();
    assert!(matches!(exchange.done().await, Err(ClientError::Closed)));
    far.await.unwrap();
}

#[tokio::test]
async fn a_stale_socket_means_that_nobody_serves() {
    let state = tempfile::tempdir().unwrap();
    assert!(Client::connect(state.path()).await.unwrap().is_none());
    let listener = std::os::unix::net::UnixListener::bind(socket_address(state.path()).unwrap().path()).unwrap();
    assert!(Client::connect(state.path()).await.unwrap().is_some());
    drop(listener);
    assert!(Client::connect(state.path()).await.unwrap().is_none());
    assert!(Client::connect(&state.path().join("x".repeat(200))).await.unwrap().is_none());
}
