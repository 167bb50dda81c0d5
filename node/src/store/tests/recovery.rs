//! Opening what is torn, damaged or incomplete.

use super::super::StoreError;
use super::super::ops::Batch;
use super::*;
use std::fs;
use std::path::PathBuf;

fn packs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("packs")).unwrap();
    let mut packs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    packs
}

fn drop_index(dir: &Path) {
    // It may be gone already.
    let _ = fs::remove_dir_all(dir.join("index"));
}

#[test]
fn a_tail_cut_at_any_byte_loses_only_the_commit_that_it_cuts() {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    let first = publish(&store, 1);
    let pack = packs(dir.path()).remove(0);
    let start = fs::metadata(&pack).unwrap().len();
    let block = leaf(500, 150);
    let lease = store.lease();
    lease.put(&block).unwrap();
    lease.commit(entry(2, *block.cid())).unwrap();
    drop((lease, store));
    let whole = fs::read(&pack).unwrap();
    let cut_dir = scratch();
    fs::copy(dir.path().join("format"), cut_dir.path().join("format")).unwrap();
    fs::create_dir(cut_dir.path().join("packs")).unwrap();
    let cut_pack = cut_dir.path().join("packs").join(pack.file_name().unwrap());
    for cut in usize::try_from(start).unwrap()..=whole.len() {
        fs::write(&cut_pack, &whole[..cut]).unwrap();
        let store = Store::open(cut_dir.path()).unwrap();
        assert_holds(&store, &first);
        // The padding behind the last record says nothing.
        let has_both = store.path(&hash_part(2)).unwrap().is_some();
        assert!(has_both == (cut == whole.len()) || whole.len() - cut < 8, "cut at {cut}");
        let report = store.verify(true, false).unwrap();
        assert!(report.is_clean(), "cut at {cut}: {report:?}");
        // The log goes on where it was cut, and what is written then is found again.
        publish(&store, 3);
        let before = picture(&store);
        drop(store);
        drop_index(cut_dir.path());
        let store = Store::open(cut_dir.path()).unwrap();
        assert_eq!(picture(&store), before, "cut at {cut}");
        assert_eq!(store.recovery().damages, 0, "cut at {cut}");
        drop(store);
        drop_index(cut_dir.path());
    }
}

#[test]
fn a_flipped_bit_is_found_and_never_served_with_or_without_the_index() {
    let dir = scratch();
    let store = small(dir.path());
    let dags: Vec<_> = (1..=4).map(|seed| publish(&store, seed)).collect();
    let all = dags.concat();
    drop(store);
    let packs = packs(dir.path());
    for round in 0..60 {
        let pack = &packs[usize::try_from(round).unwrap() % (packs.len() - 1)];
        let good = fs::read(pack).unwrap();
        let at = usize::try_from(round * 7_919).unwrap() % good.len();
        let mut bad = good.clone();
        bad[at] ^= 1 << (round % 8);
        fs::write(pack, &bad).unwrap();
        if round % 2 == 0 {
            drop_index(dir.path());
        }
        let store = small(dir.path());
        let mut lost = 0;
        for block in &all {
            match store.block(block.cid()) {
                Ok(Some(found)) => assert_eq!(&found, block),
                Ok(None) | Err(StoreError::Damaged { .. }) => lost += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(lost <= 1, "one flipped bit costs one block at most, not {lost}");
        let report = store.verify(true, false).unwrap();
        assert_eq!(report.is_clean(), lost == 0 && store.recovery().damages == 0, "{report:?}");
        assert!(lost == 0 || !report.incomplete.is_empty(), "{report:?}");
        drop(store);
        fs::write(pack, &good).unwrap();
        drop_index(dir.path());
    }
}

#[test]
fn a_damaged_block_is_healed_by_putting_it_again() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = publish(&store, 1);
    drop(store);
    let pack = packs(dir.path()).remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[64 + 64 + 700] ^= 4;
    fs::write(&pack, bytes).unwrap();
    let store = small(dir.path());
    let digest = dag[0].digest().unwrap();
    assert!(store.has(&digest).unwrap());
    assert!(matches!(store.get(&digest), Err(StoreError::Damaged { digest: named, .. }) if named == digest));
    assert!(!store.has(&digest).unwrap());
    assert!(store.lease().put(&dag[0]).unwrap().new);
    assert_holds(&store, &dag);
    store.commit(Vec::new()).unwrap();
    assert!(store.verify(true, false).unwrap().is_clean());
    assert!(store.is_public(&digest).unwrap());
    let before = picture(&store);
    drop(store);
    drop_index(dir.path());
    assert_eq!(picture(&small(dir.path())), before);
}

#[test]
fn an_index_that_is_gone_damaged_or_old_is_made_good_from_the_packs() {
    let dir = scratch();
    let store = small(dir.path());
    let mut dags = publish(&store, 1);
    drop(store);
    let old = fs::read(dir.path().join("index/db")).unwrap();
    let store = small(dir.path());
    dags.extend(publish(&store, 2));
    let before = picture(&store);
    drop(store);
    let db = dir.path().join("index/db");
    let whole = fs::read(&db).unwrap();
    let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    for round in 0..40_usize {
        let mut bad = if round < 2 { old.clone() } else { whole.clone() };
        match round % 4 {
            0 => drop_index(dir.path()),
            1 => {}
            2 => bad.truncate(bad.len() * round / 40),
            _ => {
                let at = used[round * 7_919 % used.len()];
                bad[at] ^= 1 << (round % 8);
            }
        }
        if round % 4 != 0 {
            fs::write(&db, bad).unwrap();
        }
        let store = small(dir.path());
        assert_holds(&store, &dags);
        assert_eq!(picture(&store), before, "round {round}");
    }
}

#[test]
fn foreign_files_and_a_lost_format_file_do_no_harm() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = publish(&store, 1);
    drop(store);
    fs::write(dir.path().join("packs/README"), "foreign").unwrap();
    fs::create_dir(dir.path().join("packs/99999999.pack")).unwrap();
    fs::remove_file(dir.path().join("format")).unwrap();
    drop_index(dir.path());
    let store = small(dir.path());
    assert_holds(&store, &dag);
    publish(&store, 2);
}

