//! Nix's view: narinfos, NARs, and who may see them.

use super::*;
use crate::control::protocol::Announced;
use crate::store::{GcOptions, NarRecord, Op};
use nipfs_proto::dag::build::Builder;

#[tokio::test]
async fn the_cache_says_what_it_is() {
    let server = Server::start().await;
    let info = server.get("/nix-cache-info").await;
    assert_eq!((info.status, info.text()), (200, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"));
    assert_eq!(server.get("/plain/nix-cache-info").await.body, info.body);
    assert_eq!(server.get("/health").await.text(), "ok\n");
    let ours = crate::upstream::NipfsInfo::parse(server.get("/nipfs-info").await.text()).unwrap();
    assert!(ours.expires > ours.sequence && ours.index.is_none());
    let index = Some("bafyindex".to_owned());
    server.node.set_announced(Announced { index: index.clone(), ..Announced::default() });
    let ours = crate::upstream::NipfsInfo::parse(server.get("/nipfs-info").await.text()).unwrap();
    assert_eq!(ours.index, index);
    let status: serde_json::Value = serde_json::from_slice(&server.get("/status").await.body).unwrap();
    assert_eq!(status["peerId"], server.node.peer_id().to_string());
}

#[tokio::test]
async fn a_published_path_is_served_with_and_without_our_lines() {
    let server = Server::start().await;
    let content = Content::new(1, 3 << 20, None);
    server.add(&content, Audience::World);

    let full = server.get(&content.info_path()).await;
    assert_eq!((full.status, full.text()), (200, content.narinfo.text()));
    assert_eq!(full.header("x-ipfs-roots"), content.root().to_string());
    assert_eq!(full.header("content-type"), "text/x-nix-narinfo");

    let plain = server.get(&format!("/plain{}", content.info_path())).await;
    assert_eq!((plain.status, plain.text()), (200, content.narinfo.plain().text()));
    assert_eq!(plain.header("x-ipfs-roots"), content.root().to_string());

    for path in [content.nar_path(), format!("/plain{}", content.nar_path())] {
        let nar = server.get(&path).await;
        assert!(nar.status == 200 && nar.whole && nar.body == content.nar);
        assert_eq!(nar.header("content-length"), content.nar.len().to_string());
        assert_eq!(nar.header("accept-ranges"), "bytes");
        assert_eq!(nar.header("content-type"), "application/x-nix-nar");
    }
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let server = Server::start().await;
    let content = Content::new(1, 100_000, None);
    server.add(&content, Audience::World);
    let length = content.narinfo.text().len();
    for (path, length) in [(content.info_path(), length), (content.nar_path(), content.nar.len())] {
        for headers in ["", "Range: bytes=0-1\r\n"] {
            let head = server.ask("HEAD", &path, headers).await;
            assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, &*length.to_string(), 0));
        }
    }
    assert_eq!(server.ask("HEAD", "/nar/x.nar", "").await.status, 404);
}

#[tokio::test]
async fn ranges_of_a_nar() {
    let server = Server::start().await;
    let content = Content::new(1, (2 << 20) + 5, None);
    server.add(&content, Audience::World);
    let (nar, size) = (&content.nar, content.nar.len());
    let etag = server.get(&content.nar_path()).await.header("etag").to_owned();
    let ranges = [
        ("0-0", 0..1),
        ("1048570-1048590", 1_048_570..1_048_591),
        ("100-", 100..size),
        ("-7", size - 7..size),
        ("5-99999999999999999999", 5..size),
    ];
    for (asked, range) in ranges {
        for validator in [String::new(), format!("If-Range: {etag}\r\n")] {
            let part = server.ask("GET", &content.nar_path(), &format!("Range: bytes={asked}\r\n{validator}")).await;
            assert!(part.status == 206 && part.whole && part.body == nar[range.clone()], "{asked}");
            assert_eq!(part.header("content-range"), format!("bytes {}-{}/{size}", range.start, range.end - 1));
        }
    }
    let changed = server.ask("GET", &content.nar_path(), "Range: bytes=9-\r\nIf-Range: \"old\"\r\n").await;
    assert!(changed.status == 200 && changed.body == *nar);
    let beyond = server.ask("GET", &content.nar_path(), &format!("Range: bytes={size}-\r\n")).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, &*format!("bytes */{size}")));
    let known = server.ask("GET", &content.nar_path(), &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((known.status, known.body.len()), (304, 0));
}

