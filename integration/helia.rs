//! Helia fetches what we publish, and we fetch what Helia holds, over TCP.

use crate::common::{Machine, Serving, make_tree, noise, other_version};
use crate::driver::Driver;
use crate::kubo::Kubo;
use crate::wants::{Fetched, MANY, fetch_by_levels, logged};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of the leaves that `publish` cuts.
const LEAF: usize = 256 << 10;

/// A Helia node in a process of its own.
pub(crate) struct Helia {
    driver: Driver,
    /// Over TCP.
    pub(crate) peer: String,
    /// The same over QUIC.
    #[cfg(feature = "quic")]
    pub(crate) quic: String,
}

impl Helia {
    pub(crate) fn start() -> Self {
        let packages = std::env::var("NIPFS_HELIA").expect("NIPFS_HELIA: run this through `make test`");
        let mut node = Command::new(Path::new(&packages).join("node_modules/.bin/node"));
        // As text: what it imports is looked for where it runs, not where the file lies.
        node.args(["--input-type=module", "--eval", include_str!("helia.mjs")]).current_dir(&packages);
        let mut driver = Driver::spawn(&mut node);
        let listen = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"];
        let started = driver.ask(&json!({"op": "start", "listen": listen}));
        let peers: Vec<_> = started["peers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let peer = |part: &str| peers.iter().find(|peer| peer.contains(part)).unwrap_or_else(|| panic!("{started}"));
        Self {
            #[cfg(feature = "quic")]
            quic: peer("/quic-v1/").to_string(),
            peer: peer("/tcp/").to_string(),
            driver,
        }
    }

    pub(crate) fn add(&mut self, file: &Path, version: u8, chunk: usize) -> String {
        let added = self.driver.ask(&json!({"op": "add", "file": file, "version": version, "chunk": chunk}));
        added["cid"].as_str().unwrap_or_else(|| panic!("{added}")).to_owned()
    }

    /// The bytes of a file that `peer` has.
    pub(crate) fn get(&mut self, peer: &str, cid: &str, to: &Path) -> Vec<u8> {
        let connected = self.driver.ask(&json!({"op": "connect", "addr": peer}));
        assert_eq!(connected["connected"], true, "{connected}");
        let got = self.driver.ask(&json!({"op": "get", "cid": cid, "to": to}));
        assert_eq!(got["ok"], true, "{got}");
        fs::read(to).unwrap()
    }

    /// The most blocks that were wanted at one time.
    fn most(&mut self) -> Value {
        self.driver.ask(&json!({"op": "most"}))
    }
}

/// A published tree of `size` bytes.
struct Published {
    path: String,
    root: String,
    nar: PathBuf,
}

fn publish(machine: &Machine, serving: &Serving, seed: u64, size: usize) -> Published {
    let tree = machine.dir().join("tree");
    make_tree(&tree, seed, size);
    let published = machine.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    let word = |name: &str| published[name].as_str().unwrap().to_owned();
    let hash = word("narHash").strip_prefix("sha256:").unwrap().to_owned();
    let nar = machine.dir().join("the.nar");
    fs::write(&nar, serving.get(&format!("/nar/{hash}.nar")).body).unwrap();
    Published { path: word("path"), root: word("root"), nar }
}

#[test]
fn helia_fetches_a_published_nar_from_us() {
    let a = Machine::new();
    a.key();
    let serving = a.serve(&["-vv"]);
    let published = publish(&a, &serving, 60, 24 << 20);
    let mut peers = Vec::new();
    for _ in 0..3 {
        let mut helia = Helia::start();
        assert!(helia.get(&serving.peer, &published.root, &a.dir().join("got")) == fs::read(&published.nar).unwrap());
        assert!(helia.most()["ours"].as_u64().unwrap() >= MANY);
        // What Helia computes for the same bytes is the root that we published.
        assert_eq!(helia.add(&published.nar, 0, LEAF), published.root);
        peers.push(helia.peer.clone());
    }
    let log = serving.end();
    for peer in peers {
        let most = logged(&log, &peer, "most_wants_in");
        assert!(most >= MANY, "{most}");
    }
}

#[test]
fn we_fetch_a_nar_that_only_helia_holds_each_time() {
    let a = Machine::new();
    let key = a.key();
    let serving = a.serve(&[]);
    let published = publish(&a, &serving, 61, 64 << 20);
    let mut helia = Helia::start();
    assert_eq!(helia.add(&published.nar, 0, LEAF), published.root);
    let collected = a.run(&["gc", "--json", "--max-size", "0", "--require-mirror", &helia.peer]).ok().one();
    assert_eq!(collected["droppedPaths"], json!([published.path]));
    for _ in 0..4 {
        let c = Machine::new();
        let out = c.dir().join("out.nar");
        let (path, http) = (published.path.as_str(), serving.http.as_str());
        let args =
            ["fetch", "--json", path, "--from", http, "--peer", &helia.peer, "--trusted-public-key", &key, "--nar"];
        let said = c.run(&[&args[..], &[out.to_str().unwrap()]].concat()).ok().one();
        assert_eq!(said["source"], "bitswap", "{said}");
        assert_eq!(said["bytes"]["http"], 0, "{said}");
        assert!(fs::read(out).unwrap() == fs::read(&published.nar).unwrap());
    }
}

#[test]
fn more_than_a_thousand_blocks_are_asked_of_helia_at_once_each_time() {
    let machine = Machine::new();
    let file = machine.dir().join("plain");
    fs::write(&file, noise(62, 24 << 20)).unwrap();
    let mut helia = Helia::start();
    let cid = helia.add(&file, 0, 16 << 10);
    for _ in 0..4 {
        let Fetched { leaves, traffic } = fetch_by_levels(&helia.peer, &cid);
        assert_eq!(leaves, 1536);
        assert!(traffic.most_wants_out >= MANY, "{traffic:?}");
    }
    let most = helia.most();
    assert!(most["theirs"].as_u64().unwrap() >= MANY, "{most}");
}

/// Kubo cuts no blocks as small as these. It gets them through us: Kubo at Helia's end hangs at times, with nobody of ours
/// between.
#[test]
fn more_than_a_thousand_blocks_are_asked_of_kubo_at_once_each_time() {
    let machine = Machine::new();
    let file = machine.dir().join("plain");
    fs::write(&file, noise(64, 24 << 20)).unwrap();
    let mut helia = Helia::start();
    let cid = helia.add(&file, 0, 16 << 10);
    let serving = machine.serve(&[]);
    machine.run(&["pin", "add", &cid, "--peer", &helia.peer]).ok();
    drop(helia);
    // Nor is it the pin that is tested here.
    let kubo = (0..3).find_map(|number| {
        let mut kubo = Kubo::start(&machine.dir().join(format!("kubo-{number}")));
        kubo.connect(&serving.peer);
        kubo.pin_all(std::slice::from_ref(&cid)).then_some(kubo)
    });
    let kubo = kubo.expect("Kubo hung three times");
    assert_eq!(serving.stop(), 0);
    for _ in 0..4 {
        let Fetched { leaves, traffic } = fetch_by_levels(&kubo.peer, &cid);
        assert_eq!(leaves, 1536);
        assert!(traffic.most_wants_out >= MANY, "{traffic:?}");
        // A stream for each message.
        assert!(traffic.streams_in >= 1536 && traffic.streams_in == traffic.messages_in, "{traffic:?}");
    }
}

#[test]
fn a_block_is_found_under_a_cid_of_the_other_version() {
    let file = Machine::new();
    let plain = file.dir().join("plain");
    fs::write(&plain, noise(63, 3 * LEAF)).unwrap();
    for version in [0, 1] {
        let mut first = Helia::start();
        let added = first.add(&plain, version, LEAF);
        let other = other_version(&added);
        assert_eq!(added.starts_with("Qm"), version == 0);
        // Helia has the one, we ask for the other; we have the other, Helia asks for the one.
        let b = Machine::new();
        let serving = b.serve(&[]);
        b.run(&["pin", "add", &other, "--peer", &first.peer]).ok();
        drop(first);
        let got = Helia::start().get(&serving.peer, &added, &b.dir().join("got"));
        assert!(got == fs::read(&plain).unwrap());
    }
}