#[test]
fn segments_that_changed_places_are_refused_and_left_untouched() {
    let dir = scratch();
    let store = small(dir.path());
    let dags: Vec<_> = (1..=6).flat_map(|seed| publish(&store, seed)).collect();
    drop(store);
    let swap = || {
        let (one, two, aside) = (&packs(dir.path())[0], &packs(dir.path())[1], dir.path().join("aside"));
        fs::rename(one, &aside).unwrap();
        fs::rename(two, one).unwrap();
        fs::rename(&aside, two).unwrap();
    };
    swap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::BadFile(path)) if path == packs(dir.path())[0]));
    swap();
    assert_holds(&small(dir.path()), &dags);
}

#[test]
fn a_log_that_ends_before_the_index_does_is_reported_as_damage() {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    let first = publish(&store, 1);
    publish(&store, 2);
    drop(store);
    let pack = packs(dir.path()).remove(0);
    let length = fs::metadata(&pack).unwrap().len();
    fs::File::options().write(true).open(&pack).unwrap().set_len(length - 512).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.recovery().rebuilt);
    assert!(!store.verify(false, false).unwrap().is_clean());
    assert_holds(&store, &first);
    let third = publish(&store, 3);
    drop(store);
    drop_index(dir.path());
    let store = Store::open(dir.path()).unwrap();
    assert_holds(&store, &[first, third].concat());
    assert!(store.path(&hash_part(3)).unwrap().is_some());
}

#[test]
fn what_a_killed_process_put_is_durable_once_a_commit_relies_on_it() {
    let dir = scratch();
    let store = small(dir.path());
    let block = leaf(1, 1_000);
    let lease = store.lease();
    lease.put(&block).unwrap();
    drop((lease, store));
    let faults = faults::Faults::default();
    let store = Store::open_on(dir.path(), Disk { faults: faults.clone() }, SMALL).unwrap();
    let lease = store.lease();
    assert!(!lease.put(&block).unwrap().new);
    lease.commit(Vec::new()).unwrap();
    let pack = packs(dir.path()).remove(0);
    assert_eq!(faults.durable(&pack), fs::metadata(&pack).unwrap().len());
}

#[test]
fn damage_to_the_index_that_is_met_late_is_made_good_by_opening_again() {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    let blocks: Vec<_> = (0..4_000).map(|seed| leaf(seed, 20)).collect();
    let lease = store.lease();
    put_all(&lease, &blocks);
    lease.commit(Vec::new()).unwrap();
    drop((lease, store));
    let db = dir.path().join("index/db");
    let whole = fs::read(&db).unwrap();
    let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let (mut late, mut round) = (0, 0_usize);
    // How much of the index is read when it is opened is up to sled.
    while late == 0 || round < 10 {
        round += 1;
        assert!(round < 500, "no damage was met late");
        let mut bad = fs::read(&db).unwrap();
        let at = used[round * 15_485_863 % used.len()];
        bad[at] ^= 1 << (round % 8);
        fs::write(&db, bad).unwrap();
        let read = |store: &Store| {
            blocks.iter().try_for_each(|block| {
                store.block(block.cid()).map(|found| {
                    assert!(found.is_some());
                })
            })
        };
        let store = Store::open(dir.path()).unwrap();
        if let Err(error) = read(&store) {
            assert!(matches!(error, StoreError::Index(_)), "{error:?}");
            late += 1;
        }
        drop(store);
        read(&Store::open(dir.path()).unwrap()).unwrap();
    }
}

#[test]
fn what_an_interrupted_commit_left_to_show_or_hide_is_done_when_the_store_is_opened() {
    let dir = scratch();
    let store = small(dir.path());
    let dag = dag(1, 9, 100);
    let lease = store.lease();
    put_all(&lease, &dag);
    // The record is durable and in the index, and then the process is gone.
    let half_commit = |store: &Store, ops| {
        store.0.log.append_batch(&mut store.0.log.tail(), Batch::of(ops)).unwrap();
        store.0.log.sync().unwrap();
    };
    let public = |store: &Store| dag.iter().filter(|b| store.is_public(&b.digest().unwrap()).unwrap()).count();
    half_commit(&store, entry(1, root(&dag)));
    assert_eq!(public(&store), 0);
    drop((lease, store));
    let store = small(dir.path());
    assert_eq!(public(&store), dag.len());
    half_commit(&store, vec![Op::RemovePath(hash_part(1))]);
    assert_eq!(public(&store), dag.len());
    drop(store);
    assert_eq!(public(&small(dir.path())), 0);
}

#[test]
fn an_unsynced_block_whose_payload_did_not_reach_the_disk_is_cut_off() {
    let dir = scratch();
    let store = small(dir.path());
    let first = publish(&store, 1);
    let torn = leaf(500, 3_000);
    store.lease().put(&torn).unwrap();
    drop(store);
    let pack = packs(dir.path()).remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let store = small(dir.path());
    assert!(store.recovery().cut > 3_000);
    assert!(!store.has(&torn.digest().unwrap()).unwrap());
    assert_holds(&store, &first);
    assert!(store.verify(true, false).unwrap().is_clean());
}
