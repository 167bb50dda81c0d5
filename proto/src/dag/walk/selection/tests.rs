use super::*;
use crate::dag::codec::Link;
use crate::dag::unixfs::{Child, inner_node};
use crate::dag::walk::FileWalk;
use crate::vectors;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::HashMap;

type Blocks = HashMap<Cid, Block>;

const ENTITY: Scope = Scope::Entity(EntityBytes::ALL);

/// The CIDs that are to be sent, in order.
fn select(root: Cid, scope: Scope, duplicates: bool, blocks: &Blocks) -> Result<Vec<Cid>, WalkError> {
    let mut walk = Selection::new(root, scope, duplicates)?;
    let mut sent = Vec::new();
    while let Some(Selected { cid, again }) = walk.next_block()? {
        walk.feed(&blocks[&cid])?;
        if !again {
            sent.push(cid);
        }
    }
    Ok(sent)
}

fn bytes(text: &str) -> Scope {
    Scope::Entity(text.parse().unwrap())
}

fn raw(text: &'static str) -> Block {
    Block::v1(RAW, Bytes::from_static(text.as_bytes())).unwrap()
}

/// A file node over blocks that each hold so many bytes.
fn file(children: &[(&Block, u64)]) -> Block {
    let child = |(block, size): &(&Block, u64)| Child { cid: *block.cid(), size: *size, tsize: 0 };
    Block::v0(inner_node(&children.iter().map(child).collect::<Vec<_>>())).unwrap()
}

fn all(blocks: &[&Block]) -> Blocks {
    blocks.iter().map(|block| (*block.cid(), (*block).clone())).collect()
}

fn cids(blocks: &[&Block]) -> Vec<Cid> {
    blocks.iter().map(|block| *block.cid()).collect()
}

#[test]
fn a_range_takes_the_blocks_that_hold_it_and_those_above() {
    let (a, b, c, d) = (raw("aaaa"), raw("bbbb"), raw("cccc"), raw("dddd"));
    let (left, right) = (file(&[(&a, 4), (&b, 4)]), file(&[(&c, 4), (&d, 4)]));
    let root = file(&[(&left, 8), (&right, 8)]);
    let blocks = all(&[&a, &b, &c, &d, &left, &right, &root]);
    for (scope, expected) in [
        (Scope::Block, vec![&root]),
        (Scope::All, vec![&root, &left, &a, &b, &right, &c, &d]),
        (ENTITY, vec![&root, &left, &a, &b, &right, &c, &d]),
        (bytes("0:0"), vec![&root, &left, &a]),
        (bytes("3:4"), vec![&root, &left, &a, &b]),
        (bytes("8:*"), vec![&root, &right, &c, &d]),
        (bytes("-1:*"), vec![&root, &right, &d]),
        (bytes("7:8"), vec![&root, &left, &b, &right, &c]),
        (bytes("16:*"), vec![&root]),
        (bytes("9:-9"), vec![&root]),
    ] {
        for duplicates in [false, true] {
            assert_eq!(select(*root.cid(), scope, duplicates, &blocks), Ok(cids(&expected)), "{scope:?}");
        }
    }
}

#[test]
fn a_block_is_named_once_or_as_often_as_it_is_linked() {
    let (a, b) = (raw("aaaa"), raw("bbbb"));
    let twice = file(&[(&a, 4), (&b, 4)]);
    let root = file(&[(&twice, 8), (&a, 4), (&twice, 8)]);
    let blocks = all(&[&a, &b, &twice, &root]);
    for scope in [Scope::All, ENTITY] {
        assert_eq!(select(*root.cid(), scope, false, &blocks), Ok(cids(&[&root, &twice, &a, &b])));
        let every = cids(&[&root, &twice, &a, &b, &a, &twice, &a, &b]);
        assert_eq!(select(*root.cid(), scope, true, &blocks), Ok(every));
    }
}

