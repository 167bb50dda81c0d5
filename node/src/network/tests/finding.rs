//! Nodes that find each other through the table of the local network, over loopback.

use super::*;
use futures::FutureExt as _;
use std::future::{Ready, ready};
use std::time::Instant;

pub(super) fn nobody() -> Ready<Vec<(PeerId, Vec<Multiaddr>)>> {
    ready(Vec::new())
}

pub(super) async fn public(source: BlockSource, entry: &[&Network]) -> Network {
    let bootstrap = entry.iter().map(|node| node.listeners().remove(0)).collect();
    let config = Config { profile: Profile::Public, bootstrap, ..config() };
    Network::start(config, Keypair::generate_ed25519(), source).await.unwrap()
}

/// Provides `root`, as soon as some node of the table takes the record.
async fn provide(node: &Network, root: Cid) {
    let told = async {
        while node.provide(root).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, told).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_node_finds_what_the_first_provides_through_the_second() {
    let [root] = blocks(1, 5000).try_into().unwrap();
    let cid = *root.cid();
    let middle = public(BlockSource::empty(), &[]).await;
    let provider = public(Shelf::of(std::slice::from_ref(&root)).source(), &[&middle]).await;
    let seeker = public(BlockSource::empty(), &[&middle]).await;
    provide(&provider, cid).await;
    // Once over whoever is connected, once over a peer that is not there.
    for known in [Vec::new(), vec![PeerId::random()]] {
        let begun = Instant::now();
        let (block, from) = loop {
            let session = seeker.session(known.clone());
            match timeout(LONG, session.want(cid)).await.unwrap() {
                Err(WantError::Missing(_)) if timeout(LONG, session.search(cid, nobody())).await.unwrap() => {
                    break timeout(LONG, session.want(cid)).await.unwrap().unwrap();
                }
                Err(_) => assert!(begun.elapsed() < LONG, "not found"),
                Ok(found) => break found,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!((block, from), (root.clone(), provider.peer_id()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provide_that_reaches_nobody_is_an_error() {
    let [root] = blocks(1, 100).try_into().unwrap();
    let alone = public(BlockSource::empty(), &[]).await;
    assert_eq!(alone.provide(*root.cid()).await, Err(ProvideError::Nobody));
    let private = node(BlockSource::empty()).await;
    assert_eq!(private.provide(*root.cid()).await, Err(ProvideError::Unreachable));
    let deaf = Config { profile: Profile::Public, ..Config::default() };
    let deaf = Network::start(deaf, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap();
    assert_eq!(deaf.provide(*root.cid()).await, Err(ProvideError::Unreachable));
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_that_are_gone_end_a_search_with_nobody_and_it_is_not_begun_again() {
    let [root] = blocks(1, 100).try_into().unwrap();
    let cid = *root.cid();
    let middle = public(BlockSource::empty(), &[]).await;
    let provider = public(Shelf::of(&[root]).source(), &[&middle]).await;
    let seeker = public(BlockSource::empty(), &[&middle]).await;
    provide(&provider, cid).await;
    provider.shutdown().await;
    let session = seeker.session(vec![PeerId::random()]);
    session.want(cid).await.unwrap_err();
    let begun = Instant::now();
    assert!(!timeout(LONG, session.search(cid, nobody())).await.unwrap());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(!session.search(cid, nobody()).await);
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_searched_once_for_all_who_wait_and_whatever_was_searched_in_vain() {
    let [root, index, other, next, last] = blocks(5, 100).try_into().unwrap();
    let middle = public(BlockSource::empty(), &[]).await;
    let provider = public(Shelf::of(std::slice::from_ref(&root)).source(), &[&middle]).await;
    let seeker = public(BlockSource::empty(), &[&middle]).await;
    provide(&provider, *index.cid()).await;
    let begun = Instant::now();
    let session = loop {
        let session = seeker.session(vec![PeerId::random()]);
        session.want(*root.cid()).await.unwrap_err();
        for root in [&root, &other, &next, &last] {
            assert!(!timeout(LONG, session.search(*root.cid(), nobody())).await.unwrap());
        }
        let search = || timeout(LONG, session.search_index(*index.cid(), nobody()));
        let (one, two) = tokio::join!(search(), search());
        assert_eq!(one, two);
        // Whoever asks now knows by a want of his own.
        assert_eq!(search().await, Ok(false));
        if one.unwrap() {
            break session;
        }
        // The seeker may still be on its way into the table.
        assert!(begun.elapsed() < LONG, "not found");
    };
    let (block, from) = timeout(LONG, session.want(*root.cid())).await.unwrap().unwrap();
    assert_eq!((block, from), (root, provider.peer_id()));
}

#[tokio::test]
async fn a_private_node_searches_nowhere() {
    let [root] = blocks(1, 100).try_into().unwrap();
    let server = node(BlockSource::empty()).await;
    let client = client_of(&[&server]).await;
    assert!(!client.session(Vec::new()).search(*root.cid(), nobody()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_that_nobody_waits_for_leave_their_places_to_others() {
    let roots = blocks(40, 100);
    let provider = node(Shelf::of(&roots).source()).await;
    // It is young and knows no table, so it would wait for one.
    let seeker = public(BlockSource::empty(), &[]).await;
    let session = seeker.session(vec![PeerId::random()]);
    let (last, others) = roots.split_last().unwrap();
    for root in others {
        assert_eq!(session.search(*root.cid(), nobody()).now_or_never(), None);
    }
    let hints = ready(vec![(provider.peer_id(), provider.listeners())]);
    assert!(timeout(LONG, session.search(*last.cid(), hints)).await.unwrap());
}

#[tokio::test]
async fn hints_are_dialled_and_join_the_session_even_of_a_private_node() {
    let [root] = blocks(1, 100).try_into().unwrap();
    let cid = *root.cid();
    let provider = node(Shelf::of(std::slice::from_ref(&root)).source()).await;
    let seeker = node(BlockSource::empty()).await;
    // The first finds nobody connected; the second names a peer, and the provider is connected by then.
    for known in [vec![PeerId::random()], vec![PeerId::random()]] {
        let session = seeker.session(known);
        session.want(cid).await.unwrap_err();
        let hints = vec![
            (PeerId::random(), vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()]),
            (seeker.peer_id(), seeker.listeners()),
            (provider.peer_id(), provider.listeners()),
        ];
        assert!(timeout(LONG, session.search(cid, ready(hints))).await.unwrap());
        let (block, from) = timeout(LONG, session.want(cid)).await.unwrap().unwrap();
        assert_eq!((&block, from), (&root, provider.peer_id()));
    }
}
