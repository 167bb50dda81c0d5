//! Verification: is everything that should be here, here, and what it says it is?

use super::index::{BlockRow, MAX_ROWS};
use super::record::{Header, Kind};
use super::{Location, Store, StoreError, lock};
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, Digest};

/// What verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks looked at.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Blocks in the packs that do not match their digests.
    pub damaged: Vec<Digest>,
    /// Roots of DAGs that should be complete and are not, each with the first block that is missing or unreadable.
    pub incomplete: Vec<(Cid, Cid)>,
    /// Damaged records that were met when the store was opened.
    pub damaged_records: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.incomplete.is_empty() && self.damaged_records == 0
    }
}

impl Store {
    /// Checks every block and every DAG on record: with `deep` all bytes are hashed, else only record headers are
    /// read. With `repair` damaged blocks are deleted, so that they can be put again.
    ///
    /// # Errors
    /// I/O; [`StoreError::ReadOnly`] when repairing.
    pub fn verify(&self, deep: bool, repair: bool) -> Result<VerifyReport, StoreError> {
        let _one = lock(&self.0.gc);
        let mut report = VerifyReport { damaged_records: self.recovery().damages, ..VerifyReport::default() };
        let mut damaged = Vec::new();
        if deep {
            self.0.trees.trust_all();
        }
        for block in self.0.log.index.blocks() {
            let (digest, row) = block?;
            report.blocks += 1;
            report.bytes += u64::from(row.size);
            let good = if deep { self.is_sound(&digest, &row)? } else { self.has_header(&digest, &row)? };
            // GC does not run, but a fresh copy may have taken the place of a damaged one.
            if !good && self.0.log.lookup(&digest)?.is_some_and(|now| now.location == row.location) {
                // What lies outside is not ours to be damaged: the DAGs that need it are incomplete.
                if self.condemn(digest, &row.location)?.is_some() {
                    report.damaged.push(digest);
                    damaged.push((digest, row));
                }
            }
        }
        if repair {
            for some in damaged.chunks(MAX_ROWS) {
                let mut some = some.to_vec();
                self.delete(&mut some, |_, digest| self.has(digest).is_ok_and(|here| !here))?;
                self.0.log.segments.erase(some.iter().map(|(_, row)| row.location.record()).collect())?;
            }
            report.damaged.iter().for_each(|digest| {
                lock(&self.0.damaged).remove(digest);
            });
        }
        report.incomplete = self.incomplete()?;
        Ok(report)
    }

    /// Whether the bytes of a block are there and match its digest.
    pub(super) fn is_sound(&self, digest: &Digest, row: &BlockRow) -> Result<bool, StoreError> {
        let bytes = self.read(&row.location, row.size)?;
        Ok(bytes.is_some_and(|bytes| Block::verify(digest.raw_cid(), bytes).is_ok()))
    }

    fn has_header(&self, digest: &Digest, row: &BlockRow) -> Result<bool, StoreError> {
        let Location { segment, offset, stored, .. } = row.location;
        let segments = &self.0.log.segments;
        let Some(segment) = segments.open(segment)? else { return Ok(false) };
        let header = segment.header(u64::from(offset), &segments.salt)?;
        let whole = header.as_ref().is_some_and(|header| segment.len().is_ok_and(|len| header.end() <= len));
        let fits = |h: Header| h.content.kind == Kind::Block && h.content.digest == *digest && h.stored == stored;
        Ok(whole && header.is_some_and(fits))
    }

    /// Roots that are on record and should be complete, but are not.
    fn incomplete(&self) -> Result<Vec<(Cid, Cid)>, StoreError> {
        let mut roots = Vec::new();
        for path in self.paths() {
            let path = path?;
            if !path.is_remote() {
                roots.extend(self.nar(&path.nar_hash)?.into_iter().flat_map(|nar| nar.roots).map(|(_, cid)| cid));
            }
        }
        for pin in self.pins() {
            roots.push(pin?.cid);
        }
        let mut incomplete = Vec::new();
        for root in roots {
            let mut seen = lock(&self.0.leases).empty_set();
            let walked = self.walk(&root, &mut seen, |cid, digest, _| {
                if self.has(digest)? { Ok(()) } else { Err(StoreError::incomplete(&root, cid)) }
            });
            match walked {
                Ok(()) => {}
                Err(StoreError::Incomplete { missing: node, .. } | StoreError::Unreadable { node, .. }) => {
                    incomplete.push((root, *node));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(incomplete)
    }
}
