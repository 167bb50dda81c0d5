//! The sweep: unmarked blocks go, their space is given back, and segments that hold little are let go.
//!
//! A deletion is in the log and durable before its row is removed, and the row is removed before the payload is
//! erased. A segment is unlinked when it holds no live block, after all metadata was written again behind it (a
//! snapshot) and after every deletion that it records was carried out for good.

use super::digest_set::DigestSet;
use super::gc::GcReport;
use super::index::{BlockRow, MAX_ROWS};
use super::lease::Leases;
use super::ops::{Batch, Gone, SnapshotPart};
use super::record::{Header, Kind, RECORD_HEADER, SEGMENT_HEADER};
use super::replay::next_header;
use super::segments::Segment;
use super::{Location, Op, Store, StoreError, lock};
use nipfs_proto::block::Digest;
use std::collections::{BTreeSet, HashMap};

/// A sealed segment is compacted when less than one part in this many of the space it takes is alive.
const SPARSE: u64 = 4;
/// Deleted blocks that wait to be erased, so that neighbours are erased in one step.
const MAX_UNERASED: usize = 1 << 16;
/// Records in one batch of a snapshot.
const SNAPSHOT_OPS: usize = 500;

/// Bytes of live records in each segment that was sealed when GC began.
pub(super) struct Live {
    current: u32,
    bytes: HashMap<u32, u64>,
}

impl Store {
    /// Deletes every block that is neither marked nor leased.
    pub(super) fn sweep(&self, marked: &DigestSet, report: &mut GcReport) -> Result<Live, StoreError> {
        let mut live = Live { current: self.0.log.current_segment(), bytes: HashMap::new() };
        // What lies in the segments before that one is in the index when the blocks are gone through.
        self.0.log.sync()?;
        let mut candidates = Vec::with_capacity(MAX_ROWS);
        let mut deleted = Vec::new();
        for block in self.0.log.index.blocks() {
            let (digest, row) = block?;
            if marked.contains(&digest) {
                live.add(&row);
                continue;
            }
            candidates.push((digest, row));
            if candidates.len() == MAX_ROWS {
                report.spared_bytes += self.sweep_some(&mut candidates, &mut live, &mut deleted)?;
            }
            if deleted.len() >= MAX_UNERASED || !deleted.is_empty() && self.is_short_of_space()? {
                self.erase(&mut deleted, report)?;
            }
        }
        report.spared_bytes += self.sweep_some(&mut candidates, &mut live, &mut deleted)?;
        self.erase(&mut deleted, report)?;
        Ok(live)
    }

    /// Deletes those of `candidates` that no lease protects. Returns the bytes of the others.
    fn sweep_some(
        &self,
        candidates: &mut Vec<(Digest, BlockRow)>,
        live: &mut Live,
        deleted: &mut Vec<Location>,
    ) -> Result<u64, StoreError> {
        let spared = self.delete(candidates, |leases, digest| !leases.protects(digest))?;
        spared.iter().for_each(|(_, row)| live.add(row));
        deleted.extend(candidates.drain(..).map(|(_, row)| row.location));
        Ok(spared.iter().map(|(_, row)| u64::from(row.location.stored)).sum())
    }

    /// Deletes those of `candidates` that `may_go` and returns the others. What was deleted is to be erased.
    pub(super) fn delete(
        &self,
        candidates: &mut Vec<(Digest, BlockRow)>,
        may_go: impl Fn(&Leases, &Digest) -> bool,
    ) -> Result<Vec<(Digest, BlockRow)>, StoreError> {
        let log = &self.0.log;
        // What others have put is synced before, so that they wait only for the little that is written here.
        log.sync()?;
        let mut tail = log.tail();
        let leases = lock(&self.0.leases);
        let spared = candidates.extract_if(.., |(digest, _)| !may_go(&leases, digest)).collect();
        if candidates.is_empty() {
            return Ok(spared);
        }
        let gone = candidates.iter().map(|(digest, row)| {
            let Location { segment, offset, .. } = row.location;
            Gone { digest: *digest, segment, offset }
        });
        log.append_batch(&mut tail, Batch { gone: gone.collect(), ..Batch::default() })?;
        drop(leases);
        drop(tail);
        log.sync()?;
        Ok(spared)
    }

    fn erase(&self, deleted: &mut Vec<Location>, report: &mut GcReport) -> Result<(), StoreError> {
        report.dropped_blocks += deleted.len() as u64;
        report.freed_bytes += deleted.iter().map(|location| u64::from(location.stored)).sum::<u64>();
        self.0.log.segments.erase(deleted.drain(..).map(|location| location.record()).collect())
    }

    /// Gives space back that the sweep alone does not: segments that hold nothing, or so little that moving it is
    /// worth while, and what an interrupted GC left.
    pub(super) fn reclaim(&self, live: &Live) -> Result<(), StoreError> {
        let segments = &self.0.log.segments;
        let mut doomed = Vec::new();
        for number in segments.list()? {
            let Some(segment) = segments.open(number)?.filter(|_| number < live.current) else { continue };
            let bytes = live.bytes.get(&number).copied().unwrap_or(0);
            if bytes > 0 && segment.allocated()? > bytes + bytes / SPARSE {
                self.erase_dead(&segment)?;
            }
            let sparse = bytes < segment.allocated()? / SPARSE;
            if bytes == 0 || sparse && self.move_blocks(number)? {
                doomed.push(number);
            }
        }
        if doomed.is_empty() {
            return Ok(());
        }
        self.0.log.sync()?;
        // A block whose record a move did not meet (its header is damaged) still needs its segment.
        for block in self.0.log.index.blocks() {
            let (segment, _) = block?.1.location.record();
            doomed.retain(|number| *number != segment);
        }
        self.write_snapshot()?;
        self.settle_deletions(&doomed)?;
        // An index that comes back from before the snapshot would look for these segments.
        self.0.log.index.flush()?;
        for number in doomed {
            segments.remove(number)?;
        }
        segments.disk.sync_dir(segments.dir())
    }

