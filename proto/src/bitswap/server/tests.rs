use super::*;
use crate::bitswap::message::{MAX_MESSAGE, Presence, Received, TARGET_MESSAGE};
use crate::block::{Block, DAG_PB, RAW};
use crate::vectors;

/// A store in memory and the loader over it.
#[derive(Default)]
struct Store(HashMap<Digest, Bytes>);

impl Store {
    fn put(&mut self, bytes: Vec<u8>) -> Cid {
        let block = Block::v1(RAW, bytes.into()).unwrap();
        self.0.insert(block.digest().unwrap(), block.bytes().clone());
        *block.cid()
    }

    fn load<P>(&self, load: &Load<P>) -> Vec<Loaded> {
        let (mut loaded, mut total) = (Vec::new(), 0);
        for (cid, kind) in &load.wants {
            let outcome = match self.0.get(&Digest::of_cid(cid).unwrap().unwrap()) {
                None => Outcome::Absent,
                Some(bytes) if *kind == WantKind::Have && bytes.len() > HAVE_REPLACED_BY_BLOCK => Outcome::Have,
                Some(bytes) => {
                    total += bytes.len();
                    if total > load.budget && total > bytes.len() {
                        break;
                    }
                    Outcome::Block(bytes.clone())
                }
            };
            loaded.push(Loaded { cid: *cid, outcome });
        }
        loaded
    }
}

/// Loads and sends until there is nothing to do; every message counts as written at once.
fn run(server: &mut Server<u8>, store: &Store) -> Vec<(u8, Message)> {
    let mut sent = Vec::new();
    while let Some(action) = server.poll() {
        match action {
            Action::Load(load) => server.loaded(load.id, store.load(&load)),
            Action::Send { peer, message } => {
                server.sent(peer, message.encoded_len());
                sent.push((peer, message));
            }
        }
    }
    sent
}

fn want(cid: Cid, kind: WantKind, send_dont_have: bool) -> Want {
    Want { cid, priority: 1, kind, cancel: false, send_dont_have }
}

fn block(cid: Cid) -> Want {
    want(cid, WantKind::Block, true)
}

fn cancel(cid: Cid) -> Want {
    Want { cancel: true, ..want(cid, WantKind::Block, false) }
}

fn connected() -> Server<u8> {
    let mut server = Server::new();
    server.connected(1);
    server
}

/// The blocks and presences that peer 1 gets for `wants`.
fn ask(server: &mut Server<u8>, store: &Store, wants: &[Want]) -> (Vec<Bytes>, Vec<Presence>) {
    server.received(1, wants, false);
    let messages = run(server, store).into_iter().map(|(_, message)| message);
    let (payloads, presences): (Vec<_>, Vec<_>) = messages.map(|m| (m.payloads, m.presences)).unzip();
    (payloads.concat().into_iter().map(|p| p.bytes).collect(), presences.concat())
}

#[test]
fn wants_are_answered_by_the_rules() {
    let mut store = Store::default();
    let (small, large) = (store.put(vec![1; 1024]), store.put(vec![2; 1025]));
    let absent = Digest::of(b"absent").raw_cid();
    let have = |cid, have| Presence { cid, have };
    let cases = [
        ("want-block", block(large), Some(1025), None),
        ("want-have of a large block", want(large, WantKind::Have, true), None, Some(have(large, true))),
        ("want-have of a small block", want(small, WantKind::Have, true), Some(1024), None),
        ("absent, asked to say so", want(absent, WantKind::Have, true), None, Some(have(absent, false))),
        ("absent block, asked to say so", block(absent), None, Some(have(absent, false))),
        ("absent, not asked", want(absent, WantKind::Block, false), None, None),
        ("cancel", cancel(large), None, None),
    ];
    for (name, want, length, presence) in cases {
        let mut server = connected();
        let (blocks, presences) = ask(&mut server, &store, &[want]);
        assert_eq!(blocks.first().map(Bytes::len), length, "{name}");
        assert_eq!(presences.first(), presence.as_ref(), "{name}");
        assert!(blocks.len() + presences.len() <= 1, "{name}");
        assert_eq!(server.wants(1), usize::from(name.starts_with("absent")), "{name}");
    }
}

