//! Leaves in dag-pb, as `ipfs add` makes them by default: known when they are put, never read by a walk.

use super::super::{GcOptions, StoreError};
use super::gc::damage;
use super::*;
use nipfs_proto::dag::codec::Node;

fn data_node(seed: u64) -> Block {
    let node = Node { links: Vec::new(), data: Some(noise(seed, 200)) };
    Block::v0(node.encode().into()).unwrap()
}

/// Three dag-pb leaves and their root, which is last.
fn dag_of_nodes(seed: u64) -> Vec<Block> {
    let mut dag: Vec<_> = (0..3).map(|n| data_node(seed * 1_000 + n)).collect();
    dag.push(node(&dag));
    dag
}

fn row(store: &Store, block: &Block) -> super::super::BlockRow {
    store.0.log.lookup(&block.digest().unwrap()).unwrap().unwrap()
}

fn flags(store: &Store, blocks: &[Block]) -> Vec<bool> {
    blocks.iter().map(|block| row(store, block).leaf).collect()
}

#[test]
fn a_leaf_is_a_valid_node_without_links() {
    let dir = scratch();
    let store = small(dir.path());
    let raw = |bytes: &[u8]| Block::v1(RAW, bytes.to_vec().into()).unwrap();
    let dag = dag_of_nodes(1);
    let link = dag[3].bytes();
    let cases = [
        (raw(b""), true),
        (raw(b"\x0a\x02hi"), true),
        (dag[0].clone(), true),
        (Block::v1(DAG_PB, Bytes::from_static(b"\x0a\x01x")).unwrap(), true),
        (dag[3].clone(), false),
        (raw(&[&link[..], b"\x0a\x01x"].concat()), false),
        (raw(&[b"\x0a\x01x", &link[..]].concat()), false),
        (raw(b"\x0a\x05hi"), false),
        (raw(b"\x0a\x01x\x0a\x01x"), false),
        (raw(b"\x1a\x01x"), false),
        (leaf(1, 100), false),
    ];
    let lease = store.lease();
    for (block, expected) in &cases {
        lease.put(block).unwrap();
        assert_eq!(row(&store, block).leaf, *expected, "{block:?}");
    }
}

#[test]
fn no_walk_reads_a_leaf_and_the_flag_outlives_the_index_and_a_move() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = dag_of_nodes(1);
    let lease = store.lease();
    for (block, seed) in dag.iter().zip((0..).step_by(10)) {
        lease.put(block).unwrap();
        // Garbage between them: GC moves the little that is left.
        (seed..seed + 5).for_each(|seed| assert!(lease.put(&leaf(seed, 1_500)).unwrap().new));
    }
    damage(&store, &dag[0]);
    lease.commit(entry(1, root(&dag))).unwrap();
    assert!(lease.touch_dag(&root(&dag)).unwrap());
    assert_eq!(flags(&store, &dag), [true, true, true, false]);
    (100..120).for_each(|seed| assert!(lease.put(&leaf(seed, 1_500)).unwrap().new));
    lease.commit(Vec::new()).unwrap();
    drop(lease);
    store.gc(&GcOptions::default()).unwrap();
    let before = row(&store, &dag[1]).location.segment;
    assert_eq!((before, flags(&store, &dag)), (1, vec![true, true, true, false]), "a damaged block keeps its segment");
    assert!(store.verify(false, false).unwrap().is_clean());
    assert_eq!(store.verify(true, true).unwrap().damaged, [dag[0].digest().unwrap()]);
    assert!(matches!(store.commit(vec![pin(root(&dag))]).unwrap_err(), StoreError::Incomplete { .. }));
    let lease = store.lease();
    put_all(&lease, &dag);
    lease.commit(Vec::new()).unwrap();
    drop(lease);
    store.gc(&GcOptions::default()).unwrap();
    let after = row(&store, &dag[1]).location.segment;
    assert!(after > before);
    assert_eq!(flags(&store, &dag), [true, true, true, false]);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = small(dir.path());
    assert_eq!(flags(&store, &dag), [true, true, true, false]);
    assert_holds(&store, &dag);
    assert!(dag.iter().all(|block| store.is_public(&block.digest().unwrap()).unwrap()));
}

#[test]
fn a_node_that_came_as_raw_bytes_is_walked_when_it_is_linked_as_a_node() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = dag(1, 3, 500);
    let inner = &dag[3];
    let raw = inner.clone().with_cid(inner.digest().unwrap().raw_cid()).unwrap();
    let top = node(&[raw.clone(), inner.clone(), raw.clone()]);
    let lease = store.lease();
    lease.put(&raw).unwrap();
    lease.put(&top).unwrap();
    let error = lease.commit(vec![pin(*top.cid())]).unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { ref missing, .. } if missing.codec() == RAW), "{error}");
    put_all(&lease, &dag[..3]);
    lease.commit(vec![pin(*top.cid())]).unwrap();
    drop(lease);
    store.gc(&GcOptions::default()).unwrap();
    assert_holds(&store, &dag[..4]);
}
