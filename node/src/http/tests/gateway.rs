//! IPFS clients' view: blocks and CARs.

use super::*;
use nipfs_proto::block::{Block, Digest};
use nipfs_proto::dag::car::{CarError, Reader};

pub(super) fn blocks_of(car: &[u8]) -> (Vec<Cid>, Vec<Block>) {
    let (mut reader, mut blocks) = (Reader::new(), Vec::new());
    let mut keep = |block| {
        blocks.push(block);
        Ok::<_, CarError>(())
    };
    reader.push(car, &mut keep).unwrap();
    (reader.finish().unwrap(), blocks)
}

#[tokio::test]
async fn a_published_block_comes_with_its_headers() {
    let server = Server::start().await;
    let content = Content::new(1, 3 << 20, None);
    server.add(&content, Audience::World);
    let root = content.root();
    let block = server.node.store().block(&root).unwrap().unwrap();
    let asked =
        [(format!("/ipfs/{root}?format=raw"), ""), (format!("/ipfs/{root}"), "Accept: application/vnd.ipld.raw\r\n")];
    for (path, headers) in asked {
        let answer = server.ask("GET", &path, headers).await;
        assert!(answer.status == 200 && answer.body == *block.bytes());
        for (key, value) in [
            ("content-type", "application/vnd.ipld.raw".to_owned()),
            ("content-length", block.bytes().len().to_string()),
            ("x-content-type-options", "nosniff".to_owned()),
            ("content-disposition", format!("attachment; filename=\"{root}.bin\"")),
            ("etag", format!("\"{root}.raw\"")),
            ("cache-control", "public, max-age=29030400, immutable".to_owned()),
            ("x-ipfs-path", format!("/ipfs/{root}")),
            ("x-ipfs-roots", root.to_string()),
        ] {
            assert_eq!(answer.header(key), value);
        }
        let head = server.ask("HEAD", &path, headers).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), block.bytes().len().to_string());
        let part = server.ask("GET", &path, &format!("{headers}Range: bytes=7-9\r\n")).await;
        assert!(part.status == 206 && part.body == block.bytes()[7..10]);
        let known = server.ask("GET", &path, &format!("{headers}If-None-Match: \"{root}.raw\"\r\n")).await;
        assert_eq!(known.status, 304);
    }
    let named = server.get(&format!("/ipfs/{root}?format=raw&filename=a.bin")).await;
    assert_eq!(named.header("content-disposition"), "attachment; filename=\"a.bin\"");
    let nasty = server.get(&format!("/ipfs/{root}?format=raw&filename=a%22%3Cscript%3E")).await;
    assert_eq!(nasty.header("content-disposition"), format!("attachment; filename=\"{root}.bin\""));
}