#[test]
fn a_node_that_was_met_at_the_edge_of_the_range_is_walked_once_more() {
    let (a, b) = (raw("aaaa"), raw("bbbb"));
    let twice = file(&[(&a, 4), (&b, 4)]);
    let root = file(&[(&twice, 8), (&twice, 8), (&twice, 8)]);
    let blocks = all(&[&a, &b, &twice, &root]);
    let sent = select(*root.cid(), bytes("5:*"), false, &blocks);
    assert_eq!(sent, Ok(cids(&[&root, &twice, &b, &a])));
    let mut walk = Selection::new(*root.cid(), bytes("5:*"), false).unwrap();
    let mut again = 0;
    while let Some(next) = walk.next_block().unwrap() {
        again += u32::from(next.again);
        walk.feed(&blocks[&next.cid]).unwrap();
    }
    assert_eq!(again, 1, "the third occurrence has nothing new");
}

#[test]
fn an_entity_that_is_no_file_is_the_block_or_its_shards() {
    let leaf = raw("leaf");
    let link = |name: &str| Link { cid: *leaf.cid(), name: Some(name.to_owned()), tsize: None };
    let node = |data: Option<&'static [u8]>| {
        let data = data.map(Bytes::from_static);
        Block::v0(Node { links: vec![link("a"), link("b")], data }.encode().into()).unwrap()
    };
    // A directory, a symbolic link, a node of no known type, and one without data.
    for root in [node(Some(&[8, 1])), node(Some(&[8, 4])), node(Some(&[8, 9])), node(Some(&[0xff])), node(None)] {
        let blocks = all(&[&leaf, &root]);
        for scope in [ENTITY, bytes("1:2"), Scope::Block] {
            assert_eq!(select(*root.cid(), scope, false, &blocks), Ok(cids(&[&root])));
        }
        assert_eq!(select(*root.cid(), Scope::All, true, &blocks), Ok(cids(&[&root, &leaf, &leaf])));
    }
    let Some((root, blocks)) = vectors::car("boxo/directory-with-multilayer-hamt-and-multiblock-files.car") else {
        return;
    };
    let top = Node::decode(blocks[&root].bytes()).unwrap();
    let sharded = top.links.iter().find(|link| link.name.as_deref() == Some("hamtDir")).unwrap().cid;
    let shards = select(sharded, ENTITY, false, &blocks).unwrap();
    assert!(shards.len() > 2);
    for cid in &shards {
        let shard = Entity::decode(cid, blocks[cid].bytes());
        assert!(matches!(shard, Ok(Entity::Directory(Directory::Shard(_)))));
    }
}

#[test]
fn a_block_of_another_codec_is_an_entity_and_no_whole() {
    let cbor = Block::v1(0x71, Bytes::from_static(&[0xa0])).unwrap();
    let blocks = all(&[&cbor]);
    assert_eq!(select(*cbor.cid(), ENTITY, false, &blocks), Ok(cids(&[&cbor])));
    let refused = WalkError::Node { cid: *cbor.cid(), source: NodeError::Codec(0x71) };
    assert_eq!(select(*cbor.cid(), Scope::All, false, &blocks), Err(refused));
}

#[test]
fn identity_blocks_are_walked_and_never_named() {
    let a = raw("aaaa");
    let inner = inner_node(&[Child { cid: *a.cid(), size: 4, tsize: 0 }]);
    let cid = Cid::new_v1(DAG_PB, multihash::Multihash::wrap(0, &inner).unwrap());
    let inline = Block::inline(&cid).unwrap();
    let root = file(&[(&inline, 4), (&a, 4)]);
    let blocks = all(&[&a, &root]);
    for scope in [Scope::All, ENTITY] {
        assert_eq!(select(*root.cid(), scope, true, &blocks), Ok(cids(&[&root, &a, &a])));
        assert_eq!(select(cid, scope, true, &blocks), Ok(cids(&[&a])));
    }
    assert_eq!(select("bafkqaaa".parse().unwrap(), Scope::All, true, &blocks), Ok(Vec::new()));
}

