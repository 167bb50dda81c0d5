use super::*;
use crate::node::Settings;
use nipfs_proto::nix::NarHash;
use rusqlite::{Connection, params};
use std::os::unix::fs::symlink;
use tempfile::TempDir;

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-nipfs-test-{name}", "0".repeat(32))).unwrap()
}

/// A node beside a Nix that has registered one path, `there`, with the hash of nothing.
async fn node() -> (TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let nix_state = dir.path().join("nix");
    std::fs::create_dir_all(nix_state.join("db")).unwrap();
    std::fs::write(nix_state.join("db/schema"), "10").unwrap();
    let connection = Connection::open(nix_state.join("db/db.sqlite")).unwrap();
    let tables = "
        CREATE TABLE ValidPaths (id integer primary key, path text, hash text, registrationTime integer, deriver text,
            narSize integer, ultimate integer, sigs text, ca text);
        CREATE TABLE Refs (referrer integer, reference integer);";
    connection.execute_batch(tables).unwrap();
    let insert = "INSERT INTO ValidPaths (path, hash, registrationTime, narSize) VALUES (?, ?, 1, 120)";
    connection.execute(insert, params![path("there").to_string(), NarHash::of(b"").to_string()]).unwrap();
    let settings = Settings { state: dir.path().join("state"), nix_state, ..Settings::default() };
    (dir, Node::open(settings).await.unwrap())
}

fn narinfo(name: &str, nar_hash: NarHash) -> NarInfo {
    narinfo_of(path(name), nar_hash)
}

fn narinfo_of(path: StorePath, nar_hash: NarHash) -> NarInfo {
    let (references, signatures) = (Vec::new(), Vec::new());
    let info = PathInfo { path, nar_hash, nar_size: 120, references, deriver: None, signatures, ca: None };
    NarInfo::new(&info).unwrap()
}

#[tokio::test]
async fn the_node_takes_nobodys_word_for_what_nix_holds() {
    let (_dir, node) = node().await;
    let (events, _receiver) = Events::channel();
    for name in ["/etc/passwd", "/nix/store/../../etc", &path("strange").to_string()] {
        let failure = stage(&node, name, Profile::UnixfsV0_2015, &events).await.unwrap_err();
        assert_eq!(failure.class, Class::Usage, "{failure}");
        assert!(failure.to_string().contains(name), "{failure}");
    }
    // Registered, and not there.
    stage(&node, &path("there").to_string(), Profile::UnixfsV0_2015, &events).await.unwrap_err();
    for keep in [Keep::Rooted, Keep::Weak] {
        let paths = [narinfo("strange", NarHash::of(b"")), narinfo("there", NarHash::of(b"x"))];
        let committed = commit(&node, paths.map(|narinfo| (narinfo, None)).into(), keep).await;
        let classes: Vec<_> = committed.into_iter().map(|committed| committed.unwrap_err().class).collect();
        assert_eq!(classes, [Class::Usage, Class::Refused]);
    }
    assert_eq!(node.store().paths().count(), 0);
}

#[tokio::test]
async fn a_root_that_a_crash_left_goes_with_the_next_release() {
    let (_dir, node) = node().await;
    release(&node).await.unwrap();
    let roots = node.state().join("gcroots");
    std::fs::create_dir(&roots).unwrap();
    symlink(path("left").to_string(), roots.join(path("left").base_name())).unwrap();
    std::fs::write(roots.join("README"), "not ours").unwrap();
    release(&node).await.unwrap();
    let left: Vec<_> = std::fs::read_dir(&roots).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["README"]);
}

#[tokio::test]
async fn paths_whose_trees_went_together_are_forgotten_with_one_commit() {
    let (dir, node) = node().await;
    let (file, mut nar) = (dir.path().join("file"), Vec::new());
    std::fs::write(&file, [7; 8]).unwrap();
    dump(&file, &mut nar).unwrap();
    let staged = node.cache().stage(&nar[..], Profile::UnixfsV0_2015).unwrap();
    for number in 0..40 {
        let gone = StorePath::from_base_name(&format!("{number:032}-nipfs-test-gone")).unwrap();
        let narinfo = narinfo_of(gone, staged.nar_hash);
        node.cache().commit(Claim::Own(&narinfo, Keep::Weak), Some(&staged), Audience::World).unwrap();
    }
    let packs = || {
        let packs = std::fs::read_dir(node.state().join("store/packs")).unwrap();
        packs.map(|pack| pack.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let before = packs();
    assert_eq!(forget_vanished(&node, true).await.unwrap().len(), 40);
    assert_eq!((packs(), node.store().paths().count()), (before, 40));
    assert_eq!(forget_vanished(&node, false).await.unwrap().len(), 40);
    assert_eq!(node.store().paths().count(), 0);
    // The header of one record has 64 bytes.
    let written = packs() - before;
    assert!(written < 40 * 64, "{written} bytes are more than one record");
}
