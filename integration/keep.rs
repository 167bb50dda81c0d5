//! `publish --keep rooted|weak`: the bytes stay in the Nix store of this machine, and Nix does with them what it does.

use crate::common::{Machine, describe, make_tree, noise};
use crate::nix::{nix, ok};
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of the one large file in each tree.
const SIZE: usize = 32 << 20;

/// A path of the machine's Nix that nobody else uses; deleted with its test.
struct Added(String);

impl Added {
    fn new(machine: &Machine, name: &str) -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let tree = machine.dir().join(name);
        make_tree(&tree, u64::try_from(seed % u128::from(u64::MAX)).unwrap(), SIZE);
        Self(ok(nix(machine.dir(), "nix-store", &["--add", tree.to_str().unwrap()])))
    }

    fn path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Whether Nix was willing to delete it.
    fn delete(&self) -> bool {
        nix(Path::new("/"), "nix-store", &["--delete", &self.0]).status.success()
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        self.delete();
    }
}

/// Bytes that a directory takes on the disk.
fn usage(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let (mut total, mut waiting) = (0, vec![dir.to_owned()]);
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        total += meta.blocks() * 512;
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    total
}

fn gc_roots(machine: &Machine) -> Vec<PathBuf> {
    let entries = fs::read_dir(machine.state().join("gcroots"));
    entries.map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

#[test]
fn a_rooted_path_takes_no_second_copy_and_stays_as_long_as_its_pin() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let added = Added::new(&a, "nipfs-test-rooted");
    let path = added.0.as_str();
    a.run(&["status"]).ok();
    let before = usage(&a.state());
    a.run(&["publish", "--keep", "rooted", path]).ok();
    let grown = usage(&a.state()) - before;
    assert!(grown < SIZE as u64 / 50, "{grown} bytes for {SIZE}");
    assert!(!added.delete(), "Nix keeps it");

    let out = c.dir().join("out");
    let serving = a.serve(&[]);
    let (http, peer, into) = (serving.http.as_str(), serving.peer.as_str(), out.to_str().unwrap());
    fs::create_dir(&out).unwrap();
    let args = ["fetch", "--json", path, "--from", http, "--peer", peer, "--trusted-public-key", &key, "--out", into];
    assert_eq!(c.run(&args).ok().one()["source"], "bitswap");
    assert_eq!(describe(added.path()), describe(&out.join(added.path().file_name().unwrap())));

    a.run(&["publish", "--keep", "weak", path]).ok();
    assert_eq!(gc_roots(&a), [""; 0].map(PathBuf::from), "the last word counts");
    a.run(&["publish", "--keep", "rooted", path]).ok();
    assert_eq!(gc_roots(&a).len(), 1);
    assert!(!added.delete());
    a.run(&["pin", "rm", path]).ok();
    a.run(&["gc"]).ok();
    assert_eq!(gc_roots(&a), [""; 0].map(PathBuf::from));
    assert!(added.delete());
}

#[test]
fn a_weak_path_goes_when_nix_deletes_it_and_is_fetched_from_who_has_it() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let added = Added::new(&a, "nipfs-test-weak");
    let path = added.0.as_str();
    let described = describe(added.path());
    let (at_a, at_b) = (a.serve(&[]), b.serve(&[]));
    a.run(&["publish", "--keep", "weak", path]).ok();
    assert_eq!(gc_roots(&a), [""; 0].map(PathBuf::from));
    b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key]).ok();
    assert!(added.delete(), "nothing of ours keeps it");
    let narinfo = format!("/{}.narinfo", &path["/nix/store/".len()..][..32]);
    assert_eq!(at_a.get(&narinfo).status, 404);
    assert_eq!(at_a.get("/nipfs-paths").text(), "");
    let out = c.dir().join("out");
    fs::create_dir(&out).unwrap();
    let fetch = |from: &str, peer: &str| {
        let out = out.to_str().unwrap();
        c.run(&["fetch", "--json", path, "--from", from, "--peer", peer, "--trusted-public-key", &key, "--out", out])
    };
    fetch(&at_a.http, &at_a.peer).fails(4, &["not found"]);
    assert_eq!(fetch(&at_b.http, &at_a.peer).ok().one()["source"], "bitswap");
    assert_eq!(describe(&out.join(added.path().file_name().unwrap())), described);
    a.run(&["verify", "--deep"]).ok();
    assert!(a.state().join("cache").join(&narinfo[1..]).exists());
    assert_eq!(a.run(&["gc", "--json"]).ok().one()["droppedPaths"][0], path);
    assert!(!a.state().join("cache").join(&narinfo[1..]).exists());
    assert_eq!(a.run(&["pin", "ls"]).ok().stdout, "");
    assert_eq!(a.run(&["status", "--json"]).ok().one()["blocks"], 0);
}

