use super::*;
use crate::nix::dump::dump;
use nipfs_proto::dag::LeafKind;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

fn store_path(digit: char) -> StorePath {
    StorePath::from_base_name(&format!("{}-name", digit.to_string().repeat(32))).unwrap()
}

/// A tree with all kinds of nodes, empty ones and nested ones; its NAR.
fn odd_tree(path: &Path) -> Vec<u8> {
    fs::create_dir_all(path.join("deep/er/empty")).unwrap();
    for (name, length) in [("a", 1), ("deep/b", 0), ("deep/er/c", 5000), ("deep/er/d", 8), ("z", 777)] {
        fs::write(path.join(name), (0..=250).cycle().take(length).collect::<Vec<u8>>()).unwrap();
    }
    fs::write(path.join("a.b"), "sorted before a directory named a").unwrap();
    fs::set_permissions(path.join("z"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/nowhere", path.join("deep/link")).unwrap();
    nar(path)
}

fn nar(path: &Path) -> Vec<u8> {
    let mut nar = Vec::new();
    dump(path, &mut nar).unwrap();
    nar
}

fn part(tree: &StorePath, offset: usize, length: usize) -> Part {
    Part { tree: tree.clone(), offset: offset as u64, length: u32::try_from(length).unwrap(), kind: LeafKind::Raw }
}

fn assert_all_parts(trees: &Trees, tree: &StorePath, nar: &[u8]) {
    for length in [1, 7, 64, 1000, nar.len()].into_iter().filter(|length| *length <= nar.len()) {
        for offset in (0..=nar.len() - length).step_by(length.min(13)) {
            let read = trees.read(&part(tree, offset, length)).unwrap();
            assert_eq!(read.as_deref(), Some(&nar[offset..offset + length]), "{length} bytes at {offset}");
        }
    }
    assert_eq!(trees.read(&part(tree, 1, nar.len())).unwrap(), None);
}

#[test]
fn every_part_of_a_nar_is_read_from_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::new(dir.path());
    let [tree, file, link] = ['0', '1', '2'].map(store_path);
    let nar_of_tree = odd_tree(&trees.path(&tree));
    assert_all_parts(&trees, &tree, &nar_of_tree);
    fs::write(trees.path(&file), "one file").unwrap();
    assert_all_parts(&trees, &file, &nar(&trees.path(&file)));
    symlink("somewhere", trees.path(&link)).unwrap();
    assert_all_parts(&trees, &link, &nar(&trees.path(&link)));
}

#[test]
fn a_tree_that_changed_shape_gives_nothing_or_what_a_hash_refuses_and_never_waits() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::new(dir.path());
    let tree = store_path('0');
    let nar = odd_tree(&trees.path(&tree));
    let whole = part(&tree, 0, nar.len());
    assert!(trees.read(&whole).unwrap().is_some());
    let file = trees.path(&tree).join("deep/er/c");
    fs::write(&file, "shorter").unwrap();
    assert_eq!(trees.read(&whole).unwrap(), None);
    fs::remove_file(&file).unwrap();
    assert_eq!(trees.read(&whole).unwrap(), None);
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(trees.read(&whole).unwrap(), None);
    trees.trust(&tree);
    assert_eq!(trees.read(&whole).unwrap(), None, "a tree with a FIFO has no NAR");
    fs::remove_dir_all(trees.path(&tree)).unwrap();
    assert_eq!(trees.read(&whole).unwrap(), None);
    assert!(!trees.is_sound(&tree));
}

#[test]
fn a_tree_that_comes_back_whole_is_sound_again_and_one_that_changed_is_not_until_it_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::new(dir.path());
    let tree = store_path('0');
    trees.distrust(&tree);
    assert!(!trees.is_sound(&tree));
    odd_tree(&trees.path(&tree));
    assert!(trees.is_sound(&tree));
    trees.distrust(&tree);
    assert!(!trees.is_sound(&tree) && trees.exists(&tree));
    trees.trust(&tree);
    assert!(trees.is_sound(&tree));
}
