use super::*;
use crate::block::{CidError, RAW};
use crate::dag::codec::{Link, NodeError};
use crate::vectors;
use bytes::Bytes;
use multihash::Multihash;
use std::collections::HashMap;

type Blocks = HashMap<Cid, Block>;

/// Visits all that is in `blocks`; the CIDs in order, and those without a block.
fn visit(root: Cid, blocks: &Blocks) -> Result<(Vec<Cid>, Vec<Cid>), WalkError> {
    let mut walk = Visit::new([root])?;
    let (mut seen, mut missing) = (Vec::new(), Vec::new());
    while let Some(cid) = walk.next_cid()? {
        seen.push(cid);
        match blocks.get(&cid) {
            Some(block) => walk.feed(block)?,
            None => missing.push(cid),
        }
    }
    assert_eq!(walk.is_done(), missing.iter().all(|cid| cid.codec() != DAG_PB));
    Ok((seen, missing))
}

fn node(links: &[Cid]) -> Block {
    let link = |cid: &Cid| Link { cid: *cid, name: None, tsize: None };
    Block::v0(Node { links: links.iter().map(link).collect(), data: None }.encode().into()).expect("small")
}

fn raw(n: u32) -> Cid {
    Digest::of(&n.to_be_bytes()).raw_cid()
}

#[test]
fn whole_dags_are_visited_once_whatever_they_mean() {
    for (name, count, missing) in [
        ("unixfs/hostile/bomb-dup-174x8.car", 9, 0),
        ("unixfs/hostile/deep-chain-20000.car", 20_001, 0),
        ("unixfs/hostile/data-absent.car", 2, 0),
        ("unixfs/hostile/dag-cbor-leaf.car", 2, 0),
        ("unixfs/hostile/filesize-u64max.car", 2, 0),
        ("unixfs/hostile/tsize-huge.car", 2, 0),
        ("unixfs/hostile/dir-entry-slash.car", 2, 0),
        ("unixfs/hostile/hamt-deep-40.car", 41, 0),
        ("unixfs/hostile/hamt-fanout-9223372036854775808.car", 2, 0),
        ("car/simple-unixfs.car", 22, 0),
        ("car/simple-unixfs-missing-blocks.car", 20, 3),
        ("boxo/directory-with-multilayer-hamt-and-multiblock-files.car", 18, 0),
    ] {
        let Some((root, blocks)) = vectors::car(name) else { return };
        let (seen, absent) = visit(root, &blocks).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((seen.len(), absent.len()), (count, missing), "{name}");
        assert_eq!(seen[0], root, "{name}");
    }
}

#[test]
fn links_that_nothing_could_verify_are_refused_before_they_are_named() {
    for (name, link) in [
        ("unixfs/hostile/md5-leaf.car", CidError::HashFunction(0xd5)),
        ("unixfs/hostile/identity-leaf-129.car", CidError::Malformed("Failed to parse multihash".to_owned())),
    ] {
        let Some((root, blocks)) = vectors::car(name) else { return };
        let source = NodeError::Link { index: 0, source: link };
        assert_eq!(visit(root, &blocks), Err(WalkError::Node { cid: root, source }), "{name}");
    }
    let sha1 = Cid::new_v1(RAW, Multihash::wrap(0x11, &[7; 20]).expect("short"));
    let refused = WalkError::Root { root: sha1, source: CidError::HashFunction(0x11) };
    assert_eq!(Visit::new([sha1]).map(|_| ()), Err(refused));
}

#[test]
fn the_order_is_depth_first() {
    let left = node(&[raw(1), raw(2)]);
    let right = node(&[raw(2), raw(3)]);
    let root = node(&[*left.cid(), raw(3), *right.cid(), *left.cid()]);
    let blocks = [&left, &right, &root].map(|block| (*block.cid(), block.clone())).into();
    let (seen, _) = visit(*root.cid(), &blocks).unwrap();
    assert_eq!(seen, [*root.cid(), *left.cid(), raw(1), raw(2), raw(3), *right.cid()]);
}

