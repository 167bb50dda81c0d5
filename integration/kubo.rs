//! Kubo fetches what we publish, and we fetch what Kubo holds, over TCP.

mod dht;

use crate::common::{Machine, make_tree, noise, other_version};
use crate::driver::Driver;
use crate::wants::{MANY, logged};
use nipfs_node::network::{BlockSource, Config, Keypair, Network};
use nipfs_proto::bitswap::server::Outcome;
use nipfs_proto::block::{Block, DAG_PB, RAW};
use nipfs_proto::dag::codec::Link;
use nipfs_proto::dag::unixfs::directory_node;
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use tokio::runtime::Runtime;

/// A Kubo node in a process of its own.
pub(crate) struct Kubo {
    driver: Driver,
    pub(crate) peer: String,
}

impl Kubo {
    pub(crate) fn start(repo: &Path) -> Self {
        Self::start_with(repo, &json!({}))
    }

    /// Starts with more than `op`, `repo` and `port` in its command.
    pub(crate) fn start_with(repo: &Path, more: &Value) -> Self {
        let python = std::env::var("NIPFS_KUBO_PYTHON").expect("NIPFS_KUBO_PYTHON: run this through `make test`");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../integration/kubo.py");
        // It leaves a log where it runs.
        let mut driver = Driver::spawn(Command::new(python).arg(script).current_dir(repo.parent().unwrap()));
        // Free now; Kubo cannot be asked which port it took.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut start = json!({"op": "start", "repo": repo, "port": port});
        start.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let started = driver.ask(&start);
        let peer = started["peer"].as_str().unwrap_or_else(|| panic!("{started}")).to_owned();
        Self { driver, peer }
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, command: &Value) -> Value {
        self.driver.ask(command)
    }

    #[track_caller]
    pub(crate) fn connect(&mut self, addr: &str) {
        assert_eq!(self.ask(&json!({"op": "connect", "addr": addr}))["connected"], true, "{addr}");
    }

    #[track_caller]
    pub(crate) fn pin(&mut self, cid: &str) {
        assert_eq!(self.ask(&json!({"op": "pin", "cid": cid}))["ok"], true, "{cid}");
    }

    /// Pins all at the same time. False when it hangs, as it does now and then, whoever it asks.
    #[track_caller]
    pub(crate) fn pin_all(&mut self, cids: &[String]) -> bool {
        let Some(answer) = self.driver.try_ask(&json!({"op": "pin_all", "cids": cids})) else { return false };
        assert_eq!(answer["ok"], true, "{cids:?}");
        true
    }
}

#[test]
fn kubo_fetches_a_published_nar_from_us() {
    let a = Machine::new();
    a.key();
    let serving = a.serve(&[]);
    let tree = a.dir().join("for-kubo");
    make_tree(&tree, 20, 20 << 20);
    let published = a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    let root = published["root"].as_str().unwrap();

    let mut kubo = Kubo::start(&a.dir().join("kubo"));
    kubo.connect(&serving.peer);
    let got = a.dir().join("got.nar");
    assert_eq!(kubo.ask(&json!({"op": "get", "cid": root, "to": got}))["ok"], true);
    let hash = published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    assert_eq!(fs::read(&got).unwrap(), serving.get(&format!("/nar/{hash}.nar")).body);
    // What Kubo computes for the same bytes is the root that we published.
    assert_eq!(kubo.ask(&json!({"op": "add", "file": got}))["cid"], root);
    kubo.pin(root);
}

