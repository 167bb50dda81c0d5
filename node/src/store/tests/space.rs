//! A full disk.

use super::super::{GcOptions, StoreError};
use super::faults::Faults;
use super::*;
use std::process::Command;

/// A small file system, unmounted when dropped.
struct Tiny(TempDir);

impl Tiny {
    /// `None` where mounting is not allowed.
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap();
    }
}

/// Publishes DAGs of 1 MiB until there is no space; returns what was published.
fn fill(store: &Store) -> Vec<(u64, Vec<Block>)> {
    let mut published = Vec::new();
    for seed in 1.. {
        let dag = dag(seed, 16, 64 << 10);
        let lease = store.lease();
        let put = dag.iter().try_for_each(|block| lease.put(block).map(|_| ()));
        match put.and_then(|()| lease.commit(entry(seed, root(&dag)))) {
            Ok(()) => published.push((seed, dag)),
            Err(StoreError::NoSpace { need, have, .. }) => {
                assert!(need > have);
                return published;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    unreachable!("a disk of that size is full some time")
}

#[test]
fn a_write_that_finds_the_disk_full_is_undone_and_the_next_may_succeed() {
    let dir = scratch();
    let faults = Faults::default();
    let store = Store::open_on(dir.path(), Disk { faults: faults.clone() }, SMALL).unwrap();
    let mut dags = publish(&store, 1);
    for round in 2..40 {
        let lease = store.lease();
        faults.fill();
        let block = leaf(round * 7, 3_000);
        assert!(matches!(lease.put(&block), Err(StoreError::NoSpace { .. })));
        assert_eq!(store.block(block.cid()).unwrap(), None);
        lease.put(&block).unwrap();
        lease.commit(vec![pin(*block.cid())]).unwrap();
        dags.push(block);
    }
    let before = picture(&store);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = small(dir.path());
    assert_eq!(picture(&store), before);
    assert_eq!((store.recovery().damages, store.recovery().cut), (0, 0));
    assert_holds(&store, &dags);
}

#[test]
fn a_full_disk_stops_puts_but_neither_reads_nor_gc() {
    let Some(tiny) = Tiny::mount(48) else {
        println!("skipped: mounting is not allowed");
        return;
    };
    let dir = tiny.0.path().join("store");
    let mut store = Store::open_on(&dir, Disk::default(), 4 << 20).unwrap();
    let published = fill(&store);
    assert!(published.len() > 25, "{} MiB fit", published.len());
    // Somebody else takes the rest, to the last byte.
    let mut hog = std::fs::File::create(tiny.0.path().join("hog")).unwrap();
    while std::io::Write::write(&mut hog, &[7; 4096]).is_ok_and(|written| written > 0) {}
    for reopened in [false, true] {
        if reopened {
            drop(store);
            store = Store::open_on(&dir, Disk::default(), 4 << 20).unwrap();
        }
        for (_, dag) in &published {
            assert_holds(&store, dag);
        }
        assert!(matches!(store.lease().put(&leaf(5_000, 100_000)), Err(StoreError::NoSpace { .. })));
    }
    store.commit(vec![Op::RemovePath(hash_part(1))]).unwrap();
    assert_eq!(store.path(&hash_part(1)).unwrap(), None);
    let kept = published.len() / 2;
    let limit = store.stats().unwrap().stored_bytes * kept as u64 / published.len() as u64 + 1;
    let report = store.gc(&GcOptions { dry_run: false, max_size: Some(limit) }).unwrap();
    assert_eq!(report.kept_paths, kept as u64);
    for (_, dag) in &published[published.len() - kept..] {
        assert_holds(&store, dag);
    }
    assert!(store.verify(true, false).unwrap().is_clean());
    let before = picture(&store);
    publish(&store, 9_000);
    store.commit(vec![Op::RemovePath(hash_part(9_000))]).unwrap();
    store.gc(&GcOptions::default()).unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.join("index")).unwrap();
    assert_eq!(picture(&Store::open(&dir).unwrap()), before);
}
