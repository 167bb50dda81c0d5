//! Peers that send more than anybody needs. What the node keeps of it is bounded, and it goes on serving others.

use super::attack::{assert_serves, server, want};
use super::raw::RawPeer;
use super::*;
use nipfs_proto::bitswap::message::{MAX_ENTRIES, MAX_MESSAGE, Message, Presence, Want};
use nipfs_proto::bitswap::server::MAX_WANTS;
use std::time::Instant;

/// A CID that nobody has.
fn unknown(n: u64) -> Cid {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&n.to_be_bytes());
    Cid::new_v1(RAW, cid::multihash::Multihash::wrap(0x12, &digest).unwrap())
}

pub(super) fn wants(cids: impl Iterator<Item = Cid>) -> Message {
    let want = |cid| Want { cid, priority: 1, kind: WantKind::Block, cancel: false, send_dont_have: false };
    Message { wants: cids.map(want).collect(), ..Message::default() }
}

/// Waits until the node has taken `bytes` of the peer's messages.
async fn taken(node: &Network, peer: PeerId, bytes: usize) {
    let took = async {
        loop {
            let peers = node.peers().await.unwrap();
            let Some(summary) = peers.iter().find(|summary| summary.peer == peer) else { panic!("disconnected") };
            if summary.traffic.bytes_in >= bytes as u64 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, took).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_million_wants_over_a_hundred_connections_a_thousand_are_live() {
    let shelf = Shelf::default();
    let server = node(shelf.source()).await;
    for round in 0..100 {
        let mut peer = RawPeer::connect(&server).await;
        let message = wants((0..10_000).map(|n| unknown(round * 10_000 + n)));
        peer.send_message(&message).await;
        taken(&server, peer.peer, message.encoded_len()).await;
    }
    // What is live shows when all that is wanted is there.
    let wanted = blocks(3 * MAX_WANTS, 16);
    let mut peer = RawPeer::connect(&server).await;
    let message = wants(wanted.iter().map(|block| *block.cid()));
    peer.send_message(&message).await;
    taken(&server, peer.peer, message.encoded_len()).await;
    let [present] = blocks(1, 5000).try_into().unwrap();
    shelf.put(&present);
    assert_serves(&server, &present).await;
    wanted.iter().for_each(|block| shelf.put(block));
    server.stored(wanted.iter().map(|block| *block.cid()).collect()).await.unwrap();
    let mut came = 0;
    while came < MAX_WANTS {
        came += peer.answer().await.blocks.len();
    }
    peer.send_message(&want(*present.cid())).await;
    assert_eq!((came, peer.answer().await.blocks), (MAX_WANTS, vec![present]));
}

pub(super) fn field(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut length = unsigned_varint::encode::usize_buffer();
    [&[tag][..], unsigned_varint::encode::usize(body.len(), &mut length), body].concat()
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut length = unsigned_varint::encode::usize_buffer();
    [unsigned_varint::encode::usize(body.len(), &mut length), body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_presences_empty_entries_and_cancels_holds_nobody_up() {
    let (server, block) = server().await;
    let mut peer = RawPeer::connect(&server).await;
    let entries = || (0..MAX_ENTRIES as u64).map(unknown);
    let cancel = |cid| Want { cid, priority: 1, kind: WantKind::Block, cancel: true, send_dont_have: true };
    let presences = entries().map(|cid| Presence { cid, have: true }).collect();
    let frames = [
        framed(&field(0x0a, &[0x0a, 0x00].repeat(MAX_MESSAGE / 2 - 8))),
        framed(&[0x22, 0x00].repeat(MAX_MESSAGE / 2)),
        framed(&[0x1a, 0x00].repeat(MAX_MESSAGE / 2)),
        Message { presences, ..Message::default() }.encode_frame(),
        Message { wants: entries().map(cancel).collect(), ..Message::default() }.encode_frame(),
    ];
    let flood = async {
        for frame in frames.iter().cycle().take(4 * frames.len()) {
            peer.send(frame).await;
        }
    };
    let begun = Instant::now();
    tokio::join!(flood, async {
        for _ in 0..5 {
            assert_serves(&server, &block).await;
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // All of it is forgotten: its sender is served as anybody.
    peer.send_message(&want(*block.cid())).await;
    assert_eq!(peer.answer().await.blocks, [block]);
}
