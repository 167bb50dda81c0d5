//! What publishing costs, printed: `cargo test --release store::tests::publish_bench -- --ignored --nocapture`.

use super::super::GcOptions;
use super::*;
use nipfs_proto::dag::Profile;
use nipfs_proto::dag::build::{Builder, Root};
use std::time::{Duration, Instant};

/// Bytes that this process has read from files so far, cached or not.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

fn timed<T>(what: &str, bytes: u64, run: impl FnOnce() -> T) -> T {
    let (start, read) = (Instant::now(), bytes_read());
    let done = run();
    let (seconds, read) = (start.elapsed().as_secs_f64(), (bytes_read() - read) as f64 / 1e6);
    println!("{what:>18}: {seconds:7.3} s {:8.0} MB/s, {read:8.1} MB read", bytes as f64 / 1e6 / seconds);
    done
}

/// Puts `size` bytes that differ from those of any other `number`.
fn import(lease: &Lease, noise: &mut [u8], number: u64, size: usize) -> Root {
    let mut builder = Builder::new(Profile::UnixfsV0_2015);
    let mut put = |block: Block| lease.put(&block).map(|_| ());
    for (piece, start) in (0..size).step_by(noise.len()).enumerate() {
        noise[..16].copy_from_slice(&(u128::from(number) << 64 | piece as u128).to_le_bytes());
        builder.write(&noise[..noise.len().min(size - start)], &mut put).unwrap();
    }
    builder.finish(&mut put).unwrap()
}

#[test]
#[ignore = "writes 1 GiB"]
fn one_nar_of_one_gib() {
    const SIZE: usize = 1 << 30;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut noise = noise(1, 256 << 10).to_vec();
    let lease = store.lease();
    let root = timed("import", SIZE as u64, || import(&lease, &mut noise, 1, SIZE));
    timed("commit", SIZE as u64, || lease.commit(entry(1, root.cid)).unwrap());
    timed("touch", SIZE as u64, || assert!(store.lease().touch_dag(&root.cid).unwrap()));
    drop(lease);
    timed("gc", SIZE as u64, || assert_eq!(store.gc(&GcOptions::default()).unwrap().kept_paths, 1));
    timed("verify", SIZE as u64, || assert!(store.verify(false, false).unwrap().is_clean()));
}

#[test]
#[ignore = "takes half a minute"]
fn two_thousand_nars_of_up_to_one_mib() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut noise = noise(1, 256 << 10).to_vec();
    let (mut total, mut put, mut commits) = (0, Duration::ZERO, Vec::new());
    timed("2000 publishes", 0, || {
        for number in 0..2_000 {
            // All orders of magnitude alike.
            let size = (100 << (number * 5 % 14)) + usize::from(u16::try_from(number).unwrap());
            let start = Instant::now();
            let lease = store.lease();
            let root = import(&lease, &mut noise, number, size);
            put += start.elapsed();
            total += size;
            let start = Instant::now();
            lease.commit(entry(number, root.cid)).unwrap();
            commits.push(start.elapsed());
        }
    });
    commits.sort();
    let sum: Duration = commits.iter().sum();
    println!("{total} bytes, put {put:?}; commits {sum:?}, p50 {:?}, p99 {:?}", commits[1_000], commits[1_980]);
}
