use super::*;
use crate::nix::dump::{dump, tests::odd_tree};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

fn nar(path: &Path) -> Vec<u8> {
    let mut nar = Vec::new();
    dump(path, &mut nar).expect("dumped");
    nar
}

fn unpack(nar: &[u8], target: &Path) -> Result<(), UnpackError> {
    let mut unpack = Unpack::new(target)?;
    for piece in nar.chunks(1000) {
        unpack.write(piece)?;
    }
    publish(vec![unpack.finish()?]).remove(0)
}

/// Names in a directory, sorted.
fn list(directory: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(directory).expect("read_dir");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("entry").file_name()).collect();
    names.sort();
    names
}

fn assert_canonical(path: &Path) {
    let metadata = fs::symlink_metadata(path).expect("metadata");
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1, 0), "{}", path.display());
    if metadata.is_dir() {
        assert_eq!(metadata.mode() & 0o7777, 0o555, "{}", path.display());
        list(path).into_iter().for_each(|name| assert_canonical(&path.join(name)));
    } else if metadata.is_file() {
        assert!(matches!(metadata.mode() & 0o7777, 0o444 | 0o555), "{}", path.display());
    }
}

/// A NAR of one directory with one file, and where it may be cut so that the file is open.
fn small_nar() -> (Vec<u8>, usize) {
    let temp = tempfile::tempdir().expect("tempdir");
    fs::create_dir(temp.path().join("sub")).expect("mkdir");
    fs::write(temp.path().join("sub/file"), [b'Z'; 100]).expect("write");
    let nar = nar(temp.path());
    let cut = nar.iter().position(|byte| *byte == b'Z').expect("contents") + 50;
    (nar, cut)
}

#[test]
fn what_is_dumped_and_unpacked_is_the_same_tree() {
    let temp = tempfile::tempdir().expect("tempdir");
    let original = temp.path().join("original");
    odd_tree(&original);
    for root in ["", "run", "link", "deep/er/empty", "others-only"] {
        let nar_of_original = nar(&original.join(root));
        let out = tempfile::tempdir().expect("tempdir");
        let target = out.path().join("target");
        unpack(&nar_of_original, &target).expect("unpacked");
        assert_eq!(nar(&target), nar_of_original, "{root}");
        assert_canonical(&target);
        assert_eq!(list(out.path()), ["target"]);
        make_removable(&target);
    }
}

/// Lets `TempDir` remove a tree of read-only directories without being root.
fn make_removable(path: &Path) {
    let directory = path.parent().expect("a parent");
    let parent = rustix::fs::open(directory, OFlags::RDONLY, Mode::empty()).expect("open");
    remove_tree(parent.as_fd(), path.file_name().expect("a name")).expect("removed");
}

#[test]
fn vectors() {
    let Some(folder) = std::env::var_os("NIPFS_VECTORS").map(|folder| PathBuf::from(folder).join("nar")) else {
        println!("skipped: NIPFS_VECTORS is not set");
        return;
    };
    let cases = fs::read(folder.join("cases.json")).expect("cases.json");
    let cases: serde_json::Value = serde_json::from_slice(&cases).expect("JSON");
    for case in cases["cases"].as_array().expect("cases") {
        let file = case["file"].as_str().expect("file");
        let bytes = fs::read(folder.join(file)).expect(file);
        let out = tempfile::tempdir().expect("tempdir");
        let target = out.path().join("target");
        match unpack(&bytes, &target) {
            Ok(()) => {
                assert_eq!(case["valid"], true, "{file}");
                assert_eq!(nar(&target), bytes, "{file}");
                make_removable(&target);
            }
            Err(error) => {
                assert_eq!(case["valid"], false, "{file}: {error}");
                assert!(matches!(error, UnpackError::Nar(_)), "{file}: {error}");
            }
        }
        assert!(list(out.path()).is_empty(), "{file}");
    }
}

