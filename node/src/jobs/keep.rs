//! Publishing: a narinfo of our own becomes a record; and what goes with a path whose blocks are not copied into the
//! store.
//!
//! Such a path is a valid one of this machine's Nix: the node asks Nix's database itself, reads the tree itself, and
//! takes nothing but the path's name from a client. A path that is kept rooted has a GC root of its own, made before
//! it is recorded and ended after it is forgotten, so that a crash leaves a root too many and never one too few.

use super::{Class, Events, Failure};
use crate::Node;
use crate::cache::{Audience, Claim, Staged};
use crate::control::protocol::Report;
use crate::dag::pipe::pipe;
use crate::nix::closure::QueryError;
use crate::nix::database::Database;
use crate::nix::dump::{DumpError, Pieces, dump};
use crate::nix::gc_roots::GcRootError;
use crate::store::{Keep, PathRecord, StoreError};
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::{NarInfo, PathInfo};
use nipfs_proto::nix::store_path::StorePath;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Pieces of a NAR that are read ahead.
const AHEAD: usize = 4;

/// Reads the NAR of a valid store path, and stages it without storing its leaves.
///
/// # Errors
/// `Usage` when the path is not a valid one of this machine's Nix.
pub async fn stage(node: &Node, path: &str, profile: Profile, events: &Events) -> Result<Staged, Failure> {
    let tree = StorePath::parse(path).map_err(|error| Failure::from_error(Class::Usage, &error))?;
    let info = valid(node, &tree).await?;
    let (pieces, mut read) = mpsc::channel(AHEAD);
    let source = node.store().tree(&tree);
    let dumped = tokio::task::spawn_blocking(move || dump(&source, Pieces(pieces)));
    let (feed, input) = pipe();
    let cache = node.cache().clone();
    let staged = tokio::task::spawn_blocking(move || cache.stage_outside(input, profile, &tree));
    let mut done = 0;
    // Ends with this future, whose end ends both threads.
    while let Some(piece) = read.recv().await {
        done += piece.len() as u64;
        let (total, source) = (info.nar_size, "local");
        events.progress(|| Report::Progress { path: path.to_owned(), done, total, source: source.to_owned() });
        if feed.send(Ok(piece)).await.is_err() {
            break;
        }
    }
    drop((feed, read));
    let crashed = |error| Failure::from_error(Class::Failed, &error);
    let (dumped, staged) = (dumped.await.map_err(crashed)?, staged.await.map_err(crashed)?);
    match dumped {
        Ok(()) => Ok(staged?),
        // The import ended first: its error is the one that counts.
        Err(DumpError::Write(_)) if staged.is_err() => Ok(staged?),
        Err(error) => Err(Failure::from_error(Class::Failed, &error).hint("the node must be able to read the path")),
    }
}

/// A narinfo to be published, and its NAR where that is not held already.
pub type Ready = (NarInfo, Option<Arc<Staged>>);

/// Publishes paths in this order, and tells what became of each.
///
/// # Errors
/// For each by itself: as [`Cache::commit`](crate::cache::Cache::commit); and when the path cannot be kept so.
pub async fn commit(node: &Node, paths: Vec<Ready>, keep: Keep) -> Vec<Result<(), Failure>> {
    let names: Vec<_> = paths.iter().map(|(narinfo, _)| narinfo.store_path().clone()).collect();
    let mut committed = Vec::with_capacity(paths.len());
    if keep == Keep::Copy {
        committed = record(node, paths, keep).await;
    } else {
        for path in paths {
            committed.push(keep_outside(node, path, keep).await);
        }
    }
    for (path, committed) in names.iter().zip(&mut committed) {
        let ended = end_root(node, path).await;
        *committed = std::mem::replace(committed, Ok(())).and(ended);
    }
    committed
}

