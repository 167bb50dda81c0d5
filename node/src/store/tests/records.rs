//! Putting, getting and committing.

use super::super::StoreError;
use super::super::commit::Commit;
use super::super::index::{MAX_ROWS, PATH, key};
use super::super::ops::{Batch, Gone};
use super::faults::Faults;
use super::*;
use nipfs_proto::block::{Digest, MAX_BLOCK};
use std::sync::Arc;

fn open() -> (TempDir, Store) {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_block_is_read_back_at_once_and_after_a_commit() {
    let (_dir, store) = open();
    let lease = store.lease();
    let zeros = Block::v1(RAW, vec![0; 4096].into()).unwrap();
    let text = Block::v1(RAW, "abc".repeat(1000).into()).unwrap();
    let blocks = [leaf(1, 1), leaf(2, 100_000), leaf(3, MAX_BLOCK), Block::v1(RAW, Bytes::new()).unwrap(), zeros, text];
    for block in &blocks {
        assert!(lease.put(block).unwrap().new);
        assert!(!lease.put(block).unwrap().new, "a block is stored once");
    }
    assert_holds(&store, &blocks);
    lease.commit(Vec::new()).unwrap();
    assert_holds(&store, &blocks);
    let stats = store.stats().unwrap();
    assert_eq!(stats.blocks, 6);
    assert_eq!(stats.logical_bytes, blocks.iter().map(|block| block.bytes().len() as u64).sum::<u64>());
    assert!(stats.stored_bytes < stats.logical_bytes - 6_000, "zeros and text compress");
}

#[test]
fn blocks_are_found_by_digest_and_identity_blocks_are_never_stored() {
    let (_dir, store) = open();
    let lease = store.lease();
    let block = leaf(1, 10);
    lease.put(&block).unwrap();
    let digest = block.digest().unwrap();
    assert_eq!(store.get(&digest).unwrap().as_ref(), Some(block.bytes()));
    assert_eq!(store.block(&digest.v0_cid()).unwrap().unwrap().cid(), &digest.v0_cid());
    assert_eq!(store.size(&digest).unwrap(), Some(10));
    assert_eq!(store.get(&Digest::of(b"another")).unwrap(), None);
    let identity = nipfs_proto::block::parse_cid("bafkqablimvwgy3y").unwrap();
    let inline = store.block(&identity).unwrap().unwrap();
    assert_eq!(&inline.bytes()[..], b"hello");
    assert!(!lease.put(&inline).unwrap().new);
    lease.commit(vec![pin(identity)]).unwrap();
    assert_eq!(store.stats().unwrap().blocks, 1);
}

#[test]
fn an_entry_is_there_after_its_commit_and_its_blocks_are_public() {
    let (_dir, store) = open();
    let dag = dag(1, 9, 500);
    let lease = store.lease();
    put_all(&lease, &dag);
    assert_eq!(store.path(&hash_part(1)).unwrap(), None);
    lease.commit(entry(1, root(&dag))).unwrap();
    assert_eq!(store.path(&hash_part(1)).unwrap(), Some(path(1, root(&dag))));
    assert_eq!(store.nar(&nar(root(&dag)).nar_hash).unwrap(), Some(nar(root(&dag))));
    assert!(dag.iter().all(|block| store.is_public(&block.digest().unwrap()).unwrap()));
    assert_eq!(store.stats().unwrap().roots, 1);
    let other = leaf(2, 10);
    lease.put(&other).unwrap();
    lease.commit(Vec::new()).unwrap();
    assert!(!store.is_public(&other.digest().unwrap()).unwrap());
}

/// Three DAGs under leases of their own, to be committed together; of the second a leaf is missing until it is put.
fn three(store: &Store) -> (Vec<Commit>, Block) {
    let mut missing = None;
    let commits = (1..=3).map(|seed| {
        let (lease, mut dag) = (Arc::new(store.lease()), dag(seed, 9, 500));
        let ops = entry(seed, root(&dag));
        if seed == 2 {
            missing = Some(dag.remove(0));
        }
        put_all(&lease, &dag);
        (lease, ops)
    });
    (commits.collect(), missing.unwrap())
}

#[test]
fn of_several_commits_one_that_lacks_a_block_fails_alone_and_whole_ones_share_a_sync() {
    let (dir, faults) = (scratch(), Faults::default());
    let store = Store::open_on(dir.path(), Disk { faults: faults.clone() }, SMALL).unwrap();
    let (commits, missing) = three(&store);
    let results = store.commit_all(&commits);
    assert!(matches!(results[..], [Ok(()), Err(StoreError::Incomplete { .. }), Ok(())]), "{results:?}");
    let here = || [1, 2, 3].map(|seed| store.path(&hash_part(seed)).unwrap().is_some());
    assert_eq!(here(), [true, false, true]);
    commits[1].0.put(&missing).unwrap();
    let before = faults.steps();
    assert!(store.commit_all(&commits).iter().all(Result::is_ok));
    assert_eq!(faults.steps() - before, 2, "one record is written, and synced");
    assert_eq!(here(), [true; 3]);
    assert!(store.is_public(&missing.digest().unwrap()).unwrap());
}

#[test]
fn when_the_disk_fails_the_first_of_several_commits_tells_why() {
    let (dir, faults) = (scratch(), Faults::default());
    let store = Store::open_on(dir.path(), Disk { faults: faults.clone() }, SMALL).unwrap();
    let (commits, missing) = three(&store);
    commits[1].0.put(&missing).unwrap();
    faults.fail("sync");
    let results = store.commit_all(&commits);
    let [Err(first), Err(second), Err(third)] = &results[..] else { panic!("{results:?}") };
    assert!(matches!(first, StoreError::Io { action: "sync", .. }), "{first}");
    assert!([second, third].iter().all(|error| matches!(error, StoreError::ReadOnly)));
}

#[test]
fn what_waits_for_a_batch_of_the_index_is_found_and_listed() {
    let (_dir, store) = open();
    let index = &store.0.log.index;
    let in_sled = || index.db.contains_key(key(PATH, hash_part(1).as_str().as_bytes())).unwrap();
    let dag = publish(&store, 1);
    assert_eq!(store.path(&hash_part(1)).unwrap(), Some(path(1, root(&dag))));
    assert!(!in_sled());
    assert_eq!(store.paths().collect::<Result<Vec<_>, _>>().unwrap(), [path(1, root(&dag))]);
    assert!(in_sled());
    store.commit(vec![Op::RemovePath(hash_part(1))]).unwrap();
    assert_eq!(store.path(&hash_part(1)).unwrap(), None);
    assert_eq!(store.paths().count(), 0);
    assert!(!in_sled());
    // Many rows go without being asked for.
    let lease = store.lease();
    for seed in 2..MAX_ROWS as u64 {
        let block = leaf(seed, 10);
        lease.put(&block).unwrap();
        lease.commit(vec![pin(*block.cid())]).unwrap();
    }
    assert!(index.db.len() > MAX_ROWS);
}

#[test]
fn a_commit_of_an_incomplete_dag_or_an_unknown_nar_changes_nothing() {
    let (_dir, store) = open();
    let dag = dag(1, 9, 500);
    let lease = store.lease();
    put_all(&lease, &dag[1..]);
    let error = lease.commit(entry(1, root(&dag))).unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { ref missing, .. } if **missing == *dag[0].cid()), "{error}");
    lease.put(&dag[0]).unwrap();
    let error = lease.commit(vec![Op::PutPath(path(1, root(&dag)))]).unwrap_err();
    assert!(matches!(error, StoreError::UnknownNar(_)), "{error}");
    assert_eq!(store.paths().count() + store.nars().count(), 0);
}