    /// Erases blocks of a segment that are in the log but not in the index: copies that were replaced, and those
    /// that a GC had deleted but not erased when it was killed.
    fn erase_dead(&self, segment: &Segment) -> Result<(), StoreError> {
        let mut dead = Vec::new();
        self.for_each_record(segment, |header| {
            let here = header.location(segment.number);
            if header.content.kind == Kind::Block
                && self.0.log.lookup(&header.content.digest)?.is_none_or(|row| row.location != here)
            {
                dead.push(here.record());
            }
            Ok(true)
        })?;
        self.0.log.segments.erase(dead)
    }

    /// Visits the valid records of a sealed segment until told to stop; false then.
    fn for_each_record(
        &self,
        segment: &Segment,
        mut visit: impl FnMut(&Header) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        let length = segment.len()?;
        let mut at = SEGMENT_HEADER as u64;
        while let Some(header) = next_header(&self.0.log.segments, segment, at, length)? {
            at = header.end();
            if !visit(&header)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves the live blocks of a segment to the end of the log; false when that cannot be done.
    fn move_blocks(&self, number: u32) -> Result<bool, StoreError> {
        let log = &self.0.log;
        let Some(segment) = log.segments.open(number)? else { return Ok(true) };
        self.for_each_record(&segment, |header| {
            let here = header.location(number);
            let is_live =
                || Ok::<_, StoreError>(log.lookup(&header.content.digest)?.is_some_and(|row| row.location == here));
            if header.content.kind != Kind::Block || !is_live()? {
                return Ok(true);
            }
            let payload = segment.read(header.payload(), header.stored as usize)?;
            let Some(payload) = payload.filter(|payload| crc32c::crc32c(payload) == header.payload_crc) else {
                tracing::warn!(segment = number, offset = header.offset, "a damaged block keeps its segment");
                return Ok(false);
            };
            log.relieve()?;
            match log.check_space(u64::from(header.stored)) {
                Err(StoreError::NoSpace { .. }) => return Ok(false),
                other => other?,
            }
            let mut tail = log.tail();
            if is_live()? {
                log.append_block(&mut tail, header.content, &payload)?;
            }
            Ok(true)
        })
    }

    /// Writes all metadata once more, at the end of the log.
    fn write_snapshot(&self) -> Result<(), StoreError> {
        let _alone = self.commits_done();
        let index = &self.0.log.index;
        let nars = index.nars().map(|nar| nar.map(Op::PutNar));
        let paths = index.paths().map(|path| path.map(Op::PutPath));
        let pins = index.pins().map(|pin| pin.map(Op::PutPin));
        let mut ops = Vec::with_capacity(SNAPSHOT_OPS);
        let mut first = true;
        for op in nars.chain(paths).chain(pins) {
            ops.push(op?);
            if ops.len() == SNAPSHOT_OPS {
                self.write_part(std::mem::take(&mut ops), SnapshotPart { first, last: false })?;
                first = false;
            }
        }
        self.write_part(ops, SnapshotPart { first, last: true })
    }

    fn write_part(&self, ops: Vec<Op>, part: SnapshotPart) -> Result<(), StoreError> {
        let log = &self.0.log;
        log.append_batch(&mut log.tail(), Batch { ops, gone: Vec::new(), snapshot: Some(part) })?;
        if part.last { log.sync() } else { log.relieve() }
    }

    /// Carries out for good what segments that are about to go say about blocks in other segments.
    fn settle_deletions(&self, doomed: &[u32]) -> Result<(), StoreError> {
        let segments = &self.0.log.segments;
        let mut touched = BTreeSet::new();
        for number in doomed {
            let Some(segment) = segments.open(*number)? else { continue };
            self.for_each_record(&segment, |header| {
                if header.content.kind == Kind::Batch {
                    let payload = segment.read(header.payload(), header.stored as usize)?;
                    let batch = payload.and_then(|payload| Batch::decode(&payload)).unwrap_or_default();
                    self.erase_again(&batch.gone)?;
                    touched.extend(batch.gone.iter().map(|gone| gone.segment));
                }
                Ok(true)
            })?;
        }
        touched.iter().filter(|number| !doomed.contains(number)).try_for_each(|number| segments.sync(*number))
    }

    /// Erases deleted blocks once more: the first time may not have survived a power cut.
    fn erase_again(&self, gone: &[Gone]) -> Result<(), StoreError> {
        let segments = &self.0.log.segments;
        let mut records = Vec::new();
        for Gone { digest, segment: number, offset } in gone {
            let Some(segment) = segments.open(*number)? else { continue };
            let header = segment.header(u64::from(*offset), &segments.salt)?;
            let header = header.filter(|header| header.content.kind == Kind::Block && header.content.digest == *digest);
            records.extend(header.map(|header| (*number, u64::from(*offset)..header.end())));
        }
        segments.erase(records)
    }
}

impl Live {
    fn add(&mut self, row: &BlockRow) {
        let Location { segment, stored, .. } = row.location;
        *self.bytes.entry(segment).or_default() += u64::from(stored) + RECORD_HEADER as u64;
    }
}
