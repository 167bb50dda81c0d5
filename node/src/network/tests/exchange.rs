//! Blocks from one node to another.

use super::raw::{RawPeer, receive};
use super::*;
use futures::stream::{FuturesUnordered, StreamExt as _};
use nipfs_proto::bitswap::message::{Message, Want};
use std::time::Instant;

/// Wants all of `wanted` at once; what came, in order of arrival.
async fn fetch(session: &Session, wanted: &[Block]) -> Vec<(Block, PeerId)> {
    let wants: FuturesUnordered<_> = wanted.iter().map(|block| session.want(*block.cid())).collect();
    let arrived: Vec<_> = timeout(LONG, wants.collect()).await.unwrap();
    arrived.into_iter().map(Result::unwrap).collect()
}

/// A message that wants one block.
fn want(cid: Cid) -> Message {
    let want = Want { cid, priority: 1, kind: WantKind::Block, cancel: false, send_dont_have: true };
    Message { wants: vec![want], ..Message::default() }
}

fn assert_same(arrived: Vec<(Block, PeerId)>, wanted: &[Block]) {
    let arrived: HashMap<Cid, Block> = arrived.into_iter().map(|(block, _)| (*block.cid(), block)).collect();
    assert_eq!(arrived.len(), wanted.len());
    assert!(wanted.iter().all(|block| arrived[block.cid()] == *block));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_blocks_arrive_as_they_were() {
    let wanted = blocks(256, 256 << 10);
    let server = node(Shelf::of(&wanted).source()).await;
    let client = client_of(&[&server]).await;
    let arrived = fetch(&client.session(vec![server.peer_id()]), &wanted).await;
    assert!(arrived.iter().all(|(_, from)| *from == server.peer_id()));
    assert_same(arrived, &wanted);
    let [summary] = client.peers().await.unwrap().try_into().unwrap();
    assert!(summary.traffic.bytes_in > 64 << 20 && summary.traffic.bytes_in < 65 << 20, "{summary:?}");
}

#[tokio::test]
async fn a_thousand_wants_at_once_are_met() {
    let wanted = blocks(1000, 700);
    let server = node(Shelf::of(&wanted).source()).await;
    let client = client_of(&[&server]).await;
    assert_same(fetch(&client.session(Vec::new()), &wanted).await, &wanted);
    let [at_client] = client.peers().await.unwrap().try_into().unwrap();
    let [at_server] = server.peers().await.unwrap().try_into().unwrap();
    assert!(
        at_client.traffic.most_wants_out >= 64 && at_server.traffic.most_wants_in >= 64,
        "{at_client:?} {at_server:?}"
    );
}

#[tokio::test]
async fn messages_are_counted_and_the_streams_on_which_they_come() {
    let server = node(BlockSource::empty()).await;
    let mut peer = RawPeer::connect(&server).await;
    let messages: Vec<_> = blocks(3, 100).iter().map(|block| want(*block.cid()).encode_frame()).collect();
    peer.send(&messages[..2].concat()).await;
    peer.send(&messages[2]).await;
    let counted = async {
        loop {
            let Traffic { messages_in, streams_in, most_wants_in, .. } = server.peers().await.unwrap()[0].traffic;
            if messages_in == 3 {
                return (streams_in, most_wants_in);
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(timeout(LONG, counted).await.unwrap(), (2, 3));
}

#[tokio::test]
async fn blocks_of_the_largest_size_travel() {
    let wanted = blocks(9, nipfs_proto::block::MAX_BLOCK);
    let server = node(Shelf::of(&wanted).source()).await;
    let client = client_of(&[&server]).await;
    assert_same(fetch(&client.session(Vec::new()), &wanted).await, &wanted);
}

#[tokio::test]
async fn several_futures_and_sessions_may_want_the_same_block() {
    let wanted = blocks(1, 5000);
    let server = node(Shelf::of(&wanted).source()).await;
    let client = client_of(&[&server]).await;
    let (one, two) = (client.session(Vec::new()), client.session(vec![server.peer_id()]));
    let cid = *wanted[0].cid();
    let arrived = timeout(LONG, async { tokio::join!(one.want(cid), one.want(cid), two.want(cid)) }).await.unwrap();
    for (block, _) in [arrived.0.unwrap(), arrived.1.unwrap(), arrived.2.unwrap()] {
        assert_eq!(block, wanted[0]);
    }
}

#[tokio::test]
async fn a_block_that_the_peer_does_not_have_is_missing_at_once() {
    let absent = blocks(3, 100);
    let server = node(BlockSource::empty()).await;
    let client = client_of(&[&server]).await;
    let begun = Instant::now();
    for session in [client.session(Vec::new()), client.session(vec![server.peer_id()])] {
        for block in &absent {
            let outcome = timeout(LONG, session.want(*block.cid())).await.unwrap();
            assert_eq!(outcome.unwrap_err(), WantError::Missing(*block.cid()));
        }
    }
    let nobody = client.session(vec![PeerId::random()]);
    assert_eq!(nobody.want(*absent[0].cid()).await.unwrap_err(), WantError::Missing(*absent[0].cid()));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_one_peer_does_not_have_comes_from_the_other() {
    let wanted = blocks(60, 20_000);
    let first = node(Shelf::of(&wanted[..30]).source()).await;
    let second = node(Shelf::of(&wanted[30..]).source()).await;
    let client = client_of(&[&first, &second]).await;
    let arrived = fetch(&client.session(vec![first.peer_id(), second.peer_id()]), &wanted).await;
    for (block, from) in &arrived {
        let holder = if wanted[..30].contains(block) { &first } else { &second };
        assert_eq!(*from, holder.peer_id());
    }
    assert_same(arrived, &wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_is_replaced_by_another() {
    let wanted = blocks(200, 100_000);
    let first = node(Shelf::of(&wanted).source()).await;
    let second = node(Shelf::of(&wanted).source()).await;
    let client = client_of(&[&first, &second]).await;
    let session = client.session(vec![first.peer_id(), second.peer_id()]);
    let wants: FuturesUnordered<_> = wanted.iter().map(|block| session.want(*block.cid())).collect();
    let mut wants = wants.enumerate();
    let mut arrived = Vec::new();
    while let Some((count, outcome)) = timeout(LONG, wants.next()).await.unwrap() {
        arrived.push(outcome.unwrap());
        if count == 10 {
            first.shutdown().await;
        }
    }
    assert_same(arrived, &wanted);
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_not_waited_for() {
    let [wanted] = blocks(1, 100).try_into().unwrap();
    let client = node(BlockSource::empty()).await;
    let silent = RawPeer::connect(&client).await;
    let begun = Instant::now();
    let session = client.session(vec![silent.peer]);
    let outcome = timeout(LONG, session.want(*wanted.cid())).await.unwrap();
    assert_eq!(outcome.unwrap_err(), WantError::Missing(*wanted.cid()));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_peer_that_vanishes_with_the_only_copy_leaves_its_blocks_missing() {
    let [wanted] = blocks(1, 100).try_into().unwrap();
    let client = node(BlockSource::empty()).await;
    let mut peer = RawPeer::connect(&client).await;
    let want = tokio::spawn(client.session(vec![peer.peer]).want(*wanted.cid()));
    let mut stream = peer.accept().await;
    assert_eq!(receive(&mut stream).await.wants.len(), 1);
    let begun = Instant::now();
    drop((stream, peer));
    let outcome = timeout(LONG, want).await.unwrap().unwrap();
    assert_eq!(outcome.unwrap_err(), WantError::Missing(*wanted.cid()));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_dropped_future_cancels_its_want() {
    let wanted = blocks(2, 100);
    let client = node(BlockSource::empty()).await;
    let mut peer = RawPeer::connect(&client).await;
    let session = client.session(vec![peer.peer]);
    let (dropped, closed) = (*wanted[0].cid(), *wanted[1].cid());
    let want = tokio::spawn(session.want(dropped));
    let mut stream = peer.accept().await;
    let asked = receive(&mut stream).await.wants;
    assert!(asked.iter().all(|want| want.cid == dropped && !want.cancel), "{asked:?}");
    want.abort();
    let taken_back = receive(&mut stream).await.wants;
    assert!(taken_back.iter().all(|want| want.cid == dropped && want.cancel), "{taken_back:?}");

    // The last want of a dropped session closes it.
    let want = tokio::spawn(session.want(closed));
    drop(session);
    assert!(receive(&mut stream).await.wants.iter().all(|want| want.cid == closed && !want.cancel));
    want.abort();
    let taken_back = receive(&mut stream).await.wants;
    assert!(taken_back.iter().all(|want| want.cid == closed && want.cancel), "{taken_back:?}");
}

#[tokio::test]
async fn a_stream_that_was_silent_for_long_is_not_written_to_again() {
    let server = node(BlockSource::empty()).await;
    let mut peer = RawPeer::connect(&server).await;
    let mut answers = Vec::new();
    for (block, pause) in blocks(3, 100).iter().zip([0, 0, 5]) {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        peer.send_message(&want(*block.cid())).await;
        if answers.is_empty() || pause > 0 {
            answers.push(peer.accept().await);
        }
        assert_eq!(receive(answers.last_mut().unwrap()).await.presences[0].cid, *block.cid());
    }
}

#[tokio::test]
async fn a_block_that_is_stored_later_goes_to_who_waits_for_it() {
    let [block] = blocks(1, 5000).try_into().unwrap();
    let shelf = Shelf::default();
    let server = node(shelf.source()).await;
    let mut peer = RawPeer::connect(&server).await;
    peer.send_message(&want(*block.cid())).await;
    let mut answers = peer.accept().await;
    assert!(!receive(&mut answers).await.presences[0].have);

    shelf.put(&block);
    server.stored(vec![*block.cid()]).await.unwrap();
    let answer = receive(&mut answers).await;
    assert_eq!(answer.blocks, [block]);
}

/// Prints what one connection carries on this machine. All tests share a process, and a node takes no connection in one of
/// a gibibyte: so at most an eighth of that is held here at once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, does not check"]
async fn throughput() {
    for (size, count, in_flight) in
        [(4 << 10, 20_000, 16), (16 << 10, 8000, 1000), (256 << 10, 512, 512), (1 << 20, 128, 128)]
    {
        let wanted = blocks(count, size);
        let server = node(Shelf::of(&wanted).source()).await;
        let client = client_of(&[&server]).await;
        let session = client.session(vec![server.peer_id()]);
        let begun = Instant::now();
        let mut wants =
            futures::stream::iter(&wanted).map(|block| session.want(*block.cid())).buffer_unordered(in_flight);
        while let Some(outcome) = wants.next().await {
            outcome.unwrap();
        }
        let seconds = begun.elapsed().as_secs_f64();
        let (blocks, bytes) = (count as f64 / seconds, (count * size) as f64 / 1e6 / seconds);
        println!("{in_flight} blocks of {} KiB in flight: {blocks:.0} a second, {bytes:.0} MB/s", size >> 10);
    }
}

#[tokio::test]
async fn wants_do_not_wait_behind_blocks_that_the_peer_leaves_unread() {
    let held = blocks(4, 1 << 20);
    let node = node(Shelf::of(&held).source()).await;
    let mut peer = RawPeer::connect(&node).await;
    let want = |block: &Block| Want {
        cid: *block.cid(),
        priority: 1,
        kind: WantKind::Block,
        cancel: false,
        send_dont_have: true,
    };
    peer.send_message(&Message { wants: held.iter().map(want).collect(), ..Message::default() }).await;
    // More than its window: the rest of this block has to wait.
    let _unread = peer.accept().await;
    let [wanted] = blocks(1, 100).try_into().unwrap();
    let _want = tokio::spawn(node.session(vec![peer.peer]).want(*wanted.cid()));
    loop {
        let message = receive(&mut peer.accept().await).await;
        if let [want] = &message.wants[..] {
            return assert_eq!(want.cid, *wanted.cid());
        }
    }
}