#[tokio::test]
async fn a_car_holds_the_whole_dag_root_first() {
    let server = Server::start().await;
    let content = Content::new(1, 5 << 20, None);
    server.add(&content, Audience::World);
    let root = content.root();
    for (query, headers) in [
        ("?format=car", "Accept: application/vnd.ipld.raw\r\n"),
        ("", "Accept: text/html, application/vnd.ipld.car; version=1\r\n"),
    ] {
        let car = server.ask("GET", &format!("/ipfs/{root}{query}"), headers).await;
        assert!(car.status == 200 && car.whole);
        assert!(car.header("content-type").starts_with("application/vnd.ipld.car"));
        assert_eq!(car.header("accept-ranges"), "none");
        let (roots, blocks) = blocks_of(&car.body);
        assert_eq!((roots, *blocks[0].cid()), (vec![root], root));
        let leaves: Vec<u8> = blocks[1..].iter().flat_map(|block| block.bytes().to_vec()).collect();
        assert!(leaves == content.nar);
    }
    let one = server.get(&format!("/ipfs/{root}?format=car&dag-scope=block")).await;
    assert_eq!(blocks_of(&one.body).1.len(), 1);
    let head = server.ask("HEAD", &format!("/ipfs/{root}?format=car"), "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test]
async fn a_block_of_another_version_or_codec_is_the_same_bytes() {
    let server = Server::start().await;
    let content = Content::new(1, 3 << 20, None);
    server.add(&content, Audience::World);
    let digest = Digest::of_cid(&content.root()).unwrap().unwrap();
    for cid in [digest.v0_cid(), digest.raw_cid()] {
        let block = server.get(&format!("/ipfs/{cid}?format=raw")).await;
        assert_eq!((block.status, Digest::of(&block.body)), (200, digest), "{cid}");
    }
}

#[tokio::test]
async fn probes_and_nonsense() {
    let server = Server::start().await;
    let absent = Digest::of(b"absent").raw_cid();
    let cases = [
        ("/ipfs/bafkqaaa?format=raw".to_owned(), "", 200),
        ("/ipfs/bafkqaaa?format=car".to_owned(), "", 200),
        (format!("/ipfs/{absent}?format=raw"), "", 404),
        (format!("/ipfs/{absent}?format=car"), "", 404),
        (format!("/ipfs/{absent}/a/b?format=raw"), "", 404),
        (format!("/ipfs/{absent}"), "", 400),
        (format!("/ipfs/{absent}"), "Accept: text/html\r\n", 406),
        (format!("/ipfs/{absent}"), "Accept: application/vnd.ipld.car; version=2\r\n", 406),
        (format!("/ipfs/{absent}?format=tar"), "Accept: application/vnd.ipld.raw\r\n", 406),
        (format!("/ipfs/{absent}?format=car&dag-scope=everything"), "", 400),
        (format!("/ipfs/{absent}?format=car&entity-bytes=0:1"), "", 404),
        (format!("/ipfs/{absent}?format=car&entity-bytes=0%3A1"), "", 404),
        (format!("/ipfs/{absent}?format=car&entity-bytes=1:0"), "", 400),
        (format!("/ipfs/{absent}?format=car&entity-bytes=0:1&dag-scope=all"), "", 400),
        (format!("/ipfs/{absent}?format=car&car-version=2"), "", 406),
        (format!("/ipfs/{absent}?format=car&car-order=bfs"), "", 406),
        (format!("/ipfs/{absent}?format=car&format=raw"), "", 400),
        (format!("/ipfs/{absent}?format=car&dag-scope=%ff"), "", 400),
        (format!("/ipfs/{absent}"), "Accept: application/vnd.ipld.car; order=bfs\r\n", 406),
        (format!("/ipfs/{absent}"), "Accept: application/vnd.ipld.car; dups\r\n", 406),
        (format!("/ipfs/{absent}/./a?format=car"), "", 400),
        (format!("/ipfs/{absent}/a/%2e%2e/b?format=car"), "", 400),
        (format!("/ipfs/{absent}/{}?format=car", "a/".repeat(65)), "", 400),
        (format!("/ipfs/{absent}"), "Cache-Control: max-age=0, only-if-cached\r\n", 412),
        ("/ipfs/bafkqaaa".to_owned(), "Cache-Control: only-if-cached\r\n", 400),
        ("/ipfs/notacid?format=raw".to_owned(), "", 400),
        ("/ipfs/Qm?format=raw".to_owned(), "", 400),
        ("/ipfs/bafksebhh7d53e?format=raw".to_owned(), "", 400),
        (format!("/ipfs/{absent}%00?format=raw"), "", 400),
        (format!("/ipfs/{absent}%ff?format=raw"), "", 400),
        ("/ipfs/".to_owned(), "", 404),
        ("/ipfs".to_owned(), "", 404),
    ];
    for (path, headers, status) in cases {
        assert_eq!(server.ask("GET", &path, headers).await.status, status, "{path} {headers}");
    }
    let probe = server.get("/ipfs/bafkqaaa?format=car").await;
    assert_eq!(nipfs_proto::dag::car::header(&["bafkqaaa".parse().unwrap()]), probe.body);
}

#[tokio::test]
async fn a_car_with_a_hole_does_not_end_well() {
    let server = Server::start().await;
    let content = Content::new(1, 5 << 20, None);
    let staged = server.node.cache().stage(&content.nar[..], PROFILE).unwrap();
    server.node.cache().commit(Claim::Own(&content.narinfo, Keep::Copy), Some(&staged), Audience::World).unwrap();
    let packs = std::fs::read_dir(server.node.state().join("store/packs")).unwrap();
    let pack = packs.map(|entry| entry.unwrap().path()).min().unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[7 << 19] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let car = server.get(&format!("/ipfs/{}?format=car", content.root())).await;
    assert!(car.status == 200 && !car.whole);
}
