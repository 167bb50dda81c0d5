//! Tells the DHTs which roots are published here, and again before they forget. Runs while `serve` does, in profiles that
//! announce.
//!
//! Only roots, of what is published now and whose blocks are here: whether a root is, is looked up right before it is
//! told. What is unpublished is told no more, and the DHTs forget it within two days. Of more than [`MAX_ROOTS`] roots the
//! newest are told, for each costs a walk through the DHT, and before them the root of an [`index`] of all. The index is
//! made anew when its root would be told again or a third of the paths are not in it, so its blocks are not written with each
//! publish. What was unpublished meanwhile still stands in it, as a name that leads to nothing here; the blocks of the one
//! before go with the next GC.

mod index;
mod ledger;

use self::index::Index;
use self::ledger::{Ledger, is_due};
use crate::cache::{Cache, unix_now};
use crate::control::protocol::Announced;
use crate::network::{Network, ProvideError};
use crate::node::Node;
use crate::store::{PathRecord, StoreError};
use futures::stream::{self, StreamExt as _};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Roots that are announced, beside that of the index.
const MAX_ROOTS: usize = 5000;
/// Roots that are told at once.
const AT_ONCE: usize = 8;
/// Roots that are told before the ledger is saved.
const ROUND: usize = 64;
/// How long to wait for more after a publish.
const GATHER: Duration = Duration::from_secs(1);
/// How often to look at the store without being told.
const LOOK: Duration = Duration::from_secs(600);
/// How long to wait after a round in which nobody listened; doubled each time, up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LAST_PAUSE: Duration = Duration::from_secs(1800);

/// Announces until it is stopped.
pub async fn announce(node: Node, stop: CancellationToken) {
    announce_at_most(MAX_ROOTS, node, stop).await;
}

async fn announce_at_most(most: usize, node: Node, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = run(&node, most) => {}
    }
}

async fn run(node: &Node, most: usize) {
    let Ok(network) = node.network().await else { return };
    let mut ledger = Ledger::load(node.state());
    let (mut indexing, mut announced) = (Indexing::default(), Announced::default());
    let mut pause = FIRST_PAUSE;
    loop {
        let Newest { mut roots, paths, more } = match look(node, move |cache| newest_roots(cache, most)).await {
            Ok(newest) => newest,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot tell what is published");
                sleep(LOOK).await;
                continue;
            }
        };
        let index = indexing.index(node, more.then_some(paths)).await;
        roots.splice(..0, index);
        ledger.keep_only(&roots);
        announced.roots = roots.len() as u64;
        announced.told = ledger.len() as u64;
        let index = index.map(|root| root.to_string());
        if announced.index != index {
            announced.index = index;
            // Clients may know of it before the DHTs do: a round can take minutes.
            node.set_announced(announced.clone());
        }
        let mut due = ledger.due(&roots, unix_now());
        due.truncate(ROUND);
        let (told, failure) = tell(node, &network, &due).await;
        for root in &told {
            ledger.told(*root, unix_now());
        }
        if let Err(error) = ledger.save() {
            tracing::warn!("cannot note what was announced, it will be again: {error}");
        }
        announced.told = ledger.len() as u64;
        announced.failure = failure.map(|failure| failure.to_string());
        node.set_announced(announced.clone());
        if told.is_empty()
            && let Some(failure) = &announced.failure
        {
            tracing::info!("{} roots wait to be announced: {failure}", due.len());
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
            continue;
        }
        pause = FIRST_PAUSE;
        if due.len() < ROUND {
            tokio::select! {
                () = node.published() => sleep(GATHER).await,
                () = sleep(LOOK) => {}
            }
        }
    }
}

/// The index while there is more than can be told.
#[derive(Default)]
struct Indexing {
    /// With when it was made, in seconds since 1970, and how many paths there were.
    index: Option<(Index, u64, usize)>,
    /// When making it failed last.
    failed: Option<Instant>,
}

