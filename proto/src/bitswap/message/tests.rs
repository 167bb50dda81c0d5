use super::*;
use crate::block::{Digest, MAX_BLOCK};
use crate::vectors;
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn payload(block: &Block) -> Payload {
    Payload { cid: *block.cid(), bytes: block.bytes().clone() }
}

/// A message as a peer would see it.
fn received(message: &Message) -> Received {
    Received::decode(message.encode().into()).expect("our own message")
}

/// A protobuf field of bytes.
fn field(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag << 3 | 2];
    bytes.extend_from_slice(encode::usize(value.len(), &mut encode::usize_buffer()));
    bytes.extend_from_slice(value);
    bytes
}

fn decode_payload(prefix: &[u8], data: &[u8]) -> Received {
    let block = [field(1, prefix), field(2, data)].concat();
    Received::decode(field(3, &block).into()).expect("well-formed")
}

fn any_cid() -> impl Strategy<Value = Cid> {
    (any::<[u8; 32]>(), any::<bool>()).prop_map(|(digest, v0)| match v0 {
        true => Digest(digest).v0_cid(),
        false => Digest(digest).raw_cid(),
    })
}

fn any_want() -> impl Strategy<Value = Want> {
    (any_cid(), any::<i32>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(cid, priority, have, cancel, send_dont_have)| Want {
            cid,
            priority,
            kind: if have { WantKind::Have } else { WantKind::Block },
            cancel,
            send_dont_have,
        },
    )
}

fn any_block() -> impl Strategy<Value = Block> {
    (proptest::collection::vec(any::<u8>(), 0..2000), any::<bool>()).prop_map(|(bytes, v0)| match v0 {
        true => Block::v0(bytes.into()).expect("small"),
        false => Block::v1(crate::block::RAW, bytes.into()).expect("small"),
    })
}

proptest! {
    #[test]
    fn what_is_sent_is_received(
        wants in proptest::collection::vec(any_want(), 0..20),
        blocks in proptest::collection::vec(any_block(), 0..5),
        presences in proptest::collection::vec((any_cid(), any::<bool>()), 0..20),
        full: bool,
        pending_bytes: i32,
    ) {
        let presences: Vec<_> = presences.into_iter().map(|(cid, have)| Presence { cid, have }).collect();
        let payloads = blocks.iter().map(payload).collect();
        let message = Message { wants, full, payloads, presences, pending_bytes };
        prop_assert_eq!(message.encode().len(), message.encoded_len());
        let frame = message.encode_frame();
        let (length, body) = decode::usize(&frame).expect("a length");
        prop_assert_eq!(length, body.len());
        prop_assert_eq!(body, &message.encode()[..]);
        let Message { wants, presences, .. } = message.clone();
        let expected = Received { wants, full, blocks, presences, dropped: Dropped::default() };
        prop_assert_eq!(received(&message), expected);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        _ = Received::decode(bytes.into());
    }
}

#[test]
fn payload_prefixes_of_both_versions_are_read() {
    let data = b"\x0a\x03abc";
    let digest = Digest::of(data);
    let cases: [(&[u8], Option<Cid>); 10] = [
        (&[0x00, 0x70, 0x12, 0x20], Some(digest.v0_cid())),
        (&[0x01, 0x70, 0x12, 0x20], Some(Cid::new_v1(DAG_PB, digest.multihash()))),
        (&[0x01, 0x55, 0x12, 0x20], Some(digest.raw_cid())),
        (&[0x00, 0x55, 0x12, 0x20], None),             // CIDv0 is always dag-pb
        (&[0x02, 0x55, 0x12, 0x20], None),             // no such version
        (&[0x01, 0x55, 0x12, 0x1f], None),             // a shortened digest
        (&[0x01, 0x55, 0x00, 0x05], None),             // identity never travels
        (&[0x01, 0x55, 0xd5, 0x01, 0x10], None),       // md5
        (&[0x01, 0x55, 0x12, 0x20, 0x00], None),       // bytes after the end
        (&[0x01, 0x55, 0x92, 0x80, 0x00, 0x20], None), // a number that is not minimal
    ];
    for (prefix, cid) in cases {
        let received = decode_payload(prefix, data);
        assert_eq!(received.blocks.first().map(|block| *block.cid()), cid, "{prefix:02x?}");
        let dropped = usize::from(cid.is_none());
        assert_eq!(received.dropped, Dropped { blocks: dropped, block_bytes: dropped * 5, ..Dropped::default() });
    }
}

#[test]
fn blocks_are_slices_of_the_frame() {
    let block = Block::v1(crate::block::RAW, vec![7; 5000].into()).expect("small");
    let frame = Bytes::from(Message { payloads: vec![payload(&block)], ..Message::default() }.encode());
    let received = Received::decode(frame.clone()).expect("our own message");
    let bytes = received.blocks[0].bytes();
    assert_eq!(bytes.as_ptr(), frame.slice(frame.len() - 5000..).as_ptr());
}