#[test]
fn we_fetch_a_nar_that_only_kubo_holds() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let tree = a.dir().join("from-kubo");
    make_tree(&tree, 21, 20 << 20);
    let published = a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    let (path, root) = (published["path"].as_str().unwrap(), published["root"].as_str().unwrap());
    let nar = a.dir().join("the.nar");
    let serving = a.serve(&[]);
    let hash = published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    fs::write(&nar, serving.get(&format!("/nar/{hash}.nar")).body).unwrap();

    let mut kubo = Kubo::start(&a.dir().join("kubo"));
    assert!(kubo.peer.contains("/p2p/Qm"), "an RSA identity: {}", kubo.peer);
    assert_eq!(kubo.ask(&json!({"op": "add", "file": nar}))["cid"], root);
    let collected = a.run(&["gc", "--json", "--max-size", "0", "--require-mirror", &kubo.peer]).ok().one();
    assert_eq!(collected["droppedPaths"], json!([path]));
    let out = c.dir().join("out.nar");
    let (http, peer) = (serving.http.as_str(), kubo.peer.as_str());
    let args = ["fetch", "-vv", "--json", path, "--from", http, "--peer", peer, "--trusted-public-key", &key, "--nar"];
    let said = c.run(&[&args[..], &[out.to_str().unwrap()]].concat()).ok();
    let kubos = |figure| logged(&said.stderr, peer, figure);
    assert!(kubos("streams_in") >= MANY && kubos("streams_in") == kubos("messages_in"), "a stream for each message");
    let said = said.one();
    assert_eq!(said["source"], "bitswap", "{said}");
    assert_eq!(said["bytes"]["http"], 0, "{said}");
    assert_eq!(fs::read(out).unwrap(), fs::read(nar).unwrap());
}

#[test]
fn a_cid_that_kubo_holds_can_be_pinned_here_and_served_on() {
    let b = Machine::new();
    let file = b.dir().join("plain");
    fs::write(&file, noise(22, 5 << 20)).unwrap();
    let mut first = Kubo::start(&b.dir().join("kubo-1"));
    let added = first.ask(&json!({"op": "add", "file": file}));
    let cid = added["cid"].as_str().unwrap();
    let serving = b.serve(&[]);
    b.run(&["pin", "add", cid, "--peer", &first.peer]).ok();
    drop(first);

    let mut second = Kubo::start(&b.dir().join("kubo-2"));
    second.connect(&serving.peer);
    let got = b.dir().join("got");
    assert_eq!(second.ask(&json!({"op": "get", "cid": cid, "to": got}))["ok"], true);
    assert_eq!(fs::read(got).unwrap(), fs::read(file).unwrap());
}

#[test]
fn blocks_go_both_ways_under_cids_of_the_other_version() {
    let a = Machine::new();
    a.key();
    let serving = a.serve(&[]);
    let tree = a.dir().join("versions");
    make_tree(&tree, 23, 3 << 20);
    for chunker in ["size-262144", "unixfs-v1-2025"] {
        let args = ["publish", "--json", "--chunker", chunker, tree.to_str().unwrap()];
        let root = a.run(&args).ok().one()["root"].as_str().unwrap().to_owned();
        let other = other_version(&root);
        assert_eq!(root.starts_with("Qm"), chunker == "size-262144");
        // We have the one, Kubo asks for the other; Kubo has the other, we ask for the one.
        let mut kubo = Kubo::start(&a.dir().join(chunker));
        kubo.connect(&serving.peer);
        kubo.pin(&other);
        Machine::new().run(&["pin", "add", &root, "--peer", &kubo.peer]).ok();
    }
}

/// As an index of what is published has them: no link has a `Tsize`.
#[test]
fn kubo_reads_directories_that_we_make() {
    let machine = Machine::new();
    let file = Block::v1(RAW, noise(24, 1 << 10).into()).unwrap();
    let directory = |name: &str, below: &Block| {
        let link = Link { cid: *below.cid(), name: Some(name.to_owned()), tsize: None };
        Block::v1(DAG_PB, directory_node(vec![link])).unwrap()
    };
    let inner = directory("00-path.nar", &file);
    let index = directory("00", &inner);
    let (cid, blocks) = (index.cid().to_string(), [file.clone(), inner, index]);
    let source = BlockSource::new(move |_, cid, _| {
        let block = blocks.iter().find(|block| block.cid() == cid);
        block.map_or(Outcome::Absent, |block| Outcome::Block(block.bytes().clone()))
    });
    let runtime = Runtime::new().unwrap();
    let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let start = Network::start(Config { listen, ..Config::default() }, Keypair::generate_ed25519(), source);
    let network = runtime.block_on(start).unwrap();
    let mut kubo = Kubo::start(&machine.dir().join("kubo"));
    kubo.connect(&network.listeners()[0].to_string());
    let got = machine.dir().join("got");
    assert_eq!(kubo.ask(&json!({"op": "get", "cid": cid, "to": got}))["ok"], true);
    assert_eq!(fs::read(got.join("00/00-path.nar")).unwrap(), *file.bytes());
    runtime.block_on(network.shutdown());
}
