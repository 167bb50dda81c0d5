//! The log: records are appended to the last segment, made durable together, then applied to the index.
//!
//! The order is always append → fdatasync → index → acknowledge. What is appended but not yet in the index lies in
//! the overlay, where reads find it at once; the overlay is bounded because whoever appends too much syncs.
//! Callers that wait for durability at the same time share one fdatasync. A failed write or sync ends all writing:
//! after it nobody knows what is on disk, so it is never tried again.

use super::disk;
use super::index::{BlockRow, Index, Position};
use super::ops::Batch;
use super::record::{ALIGN, Content, Form, Header, Kind, RECORD_HEADER, SEGMENT_HEADER};
use super::segments::{Segment, Segments};
use super::{StoreError, lock};
use nipfs_proto::block::Digest;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of a segment, unless one record alone is larger.
pub(super) const SEGMENT_SIZE: u64 = 256 << 20;
/// Appended bytes after which the appender syncs.
const MAX_PENDING_BYTES: u64 = 64 << 20;
/// Appended records after which the appender syncs.
const MAX_PENDING: usize = 4_096;
/// Changed rows after which the index is handed to the kernel.
const FLUSH_ROWS: usize = 1_000;
/// Bytes of the file system that only GC and the index may fill.
pub(super) const MARGIN: u64 = 8 << 20;

/// A record of the log that the index must follow.
#[derive(Debug)]
pub(super) struct Change {
    /// Where the log goes on behind the record.
    pub(super) end: Position,
    pub(super) what: What,
}

/// What a record says.
#[derive(Debug)]
pub(super) enum What {
    Block(Digest, BlockRow),
    Batch(Batch),
}

/// What the overlay says about a block; `None`: it was deleted.
type Overlaid = Option<BlockRow>;

/// The log of one store.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) segments: Segments,
    pub(super) index: Index,
    segment_size: u64,
    tail: Mutex<Tail>,
    /// Blocks that are appended or deleted but not in the index yet, with the sequence number of the change.
    overlay: Mutex<HashMap<Digest, (u64, Overlaid)>>,
    progress: Mutex<Progress>,
    progressed: Condvar,
    failed: AtomicBool,
}

/// The end of the log.
#[derive(Debug)]
pub(super) struct Tail {
    segment: Arc<Segment>,
    end: u64,
    /// The segment is durable up to here.
    durable: u64,
    /// Records appended since the store was opened.
    sequence: u64,
    pending: Vec<(u64, Change)>,
    pending_bytes: u64,
}

#[derive(Debug, Default)]
struct Progress {
    /// Records up to this sequence number are durable and in the index.
    done: u64,
    /// Somebody is syncing.
    busy: bool,
    rows_since_flush: usize,
}

impl Log {
    /// A log that goes on at `end` of `segment`; all before is durable and in the index.
    pub(super) fn new(segments: Segments, index: Index, segment: Arc<Segment>, end: u64, segment_size: u64) -> Self {
        let tail = Tail { segment, end, durable: end, sequence: 0, pending: Vec::new(), pending_bytes: 0 };
        Self {
            segments,
            index,
            segment_size,
            tail: Mutex::new(tail),
            overlay: Mutex::default(),
            progress: Mutex::default(),
            progressed: Condvar::new(),
            failed: AtomicBool::new(false),
        }
    }

    /// Whether a write has failed since the store was opened.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The block's row as all appended records have it, durable or not.
    pub(super) fn lookup(&self, digest: &Digest) -> Result<Option<BlockRow>, StoreError> {
        // A row is in the index before it leaves the overlay, so looking there second misses nothing.
        let overlaid = lock(&self.overlay).get(digest).map(|(_, row)| *row);
        overlaid.map_or_else(|| self.index.block(digest), Ok)
    }

