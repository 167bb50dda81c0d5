use super::remote::{Ask, MAX_LIVE, State};
use super::*;
use crate::bitswap::message::WantKind;

impl<P: Peer> Client<P> {
    /// What always holds between the parts.
    pub(in crate::bitswap) fn check(&self) {
        for (digest, request) in &self.requests {
            assert!(request.readers().next().is_some(), "a request without readers: {request:?}");
            let asks = |(peer, remote): (&P, &Remote)| {
                matches!(remote.ask(digest), Some(Ask { state: State::Block { .. }, .. })).then_some(*peer)
            };
            let at: Vec<P> = self.peers.iter().filter_map(asks).collect();
            assert!(at.len() <= 1 && at.is_empty() == request.is_waiting(), "asked of {at:?}: {request:?}");
        }
        for (id, session) in &self.sessions {
            for digest in &session.wants {
                assert!(self.requests[digest].readers().any(|reader| reader == *id));
            }
            for (sequence, digest) in &session.queue {
                assert!(session.wants.contains(digest));
                assert!(self.requests[digest].is_waiting() && self.requests[digest].sequence() == *sequence);
            }
            let waiting = session.wants.iter().filter(|digest| self.requests[*digest].is_waiting()).count();
            assert_eq!(session.queue.len(), waiting);
        }
        for remote in self.peers.values() {
            assert!(remote.live() <= MAX_LIVE);
            assert!(remote.asks().all(|(digest, _)| self.requests.contains_key(digest)), "an ask without a request");
            let due = remote.asks().filter(|(_, ask)| ask.is_due()).count();
            let kept = remote.asks().filter(|(_, ask)| ask.state == State::Kept).count();
            assert_eq!(remote.live(), due + kept);
            let offers =
                |(_, digest): (&u64, &Digest)| self.requests[digest].is_waiting() && remote.has_said_have(digest);
            assert!(remote.offers.iter().all(offers), "an offer without a word of it");
            assert_eq!(remote.standing.next_wake().is_some(), due > 0, "a clock runs while an answer is due");
        }
    }

    /// Requests that are not over.
    pub(in crate::bitswap) fn open_requests(&self) -> usize {
        self.requests.len()
    }
}

const ONE: SessionId = SessionId(1);

fn block(n: u32) -> Block {
    Block::v1(crate::block::RAW, n.to_be_bytes().to_vec().into()).unwrap()
}

fn cids(numbers: std::ops::Range<u32>) -> Vec<Cid> {
    numbers.map(|n| *block(n).cid()).collect()
}

/// A client with these peers, and session 1 open with them as candidates.
fn client(peers: &[u8]) -> Client<u8> {
    let mut client = Client::new();
    for peer in peers {
        client.connected(*peer);
    }
    client.open(ONE, peers);
    client
}

/// All that the client does now: what it says to peers, in order, and what it tells its caller.
fn poll(client: &mut Client<u8>, now: Instant) -> (Vec<(u8, Message)>, Vec<Action<u8>>) {
    let (mut messages, mut news) = (Vec::new(), Vec::new());
    while let Some(action) = client.poll(now) {
        match action {
            Action::Send { peer, message } => messages.push((peer, message)),
            other => news.push(other),
        }
    }
    client.check();
    (messages, news)
}

fn receive(client: &mut Client<u8>, peer: u8, blocks: Vec<Block>, presences: &[Presence], now: Instant) {
    client.received(peer, blocks, presences, &Dropped::default(), now);
}

fn deliver(session: u64, peer: u8, block: Block) -> Action<u8> {
    Action::Deliver { session: SessionId(session), peer, block }
}

fn missing(session: u64, cid: Cid) -> Action<u8> {
    Action::Missing { session: SessionId(session), cid }
}

/// Kind and cancel of each want.
fn kinds(message: &Message) -> Vec<(WantKind, bool)> {
    message.wants.iter().map(|want| (want.kind, want.cancel)).collect()
}

