//! Memory does not grow with size: one 4 GiB NAR through publish, serve and fetch, and little with the number of paths.

use crate::common::{Machine, Serving, kill, noise, peak_rss};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// No process may have more resident bytes than this. Without optimisation the program is twice as large and blocks wait longer.
const CEILING: u64 = if cfg!(debug_assertions) { 100 << 20 } else { 40 << 20 };
/// Bytes of the NAR.
const SIZE: u64 = 4 << 30;
/// Small NARs.
const PATHS: u64 = if cfg!(debug_assertions) { 1_000 } else { 8_000 };
/// The disk is shared and slow at times.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs a command to its end and returns its peak resident bytes.
fn peak_of(machine: &Machine, args: &[&str]) -> u64 {
    let log = machine.dir().join("command.log");
    let file = fs::File::create(&log).unwrap();
    let mut command = machine.command(args);
    let mut child = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
    let (start, mut peak) = (Instant::now(), 0);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{args:?}: {}", fs::read_to_string(&log).unwrap());
            return peak;
        }
        // VmHWM only ever grows; the last look before the end misses what the process did after it.
        peak = peak.max(peak_rss(child.id()));
        if start.elapsed() > LIMIT {
            kill(child.id(), "-KILL");
            panic!("{args:?} was still running after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_nar_of_4_gib_keeps_every_process_within_its_memory() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let file = a.dir().join("huge");
    let mut out = fs::File::create(&file).unwrap();
    // Not one block twice, or the store would hold little: each piece is the same noise behind another number.
    let mut piece = noise(50, 256 << 10);
    for number in 0..SIZE / piece.len() as u64 {
        piece[..8].copy_from_slice(&number.to_le_bytes());
        out.write_all(&piece).unwrap();
    }
    drop((out, piece));
    let at_a = a.serve(&[]);
    let publishing = peak_of(&a, &["publish", file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    let path = a.run(&["pin", "ls"]).ok().stdout.split_whitespace().next().unwrap().to_owned();
    let nar = c.dir().join("huge.nar");
    let fetching = peak_of(&c, &[&["fetch", &path, "--nar", nar.to_str().unwrap()], &source(&at_a, &key)[..]].concat());
    assert!(fs::metadata(&nar).unwrap().len() > SIZE);
    assert_within_memory(publishing, at_a.peak_rss(), fetching);
}

#[test]
fn thousands_of_small_nars_keep_every_process_within_its_memory() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let files = a.dir().join("files");
    fs::create_dir(&files).unwrap();
    let name = |number: u64| files.join(format!("file-{number}")).to_str().unwrap().to_owned();
    let names: Vec<_> = (0..PATHS).map(name).collect();
    for (name, number) in names.iter().zip(0..) {
        fs::write(name, noise(number, 20 << 10)).unwrap();
    }
    let at_a = a.serve(&[]);
    let mut publish = vec!["publish"];
    publish.extend(names.iter().map(String::as_str));
    let publishing = peak_of(&a, &publish);
    let pinned = a.run(&["pin", "ls"]).ok().stdout;
    let paths: Vec<_> = pinned.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(paths.len() as u64, PATHS);
    let out = c.dir().join("out");
    let source = source(&at_a, &key);
    let fetch = [&["fetch", "--out", out.to_str().unwrap()], &source[..], &paths[..]].concat();
    let fetching = peak_of(&c, &fetch);
    assert_eq!(fs::read_dir(&out).unwrap().count() as u64, PATHS);
    assert_within_memory(publishing, at_a.peak_rss(), fetching);
}

/// Where C fetches from.
fn source<'a>(at_a: &'a Serving, key: &'a str) -> [&'a str; 6] {
    ["--from", &at_a.http, "--peer", &at_a.peer, "--trusted-public-key", key]
}

#[expect(clippy::print_stderr, reason = "figures of a test")]
fn assert_within_memory(publishing: u64, serving: u64, fetching: u64) {
    eprintln!("peak RSS, MiB: publish {}, serve {}, fetch {}", publishing >> 20, serving >> 20, fetching >> 20);
    for (process, peak) in [("publish", publishing), ("serve", serving), ("fetch", fetching)] {
        assert!(peak > 0, "{process} was not measured");
        assert!(peak < CEILING, "{process} had {} MiB resident", peak >> 20);
    }
}
