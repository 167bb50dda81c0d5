//! A peer's messages, whatever they are, do nothing to the machines but what they may: what decodes can
//! be sent again and read the same, the server's wants stay bounded, and the client delivers only what
//! was wanted.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nipfs_proto::bitswap::client::{self, Client, SessionId};
use nipfs_proto::bitswap::message::{Dropped, Message, Payload, Received};
use nipfs_proto::bitswap::server::{self, Loaded, MAX_WANTS, Outcome, Server};
use nipfs_proto::block::Block;
use std::time::Instant;

const SESSION: SessionId = SessionId(1);

/// What a peer would send to be read as `received`.
fn resend(received: &Received) -> Message {
    let payload = |block: &Block| Payload { cid: *block.cid(), bytes: block.bytes().clone() };
    Message {
        wants: received.wants.clone(),
        full: received.full,
        payloads: received.blocks.iter().map(payload).collect(),
        presences: received.presences.clone(),
        pending_bytes: 0,
    }
}

/// Answers every load: a third of the blocks are here, a third are not, the rest are left for later.
fn serve(server: &mut Server<u8>) {
    let mut loads = 0;
    while let Some(action) = server.poll() {
        match action {
            server::Action::Load(load) if loads < 100 => {
                loads += 1;
                let outcome = |byte: u8| match byte % 3 {
                    0 => Some(Outcome::Block(Bytes::from_static(b"bytes"))),
                    1 => Some(Outcome::Absent),
                    _ => None,
                };
                let found = load.wants.iter().filter_map(|(cid, _)| {
                    let outcome = outcome(*cid.hash().digest().first()?)?;
                    Some(Loaded { cid: *cid, outcome })
                });
                server.loaded(load.id, found.collect());
            }
            server::Action::Load(load) => server.loaded(load.id, Vec::new()),
            server::Action::Send { peer, message } => server.sent(peer, message.encoded_len()),
        }
    }
}

// The input is a list of messages, each after two bytes of its length.
fuzz_target!(|bytes: &[u8]| {
    let now = Instant::now();
    let (mut client, mut server) = (Client::new(), Server::new());
    client.connected(1);
    client.open(SESSION, &[]);
    server.connected(1);
    let mut rest = bytes;
    while let Some((length, body)) = rest.split_first_chunk::<2>() {
        let (message, after) = body.split_at(body.len().min(u16::from_be_bytes(*length).into()));
        rest = after;
        let Ok(received) = Received::decode(Bytes::copy_from_slice(message)) else { continue };
        let again = Received::decode(resend(&received).encode().into()).expect("our own message");
        assert_eq!(again, Received { dropped: Dropped::default(), ..received.clone() });

        // Wants of what the peer talks about, so that its answers mean something.
        let mentioned = received.presences.iter().map(|presence| presence.cid);
        for cid in mentioned.chain(received.blocks.iter().map(|block| *block.cid())) {
            client.want(SESSION, cid);
        }
        client.received(1, received.blocks.clone(), &received.presences, &received.dropped, now);
        while let Some(action) = client.poll(now) {
            if let client::Action::Deliver { block, .. } = action {
                assert!(received.blocks.iter().any(|sent| sent.bytes() == block.bytes()));
            }
        }
        server.received(1, &received.wants, received.full);
        serve(&mut server);
        assert!(server.wants(1) <= MAX_WANTS);
    }
});
