//! The DHT of the local network, over loopback, with Kubo as the node in the middle.

use super::Kubo;
use crate::common::{Machine, STUCK, make_tree, noise};
use serde_json::json;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

fn kubo(machine: &Machine, name: &str) -> Kubo {
    Kubo::start_with(&machine.dir().join(name), &json!({"dht": true}))
}

/// Lets `serve` enter the DHT by this node alone.
fn enter_by(machine: &Machine, entry: &Kubo) {
    let config = machine.dir().join("config/nipfs");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("config.toml"), format!("profile = \"public\"\nbootstrap = [\"{}\"]\n", entry.peer)).unwrap();
}

#[test]
fn kubo_finds_what_we_announce_through_another_kubo() {
    let a = Machine::new();
    a.key();
    let middle = kubo(&a, "middle");
    let mut seeker = kubo(&a, "seeker");
    assert_eq!(seeker.ask(&json!({"op": "connect", "addr": middle.peer}))["connected"], true);
    enter_by(&a, &middle);
    let serving = a.serve(&[]);
    let tree = a.dir().join("announced");
    make_tree(&tree, 40, 3 << 20);
    let published = a.run(&["publish", "--no-closure", "--json", tree.to_str().unwrap()]).ok().one();
    let root = published["root"].as_str().unwrap();
    let begun = Instant::now();
    loop {
        let status = a.run(&["status", "--json"]).ok().one();
        if status["announced"]["told"] == 1 {
            break;
        }
        assert!(begun.elapsed() < STUCK, "{status}\n{}", serving.log());
        sleep(Duration::from_millis(100));
    }
    let got = a.dir().join("got.nar");
    assert_eq!(seeker.ask(&json!({"op": "get", "cid": root, "to": got}))["ok"], true);
    let hash = published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    assert_eq!(fs::read(&got).unwrap(), serving.get(&format!("/nar/{hash}.nar")).body);
}

#[test]
fn we_find_what_kubo_announces_through_another_kubo() {
    let b = Machine::new();
    let middle = kubo(&b, "middle");
    let mut holder = kubo(&b, "holder");
    assert_eq!(holder.ask(&json!({"op": "connect", "addr": middle.peer}))["connected"], true);
    enter_by(&b, &middle);
    let serving = b.serve(&[]);
    let file = b.dir().join("plain");
    fs::write(&file, noise(41, 3 << 20)).unwrap();
    let added = holder.ask(&json!({"op": "add", "file": file}));
    let cid = added["cid"].as_str().unwrap();
    let begun = Instant::now();
    // Kubo announces when it gets round to it.
    while b.run(&["pin", "add", cid]).code != 0 {
        assert!(begun.elapsed() < STUCK, "{}", serving.log());
        sleep(Duration::from_millis(200));
    }
    let status = b.run(&["status", "--json"]).ok().one();
    let holder = holder.peer.rsplit('/').next().unwrap();
    assert!(status["peers"].as_array().unwrap().iter().any(|peer| peer == holder), "{status}");
}
