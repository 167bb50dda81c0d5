//! Garbage collection: mark what pins reach, forget the rest, then sweep (see `sweep`).
//!
//! Anything that cannot be marked ends it before the first deletion. Commits and puts go on meanwhile: what a lease
//! protects is spared, even if the lease ends before GC does, and so are the paths of which it protects all. Other paths
//! that nobody pinned go with their blocks, records first: a narinfo never outlives its NAR. What standing leases protect is
//! kept like what pins reach, but their links are not followed.

use super::digest_set::DigestSet;
use super::ops::Batch;
use super::{Keep, Op, PathRecord, Store, StoreError, lock};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use nipfs_proto::nix::store_path::StorePath;
use std::collections::HashSet;

/// Ops in one batch of deletions.
const MAX_OPS: usize = 10_000;

/// What GC shall do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcOptions {
    /// Only tell what would go.
    pub dry_run: bool,
    /// Unpin as well, oldest first, until the blocks take at most this many bytes.
    pub max_size: Option<u64>,
}

/// What GC did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Bytes of deleted payloads.
    pub freed_bytes: u64,
    /// Bytes of payloads that no pin reaches and that stay because of a lease that will end.
    pub spared_bytes: u64,
    /// Blocks deleted.
    pub dropped_blocks: u64,
    /// Store paths that are no longer held; one that a mirror holds keeps its narinfo.
    pub dropped_paths: Vec<StorePath>,
    /// CIDs that were unpinned.
    pub dropped_pins: Vec<Cid>,
    /// Paths that are held.
    pub kept_paths: u64,
}

/// What shall stay and what shall go.
pub(super) struct Plan {
    pub(super) marked: DigestSet,
    paths: Vec<PathRecord>,
    pins: Vec<Cid>,
    kept_paths: u64,
}

/// A reason to keep blocks.
struct Keeper {
    added_unix: u64,
    what: Kept,
    roots: Vec<Cid>,
}

enum Kept {
    Path(PathRecord),
    Pin(Cid),
}

