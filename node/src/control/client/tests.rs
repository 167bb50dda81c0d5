use super::*;
use crate::control::frame::Codec;
use futures::{SinkExt, StreamExt};
use tokio_util::codec::Framed;

type Node = Framed<tokio::io::DuplexStream, Codec>;

fn pipe() -> (Client, Node) {
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
