//! What the verbs do beyond asking the node: sinks, standard input, ssh, many items.

use crate::common::{Machine, STUCK, kill, make_tree};
use crate::walk::publish_tree;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_reason_that_the_mirror_gives_under_another_name_is_printed_and_decides_the_exit_code() {
    let a = Machine::new();
    a.key();
    let _at_a = a.serve(&[]);
    publish_tree(&a, "pushed", 71, 1000);
    let ssh = a.dir().join("ssh");
    let failed = r#"{"item":"failed","path":"narinfo 1","failure":{"class":"refused","message":"no trusted signature","causes":[]}}"#;
    fs::write(&ssh, format!("#!/bin/sh\ncat >/dev/null\necho '{failed}'\nexit 3\n")).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = a.command(&["mirror", "push", "--ssh", "mirror.example"]);
    command.env("NIPFS_SSH", &ssh).stdout(Stdio::piped()).stderr(Stdio::piped());
    let said = Machine::finish(command.spawn().unwrap());
    said.fails(3, &["narinfo 1", "no trusted signature", "did not answer for 1 paths"]);
}

#[test]
fn a_verb_that_waits_for_standard_input_hears_signals() {
    for args in [&["publish", "--stdin"][..], &["mirror", "pull", "http://127.0.0.1:9", "--store-paths", "-"]] {
        let a = Machine::new();
        a.key();
        let mut command = a.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        // The handler is set up as soon as the process catches SIGTERM, bit 14.
        let catches = |pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
            u64::from_str_radix(&mask, 16).unwrap() & (1 << 14) != 0
        };
        while !catches(child.id()) {
            assert!(start.elapsed() < STUCK, "{args:?} does not catch SIGTERM");
            std::thread::sleep(Duration::from_millis(2));
        }
        kill(child.id(), "-TERM");
        let stdin = child.stdin.take();
        let said = Machine::finish(child);
        drop(stdin);
        assert_eq!(said.code, 130, "{args:?}");
    }
}

#[test]
fn several_targets_are_pinned_and_unpinned_in_one_command() {
    let a = Machine::new();
    a.key();
    let published = [("one", 72), ("two", 73)].map(|(name, seed)| publish_tree(&a, name, seed, 1000).1);
    let [one, two] = published.each_ref().map(|line| line["path"].as_str().unwrap());
    let said = a.run(&["pin", "rm", one, two]).ok();
    assert_eq!(said.stdout, format!("unpinned {one}\nunpinned {two}\n"));
    assert_eq!(a.run(&["pin", "ls"]).ok().stdout, "");
    let [one, two] = published.each_ref().map(|line| line["root"].as_str().unwrap());
    let said = a.run(&["pin", "add", "--json", one, two]).ok().json();
    assert_eq!(said, [one, two].map(|target| serde_json::json!({ "target": target, "pinned": true })));
    assert_eq!(a.run(&["pin", "ls"]).ok().stdout.lines().count(), 2);
}

#[test]
fn when_serve_ends_publish_stops_with_that_one_error() {
    let a = Machine::new();
    a.key();
    let at_a = a.serve(&[]);
    let big = a.dir().join("big");
    make_tree(&big, 74, 64 << 20);
    let mut args = vec!["publish".to_owned(), big.to_str().unwrap().to_owned()];
    for name in ["b", "c", "d"] {
        make_tree(&a.dir().join(name), 75, 1000);
        args.push(a.dir().join(name).to_str().unwrap().to_owned());
    }
    let mut command = a.command(&args);
    let publishing = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let packed = || {
        let packs = fs::read_dir(a.state().join("store/packs")).map(|files| files.map(|file| file.unwrap().metadata()));
        packs.map_or(0, |packs| packs.map(|meta| meta.map_or(0, |meta| meta.len())).sum::<u64>())
    };
    let start = Instant::now();
    while packed() < 8 << 20 {
        assert!(start.elapsed() < STUCK, "nothing is published");
        std::thread::sleep(Duration::from_millis(2));
    }
    at_a.kill();
    let said = Machine::finish(publishing).fails(1, &["connection"]);
    assert_eq!(said.stderr.matches("error:").count(), 1, "{said:#?}");
    assert_eq!(said.stdout, "");
}

#[test]
fn only_store_paths_are_kept_outside() {
    let a = Machine::new();
    a.key();
    let tree = a.dir().join("tree");
    make_tree(&tree, 76, 1000);
    for keep in ["rooted", "weak"] {
        let said = a.run(&["publish", "--keep", keep, tree.to_str().unwrap()]);
        said.fails(2, &["must be copied", tree.to_str().unwrap(), "hint: publish it without --keep"]);
    }
    assert_eq!(a.run(&["pin", "ls"]).ok().stdout, "");
    a.run(&["publish", "--keep", "copy", tree.to_str().unwrap()]).ok();
}
