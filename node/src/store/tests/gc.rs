//! What GC deletes, what it spares, and what it must not touch.

use super::super::{GcOptions, GcReport, Location, StoreError};
use super::*;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;

const ALL: GcOptions = GcOptions { dry_run: false, max_size: None };

fn unpublish(store: &Store, seed: u64) {
    store.commit(vec![Op::RemovePath(hash_part(seed))]).unwrap();
}

/// Bytes that the packs take on the disk.
fn disk_usage(store: &Store) -> u64 {
    let packs = std::fs::read_dir(store.dir().join("packs")).unwrap();
    packs.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// Damages a stored block on disk.
pub(super) fn damage(store: &Store, block: &Block) {
    let row = store.0.log.lookup(&block.digest().unwrap()).unwrap().unwrap();
    let Location { segment, offset, .. } = row.location;
    let segment = store.0.log.segments.open(segment).unwrap().unwrap();
    let at = u64::from(offset) + 64;
    let mut byte = [0];
    segment.file.read_exact_at(&mut byte, at).unwrap();
    segment.file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn what_no_pin_reaches_goes_and_its_space_comes_back() {
    let dir = scratch();
    let store = small(dir.path());
    let dags: Vec<_> = (1..=12).map(|seed| publish(&store, seed)).collect();
    let garbage = leaf(99, 5_000);
    store.lease().put(&garbage).unwrap();
    let before = disk_usage(&store);
    (1..=9).for_each(|seed| unpublish(&store, seed));
    let forecast = store.gc(&GcOptions { dry_run: true, max_size: None }).unwrap();
    assert_holds(&store, &dags.concat());
    let report = store.gc(&ALL).unwrap();
    assert_eq!((report.freed_bytes, report.dropped_blocks), (forecast.freed_bytes, forecast.dropped_blocks));
    assert_eq!((report.kept_paths, report.dropped_blocks), (3, 9 * 13 + 1));
    assert_lacks(&store, &dags[..9].concat());
    assert_lacks(&store, &[garbage]);
    assert_holds(&store, &dags[9..].concat());
    assert_eq!(store.nars().count(), 3);
    assert!(disk_usage(&store) < before / 2, "{} of {before}", disk_usage(&store));
    assert_eq!(store.gc(&ALL).unwrap().freed_bytes, 0);
}

#[test]
fn nothing_deleted_comes_back_when_the_index_is_rebuilt() {
    let dir = scratch();
    let store = small(dir.path());
    let dags: Vec<_> = (1..=30).map(|seed| publish(&store, seed)).collect();
    for seed in (1..=30).filter(|seed| seed % 5 != 0) {
        unpublish(&store, seed);
        if seed % 7 == 0 {
            store.gc(&ALL).unwrap();
        }
    }
    store.gc(&ALL).unwrap();
    let again = publish(&store, 3);
    let before = picture(&store);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = small(dir.path());
    assert!(store.recovery().rebuilt && store.recovery().damages == 0, "{:?}", store.recovery());
    assert_eq!(picture(&store), before);
    assert_holds(&store, &again);
    assert_lacks(&store, &dags[0]);
}

#[test]
fn leases_protect_new_and_old_blocks_until_they_end() {
    let dir = scratch();
    let store = small(dir.path());
    let old = publish(&store, 1);
    unpublish(&store, 1);
    let lease = store.lease();
    let new = leaf(5, 100);
    lease.put(&new).unwrap();
    assert!(lease.touch(&old[0].digest().unwrap()).unwrap());
    let forecast = store.gc(&GcOptions { dry_run: true, ..ALL }).unwrap();
    let report = store.gc(&ALL).unwrap();
    assert_holds(&store, &[new.clone(), old[0].clone()]);
    assert_lacks(&store, &old[1..]);
    assert_eq!((report.spared_bytes, forecast.spared_bytes), (store.stored_bytes(), store.stored_bytes()));
    drop(lease);
    assert_eq!(store.gc(&ALL).unwrap().spared_bytes, 0);
    assert_lacks(&store, &[new, old[0].clone()]);
}

#[test]
fn a_lease_protects_what_it_took_over_when_the_other_has_ended() {
    let dir = scratch();
    let store = small(dir.path());
    let (keeper, other) = (store.lease(), store.lease());
    let (old, new) = (leaf(1, 100), leaf(2, 100));
    keeper.put(&old).unwrap();
    other.put(&new).unwrap();
    keeper.take_over(&other);
    let late = leaf(3, 100);
    other.put(&late).unwrap();
    drop(other);
    assert_eq!(store.gc(&ALL).unwrap().dropped_blocks, 1);
    assert_holds(&store, &[old.clone(), new.clone()]);
    assert_lacks(&store, &[late]);
    drop(keeper);
    store.gc(&ALL).unwrap();
    assert_lacks(&store, &[old, new]);
}

#[test]
fn what_a_standing_lease_protects_is_kept_until_it_is_dropped_and_its_links_are_not_followed() {
    let dir = scratch();
    let store = small(dir.path());
    let old = publish(&store, 1);
    unpublish(&store, 1);
    let directory = node(&old[12..]);
    let is_public = || store.is_public(&directory.digest().unwrap()).unwrap();
    let lease = store.lease();
    lease.show();
    lease.put(&directory).unwrap();
    assert!(!store.leases_ended(store.newest_lease()));
    let lease = lease.standing();
    assert!(store.leases_ended(store.newest_lease()));
    let forecast = store.gc(&GcOptions { dry_run: true, ..ALL }).unwrap();
    let report = store.gc(&ALL).unwrap();
    assert_eq!((report.spared_bytes, report.dropped_blocks), (0, 13));
    assert_eq!((forecast.spared_bytes, forecast.dropped_blocks), (0, 13));
    assert_holds(&store, std::slice::from_ref(&directory));
    assert_lacks(&store, &old);
    assert!(is_public());
    // It can still be written under.
    let late = leaf(5, 100);
    lease.put(&late).unwrap();
    assert_eq!(store.gc(&ALL).unwrap(), GcReport::default());
    assert_holds(&store, std::slice::from_ref(&late));
    drop(lease);
    assert!(!is_public());
    assert_eq!(store.gc(&ALL).unwrap().dropped_blocks, 2);
    assert_lacks(&store, &[directory, late]);
}

#[test]
fn a_standing_lease_on_nodes_of_pinned_dags_changes_nothing_for_them() {
    let dir = scratch();
    let store = small(dir.path());
    let (old, new) = (publish(&store, 1), publish(&store, 2));
    let lease = store.lease();
    for block in [&old[9], &new[9], &new[12]] {
        assert!(lease.touch(&block.digest().unwrap()).unwrap());
    }
    let lease = lease.standing();
    assert_eq!(store.gc(&ALL).unwrap(), GcReport { kept_paths: 2, ..GcReport::default() });
    assert_holds(&store, &[old.clone(), new.clone()].concat());
    // What stands takes its share of the size.
    let size = store.stored_bytes();
    let report = store.gc(&GcOptions { dry_run: false, max_size: Some(size / 2 + 100) }).unwrap();
    assert_eq!((report.kept_paths, report.spared_bytes), (0, 0));
    assert_holds(&store, &[old[9].clone(), new[9].clone(), new[12].clone()]);
    assert_lacks(&store, &[&old[..9], &old[10..], &new[..9]].concat());
    drop(lease);
    store.gc(&ALL).unwrap();
    assert_eq!(store.stats().unwrap().blocks, 0);
}

#[test]
fn a_standing_lease_hides_no_gap_of_a_pinned_dag() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = publish(&store, 1);
    let inner = dag[9].digest().unwrap();
    let row = store.0.log.lookup(&inner).unwrap().unwrap();
    store.delete(&mut vec![(inner, row)], |_, _| true).unwrap();
    let lease = store.lease();
    assert!(!lease.touch(&inner).unwrap());
    let _lease = lease.standing();
    assert!(matches!(store.gc(&ALL), Err(StoreError::Incomplete { .. })));
}

#[test]
fn a_path_of_which_all_blocks_are_leased_stays_until_the_lease_ends() {
    let dir = scratch();
    let store = small(dir.path());
    let (dag, other) = (publish(&store, 1), publish(&store, 2));
    let (whole, part) = (store.lease(), store.lease());
    assert!(whole.touch_dag(&root(&dag)).unwrap());
    assert!(part.touch(&other.last().unwrap().digest().unwrap()).unwrap());
    let all = GcOptions { max_size: Some(0), ..ALL };
    let forecast = store.gc(&GcOptions { dry_run: true, ..all }).unwrap();
    let report = store.gc(&all).unwrap();
    assert_eq!((report.kept_paths, report.dropped_paths.len()), (1, 1));
    assert_eq!((forecast.kept_paths, forecast.dropped_paths), (1, report.dropped_paths));
    assert_holds(&store, &dag);
    assert_eq!(store.paths().count(), 1);
    drop(whole);
    assert_eq!(store.gc(&all).unwrap().dropped_paths.len(), 1);
    assert_lacks(&store, &dag);
}

#[test]
fn a_damaged_or_missing_node_of_a_pinned_dag_stops_gc_before_the_sweep() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = publish(&store, 1);
    let garbage = leaf(99, 500);
    store.lease().put(&garbage).unwrap();
    store.lease().commit(Vec::new()).unwrap();
    let inner = &dag[9];
    damage(&store, inner);
    match store.gc(&ALL).unwrap_err() {
        StoreError::Unreadable { root: top, node, .. } => assert_eq!((*top, *node), (root(&dag), *inner.cid())),
        other => panic!("{other}"),
    }
    assert_holds(&store, std::slice::from_ref(&garbage));
    let report = store.verify(true, true).unwrap();
    assert_eq!(report.damaged, [inner.digest().unwrap()]);
    assert_eq!(report.incomplete, [(root(&dag), *inner.cid())]);
    match store.gc(&ALL).unwrap_err() {
        StoreError::Incomplete { root: top, missing } => assert_eq!((*top, *missing), (root(&dag), *inner.cid())),
        other => panic!("{other}"),
    }
    assert!(store.lease().put(inner).unwrap().new);
    assert!(store.verify(true, false).unwrap().is_clean());
    store.gc(&ALL).unwrap();
    assert_holds(&store, &dag);
    assert_lacks(&store, &[garbage]);
}