async fn keep_outside(node: &Node, ready: Ready, keep: Keep) -> Result<(), Failure> {
    let path = ready.0.store_path().clone();
    if valid(node, &path).await?.nar_hash != ready.0.nar_hash() {
        let failure = Failure::new(Class::Refused, format!("{path}: its NarHash is not the one in Nix's database"));
        return Err(failure.hint(format!("run: nix-store --verify-path {path}")));
    }
    let roots = node.gc_roots();
    // Nobody ends the root between its making and the record that needs it.
    let rooting = if keep == Keep::Rooted { Some(roots.lock().await) } else { None };
    if rooting.is_some() && !(is_rooted(node, &path)? && roots.contains(&path)) {
        roots.add(&path).await.map_err(|error| unrooted(&path, &error))?;
    }
    record(node, vec![ready], keep).await.into_iter().collect()
}

/// Has paths recorded together.
async fn record(node: &Node, paths: Vec<Ready>, keep: Keep) -> Vec<Result<(), Failure>> {
    let (cache, count) = (node.cache().clone(), paths.len());
    let commit = move || {
        let wanted =
            paths.iter().map(|(narinfo, staged)| (Claim::Own(narinfo, keep), staged.as_deref(), Audience::World));
        cache.commit_all(&wanted.collect::<Vec<_>>())
    };
    match tokio::task::spawn_blocking(commit).await {
        Ok(committed) => committed.into_iter().map(|committed| Ok(committed?)).collect(),
        Err(error) => vec![Err(Failure::from_error(Class::Failed, &error)); count],
    }
}

/// Ends the GC root of a path that has one and does not need it.
async fn end_root(node: &Node, path: &StorePath) -> Result<(), Failure> {
    if node.gc_roots().contains(path) && !is_rooted(node, path)? {
        release(node).await?;
    }
    Ok(())
}

/// Ends the GC roots of paths that no longer need one.
///
/// # Errors
/// The store's and the file system's.
pub async fn release(node: &Node) -> Result<(), Failure> {
    let roots = node.gc_roots();
    let _alone = roots.lock().await;
    let failed = |error: GcRootError| Failure::from_error(Class::Failed, &error);
    for path in roots.list().map_err(failed)? {
        if !is_rooted(node, &path)? {
            roots.remove(&path).map_err(failed)?;
        }
    }
    Ok(())
}

/// Forgets the paths that were kept only for as long as their trees are there, which they are not, and returns them.
/// With `dry_run` it only finds them.
///
/// # Errors
/// The store's.
pub async fn forget_vanished(node: &Node, dry_run: bool) -> Result<Vec<StorePath>, Failure> {
    let cache = node.cache().clone();
    let forgotten = tokio::task::spawn_blocking(move || cache.forget_vanished(dry_run)).await;
    Ok(forgotten.map_err(|error| Failure::from_error(Class::Failed, &error))??)
}

fn is_rooted(node: &Node, path: &StorePath) -> Result<bool, StoreError> {
    let record = node.store().path(&path.hash_part())?;
    let needs = |record: PathRecord| record.store_path == *path && record.pinned && record.keep == Keep::Rooted;
    Ok(record.is_some_and(needs))
}

/// What Nix has registered about the path.
async fn valid(node: &Node, path: &StorePath) -> Result<PathInfo, Failure> {
    let (state, asked) = (node.nix_state().to_owned(), path.clone());
    let looked = tokio::task::spawn_blocking(move || Database::open(&state)?.path_info(&asked)).await;
    let looked = looked.map_err(|error| Failure::from_error(Class::Failed, &error))?;
    looked.map(|valid| valid.info).map_err(|error: QueryError| {
        let failure = Failure::new(Class::Usage, format!("cannot be kept outside the store: {path}"));
        failure.because(&error).hint("use --keep copy")
    })
}

fn unrooted(path: &StorePath, error: &GcRootError) -> Failure {
    let failure = Failure::new(Class::Failed, format!("cannot make a GC root: {path}")).because(error);
    failure.hint("the node runs nix-store; --keep weak needs no root, --keep copy no Nix")
}

#[cfg(test)]
mod tests;
