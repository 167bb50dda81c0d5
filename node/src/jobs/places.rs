//! Where the blocks of one job may come from: peers and gateways.
//!
//! Named peers are dialled while the caches are asked whom else they know, and for the roots of their indexes. Those are
//! hints, and cost little when they are wrong: whatever a peer sends is checked. Named peers are waited for until each is
//! there or is known not to be; hints only for [`GRACE`] once some peer is there.

use super::Events;
use super::obtain::Places;
use crate::Node;
use crate::control::protocol::{Class, Failure};
use crate::dag::read::Sources;
use crate::upstream::{Gateway, Upstream};
use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use libp2p::{Multiaddr, PeerId};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long a cache may take to say which peers it knows.
const INFO_DEADLINE: Duration = Duration::from_secs(3);
/// Peers that are taken from caches.
const MAX_HINTS: usize = 16;
/// Indexes that are taken from caches.
const MAX_INDEXES: usize = 4;
/// How long peers that caches named are waited for when there is one to begin with.
const GRACE: Duration = Duration::from_millis(300);

/// Whom a job may ask for blocks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Whom<'a> {
    /// Addresses of peers, each with `/p2p/ID`.
    pub(crate) peers: &'a [String],
    /// Caches that may know more peers.
    pub(crate) caches: &'a [Upstream],
    /// Base URLs of gateways.
    pub(crate) gateways: &'a [String],
}

/// Connects the peers and names the gateways. A peer that cannot be reached is noted, not fatal.
///
/// # Errors
/// `Usage` for what is no address or URL.
pub(crate) async fn places(node: &Node, whom: &Whom<'_>, events: &Events) -> Result<Places, Failure> {
    let named = whom.peers.iter().map(|peer| parse_peer(peer)).collect::<Result<Vec<_>, _>>()?;
    let gateways = whom.gateways.iter().map(|url| Gateway::new(url)).collect::<Result<Vec<_>, _>>()?;
    let hinted = hinted(whom.caches.to_vec()).boxed().shared();
    let connected = connect(node, &named, hinted.clone(), events).await?;
    let mut names: Vec<String> = connected.iter().map(ToString::to_string).collect();
    names.extend(gateways.iter().map(ToString::to_string));
    // Without a peer that answered, asking would only wait.
    let session = match connected.is_empty() && !node.has_peers() {
        true => None,
        false => Some(node.network().await?.session(connected)),
    };
    let peers = (!names.is_empty()).then(|| names.join(", "));
    let blocks = Sources {
        store: node.store().clone(),
        lease: None,
        session: session.map(Into::into),
        routers: node.routers(),
        // Whoever needs them waits for them then, so a node that could find nobody by them has none.
        indexes: node.finds_peers().then(|| hinted.map(|hints| hints.indexes).boxed().shared()),
        gateways: gateways.into(),
    };
    Ok(Places { blocks, upstream: None, peers })
}

/// The peers that could be reached, in the order in which they were.
async fn connect(
    node: &Node,
    named: &[Multiaddr],
    hinted: impl Future<Output = Hints>,
    events: &Events,
) -> Result<Vec<PeerId>, Failure> {
    let dial = |address: Multiaddr| async move {
        let network = node.network().await?;
        network.connect(address).await.map_err(Failure::from)
    };
    let mut waiting: FuturesUnordered<_> = named.iter().cloned().map(|address| dial(address).boxed()).collect();
    let mut hints = FuturesUnordered::new();
    let mut asked = FuturesUnordered::from_iter([hinted]);
    let mut connected = Vec::new();
    let mut until = None;
    while !(waiting.is_empty() && hints.is_empty() && asked.is_empty()) {
        if until.is_none() && waiting.is_empty() && !connected.is_empty() {
            until = Some(Instant::now() + GRACE);
        }
        let result = tokio::select! {
            Some(result) = waiting.next() => result,
            Some(result) = hints.next() => result,
            Some(Hints { peers, .. }) = asked.next() => {
                let found = peers.iter().filter(|address| !named.contains(address));
                hints.extend(found.map(|address| dial(address.clone()).boxed()));
                continue;
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
        };
        match result {
            Ok(peer) if connected.contains(&peer) => {}
            Ok(peer) => connected.push(peer),
            Err(failure) => events.note(failure.to_string()).await?,
        }
    }
    Ok(connected)
}

/// What caches name in `/nipfs-info`.
#[derive(Debug, Clone)]
struct Hints {
    peers: Arc<[Multiaddr]>,
    indexes: Arc<[Cid]>,
}

async fn hinted(caches: Vec<Upstream>) -> Hints {
    let infos = futures::future::join_all(caches.iter().map(|cache| cache.nipfs_info(INFO_DEADLINE))).await;
    let infos: Vec<_> = infos.into_iter().filter_map(|info| info.ok().flatten()).collect();
    let indexes = infos.iter().filter_map(|info| info.index.as_ref()?.parse().ok()).filter(is_block);
    let peers = infos.iter().flat_map(|info| &info.peers).take(MAX_HINTS).filter_map(|hint| parse_peer(hint).ok());
    Hints { peers: peers.collect(), indexes: indexes.take(MAX_INDEXES).collect() }
}

/// Whether somebody may provide it.
fn is_block(cid: &Cid) -> bool {
    matches!(Digest::of_cid(cid), Ok(Some(_)))
}

pub(crate) fn parse_peer(text: &str) -> Result<Multiaddr, Failure> {
    text.parse().map_err(|error| {
        let failure = Failure::new(Class::Usage, format!("{text}: not a peer address")).because(&error);
        failure.hint("a peer address looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3…")
    })
}