#[test]
fn a_size_limit_unpins_the_oldest_first() {
    let dir = scratch();
    let store = small(dir.path());
    let dags: Vec<_> = (1..=10).map(|seed| publish(&store, seed)).collect();
    let limit = store.stats().unwrap().stored_bytes * 45 / 100;
    let report = store.gc(&GcOptions { dry_run: false, max_size: Some(limit) }).unwrap();
    let dropped: Vec<_> = report.dropped_paths.iter().map(|path| path.hash_part()).collect();
    assert_eq!(report.kept_paths, 4);
    assert!((1..=6).all(|seed| dropped.contains(&hash_part(seed))));
    assert!(store.stats().unwrap().stored_bytes <= limit);
    assert_holds(&store, &dags[6..].concat());
    let report = store.gc(&GcOptions { dry_run: false, max_size: Some(0) }).unwrap();
    assert_eq!((report.kept_paths, store.stats().unwrap().blocks), (0, 0));
}

#[test]
fn a_path_left_to_a_mirror_keeps_its_records_only() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = publish(&store, 1);
    let path = PathRecord { pinned: false, mirror: Some("/ip4/192.0.2.1/tcp/4001".into()), ..path(1, root(&dag)) };
    store.commit(vec![Op::PutPath(path.clone())]).unwrap();
    store.gc(&ALL).unwrap();
    assert_lacks(&store, &dag);
    assert_eq!(store.path(&hash_part(1)).unwrap(), Some(path));
    assert_eq!(store.nars().count(), 1);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = small(dir.path());
    assert_eq!((store.nars().count(), store.stats().unwrap().blocks), (1, 0));
    assert!(store.verify(true, false).unwrap().is_clean());
}

