//! `gc`: frees what no pin reaches; with a size, also unpins, oldest first, until the store fits.
//!
//! With a mirror named, a path is unpinned only after that peer delivered its DAG's inner nodes and a
//! sample of its leaves, and said HAVE for all the rest. Its narinfo stays, and its NAR is answered
//! out of the mirror from then on.

use super::Events;
use super::keep::{forget_vanished, release};
use super::places::parse_peer;
use crate::Node;
use crate::control::protocol::{Class, Done, Failure, Item};
use crate::network::Session;
use crate::store::{GcOptions, GcReport, Keep, Op, PathRecord};
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, DAG_PB};
use nipfs_proto::dag::walk::Visit;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::store_path::StorePath;
use tokio_util::sync::CancellationToken;

/// Runs the job.
///
/// # Errors
/// `Damaged` when a pinned DAG cannot be read (nothing is freed then), and the store's.
pub async fn collect(
    node: &Node,
    dry_run: bool,
    max_size: Option<u64>,
    require_mirror: Option<&str>,
    events: &Events,
) -> Result<Done, Failure> {
    let Some(address) = require_mirror else {
        return tell(&sweep(node, dry_run, max_size).await?, Vec::new(), Vec::new(), events).await;
    };
    let mirror = Mirror::connect(node, address).await?;
    let mut total = sweep(node, dry_run, None).await?;
    let (mut left, mut kept_because) = (Vec::new(), Vec::new());
    let max_size = max_size.unwrap_or(u64::MAX);
    let mut pinned = pinned_oldest_first(node)?.into_iter();
    let mut size = node.store().stats()?.stored_bytes.saturating_sub(if dry_run { total.freed_bytes } else { 0 });
    while size > max_size {
        // One sweep marks everything, so each round unpins about as much as is still too much.
        let mut excess = size - max_size;
        let before = left.len();
        while excess > 0
            && let Some(record) = pinned.next()
        {
            match mirror.take_over(node, &record, dry_run).await {
                Ok(nar_size) => {
                    excess = excess.saturating_sub(nar_size.max(1));
                    left.push(record.store_path);
                }
                Err(why) => {
                    let path = record.store_path.to_absolute_path();
                    events.note(format!("{path}: kept: {why}")).await?;
                    kept_because.push((path, why));
                }
            }
        }
        total.kept_paths = total.kept_paths.saturating_sub((left.len() - before) as u64);
        if left.len() == before || dry_run {
            break;
        }
        let swept = sweep(node, false, None).await?;
        total.freed_bytes += swept.freed_bytes;
        total.dropped_paths.extend(swept.dropped_paths);
        // What somebody still uses goes later, by itself.
        size = node.store().stats()?.stored_bytes.saturating_sub(swept.spared_bytes);
    }
    tell(&total, left, kept_because, events).await
}

/// Keeps the store at `max_size` bytes, until `stop`: whenever it has grown beyond, it is collected down to nine tenths
/// of that by the rule of `gc --max-size`, and `dropped` is told which paths went.
///
/// What leases protect stays, so that much may be here on top until they end. A store that GC cannot bring down is left
/// alone until all leases that there were have ended, or until it has grown by another tenth.
pub async fn hold(node: Node, max_size: u64, stop: CancellationToken, dropped: impl Fn(&[StorePath])) {
    let slack = max_size / 10;
    let mut limit = max_size;
    // After a GC that leases kept from more, or that more blocks came during: the newest lease that there was when it ended.
    let mut spared_by = None;
    loop {
        if spared_by.take_if(|newest| node.store().leases_ended(*newest)).is_some() {
            limit = max_size;
        }
        if node.store().stored_bytes() > limit {
            spared_by = None;
            match sweep(&node, false, Some(max_size - slack)).await {
                Ok(report) => {
                    let is_down = report.spared_bytes == 0 && node.store().stored_bytes() <= max_size;
                    spared_by = (!is_down).then(|| node.store().newest_lease());
                    let (paths, pins, freed) =
                        (report.dropped_paths.len(), report.dropped_pins.len(), report.freed_bytes);
                    let spared = report.spared_bytes;
                    tracing::warn!(
                        paths,
                        pins,
                        freed,
                        spared,
                        max_size,
                        "the store was too large: what is oldest and not in use went"
                    );
                    for path in &report.dropped_paths {
                        tracing::info!(%path, "dropped");
                    }
                    dropped(&report.dropped_paths);
                }
                Err(failure) => tracing::error!(%failure, "the store is too large, and nothing can be dropped"),
            }
            limit = max_size.max(node.store().stored_bytes() + slack);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = node.store().changed().notified() => {}
        }
    }
}