#[tokio::test]
async fn the_world_sees_what_is_published_and_this_machine_what_was_fetched() {
    let server = Server::start().await;
    let (public, private) = (Content::new(1, 5000, None), Content::new(2, 5000, None));
    server.add(&public, Audience::World);
    server.add(&private, Audience::Loopback);
    let absent = Content::new(3, 5000, None);

    let views = |content: &Content| {
        let plain = format!("/plain{}", content.info_path());
        let named = format!("{}?hash={}", content.nar_path(), content.narinfo.store_path().hash_part());
        [content.info_path(), plain, content.nar_path(), named]
    };
    for (public, private, absent) in
        std::iter::zip(std::iter::zip(views(&public), views(&private)), views(&absent)).map(|((a, b), c)| (a, b, c))
    {
        assert_eq!(server.get_from_afar(&public).await.status, 200, "{public}");
        let (hidden, missing) = (server.get_from_afar(&private).await, server.get_from_afar(&absent).await);
        assert_eq!((hidden.status, &hidden.body), (404, &missing.body), "{private}");
        assert_eq!(server.get(&private).await.status, 200, "{private}");
    }
    for format in ["raw", "car"] {
        let path = |content: &Content| format!("/ipfs/{}?format={format}", content.root());
        assert_eq!(server.get(&path(&public)).await.status, 200);
        // The gateway is for the network: it has one view for all.
        assert_eq!(server.get(&path(&private)).await.status, 404);
        assert_eq!(server.get(&path(&absent)).await.status, 404);
    }
    assert_eq!(server.get("/nipfs-paths").await.text(), format!("{}\n", public.narinfo.store_path().base_name()));
    assert_eq!(server.get_from_afar("/status").await.status, 404);
}

#[tokio::test]
async fn what_is_shared_is_the_worlds_under_its_own_root_until_it_is_withdrawn_or_collected() {
    let server = Server::start().await;
    let key = SecretKey::from_seed("farm-1", &[7; 32]).unwrap();
    let (named, unnamed) = (Content::new(1, 5000, Some(&key)), Content::new(2, 5000, Some(&key)));
    let cache = server.node.cache();
    let share = |content: &Content, narinfo: NarInfo| {
        let staged = cache.stage(&content.nar[..], PROFILE).unwrap();
        cache.commit(Claim::Fetched(&TrustedNarInfo::own(narinfo)), Some(&staged), Audience::World).unwrap();
    };
    share(&named, named.narinfo.clone());
    share(&unnamed, unnamed.narinfo.plain());
    let seen = async |content: &Content| server.get_from_afar(&content.info_path()).await.status;
    assert_eq!((seen(&named).await, seen(&unnamed).await), (200, 404));
    let record = cache.lookup(&named.narinfo.store_path().hash_part(), Audience::World).unwrap().unwrap();
    assert!(record.is_shared() && record.narinfo == named.narinfo.text());
    cache.withdraw(|narinfo| narinfo.signatures().iter().any(|sig| sig.key() == "farm-1")).unwrap();
    assert_eq!(seen(&named).await, 200);
    cache.withdraw(|_| false).unwrap();
    assert_eq!((seen(&named).await, server.get(&named.info_path()).await.status), (404, 200));
    share(&named, named.narinfo.clone());
    assert_eq!(seen(&named).await, 200);
    server.node.store().gc(&GcOptions::default()).unwrap();
    assert_eq!((seen(&named).await, server.get(&named.nar_path()).await.status), (404, 404));
    // Published is more: it stays, and a fetch does not make it less.
    server.add(&named, Audience::World);
    share(&named, named.narinfo.clone());
    server.node.store().gc(&GcOptions::default()).unwrap();
    cache.withdraw(|_| false).unwrap();
    assert_eq!(seen(&named).await, 200);
}