#[test]
fn duplicates_without_end_are_cut_off() {
    let leaf = raw("a");
    let middle = file(&vec![(&leaf, 1); 1024]);
    let root = file(&vec![(&middle, 1024); 1024]);
    let blocks = all(&[&leaf, &middle, &root]);
    for scope in [Scope::All, ENTITY] {
        assert_eq!(select(*root.cid(), scope, false, &blocks), Ok(cids(&[&root, &middle, &leaf])));
        let endless = select(*root.cid(), scope, true, &blocks);
        assert!(matches!(endless, Err(WalkError::TooMany(_))), "{endless:?}");
    }
}

#[test]
fn hostile_dags_end() {
    let Some((root, blocks)) = vectors::car("unixfs/hostile/bomb-dup-174x8.car") else { return };
    assert_eq!(select(root, Scope::All, false, &blocks).unwrap().len(), 9);
    assert_eq!(select(root, ENTITY, false, &blocks).unwrap().len(), 9);
    assert!(select(root, bytes("1000000:-1000000"), false, &blocks).unwrap().len() <= 9);
    let Some((root, blocks)) = vectors::car("unixfs/hostile/deep-chain-20000.car") else { return };
    assert_eq!(select(root, Scope::All, false, &blocks).unwrap().len(), 20_001);
    assert!(matches!(select(root, ENTITY, false, &blocks), Err(WalkError::TooDeep(_))));
    let Some((root, blocks)) = vectors::car("unixfs/hostile/hamt-deep-40.car") else { return };
    assert!(matches!(select(root, ENTITY, false, &blocks), Err(WalkError::TooDeep(_))));
    let Some((root, blocks)) = vectors::car("unixfs/hostile/hamt-child-fanout-differs.car") else { return };
    assert!(matches!(select(root, ENTITY, false, &blocks), Err(WalkError::Node { .. })));
    let Some((root, blocks)) = vectors::car("unixfs/hostile/blocksizes-lie-short.car") else { return };
    assert!(matches!(select(root, ENTITY, false, &blocks), Err(WalkError::Size { .. })));
}

proptest! {
    /// What is selected of a file is enough to read the range, and every block of it is needed.
    #[test]
    fn a_selection_is_what_reading_takes(leaves in prop::collection::vec(0_u8..6, 1..40), from in 0_u64..200, to in 0_u64..200) {
        let leaf = |n: &u8| Block::v1(RAW, vec![*n; 1 + usize::from(*n)].into()).unwrap();
        let leaves: Vec<Block> = leaves.iter().map(leaf).collect();
        let mut blocks = Blocks::new();
        let mut level: Vec<(Block, u64)> = leaves.iter().map(|leaf| (leaf.clone(), leaf.bytes().len() as u64)).collect();
        while level.len() > 1 {
            let above = level.chunks(3).map(|some| {
                let children: Vec<(&Block, u64)> = some.iter().map(|(block, size)| (block, *size)).collect();
                (file(&children), children.iter().map(|(_, size)| size).sum())
            });
            let above = above.collect();
            blocks.extend(level.into_iter().map(|(block, _)| (*block.cid(), block)));
            level = above;
        }
        let (root, size) = level.remove(0);
        let root_cid = *root.cid();
        blocks.insert(root_cid, root);
        prop_assume!(from <= to && from < size);

        let scope = bytes(&format!("{from}:{to}"));
        let selected = select(root_cid, scope, false, &blocks).unwrap();
        let mut walk = FileWalk::new(root_cid, from..to + 1).unwrap();
        let (mut needed, mut read) = (HashSet::new(), 0);
        while !walk.is_done() {
            while let Some(bytes) = walk.next_bytes() {
                read += bytes.len() as u64;
            }
            let Some((cid, _)) = walk.upcoming(1).next() else { break };
            needed.insert(cid);
            walk.feed(&blocks[&cid]).unwrap();
        }
        prop_assert_eq!(read, size.min(to + 1) - from);
        prop_assert_eq!(selected.len(), needed.len());
        prop_assert_eq!(selected.into_iter().collect::<HashSet<_>>(), needed.clone());
        prop_assert!(select(root_cid, scope, true, &blocks).unwrap().iter().all(|cid| needed.contains(cid)));
    }
}
