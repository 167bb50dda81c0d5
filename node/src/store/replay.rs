//! Reading the log: what brings the index up to date when a store is opened.
//!
//! A record is believed when its header and its payload match their checksums; of blocks that are known to be durable
//! only the headers are read, so that a rebuild does not read the whole store. Behind the point up to which the
//! log is known to be durable, the first bad record is where an interrupted write ended: the segment is cut there.
//! Before that point it is damage: it is reported and passed over. Zeros there were erased by GC and are no damage.

use super::StoreError;
use super::apply::Writer;
use super::index::{BlockRow, Index, Position};
use super::log::{Change, What};
use super::ops::{Batch, Gone};
use super::record::{ALIGN, Header, Kind, RECORD_HEADER, SEGMENT_HEADER};
use super::segments::{Segment, Segments};
use std::ops::Range;
use std::sync::Arc;

/// Bytes read at once, first and at most, when a scan looks for the next record behind damage or a hole.
const FIRST_WINDOW: usize = 4 << 10;
const WINDOW: usize = 1 << 20;
/// Damaged places that a report names; more are only counted.
const MAX_NAMED: usize = 1_000;

/// What opening the store found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The index was rebuilt from all packs.
    pub rebuilt: bool,
    /// Records of the log that were applied to the index.
    pub replayed: u64,
    /// Bytes of an interrupted write that were cut off.
    pub cut: u64,
    /// Damaged places in the packs.
    pub damages: u64,
    /// The first of them: number of the segment, and bytes in it.
    pub damaged: Vec<(u32, Range<u64>)>,
}

impl Recovery {
    pub(super) fn damage(&mut self, segment: u32, place: Range<u64>) {
        self.damages += 1;
        if self.damaged.len() < MAX_NAMED {
            self.damaged.push((segment, place));
        }
    }

    /// A record that was deleted later is not damaged but half erased.
    fn excuse(&mut self, gone: &[Gone]) {
        let before = self.damaged.len();
        self.damaged.retain(|(segment, place)| {
            !gone.iter().any(|gone| gone.segment == *segment && place.contains(&u64::from(gone.offset)))
        });
        self.damages -= (before - self.damaged.len()) as u64;
    }
}

/// Applies everything behind `from` to the index, cuts off a torn end, and returns the last segment with the
/// offset at which the log goes on. `None` when there are no segments yet.
pub(super) fn replay(
    segments: &Segments,
    index: &Index,
    from: Position,
    report: &mut Recovery,
) -> Result<Option<(Arc<Segment>, u64)>, StoreError> {
    let numbers = segments.list()?;
    let mut last = None;
    for &number in numbers.iter().filter(|number| **number >= from.segment) {
        let Some(segment) = segments.open(number)? else { continue };
        let length = segment.len()?;
        let start = if number == from.segment { from.offset } else { 0 }.max(SEGMENT_HEADER as u64);
        let mut scan = Scan { segments, segment: &segment, length, durable: length, is_last: false };
        if Some(&number) == numbers.last() {
            // What a killed process wrote may be in the kernel only; the index must not get ahead of the disk.
            segments.disk.sync(&segment.file, &segment.path)?;
            scan.is_last = true;
            scan.durable = scan.known_durable(start)?;
        }
        let end = scan.apply(index, start, report)?;
        last = Some((segment, end));
    }
    Ok(last)
}

/// The reading of one segment.
struct Scan<'a> {
    segments: &'a Segments,
    segment: &'a Segment,
    /// Bytes of the file.
    length: u64,
    /// Up to here the segment was synced by whoever wrote it.
    durable: u64,
    /// The log goes on in this segment.
    is_last: bool,
}

enum Found {
    Record(Box<What>),
    Erased,
    Bad,
}

