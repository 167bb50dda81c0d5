//! The main job: A publishes, B mirrors, A forgets, C fetches from B.

use crate::common::{Machine, Said, describe, make_tree};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Publishes a fresh tree on `machine` and returns where it is and what `publish --json` said.
pub(crate) fn publish_tree(machine: &Machine, name: &str, seed: u64, size: usize) -> (PathBuf, Value) {
    let tree = machine.dir().join(name);
    make_tree(&tree, seed, size);
    let said = machine.run(&["publish", "--json", tree.to_str().unwrap()]).ok();
    (tree, said.one())
}

/// Fetches `path` from the cache at `http` and the peer into `machine`'s `out`.
pub(crate) fn fetch(machine: &Machine, path: &str, http: &str, key: &str, more: &[&str]) -> Said {
    let out = machine.dir().join("out");
    fs::create_dir_all(&out).unwrap();
    let mut args = vec!["fetch", "--json", path, "--from", http, "--trusted-public-key", key, "--out"];
    args.push(out.to_str().unwrap());
    args.extend_from_slice(more);
    machine.run(&args)
}

/// Where a fetched path lies.
pub(crate) fn fetched(machine: &Machine, path: &str) -> PathBuf {
    machine.dir().join("out").join(Path::new(path).file_name().unwrap())
}

#[test]
fn c_gets_from_b_what_a_published_and_forgot() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "hello", 1, 3 << 20);
    let path = published["path"].as_str().unwrap();
    assert!(path.starts_with("/nix/store/") && path.ends_with("-hello"), "{published}");
    assert!(published["root"].as_str().unwrap().starts_with("Qm"), "{published}");

    let at_b = b.serve(&[]);
    let mirrored = b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key, "--json"]).ok().one();
    assert_eq!(mirrored["bytes"]["http"], 0, "{mirrored}");
    assert!(mirrored["bytes"]["bitswap"].as_u64().unwrap() >= 3 << 20, "{mirrored}");
    let hash = &path["/nix/store/".len()..][..32];
    let narinfo = format!("/{hash}.narinfo");
    assert_eq!(at_a.get(&narinfo).body, at_b.get(&narinfo).body, "B serves A's narinfo byte for byte");

    a.run(&["pin", "rm", path]).ok();
    assert_eq!(at_a.get(&narinfo).status, 404, "an unpinned narinfo is gone at once");
    let freed = a.run(&["gc", "--json"]).ok().one();
    assert!(freed["freedBytes"].as_u64().unwrap() >= 3 << 20, "{freed}");
    assert_eq!(at_a.stop(), 0);

    let said = fetch(&c, path, &at_b.http, &key, &["--peer", &at_b.peer]).ok().one();
    assert_eq!(said["source"], "bitswap", "{said}");
    assert_eq!(said["bytes"]["http"], 0, "{said}");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}

