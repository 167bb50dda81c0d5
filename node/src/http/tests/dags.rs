//! CARs of directories and of parts of files: paths, scopes, duplicates, validators.

use super::gateway::blocks_of;
use super::*;
use crate::store::{CidPin, Op};
use bytes::Bytes;
use nipfs_proto::block::{Block, RAW};
use nipfs_proto::dag::codec::{Link, Node};

/// `top/ż b/{one,two}`, where both files are the same leaf, beside a file of several blocks.
struct Tree {
    leaf: Block,
    inner: Block,
    top: Block,
    /// The root of a file of 3 MiB and a little more: four leaves.
    file: Cid,
}

fn directory(entries: &[(&str, Cid)]) -> Block {
    let link = |(name, cid): &(&str, Cid)| Link { cid: *cid, name: Some((*name).to_owned()), tsize: None };
    let data = Some(Bytes::from_static(&[8, 1]));
    Block::v0(Node { links: entries.iter().map(link).collect(), data }.encode().into()).unwrap()
}

impl Tree {
    /// The tree, with the CIDs for pins that make it public.
    async fn serve(pins: impl Fn(&Self) -> Vec<Cid>) -> (Self, Server) {
        let server = Server::start().await;
        let content = Content::new(1, 3 << 20, None);
        server.add(&content, Audience::World);
        let leaf = Block::v1(RAW, Bytes::from_static(b"leaf")).unwrap();
        let inner = directory(&[("one", *leaf.cid()), ("two", *leaf.cid())]);
        let top = directory(&[("file", content.root()), ("ż b", *inner.cid())]);
        let tree = Self { leaf, inner, top, file: content.root() };
        let lease = server.node.store().lease();
        for block in [&tree.leaf, &tree.inner, &tree.top] {
            lease.put(block).unwrap();
        }
        let pins = pins(&tree).into_iter().map(|cid| Op::PutPin(CidPin { cid, added_unix: 0 }));
        lease.commit(pins.collect()).unwrap();
        (tree, server)
    }
}

/// The CIDs in a CAR, which must be whole.
async fn car(server: &Server, path: &str) -> Vec<Cid> {
    let answer = server.get(path).await;
    assert!(answer.status == 200 && answer.whole, "{path}: {}", answer.status);
    let (_, blocks) = blocks_of(&answer.body);
    blocks.iter().map(|block| *block.cid()).collect()
}

#[tokio::test]
async fn a_path_is_walked_by_name() {
    let (tree, server) = Tree::serve(|tree| vec![*tree.top.cid()]).await;
    let (top, inner, leaf) = (*tree.top.cid(), *tree.inner.cid(), *tree.leaf.cid());
    let path = format!("/ipfs/{top}/%C5%BC%20b/one");
    assert_eq!(car(&server, &format!("{path}?format=car")).await, [top, inner, leaf]);
    assert_eq!(car(&server, &format!("/ipfs/{top}//%C5%BC%20b/?format=car&dag-scope=block")).await, [top, inner]);
    assert_eq!(car(&server, &format!("/ipfs/{top}?format=car&dag-scope=entity")).await, [top]);
    let raw = server.get(&format!("{path}?format=raw")).await;
    assert_eq!((raw.status, raw.text()), (200, "leaf"));
    for (key, value) in [
        ("x-ipfs-roots", format!("{top},{inner},{leaf}")),
        ("content-location", format!("{path}?format=raw")),
        ("content-disposition", format!("attachment; filename=\"{leaf}.bin\"")),
        ("etag", format!("\"{leaf}.raw\"")),
    ] {
        assert_eq!(raw.header(key), value);
    }
    for nowhere in ["/one", "/file/below", "/%C5%BC%20b/three", "/%C5%BC%20b/one/two"] {
        for format in ["raw", "car"] {
            let answer = server.get(&format!("/ipfs/{top}{nowhere}?format={format}")).await;
            assert_eq!(answer.status, 404, "{nowhere}");
            let (path, cached) = (format!("/ipfs/{top}{nowhere}?format={format}"), "Cache-Control: only-if-cached\r\n");
            assert_eq!(server.ask("HEAD", &path, cached).await.status, 412, "{nowhere}");
        }
    }
}

#[tokio::test]
async fn part_of_a_file_is_the_blocks_that_hold_it() {
    let (tree, server) = Tree::serve(|tree| vec![*tree.top.cid()]).await;
    let whole = car(&server, &format!("/ipfs/{}?format=car", tree.file)).await;
    assert_eq!((whole.len(), whole[0]), (5, tree.file));
    for (range, leaves) in [
        ("0:*", 1..5),
        ("0:0", 1..2),
        ("1048576:*", 2..5),
        ("1048575:1048576", 1..3),
        ("-1:*", 4..5),
        ("9999999:*", 1..1),
    ] {
        let path = format!("/ipfs/{}/file?format=car&entity-bytes={range}", tree.top.cid());
        let expected = [&[*tree.top.cid(), tree.file], &whole[leaves]].concat();
        assert_eq!(car(&server, &path).await, expected, "{range}");
    }
}

