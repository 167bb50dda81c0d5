use super::*;
use crate::cache::{Audience, Claim};
use crate::jobs::tests::noise;
use crate::node::Settings;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::{NarInfo, PathInfo};
use nipfs_proto::nix::store_path::StorePath;
use std::os::unix::fs::FileExt as _;

fn path(name: &str) -> StorePath {
    let digit = name.len() % 10;
    StorePath::from_base_name(&format!("{}-nipfs-test-{name}", digit.to_string().repeat(32))).unwrap()
}

#[tokio::test]
async fn paths_that_cannot_be_copied_do_not_end_the_repair_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(Settings { state: dir.path().join("state"), ..Settings::default() }).await.unwrap();
    let (contents, nar) = noise(dir.path());
    let staged = node.cache().stage(&nar[..], Profile::UnixfsV0_2015).unwrap();
    // Neither tree is there: the one path is forgotten with the next gc, the other is broken.
    for (name, keep) in [("weak", Keep::Weak), ("rooted", Keep::Rooted)] {
        let (nar_hash, nar_size, references, signatures) = (staged.nar_hash, staged.nar_size, Vec::new(), Vec::new());
        let info = PathInfo { path: path(name), nar_hash, nar_size, references, deriver: None, signatures, ca: None };
        let narinfo = NarInfo::new(&info).unwrap();
        node.cache().commit(Claim::Own(&narinfo, keep), Some(&staged), Audience::World).unwrap();
    }
    let pack = node.state().join("store/packs/00000001.pack");
    let bytes = std::fs::read(&pack).unwrap();
    let at = bytes.windows(contents.len()).position(|window| window == contents).unwrap();
    let pack = std::fs::OpenOptions::new().write(true).open(pack).unwrap();
    pack.write_all_at(&[!contents[0]], at as u64).unwrap();
    node.store().block(&staged.root).unwrap_err();

    let mut broken = Vec::new();
    keep_copies(&node, &mut broken, Arc::new(node.store().lease())).await.unwrap();
    assert_eq!(broken, [path("rooted").to_absolute_path()]);
}
