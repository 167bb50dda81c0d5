//! Peers that nobody named: what the profile of the configuration is worth to a verb.

use crate::common::{Machine, STUCK, make_tree};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Lets all that the machine does enter the DHT by this node alone, if any.
fn make_public(machine: &Machine, entry: &[&str]) {
    let config = machine.dir().join("config/nipfs");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("config.toml"), format!("profile = \"public\"\nbootstrap = {entry:?}\n")).unwrap();
}

#[test]
fn a_verb_without_a_serve_finds_peers_as_its_profile_says_and_a_private_one_does_not() {
    let (middle, a, c) = (Machine::new(), Machine::new(), Machine::new());
    make_public(&middle, &[]);
    let entry = middle.serve(&[]);
    make_public(&a, &[&entry.peer]);
    a.key();
    let serving = a.serve(&[]);
    let tree = a.dir().join("tree");
    make_tree(&tree, 1, 1 << 20);
    let published = a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    let begun = Instant::now();
    while a.run(&["status", "--json"]).ok().one()["announced"]["told"] != 1 {
        assert!(begun.elapsed() < STUCK, "{}", serving.log());
        sleep(Duration::from_millis(50));
    }
    let pin = ["pin", "add", published["root"].as_str().unwrap()];
    c.run(&pin).fails(4, &["nobody has block"]);
    make_public(&c, &[&entry.peer]);
    c.run(&pin).ok();
}