#[tokio::test]
async fn duplicates_come_if_they_are_asked_for() {
    let (tree, server) = Tree::serve(|tree| vec![*tree.top.cid()]).await;
    let (inner, leaf) = (*tree.inner.cid(), *tree.leaf.cid());
    let path = format!("/ipfs/{inner}");
    for (query, accept, expected) in [
        ("?format=car", "", vec![inner, leaf]),
        ("?format=car&car-dups=y", "", vec![inner, leaf, leaf]),
        ("?format=car&car-dups=n", "; dups=y", vec![inner, leaf]),
        ("", "; order=unk;dups=\"y\"", vec![inner, leaf, leaf]),
    ] {
        let header = format!("Accept: text/html, application/vnd.ipld.car{accept}\r\n");
        let answer = server.ask("GET", &format!("{path}{query}"), &header).await;
        let cids: Vec<Cid> = blocks_of(&answer.body).1.iter().map(|block| *block.cid()).collect();
        assert_eq!(cids, expected, "{query} {accept}");
        let dups = if expected.len() == 3 { 'y' } else { 'n' };
        assert_eq!(
            answer.header("content-type"),
            format!("application/vnd.ipld.car; version=1; order=dfs; dups={dups}")
        );
        // It names the same CAR without the header.
        let again = server.get(answer.header("content-location")).await;
        assert_eq!((again.header("etag"), &again.body), (answer.header("etag"), &answer.body));
    }
}

#[tokio::test]
async fn every_form_has_its_validator() {
    let (tree, server) = Tree::serve(|tree| vec![*tree.top.cid()]).await;
    let (top, file) = (tree.top.cid(), tree.file);
    let forms = [
        format!("/ipfs/{file}?format=raw"),
        format!("/ipfs/{file}?format=car"),
        format!("/ipfs/{file}?format=car&car-dups=y"),
        format!("/ipfs/{file}?format=car&dag-scope=block"),
        format!("/ipfs/{file}?format=car&dag-scope=entity"),
        format!("/ipfs/{file}?format=car&entity-bytes=0:1"),
        format!("/ipfs/{top}/file?format=car"),
    ];
    let mut tags = Vec::new();
    for form in &forms {
        let head = server.ask("HEAD", form, "").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{form}");
        tags.push(head.header("etag").to_owned());
    }
    for (form, tag) in forms.iter().zip(&tags) {
        assert_eq!(tags.iter().filter(|other| *other == tag).count(), 1, "{form}: {tag}");
        let known = server.ask("GET", form, &format!("If-None-Match: \"x\", {tag}\r\n")).await;
        assert_eq!((known.status, known.header("etag"), known.body.len()), (304, tag.as_str(), 0), "{form}");
        let others: Vec<&str> = tags.iter().filter(|other| *other != tag).map(String::as_str).collect();
        let unknown = server.ask("HEAD", form, &format!("If-None-Match: {}\r\n", others.join(", "))).await;
        assert_eq!(unknown.status, 200, "{form}");
    }
}

#[tokio::test]
async fn what_is_below_a_published_block_is_not_published_by_that() {
    // As a leaf, the directory is public and what it links to is not.
    let (tree, server) = Tree::serve(|tree| vec![tree.inner.digest().unwrap().raw_cid()]).await;
    let inner = tree.inner.cid();
    let cut = server.get(&format!("/ipfs/{inner}?format=car")).await;
    assert!(cut.status == 200 && !cut.whole);
    assert_eq!(server.get(&format!("/ipfs/{inner}/one?format=raw")).await.status, 404);
    assert_eq!(server.get(&format!("/ipfs/{inner}/one?format=car")).await.status, 404);
    assert_eq!(car(&server, &format!("/ipfs/{inner}?format=car&dag-scope=block")).await, [*inner]);
}

#[tokio::test]
async fn links_of_an_unknown_codec_are_not_left_out_in_silence() {
    let cbor = Block::v1(0x71, Bytes::from_static(&[0xa0])).unwrap();
    let server = Server::start().await;
    let lease = server.node.store().lease();
    let above = directory(&[("document", *cbor.cid())]);
    lease.put(&cbor).unwrap();
    lease.put(&above).unwrap();
    lease.commit(vec![Op::PutPin(CidPin { cid: *above.cid(), added_unix: 0 })]).unwrap();
    assert_eq!(server.get(&format!("/ipfs/{}?format=car", cbor.cid())).await.status, 501);
    let cut = server.get(&format!("/ipfs/{}?format=car", above.cid())).await;
    assert!(cut.status == 200 && !cut.whole);
    let entity = car(&server, &format!("/ipfs/{}/document?format=car&dag-scope=entity", above.cid())).await;
    assert_eq!(entity, [*above.cid(), *cbor.cid()]);
}
