//! Speed and memory, printed: `cargo test --release store::tests::bench -- --ignored --nocapture`.

use super::super::{GcOptions, Put};
use super::*;
use std::time::{Duration, Instant};

/// Resident memory of this process in MiB: now and at its peak.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let mib = |name: &str| line(name).trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024;
    (mib("VmRSS:"), mib("VmHWM:"))
}

fn report(what: &str, bytes: u64, blocks: u64, took: Duration) {
    let seconds = took.as_secs_f64();
    let (now, peak) = memory();
    let (speed, rate) = (bytes as f64 / 1e6 / seconds, blocks as f64 / seconds);
    println!("{what:>24}: {seconds:7.2} s {speed:8.0} MB/s {rate:9.0} blocks/s, RSS {now} MiB, peak {peak} MiB");
}

fn run(dir: &Path, blocks: u64, size: usize, compress: bool) {
    println!("{blocks} blocks of {size} bytes, compression {compress}");
    let store = Store::open(dir).unwrap();
    let mut bytes = noise(1, size).to_vec();
    let total = blocks * size as u64;
    let mut digests = Vec::new();
    let lease = if compress { store.lease() } else { store.lease().uncompressed() };
    let mut took = Duration::ZERO;
    for number in 0..blocks {
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let block = Block::v1(RAW, bytes.clone().into()).unwrap();
        digests.push(block.digest().unwrap());
        let start = Instant::now();
        assert_eq!(lease.put(&block).unwrap(), Put { new: true });
        took += start.elapsed();
    }
    let start = Instant::now();
    lease.commit(Vec::new()).unwrap();
    report("put", total, blocks, took + start.elapsed());
    let some = digests.iter().step_by(digests.len() / 2_000 + 1);
    let start = Instant::now();
    let read = some.map(|digest| store.get(digest).unwrap().unwrap().len() as u64).collect::<Vec<_>>();
    report("get", read.iter().sum(), read.len() as u64, start.elapsed());
    let start = Instant::now();
    drop((lease, store));
    let store = Store::open(dir).unwrap();
    report("reopen", total, blocks, start.elapsed());
    let start = Instant::now();
    assert_eq!(store.0.log.index.blocks().filter(Result::is_ok).count() as u64, blocks);
    report("iterate", total, blocks, start.elapsed());
    let lease = store.lease();
    digests.iter().step_by(2).for_each(|digest| assert!(lease.touch(digest).unwrap()));
    let start = Instant::now();
    let gc = store.gc(&GcOptions::default()).unwrap();
    report("gc of one half", gc.freed_bytes, gc.dropped_blocks, start.elapsed());
    drop((lease, store));
    std::fs::remove_dir_all(dir.join("index")).unwrap();
    let start = Instant::now();
    let store = Store::open(dir).unwrap();
    assert_eq!(store.stats().unwrap().blocks, blocks / 2);
    report("rebuild of the other", total / 2, blocks / 2, start.elapsed());
}

#[test]
#[ignore = "writes 1 GiB"]
fn one_gib_in_blocks_of_256_kib() {
    for compress in [false, true] {
        run(tempfile::tempdir().unwrap().path(), 4_096, 256 << 10, compress);
    }
}

#[test]
#[ignore = "takes a minute"]
fn two_hundred_thousand_small_blocks() {
    run(tempfile::tempdir().unwrap().path(), 200_000, 2_000, true);
}

#[test]
#[ignore = "takes a minute"]
fn the_index_under_churn() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for round in 0..20_u64 {
        let lease = store.lease().uncompressed();
        for number in 0..20_000_u64 {
            let bytes = [round.to_le_bytes(), number.to_le_bytes()].concat();
            lease.put(&Block::v1(RAW, bytes.into()).unwrap()).unwrap();
        }
        lease.commit(Vec::new()).unwrap();
        drop(lease);
        store.gc(&GcOptions::default()).unwrap();
        let size = store.0.log.index.db.size_on_disk().unwrap();
        println!("round {round}: index {} MiB, RSS {:?} MiB", size >> 20, memory());
    }
}

#[test]
#[ignore = "takes half a minute"]
fn puts_and_commits_while_gc_sweeps() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let lease = store.lease().uncompressed();
    (0..100_000).for_each(|seed| assert!(lease.put(&leaf(seed, 500)).unwrap().new));
    lease.commit(Vec::new()).unwrap();
    drop(lease);
    std::thread::scope(|scope| {
        let gc = scope.spawn(|| store.gc(&GcOptions::default()).unwrap());
        let mut worst = [Duration::ZERO; 2];
        let mut rounds = 0;
        while !gc.is_finished() {
            rounds += 1;
            let block = leaf(1_000_000 + rounds, 2_000);
            let lease = store.lease();
            let start = Instant::now();
            lease.put(&block).unwrap();
            worst[0] = worst[0].max(start.elapsed());
            lease.commit(vec![pin(*block.cid())]).unwrap();
            worst[1] = worst[1].max(start.elapsed());
        }
        println!("{rounds} rounds; slowest put {:?}, slowest put and commit {:?}", worst[0], worst[1]);
    });
}
