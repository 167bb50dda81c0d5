//! Two machines on one network, in network namespaces of their own: they find each other without being told. Needs root,
//! as `make test` in CI is, and iproute2.

use crate::common::{Machine, STUCK, make_tree};
use std::fs;
use std::process::Command;
use std::time::Instant;

/// A cable between two network namespaces, `10.77.0.1` and `10.77.0.2`; gone when dropped.
struct Cable([String; 2]);

impl Cable {
    fn lay() -> Self {
        let id = std::process::id();
        let cable = Self([format!("nipfs-{id}-a"), format!("nipfs-{id}-b")]);
        let [a, b] = &cable.0;
        ip(&["netns", "add", a]);
        ip(&["netns", "add", b]);
        ip(&["-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b]);
        for (namespace, address) in [(a, "10.77.0.1/24"), (b, "10.77.0.2/24")] {
            ip(&["-n", namespace, "address", "add", address, "dev", "wire"]);
            ip(&["-n", namespace, "link", "set", "wire", "up"]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
            ip(&["-n", namespace, "route", "add", "224.0.0.0/4", "dev", "wire"]);
        }
        cable
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in &self.0 {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}: run this as root");
}

#[test]
fn nodes_on_one_network_find_each_other_without_being_told() {
    let cable = Cable::lay();
    let (a, c) = (Machine::new(), Machine::new());
    a.key();
    let at_a = a.serve_in(&cable.0[0], &["--listen", "/ip4/10.77.0.1/tcp/0", "--profile", "lan"]);
    let at_c = c.serve_in(&cable.0[1], &["--listen", "/ip4/10.77.0.2/tcp/0", "--profile", "lan"]);
    let tree = a.dir().join("nearby");
    make_tree(&tree, 30, 1 << 20);
    let published = a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    let root = published["root"].as_str().unwrap();
    let begun = Instant::now();
    // A knock may be lost; nodes ask again.
    while c.run(&["pin", "add", root]).code != 0 {
        assert!(begun.elapsed() < STUCK, "{}\n{}", at_a.log(), at_c.log());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let status = c.run(&["status", "--json"]).ok().one();
    assert_eq!(status["roots"], 1, "{status}");

    // A verb without a serve has the time of one or two knocks.
    let d = Machine::new();
    let config = d.dir().join("config/nipfs");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("config.toml"), "profile = \"lan\"").unwrap();
    while d.run_in(&cable.0[1], &["pin", "add", root]).code != 0 {
        assert!(begun.elapsed() < STUCK, "{}", at_a.log());
    }
}
