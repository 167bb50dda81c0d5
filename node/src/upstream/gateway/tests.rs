//! CARs from gateways that are slow, short, elsewhere or of another kind.

use super::*;
use crate::upstream::client::Limits;
use crate::upstream::fake::{Fake, Reply, answer};
use bytes::Bytes;
use nipfs_proto::dag::Profile;
use nipfs_proto::dag::build::Builder;
use nipfs_proto::dag::car;
use std::convert::Infallible;

/// A file of three leaves, the last of them like the first: its blocks in order, each once.
fn file() -> Vec<Block> {
    let (mut leaves, mut builder) = (Vec::new(), Builder::new(Profile::UnixfsV1_2025));
    let mut keep = |block: Block| {
        leaves.push(block);
        Ok::<_, Infallible>(())
    };
    for byte in [1, 2, 1] {
        builder.write(&vec![byte; 1 << 20], &mut keep).unwrap();
    }
    builder.finish(&mut keep).unwrap();
    let root = leaves.pop().unwrap();
    [root, leaves.remove(0), leaves.remove(0)].into()
}

fn car_of(blocks: &[Block]) -> Vec<u8> {
    let sections = blocks.iter().map(|block| [&car::section_head(block), &block.bytes()[..]].concat());
    [vec![car::header(&[*blocks[0].cid()])], sections.collect()].concat().concat()
}

fn typed(dups: &str, body: &[u8]) -> Reply {
    answer("200 OK", &format!("Content-Type: application/vnd.ipld.car; version=1; order=dfs{dups}\r\n"), body)
}

/// The blocks that come, and how it ends.
async fn read(
    reply: impl Fn() -> Reply + Send + Sync + 'static,
    duplicates: bool,
) -> (usize, Result<(), UpstreamError>) {
    let fake = Fake::start(move |_, _| reply()).await;
    let limits = Limits {
        connect: Duration::from_secs(5),
        patience: Duration::from_millis(300),
        pause: Duration::from_millis(5),
    };
    let gateway = Gateway { client: Client::with_limits(&fake.url(), limits).unwrap() };
    let mut car = match gateway.car(file()[0].cid(), 0, duplicates).await {
        Ok(Some(car)) => car,
        Ok(None) => return (0, Ok(())),
        Err(error) => return (0, Err(error)),
    };
    let mut came = 0;
    loop {
        match car.next_block().await {
            Ok(Some(_)) => came += 1,
            Ok(None) => return (came, Ok(())),
            Err(error) => return (came, Err(error)),
        }
    }
}

#[tokio::test]
async fn a_car_is_read_to_its_last_block_and_no_further() {
    let blocks = file();
    let [root, one, two] = &blocks[..] else { panic!("{blocks:?}") };
    let every = [root, one, two, one].map(Clone::clone);
    let junk = [car_of(&blocks), b"what comes after it".to_vec()].concat();
    for (dups, car, duplicates, count) in [
        ("; dups=n", car_of(&blocks), false, 3),
        ("", car_of(&blocks), false, 3),
        ("; dups=y", car_of(&every), false, 4),
        ("; dups=y", car_of(&every), true, 4),
        ("; dups=n", junk, false, 3),
    ] {
        let ended = read(move || typed(dups, &car), duplicates).await;
        assert!(matches!(ended, (came, Ok(())) if came == count), "{dups}: {ended:?}");
    }
}

#[tokio::test]
async fn every_wait_for_a_car_ends() {
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/vnd.ipld.car\r\n\r\n";
    let begun = [&head[..], &car_of(&file()[..1])].concat();
    let (drip, hang) = (begun.clone(), begun);
    let dripping = read(move || Reply::Drip(drip.clone(), Duration::from_millis(20)), false).await;
    assert!(matches!(dripping, (1, Err(UpstreamError::Stalled { .. }))), "{dripping:?}");
    let hanging = read(move || Reply::Hang(hang.clone()), false).await;
    assert!(matches!(hanging, (1, Err(UpstreamError::Stalled { .. }))), "{hanging:?}");
    let silent = read(|| Reply::Hang(Vec::new()), false).await;
    assert!(matches!(silent, (0, Err(UpstreamError::Deadline { .. }))), "{silent:?}");
}

#[tokio::test]
async fn what_is_not_the_car_that_was_asked_for_is_refused() {
    let short = read(|| typed("", &car_of(&file()[..2])), false).await;
    assert!(matches!(short, (2, Err(UpstreamError::Ended { .. }))), "{short:?}");
    let once = read(|| typed("; dups=n", &car_of(&file())), true).await;
    assert!(matches!(once, (0, Err(UpstreamError::Type { .. }))), "{once:?}");
    let page = read(|| answer("200 OK", "Content-Type: text/html\r\n", b"<html>"), false).await;
    assert!(matches!(page, (0, Err(UpstreamError::Type { .. }))), "{page:?}");
    let unasked = read(|| typed("", &car_of(&[file()[0].clone(), file()[2].clone()])), false).await;
    assert!(matches!(unasked, (1, Err(UpstreamError::Unasked { .. }))), "{unasked:?}");
    let junk = read(|| typed("", b"\x05junk\x05"), false).await;
    assert!(matches!(junk, (0, Err(UpstreamError::Car { .. }))), "{junk:?}");
    let link = Block::v1(nipfs_proto::block::RAW, Bytes::from_static(b"")).unwrap();
    let empty = [car::header(&[*link.cid()]), car::section_head(&link).repeat(3)].concat();
    let other = read(move || typed("", &empty), false).await;
    assert!(matches!(other, (0, Err(UpstreamError::Unasked { .. }))), "{other:?}");
}

#[tokio::test]
async fn a_gateway_sends_nobody_elsewhere() {
    let elsewhere = Fake::start(|_, _| typed("", &car_of(&file()))).await;
    let url = elsewhere.url();
    let moved = read(move || answer("302 Found", &format!("Location: {url}/car\r\n"), b""), false).await;
    assert!(matches!(moved, (0, Err(UpstreamError::Request { .. }))), "{moved:?}");
    assert_eq!(elsewhere.requests(), 0);
    assert!(matches!(read(|| answer("404 Not Found", "", b""), false).await, (0, Ok(()))));
}
