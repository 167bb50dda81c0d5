//! `serve --max-size`: a store that is never too large for long.

use crate::common::{Machine, STUCK, Serving, make_tree};
use crate::walk::publish_tree;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Waits until `done`.
fn wait(what: &str, serving: &Serving, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < STUCK, "{what}: {}", serving.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn stored(machine: &Machine) -> u64 {
    machine.run(&["status", "--json"]).ok().one()["storedBytes"].as_u64().unwrap()
}

/// Ages are told apart by the second.
fn next_second() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let then = now();
    while now() == then {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn narinfo(published: &Value) -> String {
    format!("/{}.narinfo", &published["path"].as_str().unwrap()["/nix/store/".len()..][..32])
}

#[test]
fn the_oldest_paths_go_when_the_store_grows_beyond_its_size() {
    let a = Machine::new();
    a.key();
    let at_a = a.serve(&["--max-size", "1000K"]);
    let (_, oldest) = publish_tree(&a, "oldest", 100, 100_000);
    let file = a.state().join("cache").join(&narinfo(&oldest)[1..]);
    assert!(file.exists());
    next_second();
    for number in 0..20 {
        publish_tree(&a, &format!("tree-{number}"), 101 + number, 100_000);
    }
    next_second();
    let (_, newest) = publish_tree(&a, "newest", 130, 100_000);
    wait("the store stays too large", &at_a, || stored(&a) <= 1000 << 10);
    assert_eq!(at_a.get(&narinfo(&oldest)).status, 404);
    assert!(!file.exists(), "the narinfo outlives its NAR");
    assert_eq!(at_a.get(&narinfo(&newest)).status, 200);
    let (log, oldest) = (at_a.log(), oldest["path"].as_str().unwrap());
    assert!(log.lines().any(|line| line.contains("dropped") && line.contains(oldest)), "{log}");
    // Not for each commit: some room is made at once.
    let (runs, dropped) = (log.matches("too large").count(), log.matches(" dropped").count());
    assert!(dropped >= 12 && runs <= 8, "{runs} runs, {dropped} dropped: {log}");
    a.run(&["verify", "--deep"]).ok();
}

#[test]
fn a_path_that_is_larger_than_the_store_may_be_goes_and_the_store_comes_to_rest() {
    let a = Machine::new();
    a.key();
    let at_a = a.serve(&["--max-size", "1M"]);
    let (_, large) = publish_tree(&a, "large", 140, 4 << 20);
    wait("the large path stays", &at_a, || at_a.get(&narinfo(&large)).status == 404);
    wait("its blocks stay", &at_a, || stored(&a) <= 1 << 20);
    let runs = || at_a.log().matches("too large").count();
    let until_rest = runs();
    // Once more when the first met blocks that were still in use.
    assert!(until_rest <= 2, "{}", at_a.log());
    let (_, small) = publish_tree(&a, "small", 141, 1000);
    assert_eq!(at_a.get(&narinfo(&small)).status, 200);
    assert_eq!(runs(), until_rest, "{}", at_a.log());
}

#[test]
fn what_one_command_publishes_beyond_the_size_leaves_no_narinfo_without_its_path() {
    let a = Machine::new();
    a.key();
    let at_a = a.serve(&["--max-size", "1000K"]);
    let trees: Vec<_> = (0..40).map(|number| a.dir().join(format!("tree-{number}"))).collect();
    for (number, tree) in trees.iter().enumerate() {
        make_tree(tree, 150 + number as u64, 100_000);
    }
    // The first ones are held already when they are published with all others.
    for trees in [&trees[..5], &trees[..]] {
        let args: Vec<_> =
            ["publish", "--json"].into_iter().chain(trees.iter().map(|tree| tree.to_str().unwrap())).collect();
        assert_eq!(a.run(&args).ok().json().len(), trees.len());
    }
    wait("the store stays too large", &at_a, || stored(&a) <= 1000 << 10);
    let pinned = a.run(&["pin", "ls"]).ok().stdout.lines().count();
    assert!((5..=10).contains(&pinned), "{pinned} are left");
    let narinfos = || {
        let names = fs::read_dir(a.state().join("cache"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".narinfo")).collect::<Vec<_>>()
    };
    // Those that went are taken back right after.
    wait("narinfos of paths that went stay", &at_a, || narinfos().len() == pinned);
    for name in narinfos() {
        assert_eq!(at_a.get(&format!("/{name}")).status, 200, "{name}");
    }
    a.run(&["verify", "--deep"]).ok();
}