impl Indexing {
    /// The root of the index, if there is more than is told: so many `paths`. It is made when there is none, or it has become
    /// old, or a third of the paths are not in it. One that is old stands until there is another.
    async fn index(&mut self, node: &Node, paths: Option<usize>) -> Option<Cid> {
        let Some(paths) = paths else {
            self.index = None;
            return None;
        };
        let now = unix_now();
        let is_old = |made, then| is_due(made, now) || paths / 3 > then / 2;
        if self.index.as_ref().is_none_or(|(_, made, then)| is_old(*made, *then))
            && self.failed.is_none_or(|failed| failed.elapsed() >= LOOK)
        {
            match look(node, Index::make).await {
                Ok(index) => {
                    tracing::info!(root = %index.root, "an index of what is published stands");
                    (self.index, self.failed) = (Some((index, now, paths)), None);
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot make an index of what is published"
                    );
                    self.failed = Some(Instant::now());
                }
            }
        }
        self.index.as_ref().map(|(index, ..)| index.root)
    }
}

/// Tells of these roots, as far as they are still published: those that some node was told of, and the last failure.
async fn tell(node: &Node, network: &Network, roots: &[Cid]) -> (Vec<Cid>, Option<ProvideError>) {
    let outcomes = stream::iter(roots.iter().copied()).map(|root| async move {
        let public = look(node, move |cache| is_public(cache, &root)).await.unwrap_or(false);
        (root, if public { Some(network.provide(root).await) } else { None })
    });
    let mut outcomes = outcomes.buffer_unordered(AT_ONCE);
    let (mut told, mut failure) = (Vec::new(), None);
    while let Some((root, outcome)) = outcomes.next().await {
        match outcome {
            Some(Ok(())) => told.push(root),
            Some(Err(error)) => failure = Some(error),
            None => {}
        }
    }
    (told, failure)
}

/// Reads the cache off the event loop.
async fn look<T: Send + 'static>(
    node: &Node,
    what: impl FnOnce(&Cache) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let cache = node.cache().clone();
    match tokio::task::spawn_blocking(move || what(&cache)).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn is_public(cache: &Cache, root: &Cid) -> Result<bool, StoreError> {
    match Digest::of_cid(root) {
        Ok(Some(digest)) => cache.store().is_public(&digest),
        _ => Ok(false),
    }
}

/// The root of a path that is published and here.
fn public_root(cache: &Cache, path: &PathRecord) -> Result<Option<Cid>, StoreError> {
    if !may_be_told(cache, path) {
        return Ok(None);
    }
    let Some(root) = cache.root_of(path)? else { return Ok(None) };
    Ok(is_public(cache, &root)?.then_some(root))
}

fn may_be_told(cache: &Cache, path: &PathRecord) -> bool {
    path.published && (path.pinned || path.mirror.is_none()) && cache.store().is_backed(path)
}

/// What shall be told.
struct Newest {
    /// The newest first, each once.
    roots: Vec<Cid>,
    /// How many paths there are.
    paths: usize,
    /// Whether there may be other roots.
    more: bool,
}

/// The roots of what is published and here, at most so many.
fn newest_roots(cache: &Cache, most: usize) -> Result<Newest, StoreError> {
    let store = cache.store();
    let (mut newest, mut paths, mut more) = (BinaryHeap::new(), 0, false);
    for path in store.paths() {
        let path = path?;
        if may_be_told(cache, &path) {
            paths += 1;
            more |= push_bounded(&mut newest, most, (path.added_unix, path.store_path.hash_part()));
        }
    }
    let mut dated = Vec::with_capacity(newest.len());
    for Reverse((added, hash)) in newest {
        if let Some(path) = store.path(&hash)?
            && let Some(root) = cache.root_of(&path)?
        {
            dated.push((added, root));
        }
    }
    let mut pins = BinaryHeap::new();
    for pin in store.pins() {
        let pin = pin?;
        more |= push_bounded(&mut pins, most, (pin.added_unix, pin.cid));
    }
    dated.extend(pins.into_iter().map(|Reverse(pin)| pin));
    dated.sort_unstable_by_key(|(added, _)| Reverse(*added));
    let mut seen = HashSet::with_capacity(dated.len());
    let mut roots = Vec::with_capacity(dated.len());
    for (_, root) in dated {
        // The DHTs know digests only.
        if let Ok(Some(digest)) = Digest::of_cid(&root)
            && seen.insert(digest)
            && store.is_public(&digest)?
        {
            roots.push(root);
        }
    }
    more |= roots.len() > most;
    roots.truncate(most);
    Ok(Newest { roots, paths, more })
}

/// Keeps the `most` largest. Whether one had to go.
fn push_bounded<T: Ord>(heap: &mut BinaryHeap<Reverse<T>>, most: usize, item: T) -> bool {
    heap.push(Reverse(item));
    heap.len() > most && heap.pop().is_some()
}

#[cfg(test)]
mod tests;
