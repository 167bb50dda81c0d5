//! Commits: records change together, after everything they refer to was found to be here.

use super::lease::Lease;
use super::ops::Batch;
use super::{Keep, Op, PathRecord, Store, StoreError, lock};
use nipfs_proto::Cid;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::store_path::StorePath;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};

/// Changes that shall be recorded, and the lease that protects what they refer to.
pub(crate) type Commit = (Arc<Lease>, Vec<Op>);

impl Store {
    /// [`Lease::commit`] of several, in one record. If that fails each is committed alone, to fail for its own reasons.
    pub(crate) fn commit_all(&self, commits: &[Commit]) -> Vec<Result<(), StoreError>> {
        let protected = commits.iter().try_for_each(|(lease, ops)| self.protect_roots(lease, ops));
        let written = protected.map(|()| self.write(commits.iter().flat_map(|(_, ops)| ops.iter().cloned()).collect()));
        let first = match written {
            Ok(Ok(())) => return commits.iter().map(|_| Ok(())).collect(),
            // After this one nothing can be written, and only it says why.
            Ok(Err(error)) if self.0.log.has_failed() => Some(Err(error)),
            _ => None,
        };
        let others = commits.iter().skip(usize::from(first.is_some()));
        first.into_iter().chain(others.map(|(lease, ops)| lease.commit(ops.clone()))).collect()
    }

    pub(super) fn commit_under(&self, lease: &Lease, ops: Vec<Op>) -> Result<(), StoreError> {
        self.protect_roots(lease, &ops)?;
        self.write(ops)
    }

    fn protect_roots(&self, lease: &Lease, ops: &[Op]) -> Result<(), StoreError> {
        self.roots_of(ops)?.into_iter().try_for_each(|(root, own)| self.protect(lease, &root, own.as_ref()))
    }

    /// Writes changes whose blocks are protected.
    fn write(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        let log = &self.0.log;
        if ops.is_empty() {
            return log.sync();
        }
        self.make_room();
        let under_way = self.0.commits.read().unwrap_or_else(PoisonError::into_inner);
        self.check_nars(&ops)?;
        let published = self.published_by(&ops)?;
        log.append_batch(&mut log.tail(), Batch::of(ops))?;
        log.sync()?;
        self.show(&published)?;
        drop(under_way);
        self.0.changed.notify_one();
        self.hide_unpublished()
    }

    /// Waits until no commit is under way; none begins while the guard lives.
    pub(super) fn commits_done(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.commits.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The roots of the DAGs that these changes publish.
    fn published_by(&self, ops: &[Op]) -> Result<Vec<Cid>, StoreError> {
        let mut roots = Vec::new();
        for op in ops {
            match op {
                Op::PutPin(pin) => roots.push(pin.cid),
                Op::PutPath(path) if path.published => roots.extend(self.nar_roots(&path.nar_hash, ops)?),
                _ => {}
            }
        }
        Ok(roots)
    }

    /// The roots of the DAGs that must be complete for these changes, each with the tree its blocks may be made of.
    fn roots_of(&self, ops: &[Op]) -> Result<Vec<(Cid, Option<StorePath>)>, StoreError> {
        let mut roots = Vec::new();
        for op in ops {
            match op {
                Op::PutPin(pin) => roots.push((pin.cid, None)),
                Op::PutPath(path) if !path.is_remote() => {
                    let own = Some(&path.store_path).filter(|_| path.keep != Keep::Copy);
                    let cids = self.nar_roots(&path.nar_hash, ops)?;
                    roots.extend(cids.into_iter().map(|cid| (cid, own.cloned())));
                }
                _ => {}
            }
        }
        Ok(roots)
    }

    /// The roots that a NAR will have after these changes.
    fn nar_roots(&self, hash: &NarHash, ops: &[Op]) -> Result<Vec<Cid>, StoreError> {
        let mut nar = self.nar(hash)?;
        for op in ops {
            match (op, &mut nar) {
                (Op::PutNar(new), Some(nar)) if new.nar_hash == *hash => nar.merge(new.clone()),
                (Op::PutNar(new), None) if new.nar_hash == *hash => nar = Some(new.clone()),
                (Op::RemoveNar(gone), _) if gone == hash => nar = None,
                _ => {}
            }
        }
        Ok(nar.into_iter().flat_map(|nar| nar.roots).map(|(_, cid)| cid).collect())
    }

    /// Protects every block of a DAG, and brings in those that are made of another tree than `own`. An error when one
    /// is missing.
    fn protect(&self, lease: &Lease, root: &Cid, own: Option<&StorePath>) -> Result<(), StoreError> {
        let mut seen = lock(&self.0.leases).empty_set();
        self.walk(root, &mut seen, |cid, digest, row| {
            let here = lease.touch(digest)?;
            let here = here && row.map_or(Ok(true), |row| self.bring_in(lease, (digest, &row.location), own))?;
            if here { Ok(()) } else { Err(StoreError::incomplete(root, cid)) }
        })
    }

    fn check_nars(&self, ops: &[Op]) -> Result<(), StoreError> {
        for op in ops {
            if let Op::PutPath(PathRecord { nar_hash, store_path, .. }) = op {
                let comes = ops.iter().any(|op| matches!(op, Op::PutNar(nar) if nar.nar_hash == *nar_hash));
                if !comes && self.nar(nar_hash)?.is_none() {
                    return Err(StoreError::UnknownNar(store_path.clone()));
                }
            }
        }
        Ok(())
    }
}
