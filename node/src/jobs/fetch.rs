//! `fetch`: narinfos over HTTP, NARs from wherever they are, each verified before it counts.
//!
//! The narinfos of the whole closure are asked for first, many at a time, so that the order is known
//! (dependencies first) and a missing one is found before anything is moved.

use super::Events;
use super::obtain::{Obtain, Obtained, Places};
use crate::Node;
use crate::cache::Audience;
use crate::control::protocol::{Class, Done, Failure, Fetch, Item};
use crate::dag::read::{Sources, read};
use crate::upstream::{Gateway, Upstream};
use futures::pin_mut;
use futures::stream::{FuturesUnordered, StreamExt};
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::signature::PublicKey;
use nipfs_proto::nix::store_path::{StorePath, StorePathHash};
use nipfs_proto::nix::trust::{TrustedKeys, TrustedNarInfo};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// Narinfo requests in flight.
const NARINFOS_AT_ONCE: usize = 16;
/// How long one cache may take for one narinfo, retries included.
const NARINFO_DEADLINE: Duration = Duration::from_secs(15);
/// How long a cache may take to say which peers it knows.
const INFO_DEADLINE: Duration = Duration::from_secs(3);
/// Peers that are taken from caches.
const MAX_HINTS: usize = 16;
/// Paths of one closure: far above any system, far below what fills memory.
pub(crate) const MAX_CLOSURE: usize = 1 << 18;

/// A NAR of at most this many bytes is got ahead of its turn.
const SMALL: u64 = 2 << 20;
/// How many paths ahead are in work: on a far link each would otherwise cost its own round trips.
const AHEAD: usize = 16;

/// A narinfo that was checked, and the cache that sent it, if one did.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    pub(crate) trusted: TrustedNarInfo,
    /// How its root was cut, when a trusted key says so.
    pub(crate) profile: Option<Profile>,
    pub(crate) upstream: Option<Upstream>,
}

/// What getting any path of one job needs.
#[derive(Debug, Clone)]
struct Getter {
    node: Node,
    places: Places,
    events: Events,
    data: bool,
}

/// A NAR that is got ahead of its turn; dropping it stops that.
type Early = AbortOnDropHandle<Result<Obtained, Failure>>;

/// Runs the job.
///
/// # Errors
/// The first failure when there is one path, class `Failed` with a count when there are several.
pub async fn fetch(node: &Node, request: Fetch, events: &Events) -> Result<Done, Failure> {
    let keys = parse_keys(&request.trusted_keys)?;
    let upstreams = parse_upstreams(&request.from)?;
    let skip: BTreeSet<StorePathHash> = request.skip.iter().filter_map(|hash| hash.parse().ok()).collect();
    let wanted = request.paths.iter().map(|path| parse_hash(path)).collect::<Result<Vec<_>, _>>()?;
    let (checked, places) = tokio::try_join!(
        narinfos((&wanted, &skip, request.closure), &upstreams, (&keys, request.check_sigs)),
        async {
            let peers = with_hints(&request.peers, &upstreams).await;
            places(node, &peers, &request.gateways, events).await
        }
    )?;
    let getter = Getter { node: node.clone(), places, events: events.clone(), data: request.data };
    let mut waiting = dependencies_first(&checked).into_iter();
    let mut turns: VecDeque<(&Checked, Option<Early>)> = VecDeque::new();
    let (mut ok, mut failures) = (0, Vec::new());
    loop {
        while turns.len() < AHEAD
            && let Some(hash) = waiting.next()
        {
            turns.push_back((&checked[&hash], getter.early(&checked[&hash])));
        }
        let Some((next, early)) = turns.pop_front() else { break };
        match getter.deliver(next, early).await {
            Ok(item) => {
                ok += 1;
                events.item(item).await?;
            }
            Err(failure) if failure.class == Class::Interrupted || failure.class == Class::NoSpace => {
                return Err(failure);
            }
            Err(failure) => {
                let path = next.trusted.info().store_path().to_absolute_path();
                events.item(Item::Failed { path, failure: failure.clone() }).await?;
                failures.push(failure);
            }
        }
    }
    match failures.pop() {
        None => Ok(Done::Count { ok, failed: 0 }),
        Some(only) if ok == 0 && failures.is_empty() => Err(only),
        Some(_) => Ok(Done::Count { ok, failed: failures.len() as u64 + 1 }),
    }
}

impl Getter {
    /// Starts to get a small NAR into the store.
    fn early(&self, checked: &Checked) -> Option<Early> {
        (checked.trusted.info().nar_size() <= SMALL).then(|| {
            let (getter, checked) = (self.clone(), checked.clone());
            AbortOnDropHandle::new(tokio::spawn(async move { getter.obtain(&checked, false).await }))
        })
    }