#[test]
fn absent_wants_wait_for_the_block() {
    let mut store = Store::default();
    let mut server = connected();
    let bytes = vec![3; 5000];
    let cid = Digest::of(&bytes).raw_cid();
    let v0 = Digest::of(&bytes).v0_cid();
    assert_eq!(ask(&mut server, &store, &[block(cid), want(v0, WantKind::Have, false)]).1.len(), 1);
    store.put(bytes.clone());
    server.stored(&[cid]);
    let (peer, message) = run(&mut server, &store).pop().unwrap();
    assert_eq!((peer, message.payloads[0].cid, message.presences[0].cid), (1, cid, v0));
    assert_eq!(server.wants(1), 0);

    // A block that is stored while a load looks for it is not lost.
    let late = Digest::of(b"late").raw_cid();
    server.received(1, &[block(late)], false);
    let Some(Action::Load(load)) = server.poll() else { panic!("a load") };
    let loaded = store.load(&load);
    store.put(b"late".to_vec());
    server.stored(&[late]);
    server.loaded(load.id, loaded);
    assert_eq!(run(&mut server, &store)[0].1.payloads[0].cid, late);
}

#[test]
fn wantlists_are_replaced_cancelled_and_forgotten() {
    let store = Store::default();
    let cids: Vec<Cid> = (0..10u8).map(|n| Digest::of(&[n]).raw_cid()).collect();
    let wants: Vec<Want> = cids.iter().map(|cid| block(*cid)).collect();
    let mut server = connected();
    ask(&mut server, &store, &wants);
    assert_eq!(server.wants(1), 10);
    ask(&mut server, &store, &[cancel(cids[0]), cancel(cids[1])]);
    assert_eq!(server.wants(1), 8);
    server.received(1, &wants[9..], true);
    assert_eq!(server.wants(1), 1);
    server.disconnected(1);
    assert!(server.wanted.0.is_empty() && run(&mut server, &store).is_empty());
    server.received(1, &wants, false);
    assert_eq!(server.wants(1), 0, "not connected");
}

#[test]
fn want_have_may_become_want_block_at_any_time() {
    let mut store = Store::default();
    let cid = store.put(vec![4; 5000]);
    let mut server = connected();
    server.received(1, &[want(cid, WantKind::Have, true)], false);
    let Some(Action::Load(load)) = server.poll() else { panic!("a load") };
    server.received(1, &[block(cid)], false);
    server.loaded(load.id, store.load(&load));
    let sent = run(&mut server, &store);
    assert_eq!((sent.len(), sent[0].1.payloads.len(), sent[0].1.presences.len()), (1, 1, 0));
}

