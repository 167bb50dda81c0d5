//! A node of ours that asks a foreign one for as many blocks at a time as there are, which no job of the binary does.

use crate::common::STUCK;
use nipfs_node::network::{BlockSource, Config, Keypair, Network};
use nipfs_proto::dag::codec::Node;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Fetches the DAG below `root` from `peer`, all blocks of a level at once; how many the last level has.
pub(crate) fn fetch_by_levels(peer: &str, root: &str) -> usize {
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
                network.shutdown().await;
                return level.len();
            }
            level = below;
        }
    })
}