impl Scan<'_> {
    /// Up to where the segment was synced, as far as later records tell.
    fn known_durable(&self, start: u64) -> Result<u64, StoreError> {
        let (mut at, mut durable) = (start, start);
        while let Some(header) = next_header(self.segments, self.segment, at, self.length)? {
            durable = durable.max(u64::from(header.durable));
            at = header.end();
        }
        Ok(durable)
    }

    /// Applies what lies behind `at` to the index, and returns where the segment ends then.
    fn apply(&self, index: &Index, mut at: u64, report: &mut Recovery) -> Result<u64, StoreError> {
        let number = self.segment.number;
        let mut writer = Writer::new(index);
        while at < self.length {
            let header = self.segment.header(at, &self.segments.salt)?;
            let found = header.as_ref().map_or(Ok(Found::Bad), |header| self.read(header))?;
            let overruns = header.as_ref().is_some_and(|header| header.end() > self.length);
            match (found, header) {
                (Found::Record(what), Some(header)) => {
                    at = header.end();
                    if let What::Batch(batch) = &*what {
                        report.excuse(&batch.gone);
                    }
                    writer.apply(&Change { end: Position { segment: number, offset: at }, what: *what })?;
                    report.replayed += 1;
                }
                (Found::Erased, Some(header)) => at = header.end(),
                // The log goes on here, so nothing of a record that is not whole may stay.
                _ if at >= self.durable || overruns && self.is_last => {
                    report.cut += self.length - at;
                    if at < self.durable {
                        report.damage(number, at..self.durable);
                    }
                    self.set_len(at)?;
                    break;
                }
                (_, Some(header)) => {
                    report.damage(number, at..header.end());
                    at = header.end();
                }
                (_, None) => at = self.pass_over(at, report)?,
            }
        }
        if self.is_last && at > self.length {
            // Zeros up to the place of the next record, which the write did not come to.
            self.set_len(at)?;
        }
        writer.advance(Position { segment: number, offset: at });
        writer.finish()?;
        Ok(at)
    }

    fn read(&self, header: &Header) -> Result<Found, StoreError> {
        let is_block = header.content.kind == Kind::Block;
        let block = || {
            let row = BlockRow::of(self.segment.number, header);
            Found::Record(Box::new(What::Block(header.content.digest, row)))
        };
        // The bytes of a block that is known to be durable are checked when they are read.
        if is_block && header.end() <= self.durable.min(self.length) {
            return Ok(block());
        }
        let payload = self.segment.read(header.payload(), header.stored as usize)?;
        let Some(payload) = payload else { return Ok(Found::Bad) };
        if crc32c::crc32c(&payload) != header.payload_crc {
            let erased = is_block && payload.iter().all(|byte| *byte == 0);
            return Ok(if erased { Found::Erased } else { Found::Bad });
        }
        if is_block {
            return Ok(block());
        }
        Ok(Batch::decode(&payload).map_or(Found::Bad, |batch| Found::Record(Box::new(What::Batch(batch)))))
    }

    /// Finds the next record behind a place that holds none. Between them is a hole, or damage.
    fn pass_over(&self, at: u64, report: &mut Recovery) -> Result<u64, StoreError> {
        let next = next_header(self.segments, self.segment, at, self.length)?;
        let next = next.map_or_else(|| self.length.next_multiple_of(ALIGN as u64), |next| u64::from(next.offset));
        if !is_zero(self.segment, at..next.min(self.length))? {
            report.damage(self.segment.number, at..next);
        }
        Ok(next)
    }

    fn set_len(&self, length: u64) -> Result<(), StoreError> {
        let Segment { file, path, .. } = self.segment;
        self.segments.disk.truncate(file, path, length)?;
        self.segments.disk.sync(file, path)
    }
}

/// Whether a part of a segment holds nothing but zeros.
fn is_zero(segment: &Segment, part: Range<u64>) -> Result<bool, StoreError> {
    let mut at = segment.data_from(part.start)?;
    while at < part.end {
        let window = usize::try_from(part.end - at).map_or(FIRST_WINDOW, |left| left.min(FIRST_WINDOW));
        match segment.read(at, window)? {
            Some(bytes) if bytes.iter().all(|byte| *byte == 0) => at = segment.data_from(at + window as u64)?,
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The first valid record header at or behind `at`.
pub(super) fn next_header(
    segments: &Segments,
    segment: &Segment,
    at: u64,
    length: u64,
) -> Result<Option<Header>, StoreError> {
    if let Some(header) = segment.header(at, &segments.salt)? {
        return Ok(Some(header));
    }
    let mut start = at.next_multiple_of(ALIGN as u64);
    // The next record is near, as a rule.
    let mut window = FIRST_WINDOW;
    while start + RECORD_HEADER as u64 <= length {
        start = start.max(segment.data_from(start)? / ALIGN as u64 * ALIGN as u64);
        let left = usize::try_from(length.saturating_sub(start)).unwrap_or(window);
        let Some(bytes) = segment.read(start, window.min(left))? else { return Ok(None) };
        window = WINDOW.min(window * 4);
        let mut within = 0;
        while let Some(candidate) = bytes.get(within..within + RECORD_HEADER) {
            if let Ok(candidate) = candidate.try_into()
                && let Some(header) = Header::decode(candidate, start + within as u64, &segments.salt)
            {
                return Ok(Some(header));
            }
            within += ALIGN;
        }
        start += within as u64;
    }
    Ok(None)
}
