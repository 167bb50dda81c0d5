//! Stops the store at every single operation on the disk, makes the images that a kill and a power cut would leave,
//! and opens them: what was acknowledged is there and whole, what was deleted is not.

use super::super::{GcOptions, StoreError};
use super::faults::Faults;
use super::outside::outside;
use super::*;
use nipfs_proto::nix::nar::{Event, Writer};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// What happened so far, as far as it was acknowledged.
#[derive(Default)]
struct Known {
    held: BTreeMap<u64, Vec<Block>>,
    /// Paths that were removed.
    removed: Vec<u64>,
    /// DAGs that a GC deleted.
    deleted: Vec<Vec<Block>>,
}

fn own(seed: u64) -> Vec<Block> {
    dag(seed, 5, 1_900)
}

/// This one is kept outside the store.
const OUTSIDE: u64 = 4;

/// Writes the tree of the DAG that is kept outside: a file of its leaves.
fn plant_tree(nix: &Path) {
    let record = path(OUTSIDE, root(&own(OUTSIDE)));
    let leaves: Vec<_> = own(OUTSIDE)[..5].iter().flat_map(|leaf| leaf.bytes().to_vec()).collect();
    fs::create_dir(nix).unwrap();
    fs::write(nix.join(record.store_path.base_name()), leaves).unwrap();
}

fn put_outside(lease: &Lease, dag: &[Block]) -> Result<Vec<Op>, StoreError> {
    let record = PathRecord { keep: Keep::Weak, ..path(OUTSIDE, root(dag)) };
    let mut frame = Vec::new();
    Writer::new().write(&Event::File { name: b"", executable: false, size: 0 }, &mut frame);
    let mut offset = frame.len() as u64;
    for block in dag {
        offset += lease.put_outside(block, &record.store_path, offset)?.1;
    }
    Ok(vec![Op::PutNar(nar(root(dag))), Op::PutPath(record)])
}

/// Publishes, unpublishes and collects until something fails.
fn live(store: &Store, known: &mut Known) -> Result<(), StoreError> {
    for round in 0..3 {
        for seed in 1..=4 {
            let dag = own(seed);
            known.removed.retain(|removed| *removed != seed);
            known.deleted.retain(|deleted| root(deleted) != root(&dag));
            let lease = store.lease();
            if seed == OUTSIDE {
                lease.commit(put_outside(&lease, &dag)?)?;
            } else {
                dag.iter().try_for_each(|block| lease.put(block).map(drop))?;
                lease.commit(entry(seed, root(&dag)))?;
            }
            known.held.insert(seed, dag);
        }
        for seed in (1..=4).filter(|seed| (seed + round) % 3 != 0) {
            known.held.remove(&seed);
            store.commit(vec![Op::RemovePath(hash_part(seed))])?;
            known.removed.push(seed);
        }
        store.lease().put(&leaf(900 + round, 3_000))?;
        store.gc(&GcOptions::default())?;
        known.deleted = known.removed.iter().map(|seed| own(*seed)).collect();
    }
    Ok(())
}

