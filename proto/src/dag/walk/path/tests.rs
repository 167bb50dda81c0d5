use super::*;
use crate::block::Digest;
use crate::dag::codec::{Link, Node};
use crate::vectors;
use bytes::Bytes;
use std::collections::HashMap;

type Blocks = HashMap<Cid, Block>;

/// Walks to the end: the blocks passed and the target, or `None` where a name leads nowhere.
fn follow(root: Cid, path: &str, blocks: &Blocks) -> Result<Option<(Vec<Cid>, Cid)>, WalkError> {
    let mut walk = PathWalk::new(root, path.split('/').map(str::to_owned).collect())?;
    while let Some(cid) = walk.wanted() {
        if !walk.feed(&blocks[&cid])? {
            return Ok(None);
        }
    }
    assert_eq!(walk.roots().len(), 1 + path.split('/').count());
    assert_eq!((walk.roots()[0], walk.roots().last()), (root, Some(&walk.at())));
    Ok(Some((walk.passed().to_vec(), walk.at())))
}

fn directory(entries: &[(&str, Cid)]) -> Block {
    let link = |(name, cid): &(&str, Cid)| Link { cid: *cid, name: Some((*name).to_owned()), tsize: None };
    let data = Some(Bytes::from_static(&[8, 1]));
    Block::v0(Node { links: entries.iter().map(link).collect(), data }.encode().into()).expect("small")
}

#[test]
fn names_lead_down_plain_directories() {
    let leaf = Block::v1(crate::block::RAW, Bytes::from_static(b"leaf")).unwrap();
    let inner = directory(&[("ą ż", *leaf.cid()), ("b", Digest::of(b"elsewhere").raw_cid())]);
    let outer = directory(&[("a", *inner.cid()), ("..", *leaf.cid())]);
    let (root, inner, leaf) = (*outer.cid(), inner, leaf);
    let (middle, end) = (*inner.cid(), *leaf.cid());
    let blocks: Blocks = [outer, inner, leaf].into_iter().map(|block| (*block.cid(), block)).collect();
    assert_eq!(follow(root, "a", &blocks), Ok(Some((vec![root], middle))));
    assert_eq!(follow(root, "a/ą ż", &blocks), Ok(Some((vec![root, middle], end))));
    for nowhere in ["b", "A", "", "a/c", "a/ą ż/below-a-file", "a/", "a/a"] {
        assert_eq!(follow(root, nowhere, &blocks), Ok(None), "{nowhere}");
    }
    let done = PathWalk::new(root, Vec::new()).unwrap();
    assert_eq!((done.wanted(), done.at(), done.roots()), (None, root, &[root][..]));
}

#[test]
fn names_lead_down_sharded_directories_of_other_implementations() {
    let sets = [
        ("gateway-conformance/single-layer-hamt-with-multi-block-files.car", "685.txt", 2),
        ("gateway-conformance/single-layer-hamt-with-multi-block-files.car", "1.txt", 2),
        ("boxo/directory-with-multilayer-hamt-and-multiblock-files.car", "hamtDir/exampleA", 3),
        ("boxo/directory-with-multilayer-hamt-and-multiblock-files.car", "hamtDir/exampleB", 3),
    ];
    for (set, name, depth) in sets {
        let Some((root, blocks)) = vectors::car(set) else { return };
        let (passed, target) = follow(root, name, &blocks).unwrap().unwrap_or_else(|| panic!("{set}: no {name}"));
        assert_eq!((passed[0], passed.len()), (root, depth), "{set}: {name}");
        assert!(matches!(Entity::decode(&target, blocks[&target].bytes()), Ok(Entity::File(_))), "{set}: {name}");
    }
}

#[test]
fn hostile_shards_are_refused_for_the_right_reason() {
    let fanout = "the fanout of a shard is no power of two from 8 to 1024";
    let mut cases = vec![
        ("bitfield-too-long".to_owned(), "the bitfield of a shard is longer than its fanout"),
        ("hash-unknown".to_owned(), "a shard by another hash than murmur3-x64-64"),
        ("prefix-short".to_owned(), "a link of a shard without its digits"),
    ];
    for number in ["1", "3", "7", "255", "2147483648", "9223372036854775808"] {
        cases.push((format!("fanout-{number}"), fanout));
    }
    for (name, why) in cases {
        let Some((root, blocks)) = vectors::car(&format!("unixfs/hostile/hamt-{name}.car")) else { return };
        let expected = WalkError::Node { cid: root, source: NodeError::Directory(why) };
        assert_eq!(follow(root, "name", &blocks), Err(expected), "{name}");
    }
}

#[test]
fn a_name_with_a_slash_is_not_reached_and_a_tall_tree_ends() {
    let Some((root, blocks)) = vectors::car("unixfs/hostile/dir-entry-slash.car") else { return };
    assert_eq!(follow(root, "a/b", &blocks), Ok(None));
    // Of 40 levels of shards, a name reaches as many as its hash has bytes of 0 at the start.
    let Some((root, blocks)) = vectors::car("unixfs/hostile/hamt-deep-40.car") else { return };
    for name in 0..2000 {
        assert_eq!(follow(root, &name.to_string(), &blocks), Ok(None));
    }
    let Some((root, blocks)) = vectors::car("unixfs/hostile/hamt-child-fanout-differs.car") else { return };
    let wrong = (0..2000).filter(|name| follow(root, &name.to_string(), &blocks).is_err()).count();
    assert!((1..30).contains(&wrong), "{wrong} of 2000 names met the shard of another fanout");
}