#[tokio::test]
async fn a_name_that_points_at_us_and_a_proxy_are_the_world() {
    let server = Server::start().await;
    let private = Content::new(1, 5000, None);
    server.add(&private, Audience::Loopback);
    for (host, status) in [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("LocalHost:80", 200),
        ("[::1]:80", 200),
        ("127.0.0.1.evil.example", 404),
        ("evil.example:80", 404),
        ("127.0.0.1@evil.example", 404),
        ("", 404),
    ] {
        assert_eq!(server.ask_as(host, "GET", &private.info_path(), "").await.status, status, "{host}");
    }
    for proxy in ["Via: 1.1 x", "Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.1", "x-real-ip: 127.0.0.1"] {
        assert_eq!(server.ask("GET", &private.info_path(), &format!("{proxy}\r\n")).await.status, 404, "{proxy}");
    }
    let old = server.raw(format!("GET {} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", private.info_path()).as_bytes()).await;
    assert_eq!(Answer::parse(&old).status, 404);
}

#[tokio::test]
async fn all_published_paths_are_listed() {
    let server = Server::start().await;
    let all: Vec<Content> = (0..20).map(|number| Content::new(number, 50, None)).collect();
    for content in &all {
        server.add(content, if content.nar[120] % 2 == 0 { Audience::World } else { Audience::Loopback });
    }
    let mut expected: Vec<String> = Vec::new();
    for content in &all {
        if server.get_from_afar(&content.info_path()).await.status == 200 {
            expected.push(content.narinfo.store_path().base_name());
        }
    }
    let listed = server.get("/nipfs-paths").await;
    let mut listed: Vec<String> = listed.text().lines().map(str::to_owned).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    assert!((1..20).contains(&listed.len()));
}

#[tokio::test]
async fn a_damaged_nar_is_cut_and_never_ends_well() {
    let server = Server::start().await;
    let content = Content::new(1, 5 << 20, None);
    server.add(&content, Audience::World);
    let damage = |from_end: bool| {
        let packs = std::fs::read_dir(server.node.state().join("store/packs")).unwrap();
        let pack = packs.map(|entry| entry.unwrap().path()).min().unwrap();
        let mut bytes = std::fs::read(&pack).unwrap();
        // Somewhere in the fourth MiB, or in the first.
        let at = if from_end { 7 << 19 } else { 1 << 19 };
        bytes[at] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
    };
    damage(true);
    let cut = server.get(&content.nar_path()).await;
    assert!(cut.status == 200 && !cut.whole && content.nar.starts_with(&cut.body) && !cut.body.is_empty());
    damage(false);
    let none = server.get(&content.nar_path()).await;
    assert_eq!((none.status, none.text()), (404, "not found\n"));
}

#[tokio::test]
async fn a_nar_is_read_by_another_root_when_the_leaves_of_the_first_are_gone() {
    let server = Server::start().await;
    let content = Content::new(1, 3 << 20, None);
    server.add(&content, Audience::World);
    // As when they lay in a tree that Nix has deleted: of the other cut the root alone is here.
    let mut blocks = Vec::new();
    let mut builder = Builder::new(Profile::UnixfsV0_2015);
    let mut take = |block| {
        blocks.push(block);
        Ok::<_, std::convert::Infallible>(())
    };
    builder.write(&content.nar, &mut take).unwrap();
    let root = builder.finish(&mut take).unwrap().cid;
    let lease = server.node.store().lease();
    lease.put(blocks.last().unwrap()).unwrap();
    let (nar_hash, nar_size) = (content.narinfo.nar_hash(), content.narinfo.nar_size());
    let roots = vec![(Profile::UnixfsV0_2015.to_string(), root)];
    lease.commit(vec![Op::PutNar(NarRecord { nar_hash, nar_size, roots })]).unwrap();
    let roots = server.node.store().nar(&nar_hash).unwrap().unwrap().roots;
    assert_eq!((roots[0].1, roots[1].1), (root, content.root()));

    let answer = server.get(&content.nar_path()).await;
    assert!(answer.status == 200 && answer.whole && answer.body == content.nar, "{}", answer.status);
}