    /// Takes the end of the log; appending needs it.
    pub(super) fn tail(&self) -> MutexGuard<'_, Tail> {
        lock(&self.tail)
    }

    /// The number of the segment that is being written.
    pub(super) fn current_segment(&self) -> u32 {
        self.tail().segment.number
    }

    /// Appends a block that is not there, or moves one.
    pub(super) fn append_block(&self, tail: &mut Tail, content: Content, payload: &[u8]) -> Result<(), StoreError> {
        let header = self.append(tail, content, payload)?;
        let row = BlockRow::of(tail.segment.number, &header);
        lock(&self.overlay).insert(content.digest, (tail.sequence, Some(row)));
        self.remember(tail, What::Block(content.digest, row));
        Ok(())
    }

    /// Appends changes that happen together. The blocks they delete are gone for readers at once.
    pub(super) fn append_batch(&self, tail: &mut Tail, batch: Batch) -> Result<(), StoreError> {
        let payload = batch.encode()?;
        let plain = u32::try_from(payload.len()).map_err(|_| StoreError::CommitTooLarge(payload.len()))?;
        let content = Content { kind: Kind::Batch, form: Form::Plain, leaf: false, plain, digest: Digest([0; 32]) };
        self.append(tail, content, &payload)?;
        let mut overlay = lock(&self.overlay);
        for gone in &batch.gone {
            overlay.insert(gone.digest, (tail.sequence, None));
        }
        drop(overlay);
        self.remember(tail, What::Batch(batch));
        Ok(())
    }

    /// Refuses to go on when the file system is nearly full: the rest is for GC and the index.
    pub(super) fn check_space(&self, bytes: u64) -> Result<(), StoreError> {
        let need = bytes + MARGIN;
        let have = disk::available(self.segments.dir())?;
        if have < need { Err(self.no_space(need, have)) } else { Ok(()) }
    }

    /// Syncs when so much is pending that more would break the bounds.
    pub(super) fn relieve(&self) -> Result<(), StoreError> {
        let full = {
            let tail = self.tail();
            tail.pending_bytes >= MAX_PENDING_BYTES || tail.pending.len() >= MAX_PENDING
        };
        if full { self.sync() } else { Ok(()) }
    }

    /// Returns when all that was appended before the call is durable and in the index.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let target = self.tail().sequence;
        let mut progress = lock(&self.progress);
        loop {
            if progress.done >= target {
                return Ok(());
            }
            if self.has_failed() {
                return Err(StoreError::ReadOnly);
            }
            if !progress.busy {
                break;
            }
            progress = self.progressed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        progress.busy = true;
        drop(progress);
        let turn = Turn { log: self, done: None };
        self.sync_pending(turn)
    }

    fn sync_pending(&self, mut turn: Turn<'_>) -> Result<(), StoreError> {
        let (segment, end, sequence, pending) = {
            let mut tail = self.tail();
            tail.pending_bytes = 0;
            (Arc::clone(&tail.segment), tail.end, tail.sequence, std::mem::take(&mut tail.pending))
        };
        self.segments.disk.sync(&segment.file, &segment.path)?;
        {
            let mut tail = self.tail();
            if tail.segment.number == segment.number {
                tail.durable = tail.durable.max(end);
            }
        }
        let (sequences, changes): (Vec<u64>, Vec<Change>) = pending.into_iter().unzip();
        self.index.apply(&changes)?;
        let mut overlay = lock(&self.overlay);
        for (sequence, change) in sequences.into_iter().zip(&changes) {
            change.what.for_each_block(|digest| {
                if overlay.get(digest).is_some_and(|(current, _)| *current == sequence) {
                    overlay.remove(digest);
                }
            });
        }
        // Where many changes were pending the table has grown; it is empty most of the time.
        if overlay.is_empty() {
            overlay.shrink_to_fit();
        }
        drop(overlay);
        turn.done = Some(sequence);
        let rows = &mut lock(&self.progress).rows_since_flush;
        *rows += changes.len();
        let flush = *rows >= FLUSH_ROWS;
        *rows = if flush { 0 } else { *rows };
        if flush { self.index.flush() } else { Ok(()) }
    }

    fn remember(&self, tail: &mut Tail, what: What) {
        let end = Position { segment: tail.segment.number, offset: tail.end };
        tail.pending.push((tail.sequence, Change { end, what }));
    }

    fn append(&self, tail: &mut Tail, content: Content, payload: &[u8]) -> Result<Header, StoreError> {
        if self.has_failed() {
            return Err(StoreError::ReadOnly);
        }
        let whole = (RECORD_HEADER + payload.len()).next_multiple_of(ALIGN);
        let length = whole as u64;
        if tail.end + length > self.segment_size && tail.end > SEGMENT_HEADER as u64 {
            self.next_segment(tail)?;
        }
        let place = |offset: u64| u32::try_from(offset).map_err(|_| StoreError::CommitTooLarge(payload.len()));
        let header = Header {
            content,
            offset: place(tail.end)?,
            durable: place(tail.durable)?,
            stored: place(payload.len() as u64)?,
            payload_crc: crc32c::crc32c(payload),
        };
        let padding = &[0; ALIGN][..whole - RECORD_HEADER - payload.len()];
        let parts = [&header.encode(&self.segments.salt)[..], payload, padding];
        let Segment { file, path, .. } = &*tail.segment;
        if let Err(error) = self.segments.disk.write_at(file, path, &parts, tail.end) {
            let undone = self.segments.disk.truncate(file, path, tail.end);
            return Err(self.write_failed(error, length, undone.is_ok()));
        }
        tail.end = header.end();
        tail.sequence += 1;
        tail.pending_bytes += length;
        Ok(header)
    }

    fn next_segment(&self, tail: &mut Tail) -> Result<(), StoreError> {
        let Segment { file, path, number } = &*tail.segment;
        if let Err(error) = self.segments.disk.sync(file, path) {
            return Err(self.write_failed(error, 0, false));
        }
        tail.durable = tail.end;
        let next = self.segments.create(number + 1);
        tail.segment = next.map_err(|error| self.write_failed(error, SEGMENT_HEADER as u64, true))?;
        tail.end = SEGMENT_HEADER as u64;
        tail.durable = tail.end;
        Ok(())
    }

    /// A full disk is no disaster as long as the partial write could be undone; all else is.
    fn write_failed(&self, error: StoreError, need: u64, undone: bool) -> StoreError {
        match &error {
            StoreError::Io { source, .. } if undone && source.kind() == io::ErrorKind::StorageFull => {
                self.no_space(need, disk::available(self.segments.dir()).unwrap_or(0))
            }
            _ => {
                self.failed.store(true, Ordering::Release);
                error
            }
        }
    }

    fn no_space(&self, need: u64, have: u64) -> StoreError {
        StoreError::NoSpace { path: self.segments.dir().to_owned(), need, have }
    }
}

impl What {
    fn for_each_block(&self, mut visit: impl FnMut(&Digest)) {
        match self {
            Self::Block(digest, _) => visit(digest),
            Self::Batch(batch) => batch.gone.iter().for_each(|gone| visit(&gone.digest)),
        }
    }
}

/// Somebody's turn to sync. When it ends without success, even by a panic, writing is over and nobody waits.
struct Turn<'a> {
    log: &'a Log,
    done: Option<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.done.is_none() {
            self.log.failed.store(true, Ordering::Release);
        }
        let mut progress = lock(&self.log.progress);
        progress.done = self.done.unwrap_or(progress.done);
        progress.busy = false;
        self.log.progressed.notify_all();
    }
}
