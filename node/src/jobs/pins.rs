//! `pin`: what stays. Publishing and mirroring pin a path; a bare CID can be pinned too.

use super::Events;
use super::narinfos::parse_hash;
use super::places::{Whom, places};
use crate::Node;
use crate::cache::unix_now;
use crate::control::protocol::{Class, Done, Failure, Item};
use crate::dag::read::{Sources, block};
use crate::store::{CidPin, Lease, Op, PathRecord};
use futures::stream::{FuturesUnordered, StreamExt};
use nipfs_proto::Cid;
use nipfs_proto::block::parse_cid;
use nipfs_proto::dag::walk::{Visit, WalkError};
use nipfs_proto::nix::store_path::StorePathHash;
use std::sync::Arc;

/// Blocks of a DAG that are asked for at once; each has at most 2 MiB.
const BLOCKS_AT_ONCE: usize = 16;

/// What a pin command names.
enum Target {
    Path(StorePathHash),
    Root(Cid),
}

fn parse(target: &str) -> Result<Target, Failure> {
    if let Ok(cid) = parse_cid(target) {
        return Ok(Target::Root(cid));
    }
    parse_hash(target)
        .map(Target::Path)
        .map_err(|failure| Failure { message: format!("{target}: neither a store path nor a CID"), ..failure })
}

/// Lists the pins, oldest first.
///
/// # Errors
/// The store's.
pub async fn list(node: &Node, check: bool, events: &Events) -> Result<Done, Failure> {
    let mut items = Vec::new();
    for record in node.store().paths() {
        let record = record?;
        if record.pinned {
            items.push(path_item(node, &record, check).await?);
        }
    }
    for pin in node.store().pins() {
        let pin = pin?;
        let target = pin.cid.to_string();
        let complete = if check { Some(node.is_complete(pin.cid).await?) } else { None };
        items.push(Item::Pin { root: target.clone(), target, nar_size: 0, added: pin.added_unix, complete });
    }
    items.sort_by_key(|item| if let Item::Pin { added, .. } = item { *added } else { 0 });
    let ok = items.len() as u64;
    for item in items {
        events.item(item).await?;
    }
    Ok(Done::Count { ok, failed: 0 })
}

/// A pinned path; when it is checked, all DAGs of its NAR are, however they were cut.
async fn path_item(node: &Node, record: &PathRecord, check: bool) -> Result<Item, Failure> {
    let root = node.cache().root_of(record)?.map_or_else(String::new, |root| root.to_string());
    let nar = node.store().nar(&record.nar_hash)?;
    let (roots, nar_size) = nar.map_or_else(Default::default, |nar| (nar.roots, nar.nar_size));
    let mut complete = check.then_some(!roots.is_empty());
    for (_, root) in roots {
        if complete == Some(true) {
            complete = Some(node.is_complete(root).await?);
        }
    }
    let target = record.store_path.to_absolute_path();
    Ok(Item::Pin { target, root, nar_size, added: record.added_unix, complete })
}

/// Pins a path that is here, or a CID, whose missing blocks are asked of the peers.
///
/// # Errors
/// `NotFound` when the path is unknown or nobody has a block.
pub async fn add(node: &Node, target: &str, peers: &[String], events: &Events) -> Result<Done, Failure> {
    match parse(target)? {
        Target::Path(hash) => {
            let unknown = || {
                let failure = Failure::new(Class::NotFound, format!("{target}: not in this node's cache"));
                failure.hint("run: nipfs publish PATH, nipfs mirror pull URL or nipfs fetch PATH")
            };
            let record = node.store().path(&hash)?.ok_or_else(unknown)?;
            let root = node.cache().root_of(&record)?.ok_or_else(unknown)?;
            // The blocks of a path that was left to a mirror come from there.
            let peers: Vec<String> = peers.iter().cloned().chain(record.mirror).collect();
            let lease = Arc::new(node.store().lease());
            let blocks = places(node, &Whom { peers: &peers, ..Whom::default() }, events).await?.blocks;
            download(&Sources { lease: Some(lease.clone()), ..blocks }, root).await?;
            let cache = node.cache().clone();
            let pinned = tokio::task::spawn_blocking(move || cache.pin(&hash, &lease)).await;
            if !pinned.map_err(|error| Failure::from_error(Class::Failed, &error))?? {
                return Err(unknown());
            }
            node.stored(Some(root)).await;
        }
        Target::Root(root) => {
            let lease = Arc::new(node.store().lease());
            let mut places = places(node, &Whom { peers, ..Whom::default() }, events).await?;
            places.blocks.lease = Some(lease.clone());
            download(&places.blocks, root).await?;
            let pin = CidPin { cid: root, added_unix: unix_now() };
            node.commit(lease, vec![Op::PutPin(pin)]).await?;
            node.stored(Some(root)).await;
        }
    }
    Ok(Done::Ok)
}

/// Every block of the DAG, a window of them at once; what is not here comes from outside.
async fn download(sources: &Sources, root: Cid) -> Result<(), Failure> {
    let refuse = |error: WalkError| Failure::from_error(Class::Refused, &error);
    let mut visit = Visit::new([root]).map_err(refuse)?;
    let mut arriving = FuturesUnordered::new();
    loop {
        while arriving.len() < BLOCKS_AT_ONCE
            && let Some(cid) = visit.next_cid().map_err(refuse)?
        {
            arriving.push(block(sources, root, cid));
        }
        let Some(block) = arriving.next().await else { return Ok(()) };
        visit.feed(&block?).map_err(refuse)?;
    }
}

/// Unpins. The narinfo is gone from every surface at once; the blocks go with the next GC.
///
/// # Errors
/// `NotFound` when nothing like it is pinned.
pub async fn remove(node: &Node, target: &str) -> Result<Done, Failure> {
    let unknown = || Failure::new(Class::NotFound, format!("{target}: not pinned"));
    let lease = Arc::new(node.store().lease());
    let op = match parse(target)? {
        Target::Path(hash) => {
            let remove = move |record: PathRecord| (record.pinned || record.published).then_some(Op::RemovePath(hash));
            if !change(node, hash, lease, remove).await? {
                return Err(unknown());
            }
            super::keep::release(node).await?;
            return Ok(Done::Ok);
        }
        Target::Root(cid) => {
            let pins = node.store().pins().collect::<Result<Vec<_>, _>>()?;
            pins.iter().find(|pin| pin.cid == cid).ok_or_else(unknown)?;
            Op::RemovePin(cid)
        }
    };
    node.commit(lease, vec![op]).await?;
    Ok(Done::Ok)
}

/// Changes a path's record; false when there is none, or nothing to change.
async fn change(
    node: &Node,
    hash: StorePathHash,
    lease: Arc<Lease>,
    change: impl FnOnce(PathRecord) -> Option<Op> + Send + 'static,
) -> Result<bool, Failure> {
    let cache = node.cache().clone();
    let changed = tokio::task::spawn_blocking(move || cache.change(&hash, &lease, change)).await;
    Ok(changed.map_err(|error| Failure::from_error(Class::Failed, &error))??)
}
