//! The same block under CIDs of both versions: peers find it by its hash.

use crate::common::{Machine, make_tree, other_version};

#[test]
fn a_dag_is_found_under_a_cid_of_the_other_version() {
    let a = Machine::new();
    a.key();
    let serving = a.serve(&[]);
    let tree = a.dir().join("tree");
    make_tree(&tree, 7, 3 << 20);
    for chunker in ["size-262144", "unixfs-v1-2025"] {
        let args = ["publish", "--json", "--chunker", chunker, tree.to_str().unwrap()];
        let root = a.run(&args).ok().one()["root"].as_str().unwrap().to_owned();
        assert_eq!(root.starts_with("Qm"), chunker == "size-262144");
        let other = other_version(&root);
        let c = Machine::new();
        c.run(&["pin", "add", &other, "--peer", &serving.peer]).ok();
        assert!(c.run(&["pin", "ls"]).ok().stdout.contains(&other));
    }
}
