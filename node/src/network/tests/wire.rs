//! Attacks below bitswap: on multistream, on yamux, and on the protocols that are spoken with every peer.

use super::attack::{assert_serves, server, want};
use super::raw::RawPeer;
use super::*;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::core::upgrade::OutboundConnectionUpgrade as _;
use libp2p::core::{Endpoint, Transport as _};
use libp2p::{StreamProtocol, noise, tcp};

/// A connection as its bytes.
pub(super) trait Bytestream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Bytestream for S {}

pub(super) async fn dial(server: &Network) -> tcp::tokio::TcpStream {
    let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let mut transport = tcp::tokio::Transport::new(tcp::Config::default());
    transport.dial(server.listeners().remove(0), options).unwrap().await.unwrap()
}

pub(super) fn line(text: &str) -> Vec<u8> {
    let mut line = vec![u8::try_from(text.len() + 1).unwrap()];
    line.extend_from_slice(text.as_bytes());
    line.push(b'\n');
    line
}

/// Agrees on a protocol.
pub(super) async fn propose(stream: &mut impl Bytestream, name: &str) {
    let proposal = [line("/multistream/1.0.0"), line(name)].concat();
    stream.write_all(&proposal).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; proposal.len()];
    timeout(LONG, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, proposal);
}

/// A connection that is ready for yamux frames.
async fn multiplexed(server: &Network) -> impl Bytestream + use<> {
    let mut stream = dial(server).await;
    propose(&mut stream, "/noise").await;
    let noise = noise::Config::new(&Keypair::generate_ed25519()).unwrap();
    let (peer, mut stream) = noise.upgrade_outbound(stream, "/noise").await.unwrap();
    assert_eq!(peer, server.peer_id());
    propose(&mut stream, "/yamux/1.0.0").await;
    stream
}

/// Reads until the node has closed the connection.
async fn closed(stream: &mut impl Bytestream) {
    _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await.expect("the connection is closed");
}

/// Writes `chunk` until the node takes no more. The bytes that it took, `most` at the worst.
async fn fill(stream: &mut impl Bytestream, chunk: &[u8], most: usize) -> usize {
    let mut taken = 0;
    while taken < most {
        match timeout(Duration::from_secs(2), stream.write_all(chunk)).await {
            Ok(Ok(())) => taken += chunk.len(),
            Ok(Err(_)) | Err(_) => return taken,
        }
    }
    panic!("still taking after {taken} bytes")
}

const DATA: u8 = 0;
const WINDOW: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;
const SYN: u16 = 1;
const FIN: u16 = 4;

fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    [&[0, kind][..], &flags.to_be_bytes(), &stream.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// Reads until the node has closed the connection, or said that it will hear no more of this session.
async fn gone(stream: &mut impl Bytestream) {
    let mut header = [0; 12];
    while stream.read_exact(&mut header).await.is_ok() && header[1] != GO_AWAY {
        let body = if header[1] == DATA { u32::from_be_bytes(header[8..].try_into().unwrap()) } else { 0 };
        if stream.read_exact(&mut vec![0; body as usize]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn yamux_frames_against_its_rules_end_the_session() {
    let (server, block) = server().await;
    let opened = frame(WINDOW, SYN, 1, 0);
    let mut of_another_version = frame(DATA, SYN, 1, 0);
    of_another_version[0] = 1;
    let cases = [
        ("another version", of_another_version),
        ("an unknown type", frame(9, 0, 0, 0)),
        ("a stream of ours", frame(DATA, SYN, 2, 0)),
        ("the stream of the connection itself", frame(DATA, SYN, 0, 0)),
        ("the same stream again", [opened.clone(), opened.clone()].concat()),
        ("a window above 32 bits", frame(WINDOW, SYN, 1, u32::MAX)),
        ("a window that grows above 32 bits", [opened, frame(WINDOW, 0, 1, u32::MAX)].concat()),
        ("an end", frame(GO_AWAY, 0, 0, 0)),
    ];
    for (name, bytes) in cases {
        let mut stream = multiplexed(&server).await;
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        timeout(LONG, gone(&mut stream)).await.expect(name);
    }
    assert_serves(&server, &block).await;
}

#[tokio::test]
async fn a_yamux_frame_of_four_gibibytes_harms_nobody() {
    let (server, block) = server().await;
    // Of a new stream, of one that is not there, and of one that has ended.
    for (flags, stream) in [(SYN, 1), (0, 7), (SYN | FIN, 1)] {
        let mut connection = multiplexed(&server).await;
        connection.write_all(&frame(DATA, flags, stream, u32::MAX)).await.unwrap();
        for _ in 0..16 {
            if connection.write_all(&[0; 1 << 20]).await.is_err() {
                break;
            }
        }
        assert_serves(&server, &block).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_yamux_pings_whose_answers_nobody_reads_is_left_standing() {
    let (server, block) = server().await;
    let mut connection = multiplexed(&server).await;
    let pings: Vec<u8> = (0..5000).flat_map(|n| frame(PING, SYN, 0, n)).collect();
    fill(&mut connection, &pings, 256 << 20).await;
    assert_serves(&server, &block).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_whose_answers_nobody_reads_is_left_standing() {
    let (server, block) = server().await;
    let mut peer = RawPeer::speaking(StreamProtocol::new("/ipfs/ping/1.0.0"), &server).await;
    let mut stream = peer.open().await;
    fill(&mut stream, &[7; 32 << 10], 64 << 20).await;
    assert_serves(&server, &block).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_list_of_protocols_to_choose_from_ends_after_the_deadline() {
    let (server, block) = server().await;
    let proposals = line("/nothing/1.0.0").repeat(4000);
    // Before the handshake: the whole connection.
    let mut early = dial(&server).await;
    early.write_all(&line("/multistream/1.0.0")).await.unwrap();
    // After it: streams, more than may agree on a protocol at once.
    let mut late = multiplexed(&server).await;
    for stream in 0..100 {
        let body = [line("/multistream/1.0.0"), proposals.clone()].concat();
        let header = frame(DATA, SYN, 2 * stream + 1, u32::try_from(body.len()).unwrap());
        late.write_all(&[header, body].concat()).await.unwrap();
    }
    let flood = async {
        let begun = std::time::Instant::now();
        while timeout(DIAL_TIMEOUT, early.write_all(&proposals)).await.is_ok_and(|written| written.is_ok()) {
            assert!(begun.elapsed() < DIAL_TIMEOUT + DIAL_TIMEOUT / 2, "still listening");
        }
        closed(&mut early).await;
    };
    tokio::join!(flood, assert_serves(&server, &block));
}

/// What a peer says of itself: an agent's name, and ten thousand protocols.
fn boast() -> Vec<u8> {
    let mut body = line("boaster");
    body.truncate(body.len() - 1);
    body[0] -= 1;
    body.insert(0, 6 << 3 | 2);
    for n in 0..10_000 {
        let name = format!("/protocol/{n}/1.0.0");
        body.extend([3 << 3 | 2, u8::try_from(name.len()).unwrap()]);
        body.extend(name.bytes());
    }
    let mut length = unsigned_varint::encode::usize_buffer();
    [unsigned_varint::encode::usize(body.len(), &mut length), &body].concat()
}

#[tokio::test]
async fn ten_thousand_protocols_in_identify_are_not_listened_to() {
    let (server, block) = server().await;
    let mut asked = RawPeer::speaking(StreamProtocol::new("/ipfs/id/1.0.0"), &server).await;
    let mut unasked = RawPeer::speaking(StreamProtocol::new("/ipfs/id/push/1.0.0"), &server).await;
    for mut stream in [asked.accept().await, unasked.open().await] {
        // The node may have gone before the end.
        _ = stream.write_all(&boast()).await;
        _ = stream.close().await;
        _ = timeout(LONG, stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    assert_serves(&server, &block).await;
    let peers = server.peers().await.unwrap();
    let boasters = peers.iter().filter(|summary| [asked.peer, unasked.peer].contains(&summary.peer));
    assert!(boasters.into_iter().all(|summary| summary.agent.is_empty()), "{peers:?}");
}

#[tokio::test]
async fn streams_without_end_that_propose_nothing_hold_nobody_up() {
    let (server, block) = server().await;
    let mut connection = multiplexed(&server).await;
    for stream in 0..2000 {
        if connection.write_all(&frame(WINDOW, SYN, 2 * stream + 1, 0)).await.is_err() {
            break;
        }
    }
    _ = connection.flush().await;
    assert_serves(&server, &block).await;
    let mut peer = RawPeer::connect(&server).await;
    peer.send_message(&want(*block.cid())).await;
    assert_eq!(peer.answer().await.blocks, [block]);
}
