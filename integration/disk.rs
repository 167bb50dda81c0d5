//! A full disk, for real: the store on a small tmpfs. Needs root, as `make test` in CI is.

use crate::common::{Machine, describe, make_tree};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A tmpfs that is unmounted when dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(at: &'a Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at);
        assert!(mount.status().unwrap().success(), "cannot mount a tmpfs: run this as root");
        Self(at)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_so_and_loses_nothing() {
    let (a, c) = (Machine::new(), Machine::new());
    let state = a.state();
    let _small = Small::mount(&state, "64m");
    let key = a.key();
    let (fits, too_much) = (a.dir().join("fits"), a.dir().join("too-much"));
    make_tree(&fits, 70, 8 << 20);
    make_tree(&too_much, 71, 200 << 20);
    let published = a.run(&["publish", "--json", fits.to_str().unwrap()]).ok().one();
    a.run(&["publish", too_much.to_str().unwrap()]).fails(6, &["no space"]);

    let serving = a.serve(&[]);
    let path = published["path"].as_str().unwrap();
    let out = c.dir().join("out");
    fs::create_dir_all(&out).unwrap();
    let args = ["fetch", path, "--from", &serving.http, "--peer", &serving.peer, "--trusted-public-key", &key, "--out"];
    c.run(&[&args[..], &[out.to_str().unwrap()]].concat()).ok();
    assert_eq!(describe(&fits), describe(&out.join(Path::new(path).file_name().unwrap())));
    a.run(&["verify", "--deep"]).ok();
    // GC frees what the failed publish left, though the disk is full; then there is room again.
    let freed = a.run(&["gc", "--json"]).ok().one();
    assert!(freed["freedBytes"].as_u64().unwrap() > 16 << 20, "{freed}");
    let small = a.dir().join("small");
    make_tree(&small, 72, 8 << 20);
    a.run(&["publish", small.to_str().unwrap()]).ok();
    a.run(&["verify", "--deep"]).ok();
}