#[test]
fn an_existing_target_is_not_touched() {
    let (nar, _) = small_nar();
    let temp = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| temp.path().join(name);
    fs::write(at("file"), "mine").expect("write");
    fs::create_dir(at("empty")).expect("mkdir");
    symlink("/nowhere", at("dangling")).expect("symlink");
    symlink("empty", at("link")).expect("symlink");
    for name in ["file", "empty", "dangling", "link"] {
        assert!(matches!(unpack(&nar, &at(name)), Err(UnpackError::Exists(path)) if path == at(name)));
    }
    assert_eq!(list(temp.path()), ["dangling", "empty", "file", "link"]);
    assert_eq!(fs::read(at("file")).expect("read"), b"mine");
    assert!(list(&at("empty")).is_empty());
}

#[test]
fn a_target_that_appears_meanwhile_is_not_touched() {
    let (nar, _) = small_nar();
    let temp = tempfile::tempdir().expect("tempdir");
    for make in [
        |path: &Path| fs::create_dir(path),
        |path: &Path| fs::write(path, "mine"),
        |path: &Path| symlink("/nowhere", path),
    ] {
        let target = temp.path().join("target");
        let mut unpack = Unpack::new(&target).expect("new");
        unpack.write(&nar).expect("written");
        make(&target).expect("made");
        let complete = unpack.finish().expect("complete");
        assert!(matches!(publish(vec![complete]).remove(0), Err(UnpackError::Exists(path)) if path == target));
        assert_eq!(list(temp.path()), ["target"]);
        fs::remove_dir(&target).or_else(|_| fs::remove_file(&target)).expect("removed");
    }
}

#[test]
fn a_tree_whose_place_is_taken_holds_up_no_other() {
    let (nar, _) = small_nar();
    let temp = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| temp.path().join(name);
    let complete = |name: &&str| {
        let mut unpack = Unpack::new(&at(name)).expect("new");
        unpack.write(&nar).expect("written");
        unpack.finish().expect("complete")
    };
    let trees = ["before", "taken", "after"].iter().map(complete).collect();
    assert_eq!(list(temp.path()).iter().filter(|name| name.as_bytes().starts_with(PREFIX.as_bytes())).count(), 3);
    fs::write(at("taken"), "mine").expect("write");
    let published = publish(trees);
    assert!(matches!(&published[..], [Ok(()), Err(UnpackError::Exists(path)), Ok(())] if *path == at("taken")));
    assert_eq!(list(temp.path()), ["after", "before", "taken"]);
    ["after", "before"].iter().for_each(|name| make_removable(&at(name)));
}

#[test]
fn the_rename_without_flags_replaces_nothing() {
    let temp = tempfile::tempdir().expect("tempdir");
    let parent = rustix::fs::open(temp.path(), OFlags::RDONLY, Mode::empty()).expect("open");
    let at = |name: &str| temp.path().join(name);
    let rename = |from: &str, to: &str| rename_without_flags(parent.as_fd(), from, OsStr::new(to));
    fs::create_dir_all(at("tree/sub")).expect("mkdir");
    fs::write(at("one"), "1").expect("write");
    symlink("/nowhere", at("link")).expect("symlink");
    for from in ["tree", "one", "link"] {
        for to in ["tree", "one", "link"] {
            assert_eq!(rename(from, to), Err(Errno::EXIST), "{from} to {to}");
        }
    }
    for from in ["tree", "one", "link"] {
        rename(from, &from.to_uppercase()).expect("renamed");
    }
    assert_eq!(list(temp.path()), ["LINK", "ONE", "TREE"]);
    assert_eq!(list(&at("TREE")), ["sub"]);
    assert_eq!(fs::read_link(at("LINK")).expect("a symlink"), Path::new("/nowhere"));
}

#[test]
fn an_unfinished_tree_is_removed() {
    let (nar, cut) = small_nar();
    let temp = tempfile::tempdir().expect("tempdir");
    let target = temp.path().join("target");
    let mut dropped = Unpack::new(&target).expect("new");
    dropped.write(&nar[..cut]).expect("written");
    assert_eq!(list(temp.path()).len(), 1);
    drop(dropped);
    assert!(list(temp.path()).is_empty());
    assert!(matches!(unpack(&nar[..cut], &target), Err(UnpackError::Nar(_))), "truncated");
    assert!(list(temp.path()).is_empty());
    let mut complete = Unpack::new(&target).expect("new");
    complete.write(&nar).expect("written");
    drop(complete);
    assert!(list(temp.path()).is_empty(), "directories are read-only by then");
}

