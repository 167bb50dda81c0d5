//! `verify`: is what is on disk what was put there?
//!
//! Every pinned DAG is walked; with `deep` every block is hashed and every pinned NAR compared with
//! its NarHash, not with our own records. With `repair` damaged blocks are dropped and fetched again.

use super::Events;
use super::keep::{forget_vanished, release};
use super::places::{Whom, places};
use crate::Node;
use crate::control::protocol::{Class, Done, Failure, Report};
use crate::dag::read::{Counters, Sources, block as block_of, read};
use crate::store::{Keep, Lease, Op, PathRecord, StoreError};
use futures::{StreamExt, pin_mut};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use nipfs_proto::dag::walk::{Visit, WalkError};
use nipfs_proto::nix::NarHash;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Runs the job. Damage is a result, not an error: the caller looks at the lists.
///
/// # Errors
/// The store's.
pub async fn verify(node: &Node, deep: bool, repair: bool, peers: &[String], events: &Events) -> Result<Done, Failure> {
    let store = node.store().clone();
    let checked = tokio::task::spawn_blocking(move || store.verify(deep, repair)).await;
    let checked = checked.map_err(|error| Failure::from_error(Class::Failed, &error))??;
    // By digest, so that a block is named once: by the CID under which a DAG links to it, if one does.
    let mut damaged: BTreeMap<Digest, Cid> = checked.damaged.iter().map(|digest| (*digest, digest.raw_cid())).collect();
    let mut repaired = Vec::new();
    let mut broken_paths = Vec::new();
    let lease = Arc::new(node.store().lease());
    let sources = if repair {
        Sources { lease: Some(lease.clone()), ..places(node, &Whom { peers, ..Whom::default() }, events).await?.blocks }
    } else {
        Sources::local(node.store().clone())
    };
    for path in forget_vanished(node, true).await? {
        events.note(format!("{path}: no longer in the Nix store, and forgotten with the next gc")).await?;
    }
    for (target, root, nar_hash) in pinned(node)? {
        let whole = walk(root, &sources, node, &mut damaged, &mut repaired).await?;
        let matches = match nar_hash {
            Some((nar_hash, size)) if whole && deep => {
                hash(&sources, root, size, &target, events).await? == Some(nar_hash)
            }
            _ => whole,
        };
        if !matches && !broken_paths.contains(&target) {
            broken_paths.push(target);
        }
    }
    if !repaired.is_empty() {
        // What was fetched again is durable before we say so.
        node.commit(lease.clone(), Vec::new()).await?;
        keep_copies(node, &mut broken_paths, lease).await?;
    }
    let damaged = damaged.values().map(ToString::to_string).collect();
    let damaged_records = checked.damaged_records;
    Ok(Done::Verify { blocks: checked.blocks, damaged, repaired, broken_paths, damaged_records })
}

/// Whole paths whose trees do not give their blocks have them in the store now. One that is not whole after all is
/// broken.
async fn keep_copies(node: &Node, broken: &mut Vec<String>, lease: Arc<Lease>) -> Result<(), Failure> {
    let store = node.store();
    for record in store.paths() {
        let record = record?;
        let path = record.store_path.to_absolute_path();
        if store.is_backed(&record) || store.has_vanished(&record) || broken.contains(&path) {
            continue;
        }
        let (cache, lease, hash) = (node.cache().clone(), lease.clone(), record.store_path.hash_part());
        let copied = move |now: PathRecord| Some(Op::PutPath(PathRecord { keep: Keep::Copy, ..now }));
        let changed = tokio::task::spawn_blocking(move || cache.change(&hash, &lease, copied)).await;
        match changed.map_err(|error| Failure::from_error(Class::Failed, &error))? {
            // Its NAR has another DAG here, of which blocks are missing.
            Err(StoreError::Incomplete { .. } | StoreError::Unreadable { .. }) => broken.push(path),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
    release(node).await
}

type Pinned = (String, Cid, Option<(NarHash, u64)>);

/// What is pinned: of a path's NAR all DAGs, however they were cut.
fn pinned(node: &Node) -> Result<Vec<Pinned>, Failure> {
    let mut pinned = Vec::new();
    for record in node.store().paths() {
        let record = record?;
        let nar_hash = record.nar_hash;
        // A path that went with its tree is no damage.
        if record.pinned
            && !node.store().has_vanished(&record)
            && let Some(nar) = node.store().nar(&nar_hash)?
        {
            let (path, size) = (record.store_path.to_absolute_path(), nar.nar_size);
            pinned.extend(nar.roots.into_iter().map(|(_, root)| (path.clone(), root, Some((nar_hash, size)))));
        }
    }
    for pin in node.store().pins() {
        let cid = pin?.cid;
        pinned.push((cid.to_string(), cid, None));
    }
    Ok(pinned)
}

/// Walks one DAG; blocks that are missing or damaged come from outside when there is an outside.
async fn walk(
    root: Cid,
    sources: &Sources,
    node: &Node,
    damaged: &mut BTreeMap<Digest, Cid>,
    repaired: &mut Vec<String>,
) -> Result<bool, Failure> {
    let refuse = |error: WalkError| Failure::from_error(Class::Damaged, &error);
    let mut visit = Visit::new([root]).map_err(refuse)?;
    let mut whole = true;
    while let Some(cid) = visit.next_cid().map_err(refuse)? {
        let held = node.held(cid).await?;
        match block_of(sources, root, cid).await {
            Ok(block) => {
                if !held {
                    note(damaged, cid);
                    repaired.push(cid.to_string());
                }
                visit.feed(&block).map_err(refuse)?;
            }
            Err(error) => {
                tracing::error!("{error}");
                note(damaged, cid);
                whole = false;
            }
        }
    }
    Ok(whole)
}

fn note(damaged: &mut BTreeMap<Digest, Cid>, cid: Cid) {
    if let Ok(Some(digest)) = Digest::of_cid(&cid) {
        damaged.insert(digest, cid);
    }
}

async fn hash(
    sources: &Sources,
    root: Cid,
    size: u64,
    path: &str,
    events: &Events,
) -> Result<Option<NarHash>, Failure> {
    let bytes = read(sources.clone(), Arc::new(Counters::default()), root, 0..size + 1);
    pin_mut!(bytes);
    let (mut sha256, mut done) = (Sha256::new(), 0);
    while let Some(chunk) = bytes.next().await {
        let Ok(chunk) = chunk else { return Ok(None) };
        sha256.update(&chunk);
        done += chunk.len() as u64;
        events.progress(|| Report::Progress { path: path.to_owned(), done, total: size, source: "local".to_owned() });
    }
    Ok((done == size).then(|| NarHash(sha256.finalize().into())))
}

#[cfg(test)]
mod tests;