impl Store {
    /// Deletes what no pin reaches.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`] or [`StoreError::Unreadable`] when a pinned DAG is not whole: nothing was
    /// deleted then. [`StoreError::ReadOnly`], I/O.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport, StoreError> {
        let _one = lock(&self.0.gc);
        let _spared = Spared::begin(self);
        self.0.log.sync()?;
        let plan = self.plan(options.max_size)?;
        if options.dry_run {
            return self.forecast(plan);
        }
        self.make_room();
        let mut report = self.forget(&plan)?;
        let live = self.sweep(&plan.marked, &mut report)?;
        self.hide_unpublished()?;
        self.reclaim(&live)?;
        self.0.log.index.flush()?;
        self.fill_reserve();
        Ok(report)
    }

    pub(super) fn plan(&self, max_size: Option<u64>) -> Result<Plan, StoreError> {
        let mut keepers = Vec::new();
        let mut paths = Vec::new();
        for path in self.paths() {
            let path = path?;
            if path.pinned {
                let roots = self.nar(&path.nar_hash)?.map(|nar| nar.roots.into_iter().map(|(_, cid)| cid).collect());
                let roots = roots.ok_or_else(|| StoreError::UnknownNar(path.store_path.clone()))?;
                keepers.push(Keeper { added_unix: path.added_unix, what: Kept::Path(path), roots });
            } else if !path.is_remote() {
                paths.push(path);
            }
        }
        for pin in self.pins() {
            let pin = pin?;
            keepers.push(Keeper { added_unix: pin.added_unix, what: Kept::Pin(pin.cid), roots: vec![pin.cid] });
        }
        keepers.sort_by_key(|keeper| std::cmp::Reverse(keeper.added_unix));
        let mut plan = Plan { marked: lock(&self.0.leases).empty_set(), paths, pins: Vec::new(), kept_paths: 0 };
        let standing = lock(&self.0.leases).standing();
        let mut left = match (max_size, &standing) {
            (Some(size), Some(standing)) => size.saturating_sub(self.stored_bytes_of(standing)?),
            (size, _) => size.unwrap_or(u64::MAX),
        };
        let mut full = false;
        for keeper in keepers {
            full = full || !self.mark(&keeper.roots, &mut plan.marked, &mut left)?;
            match keeper.what {
                Kept::Path(path) if full => plan.paths.push(path),
                Kept::Pin(cid) if full => plan.pins.push(cid),
                Kept::Path(_) => plan.kept_paths += 1,
                Kept::Pin(_) => {}
            }
        }
        // Last, so that pinned DAGs which contain some of it were walked and found whole.
        standing.into_iter().for_each(|standing| plan.marked.merge(standing));
        Ok(plan)
    }

    fn stored_bytes_of(&self, digests: &DigestSet) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for block in self.0.log.index.blocks() {
            let (digest, row) = block?;
            bytes += if digests.contains(&digest) { u64::from(row.location.stored) } else { 0 };
        }
        Ok(bytes)
    }

    /// Marks all blocks under `roots`, or none of them when they take more than is left; false then.
    fn mark(&self, roots: &[Cid], marked: &mut DigestSet, left: &mut u64) -> Result<bool, StoreError> {
        let mut fresh = Vec::new();
        let mut need = 0;
        for root in roots {
            self.walk(root, marked, |cid, digest, row| {
                let row = row.ok_or_else(|| StoreError::incomplete(root, cid))?;
                need += u64::from(row.location.stored);
                fresh.push(*digest);
                Ok(())
            })?;
        }
        let fits = need <= *left;
        if fits {
            *left -= need;
        } else {
            // Nothing is marked after this, so a node that was known as a leaf before may stay marked as a node.
            fresh.iter().for_each(|digest| marked.remove(digest));
        }
        Ok(fits)
    }

    fn forecast(&self, plan: Plan) -> Result<GcReport, StoreError> {
        let mut report = GcReport { kept_paths: plan.kept_paths, dropped_pins: plan.pins, ..GcReport::default() };
        for path in plan.paths {
            if self.is_leased(&path)? {
                report.kept_paths += 1;
            } else {
                report.dropped_paths.push(path.store_path);
            }
        }
        for block in self.0.log.index.blocks() {
            let (digest, row) = block?;
            let stored = u64::from(row.location.stored);
            if plan.marked.contains(&digest) {
                continue;
            }
            if lock(&self.0.leases).protects(&digest) {
                report.spared_bytes += stored;
            } else {
                report.dropped_blocks += 1;
                report.freed_bytes += stored;
            }
        }
        Ok(report)
    }

    /// Forgets the paths and pins that shall go, and the NARs that no path refers to then.
    pub(super) fn forget(&self, plan: &Plan) -> Result<GcReport, StoreError> {
        // No commit is under way below: what has not changed since the plan was made may go.
        let _alone = self.commits_done();
        let mut report = GcReport { kept_paths: plan.kept_paths, ..GcReport::default() };
        let mut ops = Vec::new();
        for path in &plan.paths {
            let hash = path.store_path.hash_part();
            if self.path(&hash)?.as_ref() != Some(path) || self.is_leased(path)? {
                report.kept_paths += 1;
                continue;
            }
            ops.push(match path.mirror {
                Some(_) => Op::PutPath(PathRecord { pinned: false, keep: Keep::Copy, ..path.clone() }),
                None => Op::RemovePath(hash),
            });
            report.dropped_paths.push(path.store_path.clone());
        }
        for cid in &plan.pins {
            ops.push(Op::RemovePin(*cid));
            report.dropped_pins.push(*cid);
        }
        self.append_all(&ops)?;
        let used = self.paths().map(|path| Ok(path?.nar_hash)).collect::<Result<HashSet<_>, StoreError>>()?;
        let mut ops = Vec::new();
        for nar in self.nars() {
            let nar = nar?;
            // A NAR may be on record before its path is: somebody holds a lease then.
            let leased = |cid: &Cid| matches!(Digest::of_cid(cid), Ok(Some(d)) if lock(&self.0.leases).protects(&d));
            if !used.contains(&nar.nar_hash) && !nar.roots.iter().any(|(_, cid)| leased(cid)) {
                ops.push(Op::RemoveNar(nar.nar_hash));
            }
        }
        self.append_all(&ops)?;
        Ok(report)
    }

    /// Whether leases protect all that a path needs: to forget it would free nothing now, and whoever has just published it
    /// may still be writing its narinfo.
    fn is_leased(&self, path: &PathRecord) -> Result<bool, StoreError> {
        let protects = |digest: &Digest| lock(&self.0.leases).protects(digest);
        let Some(nar) = self.nar(&path.nar_hash)? else { return Ok(false) };
        for (_, root) in &nar.roots {
            if !matches!(Digest::of_cid(root), Ok(Some(digest)) if protects(&digest)) {
                return Ok(false);
            }
            let (mut seen, mut whole) = (lock(&self.0.leases).empty_set(), true);
            let walked = self.walk(root, &mut seen, |_, digest, row| {
                whole &= row.is_some() && protects(digest);
                Ok(())
            });
            match walked {
                Ok(()) if whole => {}
                Ok(()) | Err(StoreError::Unreadable { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(!nar.roots.is_empty())
    }

    fn append_all(&self, ops: &[Op]) -> Result<(), StoreError> {
        for ops in ops.chunks(MAX_OPS) {
            self.0.log.append_batch(&mut self.0.log.tail(), Batch::of(ops.to_vec()))?;
        }
        self.0.log.sync()
    }
}

/// While it lives, blocks of leases that end are spared.
struct Spared<'a>(&'a Store);

impl<'a> Spared<'a> {
    fn begin(store: &'a Store) -> Self {
        lock(&store.0.leases).keep();
        Self(store)
    }
}

impl Drop for Spared<'_> {
    fn drop(&mut self) {
        lock(&self.0.0.leases).release();
    }
}
