//! `mirror`: hold and serve what another node published.
//!
//! `pull` reads the list from a cache over HTTP; `receive` is told it over ssh by `mirror push`. Both
//! pin each DAG, whole and verified, and serve its narinfo byte for byte. One bad path does not stop
//! the others.

use super::Events;
use super::narinfos::{Checked, MAX_CLOSURE, bound_profile, narinfo, parse_hash, parse_keys};
use super::obtain::{Obtain, Places};
use super::places::{Whom, places};
use crate::Node;
use crate::cache::{Purpose, Staged};
use crate::control::protocol::{Class, Done, Failure, Item, SourceBytes};
use crate::upstream::Upstream;
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::store_path::StorePathHash;
use nipfs_proto::nix::trust::{TrustedKeys, TrustedNarInfo};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Paths in work at once: one waits for the network while another is written.
const PATHS_AT_ONCE: usize = 4;

/// A path to mirror.
enum Wanted {
    /// A cache lists it.
    Listed(StorePathHash),
    /// A pusher sent its narinfo.
    Told(String),
}

/// What every path of one job needs.
struct Mirror<'a> {
    node: &'a Node,
    /// `None` believes any narinfo.
    keys: Option<TrustedKeys>,
    upstreams: Vec<Upstream>,
    places: Places,
    events: &'a Events,
}

/// Mirrors what the cache at `url` lists, or only `store_paths`.
///
/// # Errors
/// When the list cannot be had; failures of single paths are items.
pub async fn pull(
    node: &Node,
    (url, store_paths): (String, Option<Vec<String>>),
    trusted_keys: &[String],
    peers: &[String],
    events: &Events,
) -> Result<Done, Failure> {
    let keys = Some(parse_keys(trusted_keys)?);
    let upstream = Upstream::new(&url)?;
    let hashes: BTreeSet<StorePathHash> = match store_paths {
        Some(paths) => paths.iter().map(|path| parse_hash(path)).collect::<Result<_, _>>()?,
        None => {
            let listed = upstream.paths().await?.ok_or_else(|| {
                let failure = Failure::new(Class::Failed, format!("{url}: the cache does not list its paths"));
                failure.hint("name them with --store-paths FILE")
            })?;
            let listed = listed.take(MAX_CLOSURE).map_err(Failure::from).map_ok(|path| path.hash_part());
            listed.try_collect().await?
        }
    };
    let whom = Whom { peers, caches: std::slice::from_ref(&upstream), ..Whom::default() };
    let places = places(node, &whom, events).await?;
    let mirror = Mirror { node, keys, upstreams: vec![upstream], places, events };
    mirror.run(hashes.into_iter().map(Wanted::Listed)).await
}

/// Mirrors the narinfos that a pusher sent, from the pusher. Without keys of our own the ssh login is
/// the authority; the NAR must match the narinfo's NarHash all the same.
///
/// # Errors
/// When the request itself is malformed; failures of single paths are items.
pub async fn receive(
    node: &Node,
    peers: &[String],
    narinfos: Vec<String>,
    trusted_keys: &[String],
    events: &Events,
) -> Result<Done, Failure> {
    let keys = if trusted_keys.is_empty() { None } else { Some(parse_keys(trusted_keys)?) };
    let places = places(node, &Whom { peers, ..Whom::default() }, events).await?;
    let mirror = Mirror { node, keys, upstreams: Vec::new(), places, events };
    mirror.run(narinfos.into_iter().map(Wanted::Told)).await
}

impl Mirror<'_> {
    async fn run(&self, mut wanted: impl Iterator<Item = Wanted> + Send) -> Result<Done, Failure> {
        let mut working = FuturesUnordered::new();
        let (mut ok, mut failed) = (0, 0);
        loop {
            while working.len() < PATHS_AT_ONCE
                && let Some(next) = wanted.next()
            {
                working.push(self.one(next));
            }
            match working.next().await {
                None => return Ok(Done::Count { ok, failed }),
                Some(Ok(item)) => {
                    ok += 1;
                    self.events.item(item).await?;
                }
                Some(Err((_, failure))) if ends_the_job(&failure) => return Err(failure),
                Some(Err((path, failure))) => {
                    failed += 1;
                    self.events.item(Item::Failed { path, failure }).await?;
                }
            }
        }
    }

    async fn one(&self, wanted: Wanted) -> Result<Item, (String, Failure)> {
        let checked = match wanted {
            Wanted::Listed(hash) => {
                let none = TrustedKeys::default();
                let keys = self.keys.as_ref().unwrap_or(&none);
                narinfo(hash, &self.upstreams, (keys, true)).await.map_err(|failure| (hash.to_string(), failure))?
            }
            Wanted::Told(text) => self.accept(&text)?,
        };
        let path = checked.trusted.info().store_path().to_absolute_path();
        self.bring(checked).await.map_err(|failure| (path, failure))
    }

    fn accept(&self, text: &str) -> Result<Checked, (String, Failure)> {
        let refuse = |error: &(dyn std::error::Error + 'static)| Failure::from_error(Class::Refused, error);
        let narinfo = NarInfo::parse_unasked(text.as_bytes());
        let narinfo = narinfo.map_err(|error| (first_line(text), refuse(&error)))?;
        let Some(keys) = &self.keys else {
            return Ok(Checked { trusted: TrustedNarInfo::own(narinfo), profile: None, upstream: None });
        };
        let trusted = keys.check(&narinfo);
        let trusted = trusted.map_err(|error| (narinfo.store_path().to_absolute_path(), refuse(&error)))?;
        Ok(Checked { trusted, profile: bound_profile(keys, &narinfo), upstream: None })
    }

    /// Brings one path here, unless it is, and publishes it.
    async fn bring(&self, checked: Checked) -> Result<Item, Failure> {
        let Checked { trusted, profile, upstream } = checked;
        let narinfo = trusted.info();
        let (path, nar_size) = (narinfo.store_path().to_absolute_path(), narinfo.nar_size());
        let Some(root) = narinfo.root().map(|root| *root.cid()) else {
            return Err(Failure::new(Class::Failed, format!("{path}: its narinfo has no IPFSHash")));
        };
        let lease = Arc::new(self.node.store().lease());
        let (state, bytes) = if self.node.holds(narinfo, root, &lease).await? {
            let staged = Staged::by_reading(lease, root, profile, narinfo.nar_hash(), nar_size);
            self.node.cache().commit_soon(trusted.clone(), staged, Purpose::Mirror).await?;
            ("held", SourceBytes::default())
        } else {
            let mut places = self.places.clone();
            places.blocks.lease = Some(lease);
            places.upstream = upstream;
            let (cache, purpose) = (self.node.cache(), Purpose::Mirror);
            let obtain =
                Obtain { cache, trusted: &trusted, profile, places, events: self.events, data: false, purpose };
            let obtained = obtain.run().await?;
            self.node.count(obtained.bytes);
            ("fetched", obtained.bytes)
        };
        self.node.stored(Some(root)).await;
        Ok(Item::Mirrored { path, root: root.to_string(), nar_size, state: state.to_owned(), bytes })
    }
}

/// Whether going on with the other paths makes no sense.
fn ends_the_job(failure: &Failure) -> bool {
    matches!(failure.class, Class::NoSpace | Class::Damaged | Class::Interrupted)
}

/// What is left to name a narinfo by that could not be read.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}
