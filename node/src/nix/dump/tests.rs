use super::*;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;

fn nar(path: &Path) -> Result<Vec<u8>, DumpError> {
    let mut nar = Vec::new();
    dump(path, &mut nar).map(|()| nar)
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(nar(path).expect("dumped"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn executable(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// A tree with all that is odd but legal.
pub(in crate::nix) fn odd_tree(root: &Path) {
    let put = |name: &[u8], contents: &[u8]| fs::write(root.join(OsStr::from_bytes(name)), contents).expect("write");
    fs::create_dir_all(root.join("deep/er/empty")).expect("mkdir");
    put(b"\xff\xfe", b"not UTF-8");
    put(b"new\nline", b"12345678");
    put(b"...", b"");
    put("n".repeat(255).as_bytes(), b"longest name");
    put(b"a", b"1");
    put(b"A", b"2");
    put(b"a~nix~case~hack~1", b"3");
    put(b"deep/large", &[7; PIECE * 2 + 3]);
    put(b"deep/exact", &[8; PIECE]);
    put(b"run", b"#!/bin/sh\n");
    put(b"others-only", b"not executable by its owner");
    executable(&root.join("run"), 0o744);
    executable(&root.join("others-only"), 0o655);
    symlink("run", root.join("link")).expect("symlink");
    symlink("/nowhere/at/all", root.join("dangling")).expect("symlink");
    symlink(OsStr::from_bytes(&[b't'; 1000]), root.join("far")).expect("symlink");
    symlink("..", root.join("deep/up")).expect("symlink");
    fs::hard_link(root.join("a"), root.join("hard")).expect("link");
}

#[test]
fn trees_have_the_nars_of_nix() {
    // `nix-store --dump … | sha256sum` of Nix 2.8 over the same trees.
    let temp = tempfile::tempdir().expect("tempdir");
    let root = temp.path().join("odd");
    odd_tree(&root);
    assert_eq!(sha256(&root), "1c175fc491d83bf4f4bfa895e93501ca25dc77d788ae9f4dbe08d3cbc1ee20a0");
    assert_eq!(sha256(&root.join("run")), "6283c1668260f903d1a895c0cd6b822fa4b68762bb0b17cedef2d39d97e26554");
    assert_eq!(sha256(&root.join("link")), "d19762f1703801a44d08f713ec27627c3f84ee1228ce0549287e7c8b13343edd");
    assert_eq!(sha256(&root.join("deep/er/empty")), "a50a5ab6d992f5598edd92105059fae9acfc192981e08bd88534c2167e92526a");
}

#[test]
fn what_no_nar_can_hold_is_refused_by_name() {
    let temp = tempfile::tempdir().expect("tempdir");
    fs::create_dir(temp.path().join("d")).expect("mkdir");
    let socket = temp.path().join("d/socket");
    let _listener = UnixListener::bind(&socket).expect("bind");
    assert!(matches!(nar(temp.path()), Err(DumpError::Unsupported(path)) if path == socket));
    assert!(matches!(nar(&socket), Err(DumpError::Unsupported(path)) if path == socket));
    fs::remove_file(&socket).expect("remove");
    let fifo = temp.path().join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("mkfifo");
    assert!(matches!(nar(temp.path()), Err(DumpError::Unsupported(path)) if path == fifo));
    assert!(matches!(nar(Path::new("/dev/null")), Err(DumpError::Unsupported(_))));
    let absent = temp.path().join("absent");
    assert!(matches!(nar(&absent), Err(DumpError::Read { path, .. }) if path == absent));
}

#[test]
fn depth_is_bounded_as_in_the_reader() {
    let temp = tempfile::tempdir().expect("tempdir");
    let mut path = temp.path().to_owned();
    path.extend((1..MAX_DEPTH).map(|_| "d"));
    fs::create_dir_all(&path).expect("mkdir");
    assert!(nar(temp.path()).is_ok());
    let file = path.join("file");
    fs::write(&file, "x").expect("write");
    assert!(matches!(nar(temp.path()), Err(DumpError::Depth(path)) if path == file));
}

/// Changes the length of a file when the first of its bytes arrive.
struct Meddler<'a> {
    file: &'a Path,
    length: u64,
}

impl Write for Meddler<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        File::options().write(true).open(self.file)?.set_len(self.length)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_meanwhile_is_an_error() {
    let temp = tempfile::tempdir().expect("tempdir");
    let file = temp.path().join("file");
    let length = 4 * PIECE as u64;
    for meddled in [0, length - 1, length + 1] {
        fs::write(&file, vec![1; 4 * PIECE]).expect("write");
        let dumped = dump(temp.path(), Meddler { file: &file, length: meddled });
        assert!(matches!(dumped, Err(DumpError::Changed(path)) if path == file), "{meddled}");
    }
    fs::write(&file, vec![1; 4 * PIECE]).expect("write");
    dump(temp.path(), Meddler { file: &file, length }).expect("same length");
}

#[test]
fn a_refusing_sink_ends_the_dump() {
    let temp = tempfile::tempdir().expect("tempdir");
    assert!(matches!(dump(temp.path(), &mut [0_u8; 8][..]), Err(DumpError::Write(_))));
}
