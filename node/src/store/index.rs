//! The index: a sled tree that is derived from the packs and can be thrown away at any time.
//!
//! One tree holds all rows, the first byte of a key telling the kind, so that one sled batch can hold the
//! changes and the position in the log up to which they are applied. Nothing relies on sled's durability: it may
//! come back as it was some time ago, and the log is replayed from the position it remembers. So rows wait in memory,
//! where they are found at once, until there are enough of them: each sled batch makes two syncs of its own.

use super::apply::Writer;
use super::log::Change;
use super::ops::{CidPin, NarRecord, PathRecord, Row};
use super::record::{Content, Form, Header};
use super::{Location, StoreError, lock};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::store_path::StorePathHash;
use sled::IVec;
use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// Rows that change at once: they go into one sled batch, with those that wait, and larger ones cost memory out of
/// proportion.
pub(super) const MAX_ROWS: usize = 1_000;
/// Rows that wait for a batch, and their bytes. What sled replaces for each row of a batch it keeps to the batch's end,
/// and longer in the threads that wrote it.
const MAX_STAGED: (usize, usize) = (250, 1 << 20);
/// Bytes of sled's page cache, by its own count: in memory they take twice that. Its default is 1 GiB.
const CACHE: u64 = 4 << 20;
/// How long sled's lock may outlive a `Db` that this process dropped just now.
const LOCK_WAIT: Duration = Duration::from_secs(5);

pub(super) const BLOCK: u8 = b'b';
pub(super) const NAR: u8 = b'n';
pub(super) const PATH: u8 = b'p';
pub(super) const PIN: u8 = b'c';
/// Roots whose blocks are still to be made public.
pub(super) const UNSHOWN: u8 = b'u';
/// There while blocks may be public that no longer should be.
pub(super) const STALE_PUBLIC: &[u8] = b"s";
/// Where the index stands.
pub(super) const STATE: &[u8] = b"m";

/// File that is there while the index is closed in good order.
const CLOSED: &str = "closed";

/// A place in the log, between two records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) segment: u32,
    pub(super) offset: u64,
}

/// What the index knows about all its blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) blocks: u64,
    /// Bytes of payloads in the packs.
    pub(super) stored: u64,
    /// Bytes of the blocks themselves.
    pub(super) plain: u64,
}

/// Where the index stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) position: Position,
    pub(super) totals: Totals,
}

/// A block's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRow {
    pub(super) location: Location,
    /// Bytes of the block.
    pub(super) size: u32,
    /// See [`Content::leaf`].
    pub(super) leaf: bool,
    pub(super) public: bool,
}

impl BlockRow {
    /// The row of the block whose record in `segment` starts with `header`; nothing is public from the start.
    pub(super) fn of(segment: u32, header: &Header) -> Self {
        let Content { plain, leaf, .. } = header.content;
        Self { location: header.location(segment), size: plain, leaf, public: false }
    }
}

/// What changes of rows go on from.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) state: State,
    /// Keys that the snapshot being applied has named so far.
    pub(super) snapshot: Option<HashSet<Vec<u8>>>,
}

/// Rows by their keys; `None`: removed.
pub(super) type Rows = BTreeMap<Vec<u8>, Option<IVec>>;

/// Rows that are applied but not in sled yet.
#[derive(Debug, Default)]
struct Staged {
    rows: Rows,
    /// Bytes of all that came since the last sled batch.
    bytes: usize,
}

/// The index of one store.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) db: sled::Db,
    /// Unset by the first error; an index that is not sound is checked or rebuilt when it is opened again.
    sound: Arc<AtomicBool>,
    dir: PathBuf,
    /// Held by whoever changes rows.
    pub(super) applied: Mutex<Applied>,
    staged: Mutex<Staged>,
}