#[test]
fn after_a_failure_nothing_succeeds() {
    let (nar, cut) = small_nar();
    let temp = tempfile::tempdir().expect("tempdir");
    let mut unpack = Unpack::new(&temp.path().join("target")).expect("new");
    unpack.write(&nar[..cut]).expect("written");
    unpack.write(&[1; 4096]).expect_err("not a NAR");
    assert!(matches!(unpack.write(&nar[cut..]), Err(UnpackError::Failed(_))));
    assert!(matches!(unpack.finish(), Err(UnpackError::Failed(_))));
    assert!(list(temp.path()).is_empty());
}

#[test]
fn nothing_is_written_through_a_symlink_that_takes_a_directorys_place() {
    let (nar, cut) = small_nar();
    let temp = tempfile::tempdir().expect("tempdir");
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let target = temp.path().join("target");
    let entry = nar.windows(4).position(|window| window == b"file").expect("the file's name");
    let mut unpack = Unpack::new(&target).expect("new");
    unpack.write(&nar[..entry]).expect("written");
    let root = temp.path().join(&list(temp.path())[0]);
    fs::rename(root.join("sub"), root.join("moved")).expect("moved away");
    symlink(elsewhere.path(), root.join("sub")).expect("symlink");
    unpack.write(&nar[entry..cut]).expect("written");
    assert!(list(elsewhere.path()).is_empty());
    assert_eq!(list(&root.join("moved")), ["file"]);
}

#[test]
fn leftovers_are_removed_and_living_trees_are_not() {
    let (nar, cut) = small_nar();
    let temp = tempfile::tempdir().expect("tempdir");
    let mut living = Unpack::new(&temp.path().join("target")).expect("new");
    living.write(&nar[..cut]).expect("written");
    let living_name = list(temp.path()).remove(0);
    let dead = temp.path().join(".nipfs-0123456789abcdef");
    unpack(&nar, &dead).expect("a tree with read-only directories");
    fs::write(temp.path().join(".nipfs-fedcba9876543210"), "a file").expect("write");
    let kept = ["0123", ".nipfs-", ".nipfs-0123456789abcdeg", ".nipfs-0123456789abcdef0", "x.nipfs-0123456789abcdef"];
    kept.iter().for_each(|name| fs::write(temp.path().join(name), "mine").expect("write"));
    symlink("/", temp.path().join(".nipfs-0000000000000000")).expect("symlink");
    assert_eq!(clean_leftovers(temp.path()).expect("cleaned"), 2);
    let mut expected: Vec<OsString> = kept.iter().map(OsString::from).collect();
    expected.extend([living_name, ".nipfs-0000000000000000".into()]);
    expected.sort();
    assert_eq!(list(temp.path()), expected);
    living.write(&nar[cut..]).expect("written");
    publish(vec![living.finish().expect("complete")]).remove(0).expect("published");
    make_removable(&temp.path().join("target"));
}

#[test]
fn errors_name_the_path_it_was_about() {
    let temp = tempfile::tempdir().expect("tempdir");
    let absent = temp.path().join("absent/target");
    let error = Unpack::new(&absent).expect_err("no such directory").to_string();
    assert_eq!(error, format!("cannot open: {}", temp.path().join("absent").display()));
    assert!(matches!(Unpack::new(Path::new("/")), Err(UnpackError::Target(_))));
    assert!(matches!(Unpack::new(Path::new("a/..")), Err(UnpackError::Target(_))));
    let (nar, _) = small_nar();
    let target = temp.path().join("target");
    let entry = nar.windows(4).position(|window| window == b"file").expect("the file's name");
    let mut unpack = Unpack::new(&target).expect("new");
    unpack.write(&nar[..entry]).expect("written");
    let root = temp.path().join(&list(temp.path())[0]);
    fs::write(root.join("sub/file"), "in the way").expect("write");
    let error = unpack.write(&nar[entry..]).expect_err("in the way").to_string();
    assert_eq!(error, format!("cannot create the file: {}", target.join("sub/file").display()));
}