#[test]
fn several_roots_share_what_they_have_in_common() {
    let (one, two) = (node(&[raw(1), raw(2)]), node(&[raw(2), raw(3)]));
    let mut walk = Visit::new([*one.cid(), *two.cid(), *one.cid()]).unwrap();
    let mut seen = Vec::new();
    while let Some(cid) = walk.next_cid().unwrap() {
        seen.push(cid);
        [&one, &two].into_iter().filter(|block| *block.cid() == cid).for_each(|block| walk.feed(block).unwrap());
    }
    assert_eq!(seen, [*one.cid(), raw(1), raw(2), *two.cid(), raw(3)]);
    assert!(walk.is_done());
}

#[test]
fn it_is_not_done_while_a_node_is_outstanding() {
    let root = node(&[raw(1)]);
    let mut walk = Visit::new([*root.cid()]).unwrap();
    assert_eq!(walk.next_cid(), Ok(Some(*root.cid())));
    assert_eq!(walk.next_cid(), Ok(None));
    assert!(!walk.is_done());
    walk.feed(&node(&[raw(9)])).unwrap();
    assert_eq!(walk.next_cid(), Ok(None));
    // A peer may send the same bytes under another CID.
    let renamed = root.with_cid(Digest::of(node(&[raw(1)]).bytes()).raw_cid()).unwrap();
    walk.feed(&renamed).unwrap();
    walk.feed(&renamed).unwrap();
    assert_eq!(walk.next_cid(), Ok(Some(raw(1))));
    assert!(walk.is_done());
}

#[test]
fn bytes_linked_as_a_leaf_and_as_a_node_are_both() {
    let inner = node(&[raw(1)]);
    let as_leaf = Digest::of(inner.bytes()).raw_cid();
    let root = node(&[as_leaf, *inner.cid()]);
    let blocks = [&inner, &root].map(|block| (*block.cid(), block.clone())).into();
    assert_eq!(visit(*root.cid(), &blocks).unwrap().0, [*root.cid(), as_leaf, *inner.cid(), raw(1)]);
}

#[test]
fn identity_nodes_are_followed_and_never_named() {
    let identity = |codec, bytes: &[u8]| Cid::new_v1(codec, Multihash::wrap(0, bytes).expect("short"));
    let inner = identity(DAG_PB, node(&[raw(1), identity(RAW, b"leaf")]).bytes());
    let outer = identity(DAG_PB, node(&[inner]).bytes());
    assert_eq!(visit(outer, &Blocks::new()).unwrap().0, [raw(1)]);
    let bad = identity(DAG_PB, b"\xff");
    let root = node(&[bad]);
    let blocks = [(*root.cid(), root.clone())].into();
    assert!(matches!(visit(*root.cid(), &blocks), Err(WalkError::Node { cid, .. }) if cid == bad));
}

#[test]
fn leaves_are_not_decoded() {
    let leaf = Block::v1(RAW, Bytes::from_static(b"\xff not dag-pb")).unwrap();
    let blocks = [(*leaf.cid(), leaf.clone())].into();
    assert_eq!(visit(*leaf.cid(), &blocks).unwrap().0, [*leaf.cid()]);
}

#[test]
fn what_waits_has_a_bound() {
    let mut walk = Visit::default();
    let mut refused = None;
    for n in 0..100 {
        // Each node has fresh links, of which only the first, the next node, is followed.
        let inner = node(&[raw(n)]);
        let mut links: Vec<Cid> = (0..40_000).map(|m| raw(1000 + n * 40_000 + m)).collect();
        links[0] = *inner.cid();
        let wide = node(&links);
        walk.pending.push(*wide.cid());
        assert_eq!(walk.next_cid(), Ok(Some(*wide.cid())));
        if let Err(error) = walk.feed(&wide) {
            refused = Some((error, *wide.cid()));
            break;
        }
    }
    let (error, cid) = refused.expect("4 million links are too many");
    assert_eq!(error, WalkError::TooWide(cid));
}
