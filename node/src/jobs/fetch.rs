//! `fetch`: narinfos over HTTP, NARs from wherever they are, each verified before it counts.
//!
//! The narinfos of the whole closure are asked for first, so that it is known who refers to whom ([`turns`]) and a
//! missing one is found before anything is delivered. Small NARs are got into the store meanwhile ([`ahead`]).

mod ahead;
mod closure;
mod turns;

use super::Events;
use super::narinfos::{Checked, parse_hash, parse_keys};
use super::obtain::{Obtain, Obtained, Places};
use super::places::{Whom, places};
use crate::Node;
use crate::cache::{Audience, Purpose};
use crate::control::protocol::{Class, Done, Failure, Fetch, Item};
use crate::dag::read::{Sources, read};
use crate::upstream::Upstream;
use ahead::{Ahead, Arrived, is_small};
use closure::{Closure, Narinfos};
use futures::{StreamExt as _, pin_mut};
use nipfs_proto::Cid;
use nipfs_proto::nix::store_path::StorePathHash;
use nipfs_proto::nix::trust::TrustedKeys;
use std::collections::HashSet;
use std::sync::Arc;
use turns::Turns;

/// What getting any path of one job needs.
#[derive(Debug, Clone)]
struct Getter {
    node: Node,
    places: Places,
    events: Events,
    keys: Arc<TrustedKeys>,
    data: bool,
}

/// Runs the job.
///
/// # Errors
/// The first failure when there is one path, class `Failed` with a count when there are several.
pub async fn fetch(node: &Node, request: Fetch, events: &Events) -> Result<Done, Failure> {
    let Fetch { paths, from, trusted_keys, peers, gateways, closure, check_sigs, data, skip } = request;
    let keys = Arc::new(parse_keys(&trusted_keys)?);
    let upstreams = parse_upstreams(&from)?;
    let skip: HashSet<StorePathHash> = skip.iter().filter_map(|hash| hash.parse().ok()).collect();
    let wanted = paths.iter().map(|path| parse_hash(path)).collect::<Result<Vec<_>, _>>()?;
    // Names and narinfos of thousands: what is not needed any more goes at once.
    drop(paths);
    let whom = Whom { peers: &peers, caches: &upstreams, gateways: &gateways };
    let all = Closure::new(node.state());
    let narinfos = Narinfos::new(&wanted, skip, closure, &upstreams, (&*keys, check_sigs), all);
    drop(wanted);
    let places = async {
        let places = places(node, &whom, events).await?;
        Ok(Getter { node: node.clone(), places, events: events.clone(), keys: keys.clone(), data })
    };
    let mut ahead = Ahead::new(node.store().clone());
    let (mut closure, getter) = Box::pin(prepare(narinfos, places, &mut ahead)).await?;
    let (mut turns, order) = Turns::new(&mut closure);
    let (small, large): (Vec<_>, Vec<_>) = order.into_iter().partition(|id| closure.get(*id).is_some_and(is_small));
    ahead.wait_in(small.into_iter());
    large.into_iter().for_each(|id| turns.ready(id));
    ahead.here().for_each(|id| turns.ready(id));
    let (mut ok, mut failures) = (0, Vec::new());
    loop {
        ahead.start(&getter, &closure);
        let Some(id) = turns.next() else {
            let Some(id) = ahead.next().await? else { break };
            turns.ready(id);
            continue;
        };
        let Some(next) = closure.take(id)? else { continue };
        let delivery = getter.deliver(&next, ahead.take(id));
        pin_mut!(delivery);
        let delivered = loop {
            ahead.start(&getter, &closure);
            tokio::select! {
                delivered = &mut delivery => break delivered,
                here = ahead.next(), if !ahead.is_idle() => here?.into_iter().for_each(|id| turns.ready(id)),
            }
        };
        turns.done(id);
        match delivered {
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
) -> Result<(Closure, Getter), Failure> {
    pin_mut!(places);
    let mut getter = None;
    loop {
        tokio::select! {
            found = narinfos.next() => match found? {
                Some(id) if narinfos.closure.get(id).is_some_and(is_small) => ahead.add(id),
                Some(_) => {}
                None => break,
            },
            made = &mut places, if getter.is_none() => getter = Some(made?),
            here = ahead.next(), if !ahead.is_idle() => drop(here?),
        }
        if let Some(getter) = &getter {
            ahead.start(getter, &narinfos.closure);
        }
    }
    let getter = match getter {
        Some(getter) => getter,
        None => places.await?,
    };
    Ok((narinfos.closure, getter))
}

impl Getter {
    /// Hands one path to the listener: its name, its data if asked for, and how it went.
    async fn deliver(&self, checked: &Checked, early: Option<Result<Box<Arrived>, Failure>>) -> Result<Item, Failure> {
        let narinfo = checked.trusted.info();
        let (path, nar_size) = (narinfo.store_path().to_absolute_path(), narinfo.nar_size());
        self.events.item(Item::Path { path: path.clone(), narinfo: narinfo.text().to_owned(), nar_size }).await?;
        let (root, bytes, source) = match early {
            None => {
                let obtained = self.obtain(checked, self.data).await?;
                (obtained.root, obtained.bytes, obtained.source)
            }
            Some(early) => {
                let arrived = early?;
                if self.data {
                    self.send(arrived.root(), nar_size).await?;
                }
                (arrived.root(), arrived.bytes, arrived.source)
            }
        };
        self.node.count(bytes);
        Ok(Item::Fetched {
            path,
            root: Some(root.to_string()),
            nar_hash: narinfo.nar_hash().to_string(),
            source: source.to_owned(),
            bytes,
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
            self.node.stored([obtained.root]).await;
        }
        Ok(obtained)
    }

    /// Sends a NAR that was got early out of the store.
    async fn send(&self, root: Cid, nar_size: u64) -> Result<(), Failure> {
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
