//! Between a client and other caches.

use super::*;
use crate::upstream::fake::{Fake, Reply, answer, head};
use async_compression::Level;
use async_compression::tokio::write::XzEncoder;
use nipfs_proto::block::Block;
use nipfs_proto::dag::build::Builder;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

async fn xz(plain: &[u8]) -> Vec<u8> {
    let mut encoder = XzEncoder::with_quality(Vec::new(), Level::Fastest);
    encoder.write_all(plain).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

/// The narinfo as another cache has it, whose NAR is a compressed file.
fn foreign(content: &Content) -> String {
    let ours = format!("URL: nar/{}.nar\nCompression: none", content.narinfo.nar_hash().to_base32());
    let text = content.narinfo.text().replace(&ours, "URL: nar/file.nar.xz\nCompression: xz");
    assert!(text.contains("xz"));
    text
}

/// Another cache with this path.
async fn cache_with(content: &Content, file: Vec<u8>) -> Fake {
    let (info_path, text) = (content.info_path(), foreign(content));
    Fake::start(move |head, _| match head.split(' ').nth(1).unwrap() {
        path if path == info_path => answer("200 OK", "", text.as_bytes()),
        "/nar/file.nar.xz" => answer("200 OK", "", &file),
        _ => answer("404 Not Found", "", b""),
    })
    .await
}

async fn between(cache: &Fake) -> Server {
    Server::with(With { upstreams: vec![cache.url()], ..With::default() }).await
}

/// Asks for a narinfo as Nix does and follows its URL.
async fn substitute(server: &Server, content: &Content) -> Answer {
    let info = server.get(&content.info_path()).await;
    assert_eq!(info.status, 200);
    let url = info.text().lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    server.get(&format!("/{url}")).await
}

#[tokio::test]
async fn a_path_of_another_cache_is_passed_on_as_a_plain_nar() {
    let content = Content::new(1, 300_000, None);
    let cache = cache_with(&content, xz(&content.nar).await).await;
    let server = between(&cache).await;
    let nar = substitute(&server, &content).await;
    assert!(nar.status == 200 && nar.whole && nar.body == content.nar);
    let part = server.ask("GET", &content.nar_path(), "Range: bytes=100000-100009\r\n").await;
    assert!(part.status == 206 && part.whole && part.body == content.nar[100_000..100_010]);
    let plain = server.get(&format!("/plain{}", content.info_path())).await;
    assert!(plain.status == 200 && !plain.text().contains("IPFS"));
    assert_eq!(server.get("/nar/0000000000000000000000000000000000000000000000000000.nar").await.status, 404);

    let restarted = between(&cache).await;
    assert_eq!(restarted.get(&content.nar_path()).await.status, 404);
    let named = format!("{}?hash={}", content.nar_path(), content.narinfo.store_path().hash_part());
    assert!(restarted.get(&named).await.body == content.nar);
}

#[tokio::test]
async fn what_breaks_behind_us_breaks_the_body_and_not_the_build() {
    let content = Content::new(1, 300_000, None);
    let good = xz(&content.nar).await;
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    for (file, cut_at_all) in [(damaged, true), (good[..good.len() / 2].to_vec(), true), (b"junk".to_vec(), false)] {
        let server = between(&cache_with(&content, file).await).await;
        let nar = substitute(&server, &content).await;
        assert!(nar.status == 404 || (cut_at_all && nar.status == 200 && !nar.whole), "{}", nar.status);
    }
}

#[tokio::test]
async fn a_narinfo_is_answered_in_time_whatever_the_other_cache_does() {
    let content = Content::new(1, 1000, None);
    let troubles: [fn() -> Reply; 5] = [
        || Reply::Hang(Vec::new()),
        || Reply::Drip(head("200 OK"), Duration::from_millis(50)),
        || Reply::Endless(head("200 OK"), vec![b'x'; 4096]),
        || answer("500 Internal Server Error", "", b"/etc/secret"),
        || answer("200 OK", "", b"<html>"),
    ];
    for trouble in troubles {
        let cache = Fake::start(move |_, _| trouble()).await;
        let server = between(&cache).await;
        let started = Instant::now();
        let info = server.get(&content.info_path()).await;
        assert_eq!((info.status, info.text()), (404, "not found\n"));
        assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_source_that_runs_dry_is_followed_by_the_next_at_the_same_byte() {
    let content = Content::new(1, 5 << 20, None);
    let cache = cache_with(&content, xz(&content.nar).await).await;
    let server = between(&cache).await;
    server.get(&content.info_path()).await;
    // Here, but one block in the middle is damaged.
    server.add(&content, Audience::World);
    let packs = std::fs::read_dir(server.node.state().join("store/packs")).unwrap();
    let pack = packs.map(|entry| entry.unwrap().path()).min().unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[7 << 19] ^= 1;
    std::fs::write(&pack, bytes).unwrap();

    let named = format!("{}?hash={}", content.nar_path(), content.narinfo.store_path().hash_part());
    let nar = server.get(&named).await;
    assert!(nar.status == 200 && nar.whole && nar.body == content.nar);
    let counters = server.node.counters();
    assert!(counters.local.load(Ordering::Relaxed) > 1 << 20, "the beginning came from here");
    assert!(counters.http.load(Ordering::Relaxed) < 5 << 20, "the end only came from there");
}

#[tokio::test]
async fn a_root_is_believed_when_it_is_bound() {
    let key = SecretKey::from_seed("cache-1", &[1; 32]).unwrap();
    let stranger = SecretKey::from_seed("cache-1", &[2; 32]).unwrap();
    for (signer, by_blocks) in [(&key, true), (&stranger, false)] {
        let content = Content::new(1, 3 << 20, Some(signer));
        let cache = cache_with(&content, xz(&content.nar).await).await;
        let gateway = gateway_with(&content).await;
        let server = Server::with(With {
            upstreams: vec![cache.url()],
            gateways: vec![gateway.url()],
            trusted: [key.public_key()].into_iter().collect(),
            ..With::default()
        });
        let server = server.await;
        let nar = substitute(&server, &content).await;
        assert!(nar.status == 200 && nar.whole && nar.body == content.nar);
        assert_eq!(gateway.requests() > 0, by_blocks);
        assert_eq!(server.node.counters().http.load(Ordering::Relaxed) == 0, by_blocks);

        // What came as blocks is kept for this machine.
        let asked = gateway.requests();
        assert!(server.get(&content.nar_path()).await.body == content.nar);
        assert_eq!(gateway.requests(), asked);
        let info = server.get(&content.info_path()).await;
        assert_eq!(info.text().contains("?hash="), !by_blocks);
        assert!(info.text().contains("Compression: none"));
        assert_eq!(server.node.store().path(&content.narinfo.store_path().hash_part()).unwrap().is_some(), by_blocks);
    }
}

/// A gateway that has this NAR's blocks.
async fn gateway_with(content: &Content) -> Fake {
    let mut blocks: HashMap<String, Block> = HashMap::new();
    let mut keep = |block: Block| {
        blocks.insert(format!("/ipfs/{}?format=raw", block.cid()), block);
        Ok::<_, std::convert::Infallible>(())
    };
    let mut builder = Builder::new(PROFILE);
    builder.write(&content.nar, &mut keep).unwrap();
    builder.finish(&mut keep).unwrap();
    let blocks = Arc::new(blocks);
    Fake::start(move |head, _| match blocks.get(head.split(' ').nth(1).unwrap()) {
        Some(block) => answer("200 OK", "", block.bytes()),
        None => answer("404 Not Found", "", b""),
    })
    .await
}

#[tokio::test]
async fn another_nar_than_was_signed_never_ends_well() {
    let (content, other) = (Content::new(1, 300_000, None), Content::new(2, 300_000, None));
    assert_eq!(content.nar.len(), other.nar.len());
    let server = between(&cache_with(&content, xz(&other.nar).await).await).await;
    let nar = substitute(&server, &content).await;
    assert!(nar.status == 200 && !nar.whole);

    let (small, other) = (Content::new(1, 300, None), Content::new(2, 300, None));
    let server = between(&cache_with(&small, xz(&other.nar).await).await).await;
    assert_eq!(substitute(&server, &small).await.status, 404);
}