#[test]
fn gc_with_a_mirror_takes_back_the_narinfo_of_what_went_with_its_tree_and_no_other() {
    let (a, b) = (Machine::new(), Machine::new());
    let key = a.key();
    let added = Added::new(&a, "nipfs-test-went");
    let file = a.dir().join("file");
    fs::write(&file, noise(2, 1 << 20)).unwrap();
    let (at_a, at_b) = (a.serve(&[]), b.serve(&[]));
    a.run(&["publish", "--keep", "weak", &added.0]).ok();
    let copied = a.run(&["publish", "--json", file.to_str().unwrap()]).ok().one();
    b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key]).ok();
    assert!(added.delete());
    let gc = a.run(&["gc", "--json", "--max-size", "0", "--require-mirror", &at_b.peer]).ok().one();
    assert_eq!(gc["droppedPaths"], serde_json::json!([added.0, copied["path"]]));
    assert!(Path::new(copied["narinfo"].as_str().unwrap()).exists());
    let narinfo = format!("cache/{}.narinfo", &added.0["/nix/store/".len()..][..32]);
    assert!(!a.state().join(narinfo).exists());
}

#[test]
fn a_bit_that_flipped_in_the_nix_store_is_served_to_nobody_and_copying_it_is_refused() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let added = Added::new(&a, "nipfs-test-flipped");
    let path = added.0.as_str();
    let serving = a.serve(&[]);
    let published = a.run(&["publish", "--json", "--keep", "weak", path]).ok().one();
    let nar = format!("/nar/{}.nar", published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap());
    assert_eq!(serving.get(&nar).status, 200);
    let file = added.path().join("share/deep/er/noise");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 10).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 10).unwrap();
    let out = c.dir().join("out");
    fs::create_dir(&out).unwrap();
    let (http, peer, into) = (&serving.http, &serving.peer, out.to_str().unwrap());
    let args = ["fetch", path, "--from", http, "--peer", peer, "--trusted-public-key", &key, "--out", into];
    c.run(&args).fails(4, &[path]);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    assert_eq!(serving.get(&nar).status, 404);
    assert_eq!(serving.log().matches("has changed").count(), 1, "{}", serving.log());
    a.run(&["publish", path]).fails(3, &["has changed"]);
    a.run(&["verify", "--deep"]).fails(5, &[]);
    // Whole again, as `nix-store --repair-path` makes it.
    file.write_all_at(&byte, 10).unwrap();
    a.run(&["verify", "--deep"]).ok();
    c.run(&args).ok();
}

#[test]
fn what_cannot_be_kept_outside_is_refused_with_the_reason() {
    let a = Machine::new();
    a.key();
    let file = a.dir().join("file");
    fs::write(&file, noise(1, 10)).unwrap();
    a.run(&["publish", "--keep", "rooted", file.to_str().unwrap()]).fails(2, &["must be copied", "without --keep"]);
    let added = Added::new(&a, "nipfs-test-refused");
    let mut command = a.command(&["publish", "--keep", "rooted", &added.0]);
    command.env("PATH", "/nonexistent").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    Machine::finish(command.spawn().unwrap()).fails(1, &["cannot make a GC root", "nix-store", "--keep weak"]);
    assert_eq!(a.run(&["pin", "ls"]).ok().stdout, "");
    // Somebody's own tree at the place of a store path is not Nix's.
    let stray = "/nix/store/00000000000000000000000000000000-nipfs-test-stray";
    fs::create_dir(stray).unwrap();
    let said = a.run(&["publish", "--keep", "weak", stray]);
    fs::remove_dir(stray).unwrap();
    said.fails(2, &["not valid"]);
}