#[test]
fn roots_of_several_profiles_are_kept_side_by_side() {
    let (_dir, store) = open();
    let (one, two) = (leaf(1, 10), leaf(2, 10));
    let lease = store.lease();
    put_all(&lease, &[one.clone(), two.clone()]);
    let first = nar(*one.cid());
    let second = NarRecord { roots: vec![("nar-v1".to_owned(), *two.cid())], ..first.clone() };
    lease.commit(vec![Op::PutNar(first.clone())]).unwrap();
    lease.commit(vec![Op::PutNar(second)]).unwrap();
    let roots = store.nar(&first.nar_hash).unwrap().unwrap().roots;
    assert_eq!(roots, [("nar-v1".to_owned(), *two.cid()), ("size-262144".to_owned(), *one.cid())]);
}

#[test]
fn unpublishing_hides_all_blocks_but_those_that_others_publish() {
    let (_dir, store) = open();
    let shared = dag(1, 5, 300);
    let big: Vec<_> = [shared.clone(), dag(2, 5, 300)].concat();
    let top = node(&[shared.last().unwrap().clone(), big.last().unwrap().clone()]);
    let lease = store.lease();
    put_all(&lease, &big);
    lease.put(&top).unwrap();
    lease.commit(entry(1, *top.cid())).unwrap();
    lease.commit(vec![pin(root(&shared))]).unwrap();
    let public = |block: &Block| store.is_public(&block.digest().unwrap()).unwrap();
    assert!(big.iter().all(public) && public(&top));
    lease.commit(vec![Op::PutPath(PathRecord { published: false, ..path(1, *top.cid()) })]).unwrap();
    assert!(shared.iter().all(public) && !big[shared.len()..].iter().any(public) && !public(&top));
    lease.commit(vec![Op::PutPath(path(1, *top.cid())), Op::RemovePin(root(&shared))]).unwrap();
    assert!(big.iter().all(public));
    lease.commit(vec![Op::RemovePath(hash_part(1))]).unwrap();
    assert!(!big.iter().any(public));
    assert_holds(&store, &big);
}

