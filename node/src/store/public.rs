//! Which blocks everybody may see: those of published paths and of pinned CIDs. (What a lease shows besides is only in
//! memory: see `lease`.)
//!
//! The flag of a block is derived. A commit leaves a note in the index of what must be done about it, in the same
//! batch as its rows, so that a crash in between is made good when the store is opened.

use super::{Digest, Store, StoreError, apply, index, lock};
use nipfs_proto::Cid;

/// Passes over the blocks during which others may publish; the one after them has the store for itself.
const SHARED_PASSES: usize = 2;

impl Store {
    /// Makes good what an interrupted commit left to be done.
    pub(super) fn finish_publishing(&self) -> Result<(), StoreError> {
        self.show(&self.0.log.index.unshown()?)?;
        self.hide_unpublished()
    }

    /// Makes the blocks of published roots public. A block that is missing is passed over.
    pub(super) fn show(&self, roots: &[Cid]) -> Result<(), StoreError> {
        if roots.is_empty() {
            return Ok(());
        }
        let index = &self.0.log.index;
        let mut seen = lock(&self.0.leases).empty_set();
        let mut batch = Vec::with_capacity(index::MAX_ROWS);
        for root in roots {
            let walked = self.walk(root, &mut seen, |_, digest, row| {
                if let Some(published) = &mut *lock(&self.0.publishing) {
                    published.insert(digest);
                }
                batch.extend(row.filter(|row| !row.public).map(|_| *digest));
                if batch.len() < index::MAX_ROWS {
                    return Ok(());
                }
                apply::set_public(index, &std::mem::take(&mut batch), true)
            });
            tolerate(root, walked)?;
        }
        apply::set_public(index, &batch, true)?;
        apply::shown(index, roots)
    }

    /// Hides every block that no published path and no pin reaches any more, if there may be one.
    pub(super) fn hide_unpublished(&self) -> Result<(), StoreError> {
        let _one = lock(&self.0.hiding);
        let index = &self.0.log.index;
        let Some(stale) = index.stale_public()? else { return Ok(()) };
        for _ in 0..SHARED_PASSES {
            *lock(&self.0.publishing) = Some(lock(&self.0.leases).empty_set());
            let unreached = self.unreached_public();
            // No commit is half done from here on, and what was published meanwhile is known.
            let _alone = self.commits_done();
            let published = lock(&self.0.publishing).take();
            let mut unreached = unreached?;
            let found = unreached.len();
            unreached.retain(|digest| !published.as_ref().is_some_and(|set| set.contains(digest)));
            self.hide(&unreached)?;
            // A block that was published meanwhile may have been unpublished since: that takes another look.
            if unreached.len() == found {
                return apply::public_is_fresh(index, &stale);
            }
        }
        let _alone = self.commits_done();
        self.hide(&self.unreached_public()?)?;
        apply::public_is_fresh(index, &stale)
    }

    fn hide(&self, digests: &[Digest]) -> Result<(), StoreError> {
        digests.chunks(index::MAX_ROWS).try_for_each(|some| apply::set_public(&self.0.log.index, some, false))
    }

    fn unreached_public(&self) -> Result<Vec<Digest>, StoreError> {
        let mut reached = lock(&self.0.leases).empty_set();
        for root in self.published_roots()? {
            tolerate(&root, self.walk(&root, &mut reached, |_, _, _| Ok(())))?;
        }
        let mut unreached = Vec::new();
        for block in self.0.log.index.blocks() {
            let (digest, row) = block?;
            unreached.extend((row.public && !reached.contains(&digest)).then_some(digest));
        }
        Ok(unreached)
    }

    fn published_roots(&self) -> Result<Vec<Cid>, StoreError> {
        let mut roots = Vec::new();
        for path in self.paths() {
            let path = path?;
            if path.published
                && let Some(nar) = self.nar(&path.nar_hash)?
            {
                roots.extend(nar.roots.into_iter().map(|(_, cid)| cid));
            }
        }
        for pin in self.pins() {
            roots.push(pin?.cid);
        }
        Ok(roots)
    }
}

/// A DAG that cannot be walked to its end is public as far as it can.
fn tolerate(root: &Cid, walked: Result<(), StoreError>) -> Result<(), StoreError> {
    match walked {
        Err(StoreError::Unreadable { node, source, .. }) => {
            tracing::warn!(%root, %node, error = %source, "a published DAG cannot be read");
            Ok(())
        }
        other => other,
    }
}
