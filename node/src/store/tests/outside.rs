//! Blocks that are made of trees outside the store: what is recorded of them, and what becomes of them when the trees
//! change or go.

use super::super::{GcOptions, Location, Put};
use super::*;
use nipfs_proto::dag::Profile;
use nipfs_proto::dag::build::Builder;
use std::fs;
use std::path::PathBuf;

/// A store beside a Nix store.
struct Machine {
    dir: TempDir,
    store: Store,
}

/// A path whose tree is one file of three chunks and a bit.
struct Kept {
    record: PathRecord,
    blocks: Vec<Block>,
    leaves: usize,
}

impl Machine {
    fn new() -> Self {
        let dir = scratch();
        let store = Store::open_with_trees(&dir.path().join("store"), &dir.path().join("nix")).unwrap();
        fs::create_dir(dir.path().join("nix")).unwrap();
        Self { dir, store }
    }

    /// Closes the store, removes its index if so wanted, and opens it again.
    fn reopen(self, with_index: bool) -> Self {
        let Self { dir, store } = self;
        drop(store);
        if !with_index {
            fs::remove_dir_all(dir.path().join("store/index")).unwrap();
        }
        let store = Store::open_with_trees(&dir.path().join("store"), &dir.path().join("nix")).unwrap();
        Self { dir, store }
    }

    fn tree(&self, seed: u64) -> PathBuf {
        self.store.tree(&path(seed, *leaf(0, 1).cid()).store_path)
    }

    /// Writes the tree of `seed` with these contents, and publishes it.
    fn keep(&self, seed: u64, contents: &[u8], keep: Keep) -> Kept {
        fs::write(self.tree(seed), contents).unwrap();
        let kept = self.cut(seed, keep);
        let lease = self.store.lease();
        self.put_outside(&lease, &kept);
        lease.commit(ops(&kept)).unwrap();
        kept
    }

    fn cut(&self, seed: u64, keep: Keep) -> Kept {
        let mut nar = Vec::new();
        crate::nix::dump::dump(&self.tree(seed), &mut nar).unwrap();
        let mut blocks = Vec::new();
        let mut take = |block| {
            blocks.push(block);
            Ok::<_, std::convert::Infallible>(())
        };
        let mut builder = Builder::new(Profile::UnixfsV0_2015);
        builder.write(&nar, &mut take).unwrap();
        let root = builder.finish(&mut take).unwrap().cid;
        let leaves = blocks.len() - 1;
        Kept { record: PathRecord { keep, ..path(seed, root) }, blocks, leaves }
    }

    fn put_outside(&self, lease: &Lease, kept: &Kept) -> Vec<bool> {
        let mut offset = 0;
        let put = kept.blocks.iter().map(|block| {
            let (put, length) = lease.put_outside(block, &kept.record.store_path, offset).unwrap();
            offset += length;
            put.new
        });
        put.collect()
    }

    fn outside(&self, blocks: &[Block]) -> usize {
        outside(&self.store, blocks)
    }
}

fn location(store: &Store, block: &Block) -> Location {
    store.0.log.lookup(&block.digest().unwrap()).unwrap().unwrap().location
}

/// How many blocks are recorded as lying outside.
pub(super) fn outside(store: &Store, blocks: &[Block]) -> usize {
    blocks.iter().filter(|block| location(store, block).is_outside()).count()
}

fn ops(kept: &Kept) -> Vec<Op> {
    vec![Op::PutNar(nar(root(&kept.blocks))), Op::PutPath(kept.record.clone())]
}

fn contents(seed: u64) -> Bytes {
    noise(seed, 800_000)
}

#[test]
fn leaves_cost_their_records_alone_and_are_served_from_the_tree() {
    let machine = Machine::new();
    let kept = machine.keep(1, &contents(1), Keep::Rooted);
    assert_eq!((kept.leaves, machine.outside(&kept.blocks)), (4, 4));
    assert_holds(&machine.store, &kept.blocks);
    let stats = machine.store.stats().unwrap();
    assert!(stats.logical_bytes > 800_000 && stats.stored_bytes < 2_000, "{stats:?}");
    assert!(kept.blocks.iter().all(|block| machine.store.is_public(&block.digest().unwrap()).unwrap()));
    assert!(machine.store.verify(true, false).unwrap().is_clean());
}

#[test]
fn the_packs_alone_tell_where_blocks_lie_after_gc_and_moves_too() {
    let mut machine = Machine::new();
    let kept = machine.keep(1, &contents(1), Keep::Weak);
    let gone = machine.keep(2, &contents(2), Keep::Weak);
    // Garbage around the records, so that GC moves them to other segments.
    let lease = machine.store.lease();
    (0..60).for_each(|seed| assert!(lease.put(&leaf(seed, 1_500)).unwrap().new));
    lease.commit(vec![Op::RemovePath(hash_part(2))]).unwrap();
    drop(lease);
    let was = location(&machine.store, &kept.blocks[0]);
    machine.store.gc(&GcOptions::default()).unwrap();
    assert_ne!(location(&machine.store, &kept.blocks[0]), was);
    let before = picture(&machine.store);
    for with_index in [true, false] {
        machine = machine.reopen(with_index);
        assert_eq!(picture(&machine.store), before);
        assert_holds(&machine.store, &kept.blocks);
        assert_eq!(machine.outside(&kept.blocks), 4);
        assert_lacks(&machine.store, &gone.blocks);
    }
    assert!(machine.tree(2).exists(), "trees are not ours to delete");
}