    /// Hands one path to the listener: its name, its data if asked for, and how it went.
    async fn deliver(&self, checked: &Checked, early: Option<Early>) -> Result<Item, Failure> {
        let narinfo = checked.trusted.info();
        let (path, nar_size) = (narinfo.store_path().to_absolute_path(), narinfo.nar_size());
        self.events.item(Item::Path { path: path.clone(), narinfo: narinfo.text().to_owned(), nar_size }).await?;
        let obtained = match early {
            None => self.obtain(checked, self.data).await?,
            Some(early) => {
                let obtained = early.await.map_err(|error| Failure::from_error(Class::Failed, &error))??;
                if self.data {
                    self.send(&obtained, nar_size).await?;
                }
                obtained
            }
        };
        self.node.count(obtained.bytes);
        Ok(Item::Fetched {
            path,
            root: obtained.root.map(|root| root.to_string()),
            nar_hash: narinfo.nar_hash().to_string(),
            source: obtained.source.to_owned(),
            bytes: obtained.bytes,
        })
    }

    async fn obtain(&self, checked: &Checked, data: bool) -> Result<Obtained, Failure> {
        let mut places = self.places.clone();
        // A lease of its own: what this path put stays protected until it is committed, no longer.
        places.blocks.lease = Some(Arc::new(self.node.store().lease().uncompressed()));
        places.upstream = checked.upstream.clone();
        let obtain = Obtain {
            cache: self.node.cache(),
            trusted: &checked.trusted,
            profile: checked.profile,
            places,
            events: &self.events,
            data,
            audience: Audience::Loopback,
        };
        obtain.run().await
    }

    /// Sends a NAR that was got early out of the store.
    async fn send(&self, obtained: &Obtained, nar_size: u64) -> Result<(), Failure> {
        let Some(root) = obtained.root else { return Ok(()) };
        let bytes = read(Sources::local(self.node.store().clone()), Arc::default(), root, 0..nar_size);
        pin_mut!(bytes);
        while let Some(chunk) = bytes.next().await {
            self.events.data(chunk?).await?;
        }
        Ok(())
    }
}

/// The peers that were named, and those that the caches name in `/nipfs-info`. A hint costs nothing when it is wrong:
/// whatever a peer sends is checked.
pub(crate) async fn with_hints(named: &[String], upstreams: &[Upstream]) -> Vec<String> {
    let infos = upstreams.iter().map(|upstream| upstream.nipfs_info(INFO_DEADLINE));
    let infos = futures::future::join_all(infos).await;
    let hints = infos.into_iter().filter_map(|info| info.ok().flatten()).flat_map(|info| info.peers).take(MAX_HINTS);
    let mut peers = named.to_vec();
    for hint in hints.filter(|hint| parse_peer(hint).is_ok()) {
        if !peers.contains(&hint) {
            peers.push(hint);
        }
    }
    peers
}

/// Connects the peers and names the gateways. A peer that cannot be reached is noted, not fatal.
pub(crate) async fn places(
    node: &Node,
    peers: &[String],
    gateways: &[String],
    events: &Events,
) -> Result<Places, Failure> {
    let mut names: Vec<String> = Vec::new();
    let addresses = peers.iter().map(|peer| parse_peer(peer)).collect::<Result<Vec<_>, _>>()?;
    let network = if addresses.is_empty() && !node.has_peers() { None } else { Some(node.network().await?) };
    let mut connecting = FuturesUnordered::new();
    if let Some(network) = &network {
        for address in addresses {
            connecting.push(network.connect(address));
        }
    }
    let mut connected = Vec::new();
    while let Some(result) = connecting.next().await {
        match result {
            Ok(peer) => {
                names.push(peer.to_string());
                connected.push(peer);
            }
            Err(error) => events.note(Failure::from(error).to_string()).await?,
        }
    }
    drop(connecting);
    let session = network.as_ref().map(|network| network.session(connected.clone()));
    // Without a peer that answered, asking would only wait.
    let session = session.filter(|_| !connected.is_empty() || node.has_peers());
    let gateways = gateways.iter().map(|url| Gateway::new(url)).collect::<Result<Vec<_>, _>>()?;
    names.extend(gateways.iter().map(ToString::to_string));
    let peers = (!names.is_empty()).then(|| names.join(", "));
    let blocks =
        Sources { store: node.store().clone(), lease: None, session: session.map(Arc::new), gateways: gateways.into() };
    Ok(Places { blocks, upstream: None, peers })
}

