//! Peers that do not keep to the protocol. The node goes on serving others.

use super::log::Log;
use super::raw::{RawPeer, receive};
use super::*;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use nipfs_proto::bitswap::message::{MAX_MESSAGE, Message, Payload, Want};
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A node with one block, and that block.
pub(super) async fn server() -> (Network, Block) {
    let block = blocks(1, 2000).remove(0);
    (node(Shelf::of(std::slice::from_ref(&block)).source()).await, block)
}

pub(super) async fn assert_serves(server: &Network, block: &Block) {
    let client = client_of(&[server]).await;
    let (arrived, _) = timeout(LONG, client.session(Vec::new()).want(*block.cid())).await.unwrap().unwrap();
    assert_eq!(arrived, *block);
}

pub(super) fn want(cid: Cid) -> Message {
    let want = Want { cid, priority: 1, kind: WantKind::Block, cancel: false, send_dont_have: true };
    Message { wants: vec![want], ..Message::default() }
}

pub(super) async fn tcp(server: &Network) -> TcpStream {
    let port = server.listeners()[0].iter().find_map(|part| match part {
        libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    TcpStream::connect(("127.0.0.1", port.unwrap())).await.unwrap()
}

#[tokio::test]
async fn junk_instead_of_a_handshake_closes_the_connection() {
    let (server, block) = server().await;
    let junk: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[0; 64], b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff\x00\x00\x00"];
    futures::future::join_all(junk.map(async |bytes| {
        let mut stream = tcp(&server).await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // Reset or closed, in less than the deadline of a handshake and some.
        _ = timeout(DIAL_TIMEOUT + DIAL_TIMEOUT / 2, stream.read_to_end(&mut answer)).await.unwrap();
    }))
    .await;
    assert_serves(&server, &block).await;
}

#[tokio::test]
async fn a_handshake_that_never_comes_ends_after_its_deadline() {
    let (server, block) = server().await;
    // As many as may shake hands at once, and more.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tcp(&server).await);
    }
    for mut stream in silent {
        let mut answer = Vec::new();
        _ = timeout(DIAL_TIMEOUT + DIAL_TIMEOUT / 2, stream.read_to_end(&mut answer)).await.unwrap();
    }
    assert_serves(&server, &block).await;
}

#[tokio::test]
async fn a_bad_stream_ends_alone() {
    let (server, block) = server().await;
    let mut peer = RawPeer::connect(&server).await;
    let mut prefix = unsigned_varint::encode::usize_buffer();
    let too_long = unsigned_varint::encode::usize(MAX_MESSAGE + 1, &mut prefix);
    for bytes in [too_long, &[0xff; 10], b"\x05\xff\xff\xff\xff\xff", b"\x04abcd"] {
        let mut stream = peer.open().await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        // The node resets or closes it.
        let mut rest = Vec::new();
        _ = timeout(LONG, stream.read_to_end(&mut rest)).await.unwrap();
    }
    // Half a frame, and the end.
    peer.send(&[100, 1, 2, 3]).await;
    // The connection is as good as before.
    peer.send_message(&want(*block.cid())).await;
    let mut answers = peer.accept().await;
    assert_eq!(receive(&mut answers).await.blocks, std::slice::from_ref(&block));
    assert_serves(&server, &block).await;
}

#[tokio::test]
async fn frames_that_stall_hold_up_only_their_sender() {
    let (server, block) = server().await;
    let mut peer = RawPeer::connect(&server).await;
    let mut prefix = unsigned_varint::encode::usize_buffer();
    let claim = unsigned_varint::encode::usize(MAX_MESSAGE, &mut prefix);
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut stream = peer.open().await;
        stream.write_all(claim).await.unwrap();
        stream.write_all(&[0; 100]).await.unwrap();
        stream.flush().await.unwrap();
        stalled.push(stream);
    }
    assert_serves(&server, &block).await;
}