#[test]
fn a_block_is_owed_from_the_message_that_asks_for_it_until_it_comes() {
    let (mut client, now) = (client(&[1]), Instant::now());
    client.want(ONE, *block(0).cid());
    assert_eq!(client.owed(&1), 0);
    poll(&mut client, now);
    assert_eq!(client.owed(&1), 1);
    client.received(1, vec![block(0)], &[], &Dropped::default(), now);
    assert_eq!(client.owed(&1), 0);
}

#[test]
fn only_candidate_gets_want_blocks_in_one_message() {
    let now = Instant::now();
    let mut client = client(&[1]);
    let wanted = cids(0..10);
    for cid in &wanted {
        client.want(ONE, *cid);
        client.want(ONE, *cid);
    }
    let (messages, news) = poll(&mut client, now);
    assert_eq!((messages.len(), news.len()), (1, 0));
    let wants = &messages[0].1.wants;
    assert_eq!(wants.iter().map(|want| want.cid).collect::<Vec<_>>(), wanted);
    assert!(wants.iter().all(|want| want.kind == WantKind::Block && want.send_dont_have && !want.cancel));
    assert!(wants.is_sorted_by(|one, next| one.priority > next.priority));
    receive(&mut client, 1, vec![block(3)], &[Presence { cid: wanted[4], have: false }], now);
    let (messages, news) = poll(&mut client, now);
    assert_eq!(news, [deliver(1, 1, block(3)), missing(1, wanted[4])]);
    // The peer keeps what it refused until it is told.
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].1.wants[0].cid, kinds(&messages[0].1)), (wanted[4], vec![(WantKind::Block, true)]));
}

#[test]
fn what_nobody_can_send_is_missing_at_once() {
    let now = Instant::now();
    let mut client = client(&[]);
    client.open(SessionId(2), &[7]);
    let cid = *block(0).cid();
    let identity = Cid::new_v1(crate::block::RAW, multihash::Multihash::wrap(0, b"x").unwrap());
    client.want(ONE, cid);
    client.want(ONE, identity);
    client.want(SessionId(2), cid);
    client.want(SessionId(3), cid);
    let (messages, mut news) = poll(&mut client, now);
    assert!(messages.is_empty());
    news.sort_by_key(|news| format!("{news:?}"));
    let mut expected = vec![missing(1, cid), missing(1, identity), missing(2, cid)];
    expected.sort_by_key(|news| format!("{news:?}"));
    assert_eq!(news, expected);
}

#[test]
fn of_several_candidates_one_is_asked_and_the_others_are_sounded() {
    let now = Instant::now();
    let mut client = client(&[1, 2, 3]);
    let cid = *block(0).cid();
    client.want(ONE, cid);
    let (messages, _) = poll(&mut client, now);
    let asked: Vec<_> = messages.iter().map(|(peer, message)| (*peer, kinds(message)[0])).collect();
    let (ask, sound) = ((WantKind::Block, false), (WantKind::Have, false));
    assert_eq!(asked, [(1, ask), (2, sound), (3, sound)]);
    receive(&mut client, 3, vec![], &[Presence { cid, have: true }], now);
    assert_eq!(poll(&mut client, now), (vec![], vec![]), "peer 1 is still asked");
    receive(&mut client, 1, vec![], &[Presence { cid, have: false }], now);
    let (messages, _) = poll(&mut client, now);
    assert_eq!(messages.iter().map(|(peer, message)| (*peer, kinds(message)[0])).collect::<Vec<_>>(), [(3, ask)]);
    // Peer 3 lied, and peer 2 has not answered. Peer 3 does not get a second chance, whatever it says.
    receive(&mut client, 3, vec![], &[Presence { cid, have: false }, Presence { cid, have: true }], now);
    assert_eq!(poll(&mut client, now).1, []);
    receive(&mut client, 2, vec![], &[Presence { cid, have: false }], now);
    assert_eq!(poll(&mut client, now).1, [missing(1, cid)]);
}

