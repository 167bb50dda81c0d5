//! What each change in the log means for the rows of the index.
//!
//! The same code runs after a commit, in a replay of the log's tail and in a rebuild from all packs. Applying
//! changes once more in the same order leaves the same rows, so a replay may start too early.

use super::index::{
    Applied, BLOCK, BlockRow, Index, MAX_ROWS, NAR, PATH, PIN, Position, Rows, STALE_PUBLIC, STATE, State, UNSHOWN, key,
};
use super::log::{Change, What};
use super::ops::{Batch, CidPin, Gone, NarRecord, Op, PathRecord, Row};
use super::{StoreError, lock};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use sled::IVec;
use std::collections::HashSet;
use std::sync::MutexGuard;

/// Changes rows, as many as [`MAX_ROWS`] at once, each time with the state that goes with them.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    index: &'a Index,
    applied: MutexGuard<'a, Applied>,
    /// The state with all that is in `rows`.
    state: State,
    rows: Rows,
}

impl<'a> Writer<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        let applied = lock(&index.applied);
        let state = applied.state;
        Self { index, applied, state, rows: Rows::new() }
    }

    /// Applies one record of the log.
    pub(super) fn apply(&mut self, change: &Change) -> Result<(), StoreError> {
        match &change.what {
            What::Block(digest, row) => self.put_block(digest, *row)?,
            What::Batch(batch) => self.batch(batch)?,
        }
        self.state.position = change.end;
        Ok(())
    }

    /// Sets the position without a change: what lies before holds nothing for the index.
    pub(super) fn advance(&mut self, position: Position) {
        self.state.position = position;
    }

    /// Lets readers see the rest.
    pub(super) fn finish(mut self) -> Result<(), StoreError> {
        self.stage()
    }

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, StoreError> {
        self.rows.get(key).map_or_else(|| self.index.get(key), |row| Ok(row.clone()))
    }

    fn put(&mut self, key: Vec<u8>, row: Vec<u8>) -> Result<(), StoreError> {
        self.change(key, Some(row.into()))
    }

    fn remove(&mut self, key: Vec<u8>) -> Result<(), StoreError> {
        self.change(key, None)
    }

    fn block(&self, digest: &Digest) -> Result<Option<BlockRow>, StoreError> {
        self.record(&key(BLOCK, &digest.0))
    }

    fn record<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.get(key)?.map(|row| self.index.decode(&row)).transpose()
    }

    fn put_block(&mut self, digest: &Digest, mut row: BlockRow) -> Result<(), StoreError> {
        if let Some(old) = self.block(digest)? {
            self.discount(&old);
            row.public = old.public;
        }
        let totals = &mut self.state.totals;
        totals.blocks += 1;
        totals.stored += u64::from(row.location.stored);
        totals.plain += u64::from(row.size);
        self.put(key(BLOCK, &digest.0), row.to_row())
    }

    fn discount(&mut self, old: &BlockRow) {
        let totals = &mut self.state.totals;
        totals.blocks = totals.blocks.saturating_sub(1);
        totals.stored = totals.stored.saturating_sub(u64::from(old.location.stored));
        totals.plain = totals.plain.saturating_sub(u64::from(old.size));
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), StoreError> {
        for Gone { digest, .. } in &batch.gone {
            self.remove_block(digest)?;
        }
        if batch.snapshot.is_some_and(|part| part.first) {
            self.applied.snapshot = Some(HashSet::new());
        }
        let repeated = batch.snapshot.is_some();
        for op in &batch.ops {
            match op {
                Op::PutNar(nar) => self.put_nar(nar, repeated)?,
                Op::PutPath(path) => self.put_path(path, repeated)?,
                Op::PutPin(pin) => self.put_pin(pin, repeated)?,
                Op::RemovePath(hash) => self.hide(PATH, hash.as_str().as_bytes())?,
                Op::RemovePin(cid) => self.hide(PIN, &cid.to_bytes())?,
                Op::RemoveNar(hash) => self.remove(key(NAR, &hash.0))?,
            }
        }
        match batch.snapshot.filter(|part| part.last).and_then(|_| self.applied.snapshot.take()) {
            Some(keys) => self.keep_only(&keys),
            None => Ok(()),
        }
    }

    /// Removes a block's row.
    fn remove_block(&mut self, digest: &Digest) -> Result<(), StoreError> {
        if let Some(old) = self.block(digest)? {
            self.discount(&old);
            self.remove(key(BLOCK, &digest.0))?;
        }
        Ok(())
    }

    fn put_nar(&mut self, nar: &NarRecord, repeated: bool) -> Result<(), StoreError> {
        let old = if repeated { None } else { self.record::<NarRecord>(&key(NAR, &nar.nar_hash.0))? };
        let mut merged = old.unwrap_or_else(|| NarRecord { roots: Vec::new(), ..nar.clone() });
        merged.merge(nar.clone());
        self.note(NAR, &nar.nar_hash.0, merged.to_row())
    }

    fn put_path(&mut self, path: &PathRecord, repeated: bool) -> Result<(), StoreError> {
        let name = path.store_path.hash_part();
        let old = self.record::<PathRecord>(&key(PATH, name.as_str().as_bytes()))?;
        let known = repeated && old.as_ref() == Some(path);
        if old.is_some_and(|old| old.published && (!path.published || old.nar_hash != path.nar_hash)) {
            self.note_stale()?;
        }
        if path.published
            && !known
            && let Some(nar) = self.record::<NarRecord>(&key(NAR, &path.nar_hash.0))?
        {
            for (_, root) in nar.roots {
                self.put(key(UNSHOWN, &root.to_bytes()), Vec::new())?;
            }
        }
        self.note(PATH, name.as_str().as_bytes(), path.to_row())
    }

    fn put_pin(&mut self, pin: &CidPin, repeated: bool) -> Result<(), StoreError> {
        let name = pin.cid.to_bytes();
        if !(repeated && self.get(&key(PIN, &name))?.is_some()) {
            self.put(key(UNSHOWN, &name), Vec::new())?;
        }
        self.note(PIN, &name, pin.to_row())
    }

    /// Notes that blocks may be public that no longer should be. The note tells one occasion from the next.
    fn note_stale(&mut self) -> Result<(), StoreError> {
        self.put(STALE_PUBLIC.to_vec(), self.state.to_row())
    }

    /// Removes a row that may have made blocks public.
    fn hide(&mut self, kind: u8, name: &[u8]) -> Result<(), StoreError> {
        let key = key(kind, name);
        if self.get(&key)?.is_some() {
            self.note_stale()?;
            self.remove(key)?;
        }
        Ok(())
    }

    /// Puts a metadata row, and remembers it while a snapshot is being applied.
    fn note(&mut self, kind: u8, name: &[u8], row: Vec<u8>) -> Result<(), StoreError> {
        let key = key(kind, name);
        if let Some(keys) = &mut self.applied.snapshot {
            keys.insert(key.clone());
        }
        self.put(key, row)
    }

    /// Removes all metadata that a snapshot did not name: it was deleted by records that are gone themselves.
    fn keep_only(&mut self, keys: &HashSet<Vec<u8>>) -> Result<(), StoreError> {
        self.stage()?;
        self.index.settle(&self.applied)?;
        let mut dead = Vec::new();
        for kind in [NAR, PATH, PIN] {
            for row in self.index.db.scan_prefix([kind]) {
                let (key, _) = row.map_err(self.index.failure())?;
                dead.extend((!keys.contains(&key[..])).then(|| key.to_vec()));
            }
        }
        if !dead.is_empty() {
            self.note_stale()?;
        }
        dead.into_iter().try_for_each(|key| self.remove(key))
    }

    fn change(&mut self, key: Vec<u8>, row: Option<IVec>) -> Result<(), StoreError> {
        self.rows.insert(key, row);
        // The position stays before the record that these rows belong to until all of it is applied.
        if self.rows.len() < MAX_ROWS { Ok(()) } else { self.stage() }
    }

    fn stage(&mut self) -> Result<(), StoreError> {
        self.rows.insert(STATE.to_vec(), Some(self.state.to_row().into()));
        self.applied.state = self.state;
        self.index.stage(&self.applied, std::mem::take(&mut self.rows))
    }
}