#[tokio::test]
async fn a_stream_for_each_message_is_fine_and_too_many_at_once_are_refused() {
    let (server, block) = server().await;
    let mut peer = RawPeer::connect(&server).await;
    for _ in 0..300 {
        peer.send_message(&want(*block.cid())).await;
    }
    let mut answers = peer.accept().await;
    assert_eq!(receive(&mut answers).await.blocks, std::slice::from_ref(&block));

    let mut open = Vec::new();
    for _ in 0..200 {
        open.push(peer.open().await);
    }
    drop(open);
    assert_serves(&server, &block).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_reads_does_not_hold_up_others() {
    let wanted = blocks(100, 256 << 10);
    let server = node(Shelf::of(&wanted).source()).await;
    let mut peer = RawPeer::connect(&server).await;
    let wants = wanted.iter().flat_map(|block| want(*block.cid()).wants).collect();
    peer.send_message(&Message { wants, ..Message::default() }).await;
    let _unread = peer.accept().await;
    assert_serves(&server, &wanted[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_blocks_that_nobody_wants_is_cut_off() {
    let client = node(BlockSource::empty()).await;
    let mut peer = RawPeer::connect(&client).await;
    let block = blocks(1, 1 << 20).remove(0);
    let payload = Payload { cid: *block.cid(), bytes: block.bytes().clone() };
    let frame = Message { payloads: vec![payload], ..Message::default() }.encode_frame();
    let mut stream = peer.open().await;
    let mut taken = 0;
    while timeout(LONG, stream.write_all(&frame)).await.unwrap().is_ok() {
        taken += frame.len();
        assert!(taken < 256 << 20, "still taking after {taken} bytes");
    }
    assert!(taken >= 32 << 20, "cut off after {taken} bytes");
    let gone = async {
        while !client.peers().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, gone).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_again_and_again_is_in_the_log_once() {
    let (log, _guard) = Log::begin();
    let (server, block) = server().await;
    let mut peer = RawPeer::connect(&server).await;
    for _ in 0..5 {
        let mut stream = peer.open().await;
        stream.write_all(b"\x04abcd").await.unwrap();
        stream.flush().await.unwrap();
        _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    assert_serves(&server, &block).await;
    let named = log.lines(&format!(" peer={}", peer.peer));
    assert_eq!(named.len(), 1, "{named:?}");
    assert!(named[0].contains("peer breaks the protocol"), "{named:?}");
}

/// How a peer answers a want so that nothing comes of it.
#[derive(Debug, Clone, Copy)]
enum Answer {
    WrongBytes,
    AByteASecond,
    Nothing,
}

async fn answer(peer: &mut RawPeer, cid: Cid, answer: Answer) {
    let mut stream = peer.accept().await;
    while !receive(&mut stream).await.wants.iter().any(|want| want.cid == cid && !want.cancel) {}
    match answer {
        Answer::WrongBytes => {
            let payload = Payload { cid, bytes: Bytes::from_static(b"something else") };
            peer.send_message(&Message { payloads: vec![payload], ..Message::default() }).await;
        }
        Answer::AByteASecond => {
            let mut answer = peer.open().await;
            answer.write_all(&[100]).await.unwrap();
            loop {
                answer.write_all(&[0]).await.unwrap();
                answer.flush().await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Answer::Nothing => {}
    }
}

#[tokio::test]
async fn a_peer_that_lies_trickles_or_is_silent_is_followed_by_the_next() {
    let (server, block) = server().await;
    let cid = *block.cid();
    let fetch = async |kind: Answer| {
        let client = client_of(&[&server]).await;
        let mut bad = RawPeer::connect(&client).await;
        // The bad one is preferred, so the block is asked of it first.
        let session = client.session(vec![bad.peer, server.peer_id()]);
        let begun = Instant::now();
        let want = session.want(cid);
        let behave = async {
            answer(&mut bad, cid, kind).await;
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = timeout(LONG, want) => outcome.unwrap(),
            () = behave => unreachable!("it is pending"),
        };
        assert_eq!(outcome.unwrap(), (block.clone(), server.peer_id()), "{kind:?}");
        assert!(begun.elapsed() < Duration::from_secs(6), "{kind:?}: {:?}", begun.elapsed());
    };
    tokio::join!(fetch(Answer::WrongBytes), fetch(Answer::AByteASecond), fetch(Answer::Nothing));
}