#[test]
fn a_refusal_is_not_for_ever() {
    let now = Instant::now();
    let mut client = client(&[1, 2]);
    let cid = *block(0).cid();
    client.want(ONE, cid);
    poll(&mut client, now);
    receive(&mut client, 1, vec![], &[Presence { cid, have: false }], now);
    receive(&mut client, 1, vec![], &[Presence { cid, have: true }], now);
    let (messages, _) = poll(&mut client, now);
    assert_eq!(
        messages.iter().map(|(peer, m)| (*peer, kinds(m)[0])).collect::<Vec<_>>(),
        [(1, (WantKind::Block, false))]
    );
}

#[test]
fn blocks_are_matched_by_their_bytes() {
    let now = Instant::now();
    let mut client = client(&[1]);
    client.open(SessionId(2), &[]);
    let digest = Digest::of(b"bytes");
    let v0 = Block::v0(b"bytes".to_vec().into()).unwrap();
    let raw = v0.clone().with_cid(digest.raw_cid()).unwrap();
    client.want(ONE, digest.raw_cid());
    client.want(ONE, digest.v0_cid());
    client.want(SessionId(2), digest.v0_cid());
    assert_eq!(poll(&mut client, now).0[0].1.wants.len(), 1, "one want for all of them");
    receive(&mut client, 1, vec![v0.clone(), v0.clone()], &[], now);
    assert_eq!(poll(&mut client, now).1, [deliver(1, 1, raw), deliver(1, 1, v0.clone()), deliver(2, 1, v0)]);
}

#[test]
fn cancelled_wants_are_taken_back() {
    let now = Instant::now();
    let mut client = client(&[1, 2]);
    client.open(SessionId(2), &[]);
    let wanted = cids(0..2);
    for cid in &wanted {
        client.want(ONE, *cid);
        client.want(SessionId(2), *cid);
    }
    poll(&mut client, now);
    client.cancel(ONE, &wanted[0]);
    assert_eq!(poll(&mut client, now), (vec![], vec![]), "another session wants it");
    client.cancel(SessionId(2), &wanted[0]);
    let (messages, _) = poll(&mut client, now);
    let told: Vec<_> = messages.iter().map(|(peer, message)| (*peer, kinds(message))).collect();
    assert_eq!(told, [(1, vec![(WantKind::Block, true)]), (2, vec![(WantKind::Block, true)])]);
    // What was on its way is dropped; what was delivered and not fetched by the caller yet is, too.
    receive(&mut client, 1, vec![block(0), block(1)], &[], now);
    client.close(ONE);
    assert_eq!(poll(&mut client, now).1, [deliver(2, 1, block(1))]);
    assert_eq!((client.open_requests(), client.next_wake()), (0, None));
}

#[test]
fn a_peer_holds_at_most_1024_wants() {
    let mut now = Instant::now();
    let mut client = client(&[1]);
    for cid in cids(0..5000) {
        client.want(ONE, cid);
    }
    let mut open: BTreeMap<Cid, ()> = BTreeMap::new();
    let mut delivered = 0;
    while delivered < 5000 {
        let (messages, news) = poll(&mut client, now);
        delivered += news.len();
        for (_, message) in messages {
            assert!(message.wants.len() <= 1024);
            open.extend(message.wants.iter().map(|want| (want.cid, ())));
        }
        assert!(open.len() <= 1024);
        now += std::time::Duration::from_millis(10);
        let answers = std::mem::take(&mut open).into_keys().map(|cid| (0..5000).map(block).find(|b| *b.cid() == cid));
        receive(&mut client, 1, answers.flatten().collect(), &[], now);
    }
}