// What follows leaves the position in the log as it is. A note is never gone before what it asks for is done: rows go to
// sled in the order in which they were staged, or together.

/// Sets or clears the public flag of blocks that are there; no record of the log changes.
pub(super) fn set_public(index: &Index, digests: &[Digest], public: bool) -> Result<(), StoreError> {
    let alone = lock(&index.applied);
    let mut rows = Rows::new();
    for digest in digests {
        if let Some(row) = index.block(digest)?.filter(|row| row.public != public) {
            rows.insert(key(BLOCK, &digest.0), Some(BlockRow { public, ..row }.to_row().into()));
        }
    }
    index.stage(&alone, rows)
}

/// Notes that all blocks of these roots are public now.
pub(super) fn shown(index: &Index, roots: &[Cid]) -> Result<(), StoreError> {
    let alone = lock(&index.applied);
    roots.chunks(MAX_ROWS).try_for_each(|some| {
        index.stage(&alone, some.iter().map(|root| (key(UNSHOWN, &root.to_bytes()), None)).collect())
    })
}

/// Removes the note `stale`, unless there is a newer one.
pub(super) fn public_is_fresh(index: &Index, stale: &[u8]) -> Result<(), StoreError> {
    let alone = lock(&index.applied);
    if index.stale_public()?.as_deref() != Some(stale) {
        return Ok(());
    }
    index.stage(&alone, Rows::from([(STALE_PUBLIC.to_vec(), None)]))
}