#[test]
fn publishing_twice_changes_nothing_and_says_the_same() {
    let a = Machine::new();
    a.key();
    let (tree, first) = publish_tree(&a, "twice", 2, 1 << 20);
    let second = a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    for field in ["path", "root", "narHash", "narSize", "narinfo"] {
        assert_eq!(first[field], second[field], "{field}");
    }
    assert!(first["newBytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(second["newBytes"], 0);
    assert_eq!(a.run(&["pin", "ls"]).ok().stdout.lines().count(), 1);
}

#[test]
fn a_verb_says_the_same_with_and_without_a_running_serve() {
    let a = Machine::new();
    a.key();
    let (_, published) = publish_tree(&a, "same", 3, 1 << 20);
    let alone = a.run(&["pin", "ls", "--json"]).ok().stdout;
    let serving = a.serve(&[]);
    assert_eq!(alone, a.run(&["pin", "ls", "--json"]).ok().stdout);
    let again = a.run(&["publish", "--json", a.dir().join("same").to_str().unwrap()]).ok().one();
    assert_eq!(again["root"], published["root"]);
    let status = a.run(&["status", "--json"]).ok().one();
    assert_eq!(status["addresses"][0], serving.peer.as_str());
    assert_eq!(status["roots"], 1);
}

#[test]
fn a_narinfo_line_that_was_lost_is_filled_in() {
    let a = Machine::new();
    a.key();
    let (tree, published) = publish_tree(&a, "lost", 4, 100_000);
    let file = published["narinfo"].as_str().unwrap();
    let whole = fs::read_to_string(file).unwrap();
    assert!(whole.contains("\nIPFSHash: Qm") && whole.contains("\nIPFSSig: test-1:"), "{whole}");
    let without: String =
        whole.lines().filter(|line| !line.starts_with("IPFS")).map(|line| format!("{line}\n")).collect();
    fs::write(file, without).unwrap();
    a.run(&["publish", tree.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(file).unwrap(), whole);
}

#[test]
fn a_second_fetch_needs_no_network() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (_, published) = publish_tree(&a, "again", 5, 1 << 20);
    let path = published["path"].as_str().unwrap();
    // No peer is named: the cache says which there are.
    let said = fetch(&c, path, &at_a.http, &key, &[]).ok().one();
    assert_eq!(said["source"], "bitswap", "{said}");
    let other = c.dir().join("other.nar");
    let args = ["fetch", "--json", path, "--from", &at_a.http, "--trusted-public-key", &key, "--nar"];
    let said = c.run(&[&args[..], &[other.to_str().unwrap()]].concat()).ok().one();
    assert_eq!(said["source"], "local", "{said}");
    assert_eq!(fs::metadata(other).unwrap().len(), published["narSize"].as_u64().unwrap());
}

#[test]
fn a_cache_directory_with_its_nars_written_needs_no_node_to_serve_it() {
    let a = Machine::new();
    a.key();
    let tree = a.dir().join("static");
    make_tree(&tree, 6, 300_000);
    let (cache, tree) = (a.dir().join("cache"), tree.to_str().unwrap().to_owned());
    let args = ["publish", "--json", "--write-nars", "--cache", cache.to_str().unwrap(), &tree];
    let published = a.run(&args).ok().one();
    let hash = published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let nar = fs::read(cache.join(format!("nar/{hash}.nar"))).unwrap();
    assert_eq!(nar.len() as u64, published["narSize"].as_u64().unwrap());
    assert_eq!(nar, a.serve(&[]).get(&format!("/nar/{hash}.nar")).body);
    assert!(cache.join("nix-cache-info").exists());
}

#[test]
fn many_small_paths_and_a_large_one_come_whole_and_in_order() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let trees: Vec<PathBuf> = (0..40).map(|number| a.dir().join(format!("tree-{number:02}"))).collect();
    for (number, tree) in trees.iter().enumerate() {
        make_tree(tree, 100 + number as u64, if number == 20 { 6 << 20 } else { 20_000 * number });
    }
    let mut args = vec!["publish", "--json"];
    args.extend(trees.iter().map(|tree| tree.to_str().unwrap()));
    let published = a.run(&args).ok().json();
    let out = c.dir().join("out");
    fs::create_dir_all(&out).unwrap();
    let mut args = vec!["fetch", "--json", "--from", &at_a.http, "--trusted-public-key", &key];
    args.extend(["--out", out.to_str().unwrap()]);
    args.extend(published.iter().map(|path| path["path"].as_str().unwrap()));
    let fetched = c.run(&args).ok().json();
    assert_eq!(fetched.len(), 40);
    assert!(fetched.iter().all(|path| path["source"] == "bitswap"), "{fetched:?}");
    for (tree, path) in trees.iter().zip(&published) {
        let name = path["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        assert_eq!(describe(tree), describe(&out.join(name)));
    }
}

#[test]
fn a_mirror_takes_only_the_paths_that_a_list_names_from_a_file_or_from_a_url() {
    let (a, b) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (_, one) = publish_tree(&a, "one", 7, 100_000);
    let (_, two) = publish_tree(&a, "two", 8, 100_000);
    let list = b.dir().join("list");
    fs::write(&list, format!("\n{}\n", one["path"].as_str().unwrap())).unwrap();
    let pull = |list: &str| {
        let args = ["mirror", "pull", &at_a.http, "--trusted-public-key", &key, "--json", "--store-paths", list];
        b.run(&args).ok().json()
    };
    let pulled = pull(list.to_str().unwrap());
    assert_eq!(pulled.len(), 1, "{pulled:?}");
    assert_eq!(pulled[0]["path"], one["path"]);
    let pulled = pull(&format!("{}/nipfs-paths", at_a.http));
    assert_eq!(pulled.len(), 2, "{pulled:?}");
    assert!(pulled.iter().any(|path| path["path"] == two["path"] && path["state"] == "fetched"), "{pulled:?}");
}
