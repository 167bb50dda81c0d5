//! Tells the DHTs which roots are published here, and again before they forget. Runs while `serve` does, in profiles that
//! announce.
//!
//! Only roots, of what is published now and whose blocks are here: whether a root is, is looked up right before it is
//! told. What is unpublished is told no more, and the DHTs forget it within two days. Of more than [`MAX_ROOTS`] roots the
//! newest are told: each costs a walk through the DHT.

mod ledger;

use self::ledger::Ledger;
use crate::cache::{Cache, unix_now};
use crate::control::protocol::Announced;
use crate::network::{Network, ProvideError};
use crate::node::Node;
use crate::store::StoreError;
use futures::stream::{self, StreamExt as _};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Roots that are announced.
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
    tokio::select! {
        () = stop.cancelled() => {}
        () = run(&node) => {}
    }
}

async fn run(node: &Node) {
    let Ok(network) = node.network().await else { return };
    let mut ledger = Ledger::load(node.state());
    let mut pause = FIRST_PAUSE;
    loop {
        let roots = match look(node, newest_roots).await {
            Ok(roots) => roots,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot tell what is published");
                sleep(LOOK).await;
                continue;
            }
        };
        ledger.keep_only(&roots);
        let mut due = ledger.due(&roots, unix_now());
        due.truncate(ROUND);
        let (told, failure) = tell(node, &network, &due).await;
        for root in &told {
            ledger.told(*root, unix_now());
        }
        if let Err(error) = ledger.save() {
            tracing::warn!("cannot note what was announced, it will be again: {error}");
        }
        node.set_announced(Announced {
            roots: roots.len() as u64,
            told: ledger.len() as u64,
            failure: failure.map(|failure| failure.to_string()),
        });
        if told.is_empty()
            && let Some(failure) = failure
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

/// The roots of what is published and here, the newest first, each once.
fn newest_roots(cache: &Cache) -> Result<Vec<Cid>, StoreError> {
    let store = cache.store();
    let mut newest = BinaryHeap::new();
    for path in store.paths() {
        let path = path?;
        if path.published && (path.pinned || path.mirror.is_none()) && store.is_backed(&path) {
            push_bounded(&mut newest, (path.added_unix, path.store_path.hash_part()));
        }
    }
    let mut dated = Vec::new();
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
        push_bounded(&mut pins, (pin.added_unix, pin.cid));
    }
    dated.extend(pins.into_iter().map(|Reverse(pin)| pin));
    dated.sort_unstable_by_key(|(added, _)| Reverse(*added));
    let mut seen = HashSet::new();
    let mut roots = Vec::new();
    for (_, root) in dated {
        if roots.len() < MAX_ROOTS && seen.insert(root) && is_public(cache, &root)? {
            roots.push(root);
        }
    }
    Ok(roots)
}

/// Keeps the [`MAX_ROOTS`] largest.
fn push_bounded<T: Ord>(heap: &mut BinaryHeap<Reverse<T>>, item: T) {
    heap.push(Reverse(item));
    if heap.len() > MAX_ROOTS {
        heap.pop();
    }
}

#[cfg(test)]
mod tests;
