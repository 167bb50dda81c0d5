//! `fetch`: narinfos over HTTP, NARs from wherever they are, each verified before it counts.
//!
//! The narinfos of the whole closure are asked for first, so that the order is known (dependencies first) and a
//! missing one is found before anything is delivered. Small NARs are got into the store meanwhile.

use super::Events;
use super::narinfos::{Checked, Narinfos, dependencies_first, parse_hash, parse_keys};
use super::obtain::{Obtain, Obtained, Places, Purpose};
use super::places::{Whom, places};
use crate::Node;
use crate::cache::Audience;
use crate::control::protocol::{Class, Done, Failure, Fetch, Item};
use crate::dag::read::{Sources, read};
use crate::upstream::Upstream;
use futures::{StreamExt as _, pin_mut};
use nipfs_proto::nix::store_path::StorePathHash;
use nipfs_proto::nix::trust::TrustedKeys;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// A NAR of at most this many bytes is got ahead of its turn.
const SMALL: u64 = 2 << 20;
/// How many are ahead of the turn, in work or waiting for it or for their turn.
const PATHS_AHEAD: usize = 1024;
/// Bytes of those in work, by NarSize: on a far link each path costs round trips, so many have to be.
const BYTES_AHEAD: u32 = 6 << 20;
/// What a path counts for at least: 64 of the smallest are in work.
const MIN_COST: u32 = BYTES_AHEAD / 64;

/// What getting any path of one job needs.
#[derive(Debug, Clone)]
struct Getter {
    node: Node,
    places: Places,
    events: Events,
    keys: Arc<TrustedKeys>,
    data: bool,
}

/// A NAR that is got ahead of its turn; dropping it stops that.
type Early = AbortOnDropHandle<Result<Obtained, Failure>>;

/// Runs the job.
///
/// # Errors
/// The first failure when there is one path, class `Failed` with a count when there are several.
pub async fn fetch(node: &Node, request: Fetch, events: &Events) -> Result<Done, Failure> {
    let keys = Arc::new(parse_keys(&request.trusted_keys)?);
    let upstreams = parse_upstreams(&request.from)?;
    let skip: BTreeSet<StorePathHash> = request.skip.iter().filter_map(|hash| hash.parse().ok()).collect();
    let wanted = request.paths.iter().map(|path| parse_hash(path)).collect::<Result<Vec<_>, _>>()?;
    let whom = Whom { peers: &request.peers, caches: &upstreams, gateways: &request.gateways };
    let check = (&*keys, request.check_sigs);
    let narinfos = Narinfos::new(&wanted, skip, request.closure, &upstreams, check);
    let places = async {
        let places = places(node, &whom, events).await?;
        Ok(Getter { node: node.clone(), places, events: events.clone(), keys: keys.clone(), data: request.data })
    };
    let mut ahead = Ahead::new();
    let (found, getter) = Box::pin(prepare(narinfos, places, &mut ahead)).await?;
    let order = dependencies_first(&found);
    let mut small = order.iter().map(|hash| &found[hash]).enumerate().filter(|(_, checked)| is_small(checked));
    let (mut ok, mut failures) = (0, Vec::new());
    for (turn, hash) in order.iter().enumerate() {
        while ahead.has_room()
            && let Some((_, next)) = small.find(|(later, _)| *later >= turn)
        {
            ahead.start(&getter, next);
        }
        let next = &found[hash];
        match getter.deliver(next, ahead.take(hash)).await {
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

/// Asks for all narinfos and finds the places, at the same time; small NARs are started as soon as both allow.
async fn prepare(
    mut narinfos: Narinfos<'_>,
    places: impl Future<Output = Result<Getter, Failure>>,
    ahead: &mut Ahead,
) -> Result<(BTreeMap<StorePathHash, Checked>, Getter), Failure> {
    pin_mut!(places);
    let mut getter = None;
    let mut small = VecDeque::new();
    loop {
        tokio::select! {
            found = narinfos.next() => match found? {
                Some(hash) if is_small(&narinfos.found[&hash]) => small.push_back(hash),
                Some(_) => {}
                None => break,
            },
            made = &mut places, if getter.is_none() => getter = Some(made?),
        }
        while let Some(getter) = getter.as_ref().filter(|_| ahead.has_room())
            && let Some(hash) = small.pop_front()
        {
            ahead.start(getter, &narinfos.found[&hash]);
        }
    }
    let getter = match getter {
        Some(getter) => getter,
        None => places.await?,
    };
    Ok((narinfos.found, getter))
}

fn is_small(checked: &Checked) -> bool {
    checked.trusted.info().nar_size() <= SMALL
}

/// Small NARs that are got before their turn, in the order in which they were started.
struct Ahead {
    early: BTreeMap<StorePathHash, Early>,
    /// Bytes that may be in work.
    window: Arc<Semaphore>,
}

impl Ahead {
    fn new() -> Self {
        Self { early: BTreeMap::new(), window: Arc::new(Semaphore::new(BYTES_AHEAD as usize)) }
    }

    fn has_room(&self) -> bool {
        self.early.len() < PATHS_AHEAD
    }

    /// Gets a NAR into the store as soon as the window allows, unless it was started before.
    fn start(&mut self, getter: &Getter, checked: &Checked) {
        let narinfo = checked.trusted.info();
        self.early.entry(narinfo.store_path().hash_part()).or_insert_with(|| {
            let (getter, checked, window) = (getter.clone(), checked.clone(), self.window.clone());
            let bytes = u32::try_from(narinfo.nar_size()).unwrap_or(BYTES_AHEAD).clamp(MIN_COST, BYTES_AHEAD);
            AbortOnDropHandle::new(tokio::spawn(async move {
                let _part = window.acquire_many_owned(bytes).await;
                // What only waits for its part stays small.
                Box::pin(getter.obtain(&checked, false)).await
            }))
        });
    }

    /// A NAR whose turn has come, if it was started.
    fn take(&mut self, hash: &StorePathHash) -> Option<Early> {
        self.early.remove(hash)
    }
}

impl Getter {
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
        let audience = self.node.audience_of_fetched(&self.keys, checked.trusted.info());
        let obtain = Obtain {
            cache: self.node.cache(),
            trusted: &checked.trusted,
            profile: checked.profile,
            places,
            events: &self.events,
            data,
            purpose: Purpose::Use(audience),
        };
        let obtained = obtain.run().await?;
        if audience == Audience::World {
            self.node.stored(obtained.root).await;
        }
        Ok(obtained)
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

fn parse_upstreams(urls: &[String]) -> Result<Vec<Upstream>, Failure> {
    if urls.is_empty() {
        let failure = Failure::new(Class::Usage, "no cache to ask for narinfos");
        return Err(failure.hint("name one with --from URL"));
    }
    urls.iter().map(|url| Upstream::new(url).map_err(Failure::from)).collect()
}
