//! The store as its callers use it, and as crashes leave it.

mod bench;
mod crash;
pub(super) mod faults;
mod gc;
mod leaves;
mod outside;
mod public;
mod publish_bench;
mod records;
mod recovery;
mod space;

use super::disk::Disk;
use super::{CidPin, Keep, Lease, NarRecord, Op, PathRecord, Store, StoreError};
use bytes::Bytes;
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, DAG_PB, RAW};
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::store_path::{STORE_DIR, StorePath, StorePathHash};
use std::path::Path;
use tempfile::TempDir;

/// Segments of this size make a few blocks a store of many segments.
const SMALL: u64 = 32 << 10;

/// A directory in memory, where there is one: syncs are for the crash tests to count, not to wait for.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Bytes that do not compress and depend on `seed` alone.
fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

fn leaf(seed: u64, len: usize) -> Block {
    Block::v1(RAW, noise(seed, len)).unwrap()
}

/// A dag-pb node with links to these blocks.
fn node(children: &[Block]) -> Block {
    let mut bytes = Vec::new();
    for child in children {
        let cid = child.cid().to_bytes();
        let length = u8::try_from(cid.len()).unwrap();
        bytes.extend_from_slice(&[0x12, length + 4, 0x0a, length]);
        bytes.extend_from_slice(&cid);
        bytes.extend_from_slice(&[0x12, 0]);
    }
    Block::v1(DAG_PB, bytes.into()).unwrap()
}

/// A DAG of three levels with `leaves` leaves that depend on `seed`; the root is last.
fn dag(seed: u64, leaves: u64, len: usize) -> Vec<Block> {
    let leaves: Vec<_> = (0..leaves).map(|n| leaf(seed * 1_000 + n, len)).collect();
    let nodes: Vec<_> = leaves.chunks(4).map(node).collect();
    let root = node(&nodes);
    leaves.into_iter().chain(nodes).chain([root]).collect()
}

fn root(dag: &[Block]) -> Cid {
    *dag.last().unwrap().cid()
}

fn put_all(lease: &Lease, dag: &[Block]) {
    for block in dag {
        lease.put(block).unwrap();
    }
}

fn hash_part(seed: u64) -> StorePathHash {
    format!("{seed:032}").parse().unwrap()
}

/// A path whose NAR is the DAG under `root`, pinned and published, and the ops that record it.
fn path(seed: u64, root: Cid) -> PathRecord {
    let store_path = StorePath::from_base_name(&format!("{}-name-{seed}", hash_part(seed))).unwrap();
    let nar_hash = NarHash::of(&root.to_bytes());
    let narinfo = Bytes::from(format!("StorePath: {store_path}\n"));
    PathRecord {
        store_path,
        narinfo,
        nar_hash,
        published: true,
        pinned: true,
        mirror: None,
        added_unix: seed,
        keep: Keep::Copy,
    }
}

fn nar(root: Cid) -> NarRecord {
    let roots = vec![("size-262144".to_owned(), root)];
    NarRecord { nar_hash: NarHash::of(&root.to_bytes()), nar_size: 1, roots }
}

fn entry(seed: u64, root: Cid) -> Vec<Op> {
    vec![Op::PutNar(nar(root)), Op::PutPath(path(seed, root))]
}

fn pin(root: Cid) -> Op {
    Op::PutPin(CidPin { cid: root, added_unix: 7 })
}

/// Publishes the DAG of `seed`, and returns it.
fn publish(store: &Store, seed: u64) -> Vec<Block> {
    let dag = dag(seed, 9, 1_500);
    let lease = store.lease();
    put_all(&lease, &dag);
    lease.commit(entry(seed, root(&dag))).unwrap();
    dag
}

impl Store {
    /// Opens a store with segments of another size.
    pub(super) fn open_on(dir: &Path, disk: Disk, segment_size: u64) -> Result<Self, StoreError> {
        Self::open_beside(dir, Path::new(STORE_DIR), disk, segment_size)
    }

    /// Opens a store beside a Nix store of the test's own.
    pub(crate) fn open_with_trees(dir: &Path, trees: &Path) -> Result<Self, StoreError> {
        Self::open_beside(dir, trees, Disk::default(), SMALL)
    }
}

fn small(dir: &Path) -> Store {
    Store::open_on(dir, Disk::default(), SMALL).unwrap()
}

fn assert_holds(store: &Store, dag: &[Block]) {
    for block in dag {
        assert_eq!(store.block(block.cid()).unwrap().as_ref(), Some(block));
    }
}

fn assert_lacks(store: &Store, dag: &[Block]) {
    for block in dag {
        assert_eq!(store.block(block.cid()).unwrap(), None);
    }
}

/// Everything that can be asked about a store, to compare before and after.
#[derive(Debug, PartialEq)]
struct Picture {
    blocks: Vec<(nipfs_proto::block::Digest, Bytes, bool)>,
    paths: Vec<PathRecord>,
    nars: Vec<NarRecord>,
    pins: Vec<CidPin>,
    stats: super::Stats,
}

fn picture(store: &Store) -> Picture {
    let digests: Vec<_> = store.0.log.index.blocks().map(|row| row.unwrap().0).collect();
    let block = |digest| (digest, store.get(&digest).unwrap().unwrap(), store.is_public(&digest).unwrap());
    Picture {
        blocks: digests.into_iter().map(block).collect(),
        paths: store.paths().map(Result::unwrap).collect(),
        nars: store.nars().map(Result::unwrap).collect(),
        pins: store.pins().map(Result::unwrap).collect(),
        stats: store.stats().unwrap(),
    }
}
