//! What a machine fetched, seen by others.

use crate::common::{Machine, STUCK, Serving, describe};
use crate::sources::Liar;
use crate::walk::{fetch, fetched, publish_tree};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn what_a_listed_key_signed_is_shared_after_a_fetch_until_gc_or_a_private_profile() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "shared", 70, 2 << 20);
    let path = published["path"].as_str().unwrap();
    // Whoever asks here hears of no peer.
    let cache = Liar::before(&at_a.http, |_, body| body);
    let source = |from: &Serving| {
        let d = Machine::new();
        let said = fetch(&d, path, &cache.http, &key, &["--peer", &from.peer]).ok().one();
        assert_eq!(describe(&tree), describe(&fetched(&d, path)));
        said["source"].as_str().unwrap().to_owned()
    };
    let sharing = ["--profile", "lan", "--share-signed-by", "test-1"];
    for (args, shared) in
        [(&["--profile", "lan"][..], "http"), (&["--share-signed-by", "test-1"], "http"), (&sharing, "bitswap")]
    {
        let at_c = c.serve(args);
        fetch(&c, path, &at_a.http, &key, &["--peer", &at_a.peer]).ok();
        assert_eq!(source(&at_c), shared, "{args:?}");
        assert_eq!(c.run(&["pin", "ls"]).ok().stdout, "", "{args:?}");
        assert_eq!(at_c.stop(), 0);
        std::fs::remove_dir_all(c.dir().join("out")).unwrap();
    }
    for (args, shared) in [(&sharing[..], "bitswap"), (&[], "http")] {
        let at_c = c.serve(args);
        assert_eq!(source(&at_c), shared, "{args:?}");
        assert_eq!(at_c.stop(), 0);
    }
    let at_c = c.serve(&sharing);
    assert_eq!(source(&at_c), "http", "what was hidden came back by itself");
    fetch(&c, path, &at_a.http, &key, &["--peer", &at_a.peer]).ok();
    assert_eq!(source(&at_c), "bitswap");
    let freed = c.run(&["gc", "--json"]).ok().one();
    assert!(freed["freedBytes"].as_u64().unwrap() >= 2 << 20, "{freed}");
    assert_eq!(source(&at_c), "http");
}

/// Bytes of the files below a directory that somebody is writing.
fn size_of(dir: &Path) -> u64 {
    let (mut dirs, mut size) = (vec![dir.to_owned()], 0);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(file) if file.is_dir() => dirs.push(entry.path()),
                Ok(file) => size += file.len(),
                Err(_) => {}
            }
        }
    }
    size
}

#[test]
fn blocks_of_a_shared_path_are_visible_as_they_come_and_those_of_others_never() {
    let a = Machine::new();
    let key = a.key();
    let at_a = a.serve(&[]);
    let (_, published) = publish_tree(&a, "partial", 71, 4 << 20);
    let (path, root) = (published["path"].as_str().unwrap(), published["root"].as_str().unwrap());
    let node = at_a.get(&format!("/ipfs/{root}?format=raw")).body;
    // A link's hash: field 1, 34 bytes, sha2-256, 32 bytes. In base 16 a CID needs no code of its own.
    let link = node.windows(36).find(|bytes| bytes.starts_with(&[0x0a, 0x22, 0x12, 0x20])).unwrap();
    let leaf = format!("f0170{}", link[2..].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    // One of the last leaves cannot be had from A any more, and the gateway that is asked for it does not answer.
    a.rot(7 << 19);
    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = format!("http://{}", gateway.local_addr().unwrap());
    for (profile, listed, visible) in [("private", "test-1", false), ("lan", "other-1", false), ("lan", "test-1", true)]
    {
        let c = Machine::new();
        let at_c = c.serve(&["--profile", profile, "--share-signed-by", listed]);
        let out = c.dir().join("out");
        std::fs::create_dir(&out).unwrap();
        let from = ["--from", &at_a.http, "--peer", &at_a.peer, "--gateway", &gateway, "--trusted-public-key", &key];
        let args = [&["fetch", path, "--out", out.to_str().unwrap()], &from[..]].concat();
        let mut fetching = c.command(&args).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while size_of(&out) < 1 << 20 {
            assert!(start.elapsed() < STUCK, "{} bytes came", size_of(&out));
            std::thread::sleep(Duration::from_millis(20));
        }
        let case = format!("{profile}, {listed}");
        let raw = format!("/ipfs/{leaf}?format=raw");
        let start = Instant::now();
        while visible && at_c.get(&raw).status != 200 {
            assert!(start.elapsed() < STUCK, "{case}: {}", at_c.log());
        }
        let pinned = Machine::new().run(&["pin", "add", &leaf, "--peer", &at_c.peer]);
        assert_eq!(
            (at_c.get(&raw).status, pinned.code),
            if visible { (200, 0) } else { (404, 4) },
            "{case}: {pinned:?}"
        );
        fetching.kill().unwrap();
        fetching.wait().unwrap();
        let start = Instant::now();
        while at_c.get(&raw).status != 404 {
            assert!(start.elapsed() < STUCK, "{case}: what is not coming any more is still shown");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn of_several_sources_each_block_comes_once_and_the_tree_is_whole() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "two-sources", 72, 24 << 20);
    let path = published["path"].as_str().unwrap();
    let at_b = b.serve(&[]);
    b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key]).ok();
    let said = fetch(&c, path, &at_a.http, &key, &["--peer", &at_a.peer, "--peer", &at_b.peer]).ok().one();
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
    let (came, size) = (said["bytes"]["bitswap"].as_u64().unwrap(), published["narSize"].as_u64().unwrap());
    assert!((size..size + size / 100).contains(&came), "{said}");
    assert_eq!((&said["bytes"]["local"], &said["bytes"]["http"]), (&0.into(), &0.into()), "{said}");
}