impl Index {
    /// Opens the index in `dir`, making an empty one if there is none. One that was not closed in good order is
    /// checked.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let is_new = !dir.exists();
        let db = open_db(dir)?;
        // Whatever happens from here on, this index was not closed in good order until it is.
        let was_closed = fs::remove_file(dir.join(CLOSED)).is_ok();
        let state = db.get(STATE).map_err(StoreError::Index)?;
        let state = state.and_then(|bytes| State::from_row(&bytes)).unwrap_or_default();
        let applied = Mutex::new(Applied { state, snapshot: None });
        let sound = Arc::new(AtomicBool::new(true));
        let index = Self { db, applied, staged: Mutex::default(), sound, dir: dir.to_owned() };
        if !is_new && !was_closed {
            index.check()?;
        }
        Ok(index)
    }

    /// Reads all blocks once and counts them.
    fn check(&self) -> Result<(), StoreError> {
        let mut blocks = 0;
        for block in self.blocks() {
            block?;
            blocks += 1;
        }
        if blocks == self.state().totals.blocks { Ok(()) } else { Err(self.failure()(corruption())) }
    }

    /// Turns sled's errors into the store's and remembers that there was one.
    pub(super) fn failure(&self) -> impl Fn(sled::Error) -> StoreError + use<> {
        let sound = Arc::clone(&self.sound);
        move |error| {
            sound.store(false, Ordering::Relaxed);
            StoreError::Index(error)
        }
    }

    pub(super) fn state(&self) -> State {
        lock(&self.applied).state
    }

    /// Applies changes in log order.
    pub(super) fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut writer = Writer::new(self);
        for change in changes {
            writer.apply(change)?;
        }
        writer.finish()
    }

    pub(super) fn block(&self, digest: &Digest) -> Result<Option<BlockRow>, StoreError> {
        self.row(&key(BLOCK, &digest.0))
    }

    pub(super) fn nar(&self, hash: &NarHash) -> Result<Option<NarRecord>, StoreError> {
        self.row(&key(NAR, &hash.0))
    }

    pub(super) fn path(&self, hash: &StorePathHash) -> Result<Option<PathRecord>, StoreError> {
        self.row(&key(PATH, hash.as_str().as_bytes()))
    }

    pub(super) fn nars(&self) -> impl Iterator<Item = Result<NarRecord, StoreError>> + use<> {
        self.rows(NAR, |_, row| NarRecord::from_row(row))
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = Result<PathRecord, StoreError>> + use<> {
        self.rows(PATH, |_, row| PathRecord::from_row(row))
    }

    pub(super) fn pins(&self) -> impl Iterator<Item = Result<CidPin, StoreError>> + use<> {
        self.rows(PIN, |_, row| CidPin::from_row(row))
    }

    /// All blocks, in the order of their digests.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Result<(Digest, BlockRow), StoreError>> + use<> {
        self.rows(BLOCK, |name, row| Some((Digest(name.try_into().ok()?), BlockRow::from_row(row)?)))
    }

    /// Roots whose blocks are still to be made public.
    pub(super) fn unshown(&self) -> Result<Vec<Cid>, StoreError> {
        self.rows(UNSHOWN, |name, _| Cid::try_from(name).ok()).collect()
    }

    /// The note that blocks may be public that no longer should be.
    pub(super) fn stale_public(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get(STALE_PUBLIC)?.map(|note| note.to_vec()))
    }

    /// Hands what is applied to the kernel, so that a replay after a kill is short.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.settle(&lock(&self.applied))?;
        self.db.flush().map(|_| ()).map_err(self.failure())
    }

    /// Changes rows, for readers all at once.
    pub(super) fn stage(&self, alone: &Applied, rows: Rows) -> Result<(), StoreError> {
        let mut staged = lock(&self.staged);
        staged.bytes +=
            rows.iter().map(|(key, row)| key.len() + row.as_ref().map_or(0, |row| row.len())).sum::<usize>();
        staged.rows.extend(rows);
        let full = staged.rows.len() >= MAX_STAGED.0 || staged.bytes >= MAX_STAGED.1;
        drop(staged);
        if full { self.settle(alone) } else { Ok(()) }
    }

    /// Puts all rows that wait into sled, in one batch.
    pub(super) fn settle(&self, _alone: &Applied) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        let staged = lock(&self.staged);
        if staged.rows.is_empty() {
            return Ok(());
        }
        for (key, row) in &staged.rows {
            match row {
                Some(row) => batch.insert(&key[..], row),
                None => batch.remove(&key[..]),
            }
        }
        drop(staged);
        self.db.apply_batch(batch).map_err(self.failure())?;
        // A row is in sled before it leaves here, so whoever looks there second misses nothing.
        *lock(&self.staged) = Staged::default();
        Ok(())
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<IVec>, StoreError> {
        let staged = lock(&self.staged).rows.get(key).cloned();
        staged.map_or_else(|| self.db.get(key).map_err(self.failure()), Ok)
    }

    /// A row in the form that it has in the database.
    pub(super) fn decode<R: Row>(&self, row: &[u8]) -> Result<R, StoreError> {
        R::from_row(row).ok_or_else(|| self.failure()(corruption()))
    }

    fn row<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.get(key)?.map(|row| self.decode(&row)).transpose()
    }

    fn rows<T, D>(&self, kind: u8, decode: D) -> impl Iterator<Item = Result<T, StoreError>> + use<T, D>
    where
        D: Fn(&[u8], &[u8]) -> Option<T>,
    {
        let failure = self.failure();
        let settled = self.settle(&lock(&self.applied));
        let rows = self.db.scan_prefix([kind]).map(move |row| {
            let (key, row) = row.map_err(&failure)?;
            decode(&key[1..], &row).ok_or_else(|| failure(corruption()))
        });
        settled.err().map(Err).into_iter().chain(rows)
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        if self.sound.load(Ordering::Relaxed) && self.flush().is_ok() {
            // Without the file the index is checked when it is opened again.
            let _ = fs::write(self.dir.join(CLOSED), []);
        }
    }
}

