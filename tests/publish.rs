//! `publish` of several things in one command.

use crate::common::{Machine, make_tree};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// The narinfo's file of what a line of `publish --json` says.
fn narinfo(line: &serde_json::Value) -> PathBuf {
    PathBuf::from(line["narinfo"].as_str().unwrap())
}

fn trees(machine: &Machine, names: &[&str]) -> Vec<String> {
    let make = |(number, name): (usize, &&str)| {
        let tree = machine.dir().join(name);
        make_tree(&tree, 200 + number as u64, 1000 * (number + 1));
        tree.to_str().unwrap().to_owned()
    };
    names.iter().enumerate().map(make).collect()
}

fn publish(machine: &Machine, trees: &[String]) -> crate::common::Said {
    let args: Vec<_> = ["publish", "--json"].into_iter().chain(trees.iter().map(String::as_str)).collect();
    machine.run(&args)
}

#[test]
fn what_cannot_be_published_is_named_and_all_else_of_the_command_is_published() {
    let a = Machine::new();
    a.key();
    let names = ["first", "socket", "second", "taken", "third"];
    let trees = trees(&a, &names);
    let _socket = UnixListener::bind(a.dir().join("socket/socket")).unwrap();
    // What lies where the narinfo of one should be written cannot be replaced by a file.
    let taken = narinfo(&publish(&a, &trees[3..4]).ok().one());
    fs::remove_file(&taken).unwrap();
    fs::create_dir_all(taken.join("full")).unwrap();

    let said = publish(&a, &trees).fails(1, &[&trees[1], taken.to_str().unwrap()]);
    assert_eq!(said.stderr.matches("error:").count(), 2, "{said:#?}");
    let published = said.json();
    let of = |line: &serde_json::Value| line["path"].as_str().unwrap().rsplit('-').next().unwrap().to_owned();
    assert_eq!(published.iter().map(of).collect::<Vec<_>>(), ["first", "second", "third"]);
    let at_a = a.serve(&[]);
    for line in &published {
        let file = narinfo(line);
        let served = at_a.get(&format!("/{}", file.file_name().unwrap().to_str().unwrap()));
        assert_eq!(served.body, fs::read(&file).unwrap());
    }
    let left = fs::read_dir(taken.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_str().unwrap().starts_with(".nipfs-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_same_tree_twice_and_the_same_content_under_two_names_are_published_in_one_command() {
    let a = Machine::new();
    a.key();
    let mut trees = trees(&a, &["one"]);
    let other = a.dir().join("two");
    make_tree(&other, 200, 1000);
    trees.extend([other.to_str().unwrap().to_owned(), trees[0].clone()]);
    let published = publish(&a, &trees).ok().json();
    assert_eq!(published.len(), 3);
    assert_eq!(published[0]["narHash"], published[1]["narHash"]);
    assert_ne!(published[0]["path"], published[1]["path"]);
    assert_eq!(published[0]["path"], published[2]["path"]);
    assert_eq!(a.run(&["pin", "ls"]).ok().stdout.lines().count(), 2);
    a.run(&["verify", "--deep"]).ok();
}

#[test]
fn more_than_a_group_is_published_with_all_nars_beside_their_narinfos() {
    let a = Machine::new();
    a.key();
    let names: Vec<_> = (0..150).map(|number| format!("tree-{number:03}")).collect();
    let trees = trees(&a, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let args: Vec<_> =
        ["publish", "--json", "--write-nars"].into_iter().chain(trees.iter().map(String::as_str)).collect();
    let published = a.run(&args).ok().json();
    assert_eq!(published.len(), 150);
    for (line, name) in published.iter().zip(&names) {
        assert!(line["path"].as_str().unwrap().ends_with(name.as_str()), "{line}");
        let text = fs::read_to_string(narinfo(line)).unwrap();
        let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
        let nar = fs::metadata(narinfo(line).with_file_name(url)).unwrap();
        assert_eq!(nar.len(), line["narSize"].as_u64().unwrap());
    }
}