#[test]
fn commits_race_with_gc_and_no_pinned_dag_ever_loses_a_block() {
    let dir = scratch();
    let store = small(dir.path());
    let shared = dag(1_000, 9, 700);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                store.gc(&ALL).unwrap();
            }
        });
        // A read that GC overtakes finds the block elsewhere or not at all, never damaged.
        scope.spawn(|| {
            let all: Vec<_> = (1..=3).flat_map(|seed| dag(seed, 6, 700)).chain(shared.clone()).collect();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                all.iter().for_each(|block| drop(store.block(block.cid()).unwrap()));
            }
        });
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (store, shared) = (&store, &shared);
                scope.spawn(move || {
                    for round in 0..60 {
                        let seed = writer * 100 + round % 3 + 1;
                        let own = dag(seed, 6, 700);
                        let top = node(&[own.last().unwrap().clone(), shared.last().unwrap().clone()]);
                        let lease = store.lease();
                        put_all(&lease, &own);
                        put_all(&lease, shared);
                        lease.put(&top).unwrap();
                        lease.commit(entry(seed, *top.cid())).unwrap();
                        drop(lease);
                        assert_holds(store, &[own, shared.clone(), vec![top]].concat());
                        unpublish(store, seed);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert!(store.verify(true, false).unwrap().is_clean());
    store.gc(&ALL).unwrap();
    assert_eq!(store.stats().unwrap().blocks, 0);
}

#[test]
fn pinning_an_old_root_during_gc_either_holds_all_of_it_or_fails() {
    let dir = scratch();
    let store = small(dir.path());
    for round in 1..=40 {
        let dag = publish(&store, round);
        unpublish(&store, round);
        let pinned = std::thread::scope(|scope| {
            let gc = scope.spawn(|| store.gc(&ALL).unwrap());
            let pinned = store.commit(vec![pin(root(&dag))]);
            gc.join().unwrap();
            pinned
        });
        match pinned {
            Ok(()) => assert_holds(&store, &dag),
            Err(StoreError::Incomplete { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        store.gc(&ALL).unwrap();
        assert!(store.verify(true, false).unwrap().is_clean());
    }
}

#[test]
fn segments_that_are_sealed_while_gc_begins_keep_what_is_not_in_the_index_yet() {
    let dir = scratch();
    let store = small(dir.path());
    let blocks: Vec<_> = (0..60).map(|seed| leaf(seed, 2_000)).collect();
    let lease = store.lease();
    put_all(&lease, &blocks);
    assert!(store.0.log.current_segment() > 3);
    let nothing = super::super::lock(&store.0.leases).empty_set();
    let live = store.sweep(&nothing, &mut GcReport::default()).unwrap();
    store.reclaim(&live).unwrap();
    assert_holds(&store, &blocks);
}

#[test]
fn a_path_that_is_pinned_while_gc_marks_is_not_forgotten() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = publish(&store, 1);
    store.commit(vec![Op::PutPath(PathRecord { pinned: false, ..path(1, root(&dag)) })]).unwrap();
    let plan = store.plan(None).unwrap();
    store.commit(vec![Op::PutPath(path(1, root(&dag)))]).unwrap();
    let report = store.forget(&plan).unwrap();
    assert_eq!((report.kept_paths, report.dropped_paths.len()), (1, 0));
    assert_eq!(store.path(&hash_part(1)).unwrap(), Some(path(1, root(&dag))));
    assert_eq!(store.nars().count(), 1);
}
