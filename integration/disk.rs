//! A full disk, for real: the store on a small tmpfs. Needs root, as `make test` in CI is.

use crate::common::{Machine, describe, make_tree};
use std::fs;
use std::os::unix::fs::PermissionsExt;
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

#[test]
fn an_upload_that_finds_the_disk_full_is_told_so_and_succeeds_when_there_is_room() {
    let a = Machine::new();
    let state = a.state();
    let _small = Small::mount(&state, "64m");
    let token = a.dir().join("token");
    fs::write(&token, "s3cret").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let serving = a.serve(&["--enable-upload", "--upload-token-file", token.to_str().unwrap()]);
    let nar = |name: &str, seed, size| {
        let tree = a.dir().join(name);
        make_tree(&tree, seed, size);
        let dump = Command::new("nix-store").arg("--dump").arg(&tree).output().unwrap();
        assert!(dump.status.success());
        let file = a.dir().join(format!("{name}.nar"));
        fs::write(&file, dump.stdout).unwrap();
        let hash =
            Command::new("nix-hash").args(["--type", "sha256", "--base32", "--flat"]).arg(&file).output().unwrap();
        (file, String::from_utf8(hash.stdout).unwrap().trim().to_owned())
    };
    let put = |(file, hash): &(std::path::PathBuf, String)| {
        let url = format!("{}/nar/{hash}.nar", serving.http);
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-u", "x:s3cret", "-o", "/dev/null", "-w", "%{http_code}", "-T"]).arg(file).arg(url);
        let said = curl.output().unwrap();
        String::from_utf8(said.stdout).unwrap() + &String::from_utf8_lossy(&said.stderr)
    };
    let (fits, too_much) = (nar("fits", 73, 8 << 20), nar("too-much", 74, 200 << 20));
    assert_eq!(put(&fits), "201");
    assert_eq!(put(&too_much), "507");
    a.run(&["gc"]).ok();
    assert_eq!(put(&nar("small", 75, 8 << 20)), "201");
    a.run(&["verify", "--deep"]).ok();
}
