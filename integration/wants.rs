//! How much is asked for at one time, as our end of the connection counts it: wants that have left and are not answered,
//! wants that have come and are not, and the streams on which messages come.

use crate::common::{Machine, STUCK, noise};
use crate::helia::Helia;
use crate::kubo::Kubo;
use nipfs_node::network::{BlockSource, Config, Keypair, Network, Traffic};
use nipfs_proto::dag::codec::Node;
use serde_json::{Value, json};
use std::fs;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Wants at one time that count as many.
pub(crate) const MANY: u64 = 64;

/// A figure of what a command with `-vv` logged of its exchange with the peer at an address.
pub(crate) fn logged(log: &str, peer: &str, figure: &str) -> u64 {
    let peer = format!("peer={} ", peer.rsplit('/').next().unwrap());
    let line = log.lines().find(|line| line.contains("exchanged with a peer") && line.contains(&peer));
    let mut words = line.unwrap_or_else(|| panic!("no {peer}in {log}")).split(' ');
    words.find_map(|word| word.strip_prefix(figure)?.strip_prefix('=')).unwrap().parse().unwrap()
}

/// A DAG that was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// Blocks of its last level.
    pub(crate) leaves: usize,
    pub(crate) traffic: Traffic,
}

/// Fetches the DAG below `root` from `peer` alone, all blocks of a level at once, which no job of the binary does.
pub(crate) fn fetch_by_levels(peer: &str, root: &str) -> Fetched {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let network =
            Network::start(Config::default(), Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap();
        let peer = network.connect(peer.parse().unwrap()).await.unwrap();
        let session = network.session(vec![peer]);
        let mut level = vec![root.parse().unwrap()];
        loop {
            let wants: JoinSet<_> = level.iter().map(|cid| session.want(*cid)).collect();
            let blocks = timeout(STUCK, wants.join_all()).await.expect("all blocks in time");
            let nodes = blocks.into_iter().map(|block| Node::decode(block.unwrap().0.bytes()).unwrap());
            let below: Vec<_> = nodes.flat_map(|node| node.links.into_iter().map(|link| link.cid)).collect();
            if below.is_empty() {
                let [summary] = network.peers().await.unwrap().try_into().unwrap();
                network.shutdown().await;
                return Fetched { leaves: level.len(), traffic: summary.traffic };
            }
            level = below;
        }
    })
}

/// Has DAGs of many small blocks, which Kubo cannot cut, go to Kubo and to us from a `serve` that listens on `listen` alone.
pub(crate) fn many_small_blocks_go_to_kubo_and_us(listen: &str, kubo: &Value) {
    let machine = Machine::new();
    let serving = machine.serve_on(listen, &["-vv"]);
    let mut helia = Helia::start();
    let roots: Vec<_> = (0..8)
        .map(|seed| {
            let file = machine.dir().join("plain");
            fs::write(&file, noise(90 + seed, 4 << 20)).unwrap();
            let root = helia.add(&file, 0, 8 << 10);
            machine.run(&["pin", "add", &root, "--peer", &helia.peer]).ok();
            root
        })
        .collect();
    drop(helia);
    let asker = (0..3).find_map(|attempt| {
        let mut kubo = Kubo::start_with(&machine.dir().join(format!("kubo-{attempt}")), kubo);
        kubo.connect(&serving.peer);
        // One walk of Kubo's asks for 32 blocks at a time.
        kubo.pin_all(&roots).then_some(kubo)
    });
    let kubo = asker.expect("one of three Kubos that does not hang");
    let Fetched { leaves, traffic } = fetch_by_levels(&serving.peer, &roots[0]);
    assert_eq!(leaves, 512);
    assert!(traffic.most_wants_out >= MANY, "{traffic:?}");
    let most = logged(&serving.end(), &kubo.peer, "most_wants_in");
    assert!(most >= MANY, "{most}");
}

#[test]
fn kubo_and_we_ask_us_for_many_blocks_at_one_time() {
    many_small_blocks_go_to_kubo_and_us("/ip4/127.0.0.1/tcp/0", &json!({}));
}