#[test]
fn eight_writers_of_the_same_nar_leave_one_copy() {
    let (_dir, store) = open();
    let dag = dag(1, 40, 2_000);
    let new = std::thread::scope(|scope| {
        let write = || {
            let lease = store.lease();
            let new = dag.iter().filter(|block| lease.put(block).unwrap().new).count();
            lease.commit(entry(1, root(&dag))).unwrap();
            new
        };
        let writers: Vec<_> = (0..8).map(|_| scope.spawn(write)).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).sum::<usize>()
    });
    assert_eq!(new, dag.len());
    let stats = store.stats().unwrap();
    assert_eq!((stats.blocks, stats.roots), (dag.len() as u64, 1));
    assert_holds(&store, &dag);
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let (dir, store) = open();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse(_))));
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn a_newer_store_is_left_untouched() {
    let (dir, store) = open();
    drop(store);
    std::fs::write(dir.path().join("format"), "2\nsomething new\n").unwrap();
    let before: Vec<_> = std::fs::read_dir(dir.path().join("packs")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Newer { version, .. }) if version == "2"));
    let after: Vec<_> = std::fs::read_dir(dir.path().join("packs")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(before, after);
}

#[test]
fn commits_that_publish_and_unpublish_at_once_leave_the_flags_of_each_right() {
    let dir = scratch();
    let store = small(dir.path());
    let shared = dag(99, 4, 200);
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (store, shared) = (&store, &shared);
            scope.spawn(move || {
                let own = dag(seed, 8, 200);
                let top = node(&[own.last().unwrap().clone(), shared.last().unwrap().clone()]);
                let lease = store.lease();
                put_all(&lease, &own);
                put_all(&lease, shared);
                lease.put(&top).unwrap();
                let public = |block: &Block| store.is_public(&block.digest().unwrap()).unwrap();
                for round in 0..60 {
                    lease.commit(entry(seed, *top.cid())).unwrap();
                    assert!(own.iter().chain(shared).all(public) && public(&top), "published in round {round}");
                    lease.commit(vec![Op::RemovePath(hash_part(seed))]).unwrap();
                    assert!(!own.iter().any(public) && !public(&top), "unpublished in round {round}");
                }
            });
        }
    });
    assert!(!shared.iter().any(|block| store.is_public(&block.digest().unwrap()).unwrap()));
}

#[test]
fn a_deleted_block_is_gone_at_once_and_can_be_put_before_the_deletion_is_durable() {
    let (_dir, store) = open();
    let block = leaf(1, 2_000);
    let digest = block.digest().unwrap();
    let lease = store.lease();
    lease.put(&block).unwrap();
    lease.commit(Vec::new()).unwrap();
    let log = &store.0.log;
    let (segment, record) = log.lookup(&digest).unwrap().unwrap().location.record();
    let gone = Gone { digest, segment, offset: u32::try_from(record.start).unwrap() };
    log.append_batch(&mut log.tail(), Batch { gone: vec![gone], ..Batch::default() }).unwrap();
    assert!(!lease.touch(&digest).unwrap() && store.get(&digest).unwrap().is_none());
    assert!(lease.put(&block).unwrap().new);
    assert_holds(&store, std::slice::from_ref(&block));
    log.sync().unwrap();
    assert_holds(&store, &[block]);
    assert_eq!(store.stats().unwrap().blocks, 1);
}

#[test]
fn a_block_that_is_put_again_while_its_deletion_is_synced_stays() {
    let dir = scratch();
    let faults = Faults::default();
    let store = Store::open_on(dir.path(), Disk { faults: faults.clone() }, SMALL).unwrap();
    let block = leaf(1, 2_000);
    store.lease().put(&block).unwrap();
    store.commit(Vec::new()).unwrap();
    let (again, copy) = (store.clone(), block.clone());
    let call = move || {
        // The deletion is in the log, and its sync under way.
        assert!(again.lease().put(&copy).unwrap().new);
    };
    // GC syncs before it deletes.
    let faults_in_gc = faults.clone();
    store.lease().put(&leaf(2, 10)).unwrap();
    faults.during_sync(move || faults_in_gc.during_sync(call));
    assert_eq!(store.gc(&super::super::GcOptions::default()).unwrap().dropped_blocks, 2);
    assert_holds(&store, &[block]);
}