/// The narinfos of `wanted`, and of all they refer to when `closure` is set. Every one is checked. What the client has
/// already is not asked for, nor what only that refers to.
async fn narinfos(
    (wanted, skip, closure): (&[StorePathHash], &BTreeSet<StorePathHash>, bool),
    upstreams: &[Upstream],
    keys: (&TrustedKeys, bool),
) -> Result<BTreeMap<StorePathHash, Checked>, Failure> {
    let mut found: BTreeMap<StorePathHash, Checked> = BTreeMap::new();
    let mut seen = skip.clone();
    let mut waiting: Vec<StorePathHash> = wanted.iter().copied().filter(|hash| seen.insert(*hash)).collect();
    let mut asking = FuturesUnordered::new();
    loop {
        while asking.len() < NARINFOS_AT_ONCE
            && let Some(hash) = waiting.pop()
        {
            asking.push(narinfo(hash, upstreams, keys));
        }
        let Some(checked) = asking.next().await else { return Ok(found) };
        let checked = checked?;
        let narinfo = checked.trusted.info();
        if closure {
            let new = narinfo.references().iter().map(StorePath::hash_part).filter(|hash| seen.insert(*hash));
            waiting.extend(new);
        }
        if seen.len() > MAX_CLOSURE {
            let text = format!("{}: closure of more than {MAX_CLOSURE} paths", narinfo.store_path().to_absolute_path());
            return Err(Failure::new(Class::Refused, text));
        }
        found.insert(narinfo.store_path().hash_part(), checked);
    }
}

/// The first narinfo that a cache sends and a key signed.
pub(crate) async fn narinfo(
    hash: StorePathHash,
    upstreams: &[Upstream],
    (keys, check_sigs): (&TrustedKeys, bool),
) -> Result<Checked, Failure> {
    let mut refused = None;
    let mut unreachable = None;
    for upstream in upstreams {
        let text = match upstream.narinfo(&hash, NARINFO_DEADLINE).await {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            Err(error) => {
                unreachable = Some(Failure::from(error));
                continue;
            }
        };
        let checked = NarInfo::parse(&hash, text.as_bytes()).map_err(|error| {
            let text = format!("{hash}.narinfo from {upstream}: {error}");
            Failure::new(Class::Refused, text)
        });
        let checked = checked.and_then(|narinfo| match keys.check(&narinfo) {
            Ok(trusted) => Ok(trusted),
            Err(_) if !check_sigs => Ok(TrustedNarInfo::own(narinfo)),
            Err(error) => Err(Failure::from_error(Class::Refused, &error)
                .hint("name the key that signs this cache with --trusted-public-key NAME:BASE64")),
        });
        match checked {
            Ok(trusted) => {
                let profile = bound_profile(keys, trusted.info());
                return Ok(Checked { trusted, profile, upstream: Some(upstream.clone()) });
            }
            Err(failure) => refused = Some(failure),
        }
    }
    let caches = upstreams.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let nowhere = || Failure::new(Class::NotFound, format!("{hash}.narinfo: not found at {caches}"));
    Err(refused.or(unreachable).unwrap_or_else(nowhere))
}

/// The profile under which a trusted key bound the narinfo's root to its NAR.
pub(crate) fn bound_profile(keys: &TrustedKeys, narinfo: &NarInfo) -> Option<Profile> {
    keys.check_root(narinfo, &Profile::NAMES)?.parse().ok()
}

/// Each path after what it refers to; cycles (which Nix does not make) end in some order.
fn dependencies_first(checked: &BTreeMap<StorePathHash, Checked>) -> Vec<StorePathHash> {
    let mut order = Vec::with_capacity(checked.len());
    let mut seen = BTreeSet::new();
    for start in checked.keys() {
        let mut stack = vec![(*start, false)];
        while let Some((hash, expanded)) = stack.pop() {
            if expanded {
                order.push(hash);
            } else if seen.insert(hash) {
                stack.push((hash, true));
                let references = checked[&hash].trusted.info().references();
                let next = references.iter().map(StorePath::hash_part).filter(|next| checked.contains_key(next));
                stack.extend(next.map(|next| (next, false)));
            }
        }
    }
    order
}

/// Reads `/nix/store/<hash>-<name>`, `<hash>-<name>` or `<hash>`.
pub(crate) fn parse_hash(text: &str) -> Result<StorePathHash, Failure> {
    let base = text.strip_prefix("/nix/store/").unwrap_or(text);
    let hash = base.split_once('-').map_or(base, |(hash, _)| hash);
    hash.parse().map_err(|error| {
        let failure = Failure::new(Class::Usage, format!("{text}: not a store path")).because(&error);
        failure.hint("a store path looks like /nix/store/<32 characters>-<name>")
    })
}

pub(crate) fn parse_keys(keys: &[String]) -> Result<TrustedKeys, Failure> {
    let parse = |key: &String| {
        let bad = |error| Failure::new(Class::Usage, format!("{key}: not a public key")).because(&error);
        key.parse::<PublicKey>().map_err(bad)
    };
    keys.iter().map(parse).collect()
}

fn parse_upstreams(urls: &[String]) -> Result<Vec<Upstream>, Failure> {
    if urls.is_empty() {
        let failure = Failure::new(Class::Usage, "no cache to ask for narinfos");
        return Err(failure.hint("name one with --from URL"));
    }
    urls.iter().map(|url| Upstream::new(url).map_err(Failure::from)).collect()
}

pub(crate) fn parse_peer(text: &str) -> Result<libp2p::Multiaddr, Failure> {
    text.parse().map_err(|error| {
        let failure = Failure::new(Class::Usage, format!("{text}: not a peer address")).because(&error);
        failure.hint("a peer address looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3…")
    })
}