#[test]
fn blocks_of_a_tree_that_changed_or_went_are_absent_and_never_wrong() {
    let machine = Machine::new();
    let kept = machine.keep(1, &contents(1), Keep::Weak);
    let mut flipped = contents(1).to_vec();
    flipped[300_000] ^= 4;
    fs::write(machine.tree(1), &flipped).unwrap();
    let store = &machine.store;
    let wrong = &kept.blocks[1];
    assert_eq!(store.block(wrong.cid()).unwrap(), None);
    // What is left of the tree is not believed either, until a deep verification has read it again.
    assert!(!store.has(&kept.blocks[0].digest().unwrap()).unwrap());
    assert!(!store.is_backed(&kept.record) && !store.has_vanished(&kept.record));
    let report = store.verify(true, false).unwrap();
    assert_eq!((report.damaged.len(), report.incomplete.len()), (0, 1), "{report:?}");
    fs::write(machine.tree(1), contents(1)).unwrap();
    assert!(store.verify(true, false).unwrap().is_clean());
    assert_holds(store, &kept.blocks);
    fs::remove_file(machine.tree(1)).unwrap();
    assert!(store.has_vanished(&kept.record));
    assert_lacks(store, &kept.blocks[..4]);
    assert!(!store.verify(false, false).unwrap().is_clean());
    store.gc(&GcOptions::default()).unwrap();
    fs::write(machine.tree(1), contents(1)).unwrap();
    assert_holds(store, &kept.blocks);
    fs::remove_file(machine.tree(1)).unwrap();
    store.commit(vec![Op::RemovePath(hash_part(1))]).unwrap();
    assert!(store.verify(true, false).unwrap().is_clean(), "nobody misses the blocks any more");
}

#[test]
fn copy_means_copy_whatever_was_kept_outside_before() {
    let machine = Machine::new();
    let kept = machine.keep(1, &contents(1), Keep::Rooted);
    machine.store.commit(vec![Op::PutPath(PathRecord { keep: Keep::Copy, ..kept.record.clone() })]).unwrap();
    assert_eq!(machine.outside(&kept.blocks), 0);
    // What is in the packs stays there.
    machine.keep(1, &contents(1), Keep::Rooted);
    assert_eq!(machine.outside(&kept.blocks), 0);
    fs::remove_file(machine.tree(1)).unwrap();
    assert_holds(&machine.store, &kept.blocks);
    let machine = machine.reopen(false);
    assert_holds(&machine.store, &kept.blocks);
    assert!(machine.store.verify(true, false).unwrap().is_clean());
}

#[test]
fn a_pin_or_another_path_does_not_rely_on_somebody_elses_tree() {
    let machine = Machine::new();
    let first = machine.keep(1, &contents(1), Keep::Rooted);
    // The same file under another name: the same NAR.
    let second = machine.keep(2, &contents(1), Keep::Rooted);
    assert_eq!(root(&first.blocks), root(&second.blocks));
    assert_eq!(machine.outside(&second.blocks), 0);
    let third = machine.keep(3, &contents(3), Keep::Weak);
    machine.store.commit(vec![pin(root(&third.blocks))]).unwrap();
    assert_eq!(machine.outside(&third.blocks), 0);
    (1..=3).for_each(|seed| fs::remove_file(machine.tree(seed)).unwrap());
    assert_holds(&machine.store, &second.blocks);
    assert_holds(&machine.store, &third.blocks);
}

#[test]
fn a_tree_that_was_built_anew_is_taken_as_it_is_now() {
    let machine = Machine::new();
    machine.keep(1, &contents(1), Keep::Weak);
    // The second chunk is where the first was.
    let moved = contents(1).slice((256 << 10)..);
    fs::write(machine.tree(1), &moved).unwrap();
    let record = machine.cut(1, Keep::Weak).record;
    machine.store.take_tree(&record.store_path).unwrap();
    let kept = machine.keep(1, &moved, Keep::Weak);
    assert_holds(&machine.store, &kept.blocks);
    assert!(machine.store.is_backed(&kept.record));
}

#[test]
fn a_commit_whose_tree_went_meanwhile_is_refused() {
    let machine = Machine::new();
    fs::write(machine.tree(1), contents(1)).unwrap();
    let kept = machine.cut(1, Keep::Weak);
    let lease = machine.store.lease();
    assert_eq!(machine.put_outside(&lease, &kept), [true; 5]);
    assert_eq!(machine.put_outside(&lease, &kept), [false; 5]);
    fs::remove_file(machine.tree(1)).unwrap();
    assert!(matches!(lease.commit(ops(&kept)), Err(StoreError::Incomplete { .. })));
    assert_eq!(machine.store.path(&hash_part(1)).unwrap(), None);
    // The bytes themselves are welcome.
    assert_eq!(lease.put(&kept.blocks[0]).unwrap(), Put { new: true });
    assert_holds(&machine.store, &kept.blocks[..1]);
}