async fn sweep(node: &Node, dry_run: bool, max_size: Option<u64>) -> Result<GcReport, Failure> {
    let vanished = forget_vanished(node, dry_run).await?;
    let store = node.store().clone();
    let report = tokio::task::spawn_blocking(move || store.gc(&GcOptions { dry_run, max_size })).await;
    let mut report = report.map_err(|error| Failure::from_error(Class::Failed, &error))??;
    if dry_run {
        report.kept_paths = report.kept_paths.saturating_sub(vanished.len() as u64);
    } else {
        release(node).await?;
    }
    report.dropped_paths.splice(..0, vanished);
    if !dry_run {
        // What was published again meanwhile has a narinfo that nobody shall take back.
        let mut gone = Vec::with_capacity(report.dropped_paths.len());
        for path in report.dropped_paths {
            if !node.store().path(&path.hash_part())?.is_some_and(|record| record.published) {
                gone.push(path);
            }
        }
        report.dropped_paths = gone;
    }
    Ok(report)
}

fn pinned_oldest_first(node: &Node) -> Result<Vec<PathRecord>, Failure> {
    let mut pinned = Vec::new();
    for record in node.store().paths() {
        let record = record?;
        if record.pinned {
            pinned.push(record);
        }
    }
    pinned.sort_by_key(|record| record.added_unix);
    Ok(pinned)
}

/// Tells what went, what was left to a mirror, and what stayed.
async fn tell(
    total: &GcReport,
    left: Vec<StorePath>,
    kept_because: Vec<(String, String)>,
    events: &Events,
) -> Result<Done, Failure> {
    let paths = total.dropped_paths.iter().map(StorePath::to_absolute_path);
    for target in paths.chain(total.dropped_pins.iter().map(ToString::to_string)) {
        events.item(Item::Dropped { target, left: false }).await?;
    }
    for path in left {
        events.item(Item::Dropped { target: path.to_absolute_path(), left: true }).await?;
    }
    for (path, reason) in kept_because {
        events.item(Item::Kept { path, reason }).await?;
    }
    Ok(Done::Gc { freed_bytes: total.freed_bytes, kept_paths: total.kept_paths })
}

/// A peer that shall hold what we drop.
struct Mirror {
    address: String,
    session: Session,
}

/// Leaves of each DAG that the mirror must deliver, chosen at random.
const SAMPLE: usize = 32;

impl Mirror {
    async fn connect(node: &Node, address: &str) -> Result<Self, Failure> {
        let network = node.network().await?;
        let peer = network.connect(parse_peer(address)?).await?;
        Ok(Self { address: address.to_owned(), session: network.session(vec![peer]) })
    }

    /// Has the path proved, then leaves it to the mirror: it is no longer pinned here, and stays published. Returns the
    /// bytes of its NAR.
    async fn take_over(&self, node: &Node, record: &PathRecord, dry_run: bool) -> Result<u64, String> {
        let narinfo = NarInfo::parse_unasked(&record.narinfo).map_err(|error| error.to_string())?;
        let root = narinfo.root().map(|root| *root.cid()).ok_or("its narinfo has no IPFSHash")?;
        self.prove(root).await?;
        if dry_run {
            return Ok(narinfo.nar_size());
        }
        let (cache, lease) = (node.cache().clone(), node.store().lease());
        let (mirror, proved) = (self.address.clone(), record.clone());
        let change = move |now: PathRecord| {
            // Published anew while the mirror was asked: that is another promise.
            (now == proved)
                .then(|| Op::PutPath(PathRecord { pinned: false, mirror: Some(mirror), keep: Keep::Copy, ..now }))
        };
        let hash = record.store_path.hash_part();
        let changed = tokio::task::spawn_blocking(move || cache.change(&hash, &lease, change)).await;
        match changed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())? {
            true => Ok(narinfo.nar_size()),
            false => Err("it was changed meanwhile".to_owned()),
        }
    }

    /// Asks the peer for what only a holder can send. `Err` says what it did not.
    async fn prove(&self, root: Cid) -> Result<(), String> {
        let mut visit = Visit::new([root]).map_err(|error| error.to_string())?;
        let mut leaves = Vec::new();
        let mut seen = 0;
        while let Some(cid) = visit.next_cid().map_err(|error| error.to_string())? {
            if cid.codec() == DAG_PB {
                let block = self.deliver(cid).await?;
                visit.feed(&block).map_err(|error| error.to_string())?;
                continue;
            }
            // Reservoir sampling: each leaf is as likely as any other, whatever the size of the DAG.
            seen += 1;
            if leaves.len() < SAMPLE {
                leaves.push(cid);
            } else if let Some(place) = leaves.get_mut(rand::random_range(0..seen)) {
                *place = cid;
            }
        }
        for cid in leaves {
            self.deliver(cid).await?;
        }
        Ok(())
    }

    async fn deliver(&self, cid: Cid) -> Result<Block, String> {
        let delivered = self.session.want(cid).await;
        delivered.map(|(block, _)| block).map_err(|_| format!("{} did not deliver block {cid}", self.address))
    }
}

#[cfg(test)]
mod tests;