#[test]
fn what_the_loader_did_not_come_to_is_loaded_later() {
    let mut store = Store::default();
    let cids: Vec<Cid> = (0..40u8).map(|n| store.put(vec![n; 256 << 10])).collect();
    let mut server = connected();
    let (blocks, _) = ask(&mut server, &store, &cids.iter().map(|cid| block(*cid)).collect::<Vec<_>>());
    assert_eq!(blocks.iter().map(|bytes| bytes[0]).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
    // A loader that says nothing at all ends the load, too.
    server.received(1, &[block(cids[0])], false);
    let Some(Action::Load(load)) = server.poll() else { panic!("a load") };
    server.loaded(load.id, Vec::new());
    assert!(matches!(server.poll(), Some(Action::Send { message, .. }) if !message.presences[0].have));
    assert_eq!(server.poll(), None);
}

#[test]
fn higher_priority_goes_first() {
    let mut store = Store::default();
    let cids: Vec<Cid> = (0..4u8).map(|n| store.put(vec![n; 2000])).collect();
    let wants: Vec<Want> =
        [-5, 1, i32::MAX, 1].iter().zip(&cids).map(|(p, cid)| Want { priority: *p, ..block(*cid) }).collect();
    let (blocks, _) = ask(&mut connected(), &store, &wants);
    assert_eq!(blocks.iter().map(|bytes| bytes[0]).collect::<Vec<_>>(), [2, 1, 3, 0]);
}

#[test]
fn messages_stay_at_their_target() {
    let mut store = Store::default();
    let sizes = (0..300).map(|n| n * 37 % 70_000).chain([(2 << 20) - 8, (2 << 20) - 8, 10]);
    let cids: Vec<Cid> =
        sizes.enumerate().map(|(n, size)| store.put([vec![0; size], n.to_be_bytes().to_vec()].concat())).collect();
    let mut server = connected();
    let absent = (0..500u32).map(|n| Digest::of(&n.to_be_bytes()).raw_cid());
    server.received(1, &cids.iter().copied().chain(absent).map(block).collect::<Vec<_>>(), false);
    let (mut blocks, mut presences) = (0, 0);
    for (_, message) in run(&mut server, &store) {
        let length = message.encoded_len();
        assert!(length <= TARGET_MESSAGE || message.payloads.len() == 1 && length < MAX_MESSAGE, "{length}");
        blocks += message.payloads.len();
        presences += message.presences.len();
    }
    assert_eq!((blocks, presences), (cids.len(), 500));
}

#[test]
fn a_peer_that_does_not_read_holds_little_and_nobody_up() {
    let mut store = Store::default();
    let cids: Vec<Cid> = (0..100u8).map(|n| store.put(vec![n; 1 << 20])).collect();
    let wants: Vec<Want> = cids.iter().map(|cid| block(*cid)).collect();
    let mut server = connected();
    server.connected(2);
    server.received(1, &wants, false);
    server.received(2, &wants, false);
    let mut bytes = [0; 3];
    while let Some(action) = server.poll() {
        match action {
            Action::Load(load) => server.loaded(load.id, store.load(&load)),
            Action::Send { peer, message } => {
                bytes[usize::from(peer)] += message.encoded_len();
                if peer == 2 {
                    server.sent(2, message.encoded_len());
                }
            }
        }
    }
    assert!(bytes[1] <= MAX_HELD + TARGET_MESSAGE, "{bytes:?}");
    assert!(bytes[2] > 100 << 20, "{bytes:?}");
}

#[test]
fn turns_are_taken_by_bytes() {
    let mut store = Store::default();
    let large: Vec<Want> = (0..64u8).map(|n| block(store.put(vec![n; 1 << 20]))).collect();
    let small: Vec<Want> = (0..=255u8).map(|n| block(store.put(vec![n; 16 << 10]))).collect();
    let mut server = connected();
    server.received(1, &large, false);
    for _ in 0..20 {
        // The late-comer gets no credit for the time before it came.
        let Some(Action::Load(load)) = server.poll() else { panic!("a load") };
        server.loaded(load.id, store.load(&load));
        let Some(Action::Send { peer, message }) = server.poll() else { panic!("a message") };
        server.sent(peer, message.encoded_len());
    }
    server.connected(2);
    server.received(2, &small, false);
    let mut bytes = [0usize; 3];
    for (peer, message) in run(&mut server, &store) {
        bytes[usize::from(peer)] += message.encoded_len();
        if bytes[2] < 4 << 20 {
            assert!(bytes[1].abs_diff(bytes[2]) <= 3 << 20, "{bytes:?}");
        }
    }
    assert!(bytes[1] > 44 << 20 && bytes[2] > 4 << 20, "{bytes:?}");
}

#[test]
fn nobody_waits_much_longer_than_the_others() {
    // 100 peers with 1,024 wants each, 30 % of them present.
    let mut store = Store::default();
    let cids: Vec<Cid> = (0..1024u32)
        .map(|n| match n % 10 {
            0..3 => store.put(vec![u8::try_from(n % 251).unwrap(); 3000 + usize::try_from(n).unwrap()]),
            _ => Digest::of(&n.to_be_bytes()).raw_cid(),
        })
        .collect();
    let wants: Vec<Want> = cids.iter().map(|cid| block(*cid)).collect();
    let mut server = Server::new();
    for peer in 0..100 {
        server.connected(peer);
        server.received(peer, &wants, false);
    }
    let mut answers = [0; 100];
    let mut last = [0; 100];
    for (turn, (peer, message)) in run(&mut server, &store).into_iter().enumerate() {
        answers[usize::from(peer)] += message.payloads.len() + message.presences.len();
        last[usize::from(peer)] = turn;
    }
    assert_eq!(answers, [1024; 100]);
    let mean = last.iter().sum::<usize>() / 100;
    assert!(last.iter().all(|turn| *turn <= 3 * mean), "{last:?}");
}

#[test]
fn floods_of_wants_stay_bounded() {
    // As in vectors/bitswap/messages.json, "wantlist flood": a million wants, and a hundred reconnects.
    let mut store = Store::default();
    let present = store.put(b"present".to_vec());
    let mut server = connected();
    for message in 0..100u32 {
        let wants: Vec<Want> = (0..10_000u32)
            .map(|n| {
                let mut digest = [0; 32];
                digest[..8].copy_from_slice(&u64::from(message * 10_000 + n).to_be_bytes());
                want(Digest(digest).raw_cid(), if n % 2 == 0 { WantKind::Have } else { WantKind::Block }, false)
            })
            .collect();
        server.received(1, &wants, false);
        assert!(run(&mut server, &store).is_empty());
        assert_eq!((server.wants(1), server.wanted.0.len()), (MAX_WANTS, MAX_WANTS));
        // Others are served, and so is a block that is there: an absent want makes room for it.
        assert_eq!(ask(&mut server, &store, &[block(present)]).0.len(), 1);
        server.disconnected(1);
        assert!(server.wanted.0.is_empty() && server.ledgers.is_empty() && server.loads.is_empty());
        server.connected(1);
    }
}

#[test]
fn a_queue_full_of_wants_that_can_be_answered_refuses_new_ones() {
    let mut store = Store::default();
    let cids: Vec<Cid> = (0..MAX_WANTS + 10).map(|n| store.put(n.to_be_bytes().to_vec())).collect();
    let (blocks, _) = ask(&mut connected(), &store, &cids.iter().map(|cid| block(*cid)).collect::<Vec<_>>());
    assert_eq!(blocks.len(), MAX_WANTS);
}

#[test]
fn a_load_of_a_former_connection_is_ignored() {
    let mut store = Store::default();
    let cid = store.put(vec![5; 2000]);
    let mut server = connected();
    server.received(1, &[block(cid)], false);
    let Some(Action::Load(old)) = server.poll() else { panic!("a load") };
    server.disconnected(1);
    server.connected(1);
    server.received(1, &[block(cid)], false);
    let Some(Action::Load(new)) = server.poll() else { panic!("a load") };
    server.loaded(old.id, store.load(&old));
    assert_eq!(server.poll(), None);
    server.loaded(new.id, store.load(&new));
    assert_eq!(run(&mut server, &store).len(), 1);
}

#[test]
fn vector_messages_are_answered_as_listed() {
    let Some(set) = vectors::json("bitswap/messages.json") else { return };
    let mut store = Store::default();
    for name in ["v0_block", "v1_raw_block"] {
        store.put(vectors::from_hex(set["has"][name].as_str().unwrap()));
    }
    let cid = |text: &serde_json::Value| crate::block::parse_cid(text.as_str().unwrap()).unwrap();
    let (v0, raw, absent) = (cid(&set["has"]["v0"]), cid(&set["has"]["v1_raw"]), cid(&set["absent"]));
    let as_dag_pb = Cid::new_v1(DAG_PB, *raw.hash());
    let mut answered = 0;
    for case in set["messages"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let frame = vectors::from_hex(case["hex"].as_str().unwrap());
        let mut server = connected();
        // What the lists are about: a want that is live when the message comes.
        server.received(1, &[want(absent, WantKind::Block, false)], false);
        run(&mut server, &store);
        let Some(received) = unsigned_varint::decode::usize(&frame)
            .ok()
            .filter(|(length, body)| *length == body.len())
            .map(|(_, body)| Received::decode(Bytes::copy_from_slice(body)).unwrap())
        else {
            continue;
        };
        server.received(1, &received.wants, received.full);
        let sent: Vec<Message> = run(&mut server, &store).into_iter().map(|(_, message)| message).collect();
        let blocks: Vec<Cid> = sent.iter().flat_map(|m| &m.payloads).map(|p| p.cid).collect();
        let presences: Vec<Presence> = sent.iter().flat_map(|m| m.presences.clone()).collect();
        let (expected_blocks, expected_presences) = match name {
            "want-block v0 CID, sendDontHave" => (vec![v0], vec![]),
            "want-block v1 raw" | "want-have present" | "want CID undecodable" => (vec![raw], vec![]),
            "negative priority" | "full wantlist replaces" => (vec![raw], vec![]),
            "same multihash, other codec" => (vec![as_dag_pb], vec![]),
            "want-have absent, sendDontHave" => (vec![], vec![Presence { cid: absent, have: false }]),
            "want-block absent, no sendDontHave" | "cancel" => (vec![], vec![]),
            "empty message" | "presence for unasked CID" => (vec![], vec![]),
            _ if name.starts_with("payload") => (vec![], vec![]),
            _ => panic!("a vector that no rule here covers: {name}"),
        };
        assert_eq!((blocks, presences), (expected_blocks, expected_presences), "{name}");
        let asks_again = received.wants.iter().any(|want| want.cid == absent && !want.cancel);
        let live = asks_again || !received.full && name != "cancel";
        assert_eq!(server.wants(1), usize::from(live), "{name}");
        if name.starts_with("want-block v0") {
            let prefix = [0x0a, 0x04, 0x00, 0x70, 0x12, 0x20];
            assert!(sent[0].encode().windows(6).any(|bytes| bytes == prefix), "{name}");
        }
        answered += 1;
    }
    assert!(answered >= 14, "only {answered} messages");
}