fn disk(faults: &Faults) -> Disk {
    faults.keep_erased();
    Disk { faults: faults.clone() }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join("packs")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Takes from an image what was not synced; of the last bytes some may have reached the disk out of order.
fn cut_power(image: &Path, origin: &Path, faults: &Faults, keep_some: bool) {
    for pack in packs(image) {
        let original = origin.join("packs").join(pack.file_name().unwrap());
        let durable = faults.durable(&original);
        let mut bytes = fs::read(&pack).unwrap();
        // The newest first, so that what was erased twice is as it was before the first time; a half of each hole
        // may have come to the disk.
        for (offset, erased) in faults.unsynced_holes(&original).into_iter().rev() {
            let from = if keep_some { erased.len() / 2 } else { 0 };
            let start = usize::try_from(offset).unwrap() + from;
            bytes[start..start + erased.len() - from].copy_from_slice(&erased[from..]);
        }
        let durable = usize::try_from(durable).unwrap().min(bytes.len());
        if durable == 0 && !keep_some {
            fs::remove_file(&pack).unwrap();
            continue;
        }
        let lost = bytes.len() - durable;
        if keep_some {
            bytes[durable..durable + lost / 2].fill(0);
        } else {
            bytes.truncate(durable);
        }
        fs::write(&pack, bytes).unwrap();
    }
}

fn check((image, nix): (&Path, &Path), known: &Known, with_index: bool, what: &str) {
    let open = || Store::open_with_trees(image, nix);
    if !with_index {
        let _ = fs::remove_dir_all(image.join("index"));
    }
    let store = open().unwrap_or_else(|e| panic!("{what}: {e:?}"));
    assert_eq!(store.recovery().damages, 0, "{what}: {:?}", store.recovery());
    let report = store.verify(true, false).unwrap();
    assert!(report.is_clean(), "{what}: {report:?}");
    for (seed, dag) in &known.held {
        assert!(store.path(&hash_part(*seed)).unwrap().is_some(), "{what}: path {seed} is lost");
        assert_holds(&store, dag);
        assert!(dag.iter().all(|block| store.is_public(&block.digest().unwrap()).unwrap()), "{what}");
    }
    for seed in &known.removed {
        assert_eq!(store.path(&hash_part(*seed)).unwrap(), None, "{what}: path {seed} came back");
        assert!(!own(*seed).iter().any(|block| store.is_public(&block.digest().unwrap()).unwrap()), "{what}");
    }
    known.deleted.iter().for_each(|dag| assert_lacks(&store, dag));
    let before = picture(&store);
    drop(store);
    fs::remove_dir_all(image.join("index")).unwrap();
    let store = open().unwrap();
    assert_eq!(picture(&store), before, "{what}: the packs alone say something else");
    let dag = publish(&store, 77);
    store.gc(&GcOptions::default()).unwrap();
    assert_holds(&store, &dag);
    assert!(store.verify(true, false).unwrap().is_clean(), "{what}");
    let before = picture(&store);
    drop(store);
    fs::remove_dir_all(image.join("index")).unwrap();
    assert_eq!(picture(&open().unwrap()), before, "{what}: after another GC");
}

#[test]
fn a_kill_or_power_cut_at_any_operation_loses_nothing_acknowledged_and_brings_nothing_back() {
    let base = scratch();
    let faults = Faults::default();
    let nix = base.path().join("nix");
    plant_tree(&nix);
    let store = Store::open_beside(&base.path().join("whole"), &nix, disk(&faults), SMALL).unwrap();
    live(&store, &mut Known::default()).unwrap();
    assert!(!store.dir().join("packs/00000001.pack").exists(), "segments are let go");
    assert_eq!(outside(&store, &own(OUTSIDE)), 5);
    let total = faults.steps();
    assert!(total > 100, "{total} operations");
    drop(store);
    for step in 0..total {
        let dir = base.path().join(format!("step{step}"));
        let image = base.path().join("image");
        let (faults, mut known) = (Faults::default(), Known::default());
        faults.freeze_at(step);
        let store = Store::open_beside(&dir, &nix, disk(&faults), SMALL);
        if let Ok(store) = &store {
            live(store, &mut known).unwrap_err();
        }
        let with_index = step % 2 == 0;
        let cut = if step % 3 == 0 { ("cut", true, false) } else { ("torn cut", true, true) };
        for (name, power, keep_some) in [("kill", false, false), cut] {
            copy_dir(&dir, &image);
            if power {
                cut_power(&image, &dir, &faults, keep_some);
            }
            check((&image, &nix), &known, with_index, &format!("{name} at operation {step}, index {with_index}"));
            fs::remove_dir_all(&image).unwrap();
        }
        drop(store);
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn after_a_failed_sync_the_store_only_reads() {
    let dir = scratch();
    let faults = Faults::default();
    let store = Store::open_on(dir.path(), disk(&faults), SMALL).unwrap();
    let dag = publish(&store, 1);
    let lease = store.lease();
    lease.put(&leaf(50, 100)).unwrap();
    faults.freeze_at(faults.steps());
    assert!(matches!(lease.commit(Vec::new()).unwrap_err(), StoreError::Io { action: "sync", .. }));
    assert!(matches!(lease.commit(Vec::new()).unwrap_err(), StoreError::ReadOnly));
    assert!(matches!(lease.put(&leaf(51, 100)).unwrap_err(), StoreError::ReadOnly));
    assert!(matches!(store.gc(&GcOptions::default()).unwrap_err(), StoreError::ReadOnly));
    assert_holds(&store, &dag);
}

#[test]
fn a_hole_that_a_power_cut_undid_stays_empty_after_the_record_of_its_deletion_is_gone() {
    let base = scratch();
    let (dir, image, faults) = (base.path().join("store"), base.path().join("image"), Faults::default());
    let store = Store::open_on(&dir, disk(&faults), SMALL).unwrap();
    let (kept, deleted) = (publish(&store, 1), publish(&store, 2));
    let others: Vec<_> = (3..6).map(|seed| publish(&store, seed)).collect();
    store.commit(vec![Op::RemovePath(hash_part(2))]).unwrap();
    store.gc(&GcOptions::default()).unwrap();
    let pack = |number: u32| dir.join(format!("packs/{number:08}.pack"));
    let deleted_in = store.0.log.current_segment();
    assert!(!faults.unsynced_holes(&pack(1)).is_empty());
    // The deletion is recorded in a segment that goes in its turn, with all that is in it.
    (6..10).for_each(|seed| assert_holds(&store, &publish(&store, seed)));
    store.commit((3..10).map(|seed| Op::RemovePath(hash_part(seed))).collect()).unwrap();
    store.gc(&GcOptions::default()).unwrap();
    assert!(pack(1).exists() && !pack(deleted_in).exists());
    assert_lacks(&store, &others.concat());
    copy_dir(&dir, &image);
    cut_power(&image, &dir, &faults, false);
    fs::remove_dir_all(image.join("index")).unwrap();
    let store = small(&image);
    assert_holds(&store, &kept);
    assert_lacks(&store, &deleted);
}

#[test]
fn a_small_hole_that_a_power_cut_undid_is_made_again_before_the_record_of_its_deletion_goes() {
    let base = scratch();
    let (dir, image, faults) = (base.path().join("store"), base.path().join("image"), Faults::default());
    let store = Store::open_on(&dir, disk(&faults), SMALL).unwrap();
    let deleted = leaf(900, 300);
    store.lease().put(&deleted).unwrap();
    // The first segment is nearly full of it.
    let kept = dag(1, 18, 1_500);
    let lease = store.lease();
    put_all(&lease, &kept);
    lease.commit(entry(1, root(&kept))).unwrap();
    drop(lease);
    (2..6).for_each(|seed| assert_holds(&store, &publish(&store, seed)));
    store.gc(&GcOptions::default()).unwrap();
    let deleted_in = store.0.log.current_segment();
    copy_dir(&dir, &image);
    drop(store);
    cut_power(&image, &dir, &faults, false);
    let store = small(&image);
    (6..10).for_each(|seed| assert_holds(&store, &publish(&store, seed)));
    store.commit((2..10).map(|seed| Op::RemovePath(hash_part(seed))).collect()).unwrap();
    store.gc(&GcOptions::default()).unwrap();
    assert!(!image.join(format!("packs/{deleted_in:08}.pack")).exists());
    drop(store);
    fs::remove_dir_all(image.join("index")).unwrap();
    let store = small(&image);
    assert_holds(&store, &kept);
    assert_lacks(&store, &[deleted]);
}

#[test]
fn what_an_interrupted_gc_deleted_and_did_not_erase_the_next_one_erases() {
    let dir = scratch();
    let faults = Faults::default();
    let store = Store::open_on(dir.path(), disk(&faults), SMALL).unwrap();
    let dags: Vec<_> = (1..6).map(|seed| publish(&store, seed)).collect();
    let (segment, record) = store.0.log.lookup(&dags[0][0].digest().unwrap()).unwrap().unwrap().location.record();
    store.commit(vec![Op::RemovePath(hash_part(1))]).unwrap();
    faults.fail("erase");
    store.gc(&GcOptions::default()).unwrap_err();
    drop(store);
    let store = small(dir.path());
    let header = || {
        let segments = &store.0.log.segments;
        segments.open(segment).unwrap().unwrap().header(record.start, &segments.salt).unwrap()
    };
    assert!(header().is_some());
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(header(), None);
    assert_lacks(&store, &dags[0]);
    assert_holds(&store, &dags[1..].concat());
}