#[test]
fn block_of_two_mib_is_the_largest() {
    let prefix = [0x01, 0x55, 0x12, 0x20];
    assert_eq!(decode_payload(&prefix, &vec![0; MAX_BLOCK]).blocks.len(), 1);
    let received = decode_payload(&prefix, &vec![0; MAX_BLOCK + 1]);
    assert_eq!((received.blocks.len(), received.dropped.blocks), (0, 1));
}

#[test]
fn broken_messages_are_errors() {
    assert_eq!(Received::decode(vec![0; MAX_MESSAGE + 1].into()), Err(MessageError::TooLong(MAX_MESSAGE + 1)));
    // A payload of 2^62 bytes in a message of ten; a wantlist whose entry ends outside of it; a group that never ends.
    let truncated: [&[u8]; 2] =
        [&[0x1a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40], &[0x0a, 0x02, 0x0a, 0x7f]];
    for frame in truncated {
        assert_eq!(Received::decode(frame.into()), Err(MessageError::Truncated), "{frame:02x?}");
    }
    let malformed: [&[u8]; 4] = [&[0x0b], &[0x00], &[0x08], &[0x0a, 0x04, 0x0a, 0x02, 0x0a, 0x7f]];
    for frame in malformed {
        assert!(matches!(Received::decode(frame.into()), Err(MessageError::Protobuf(_))), "{frame:02x?}");
    }
}

#[test]
fn floods_of_tiny_entries_cost_little() {
    let started = Instant::now();
    // Two million empty wants, presences and payloads, and half a million empty blocks that are real blocks.
    let wants = Received::decode(field(1, &[0x0a, 0x00].repeat(MAX_MESSAGE / 2 - 8)).into()).expect("well-formed");
    assert_eq!((wants.wants.capacity(), wants.dropped.wants), (0, MAX_MESSAGE / 2 - 8));
    let presences = Received::decode([0x22, 0x00].repeat(MAX_MESSAGE / 2).into()).expect("well-formed");
    assert_eq!((presences.presences.capacity(), presences.dropped.presences), (0, MAX_MESSAGE / 2));
    let payloads = Received::decode([0x1a, 0x00].repeat(MAX_MESSAGE / 2).into()).expect("well-formed");
    assert_eq!((payloads.blocks.capacity(), payloads.dropped.blocks), (0, MAX_MESSAGE / 2));
    let empty = field(3, &field(1, &[0x01, 0x55, 0x12, 0x20]));
    let blocks = Received::decode(empty.repeat(MAX_MESSAGE / empty.len()).into()).expect("well-formed");
    assert_eq!(blocks.blocks.len(), MAX_ENTRIES);
    assert_eq!(blocks.dropped.blocks, MAX_MESSAGE / empty.len() - MAX_ENTRIES);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[test]
fn vector_messages_decode_as_listed() {
    let Some(set) = vectors::json("bitswap/messages.json") else { return };
    let messages = set["messages"].as_array().expect("a list of messages");
    assert!(messages.len() >= 17, "only {} messages", messages.len());
    for message in messages {
        let name = message["name"].as_str().expect("a name");
        let frame = Bytes::from(vectors::from_hex(message["hex"].as_str().expect("hex")));
        let body = decode::u64(&frame).ok().and_then(|(length, body)| {
            let length = usize::try_from(length).ok().filter(|length| *length <= body.len())?;
            Some(frame.slice_ref(&body[..length]))
        });
        // What is wrong with a frame is the stream's to see.
        let Some(body) = body else {
            assert!(name.starts_with("frame length") || name == "truncated body", "{name}");
            continue;
        };
        let read = Received::decode(body).unwrap_or_else(|e| panic!("{name}: {e}"));
        let counts = (read.wants.len(), read.blocks.len(), read.presences.len());
        let dropped = (read.dropped.wants, read.dropped.blocks, read.dropped.presences);
        let expected = match name {
            "empty message" => ((0, 0, 0), (0, 0, 0)),
            "payload with md5 prefix" | "payload prefix length 64 for sha2-256" => ((0, 0, 0), (0, 1, 0)),
            "want CID undecodable" => ((1, 0, 0), (1, 0, 0)),
            "presence for unasked CID" => ((0, 0, 2), (0, 0, 0)),
            _ => ((1, 0, 0), (0, 0, 0)),
        };
        assert_eq!((counts, dropped), expected, "{name}");
        match name {
            "want-have present" | "want-have absent, sendDontHave" => assert_eq!(read.wants[0].kind, WantKind::Have),
            "cancel" => assert!(read.wants[0].cancel),
            "full wantlist replaces" => assert!(read.full),
            "negative priority" => assert_eq!(read.wants[0].priority, -5),
            "presence for unasked CID" => assert_eq!((read.presences[0].have, read.presences[1].have), (true, false)),
            _ => assert!(read.wants.iter().all(|want| want.kind == WantKind::Block)),
        }
    }
}