/// Opens sled, and waits for its lock.
fn open_db(dir: &Path) -> Result<sled::Db, StoreError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let config = sled::Config::new().path(dir).cache_capacity(CACHE).flush_every_ms(None);
        // sled panics on some of the damage it finds.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        match opened.unwrap_or_else(|_| Err(corruption())) {
            Ok(db) => return Ok(db),
            // Its threads may hold the lock for a moment after the last handle was dropped.
            Err(sled::Error::Io(e)) if e.to_string().contains("lock") && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(StoreError::Index(error)),
        }
    }
}

/// The key of a row.
pub(super) fn key(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind], name].concat()
}

fn corruption() -> sled::Error {
    sled::Error::Corruption { at: None, bt: () }
}

impl Row for State {
    fn to_row(&self) -> Vec<u8> {
        let Totals { blocks, stored, plain } = self.totals;
        let mut row = self.position.segment.to_le_bytes().to_vec();
        for number in [self.position.offset, blocks, stored, plain] {
            row.extend_from_slice(&number.to_le_bytes());
        }
        row
    }

    fn from_row(bytes: &[u8]) -> Option<Self> {
        let (segment, rest) = bytes.split_first_chunk()?;
        let (numbers, []) = rest.as_chunks() else { return None };
        let &[offset, blocks, stored, plain] = numbers else { return None };
        let [offset, blocks, stored, plain] = [offset, blocks, stored, plain].map(u64::from_le_bytes);
        let position = Position { segment: u32::from_le_bytes(*segment), offset };
        Some(Self { position, totals: Totals { blocks, stored, plain } })
    }
}

const IN_PACK: u8 = 0;
/// Beside the bits of [`Form::flags`].
const PUBLIC: u8 = 2;
const LEAF: u8 = 4;

impl Row for BlockRow {
    fn to_row(&self) -> Vec<u8> {
        let Location { segment, offset, stored, form } = self.location;
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = form.flags() | flag(self.public, PUBLIC) | flag(self.leaf, LEAF);
        let mut row = vec![IN_PACK, flags];
        for number in [segment, offset, stored, self.size] {
            row.extend_from_slice(&number.to_le_bytes());
        }
        row
    }

    fn from_row(bytes: &[u8]) -> Option<Self> {
        let (&[IN_PACK, flags], rest) = bytes.split_first_chunk()? else { return None };
        let (numbers, []) = rest.as_chunks() else { return None };
        let &[segment, offset, stored, size] = numbers else { return None };
        let [segment, offset, stored, size] = [segment, offset, stored, size].map(u32::from_le_bytes);
        let location = Location { segment, offset, stored, form: Form::of_flags(flags)? };
        Some(Self { location, size, leaf: flags & LEAF != 0, public: flags & PUBLIC != 0 })
    }
}