#[test]
fn a_broken_stream_is_asked_again_once() {
    let now = Instant::now();
    let mut client = client(&[1]);
    let wanted = cids(0..3);
    for cid in &wanted {
        client.want(ONE, *cid);
    }
    poll(&mut client, now);
    client.stream_broke(1, now);
    let (messages, news) = poll(&mut client, now);
    assert_eq!((messages.len(), news.len()), (2, 0));
    let [(_, forget), (_, again)] = &messages[..] else { unreachable!() };
    assert!(forget.full && forget.wants.len() == 3 && forget.wants.iter().all(|want| want.cancel));
    assert!(!again.full && again.wants.len() == 3 && again.wants.iter().all(|want| !want.cancel));
    receive(&mut client, 1, vec![block(0)], &[], now);
    client.stream_broke(1, now);
    assert_eq!(poll(&mut client, now).0[1].1.wants.len(), 2, "a block came between");
    client.stream_broke(1, now);
    assert_eq!(poll(&mut client, now).1, [missing(1, wanted[1]), missing(1, wanted[2])]);
}

#[test]
fn a_silent_peer_may_come_back() {
    let mut now = Instant::now();
    let mut client = client(&[1]);
    let wanted = cids(0..2);
    client.want(ONE, wanted[0]);
    poll(&mut client, now);
    while client.next_wake().is_some() {
        now = client.next_wake().unwrap();
        client.tick(now);
    }
    assert_eq!(poll(&mut client, now).1, [Action::Stalled { peer: 1 }, missing(1, wanted[0])]);
    client.want(ONE, wanted[1]);
    assert_eq!(poll(&mut client, now).1, [missing(1, wanted[1])], "not asked for a while");
    now += std::time::Duration::from_secs(10);
    client.want(ONE, wanted[1]);
    assert_eq!(poll(&mut client, now).0.len(), 1);
}

#[test]
fn answers_without_questions_change_nothing() {
    let now = Instant::now();
    let mut client = client(&[1, 2]);
    let wanted = *block(0).cid();
    client.want(ONE, wanted);
    poll(&mut client, now);
    for batch in 0..100 {
        let unasked = cids(batch * 10_000..(batch + 1) * 10_000).into_iter().skip(1);
        let presences: Vec<_> = unasked.map(|cid| Presence { cid, have: true }).collect();
        receive(&mut client, 1, vec![], &presences, now);
        assert_eq!(poll(&mut client, now), (vec![], vec![]));
    }
    assert_eq!(client.open_requests(), 1);
}

#[test]
fn a_flood_of_unwanted_bytes_is_cut_off() {
    let now = Instant::now();
    let large = Block::v1(crate::block::RAW, vec![0; 1 << 20].into()).unwrap();
    let dropped = Dropped { blocks: 1, block_bytes: 1 << 20, ..Dropped::default() };
    for bad in [false, true] {
        let mut client = client(&[1]);
        client.want(ONE, *block(0).cid());
        poll(&mut client, now);
        let mut messages = 0;
        let news = loop {
            let (blocks, dropped) = if bad { (vec![], dropped) } else { (vec![large.clone()], Dropped::default()) };
            client.received(1, blocks, &[], &dropped, now);
            messages += 1;
            let (_, news) = poll(&mut client, now);
            if !news.is_empty() {
                break news;
            }
        };
        assert!((64..=65).contains(&messages), "{messages}");
        assert_eq!(news, [Action::Disconnect { peer: 1 }, missing(1, *block(0).cid())]);
        receive(&mut client, 1, vec![large.clone()], &[], now);
        assert_eq!(poll(&mut client, now).1, []);
    }
}

#[test]
fn blocks_that_were_asked_for_and_cancelled_are_excused() {
    let now = Instant::now();
    let mut client = client(&[1]);
    let mut large = vec![0; 1 << 20];
    for n in 0..200u8 {
        large[0] = n;
        let block = Block::v1(crate::block::RAW, large.clone().into()).unwrap();
        client.want(ONE, *block.cid());
        poll(&mut client, now);
        client.cancel(ONE, block.cid());
        receive(&mut client, 1, vec![block], &[], now);
        assert_eq!(poll(&mut client, now).1, []);
    }
}
