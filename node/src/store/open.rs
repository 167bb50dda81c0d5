//! Opening a store: lock, version, index, replay.

use super::disk::{self, Disk};
use super::index::{Index, Position};
use super::lease::Leases;
use super::log::{self, Log, MARGIN};
use super::record::{SEGMENT_HEADER, Salt};
use super::replay::{self, Recovery};
use super::segments::{self, Segment, Segments};
use super::trees::Trees;
use super::writer::Writer;
use super::{Inner, Store, StoreError};
use nipfs_proto::nix::store_path::STORE_DIR;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The version this code writes.
const FORMAT: &str = "1";
/// Bytes set aside for deletions on a full disk.
const RESERVE: u64 = 4 << 20;
/// How long the lock may outlive a store that was just closed: a child process holds it between fork and exec.
const LOCK_WAIT: Duration = Duration::from_millis(200);

impl Store {
    /// Opens the store in `dir`, making an empty one if there is none, and brings the index up to date.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Newer`], [`StoreError::BadFile`], I/O.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_beside(dir, Path::new(STORE_DIR), Disk::default(), log::SEGMENT_SIZE)
    }

    /// Opens a store with segments of another size, beside the Nix store in `trees`.
    pub(super) fn open_beside(dir: &Path, trees: &Path, disk: Disk, segment_size: u64) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        let lock = acquire(dir)?;
        let packs = dir.join("packs");
        let salt = format(dir, &packs, &disk)?;
        make_room(dir);
        fs::create_dir_all(&packs).map_err(StoreError::io("create", &packs))?;
        disk.sync_dir(dir)?;
        let segments = Segments::new(packs, disk, salt);
        segments.check_names()?;
        let mut recovery = Recovery::default();
        let (index, last) = open_index(dir, &segments, &mut recovery)?;
        let (segment, end) = match last {
            Some((segment, end)) => {
                if end == SEGMENT_HEADER as u64 {
                    // A power cut may have come before the header was on disk.
                    segments.write_header(&segment)?;
                }
                (segment, end)
            }
            None => (segments.create(1)?, SEGMENT_HEADER as u64),
        };
        let inner = Inner {
            dir: dir.to_owned(),
            log: Log::new(segments, index, segment, end, segment_size),
            leases: Mutex::new(Leases::default()),
            commits: RwLock::new(()),
            gc: Mutex::new(()),
            publishing: Mutex::new(None),
            hiding: Mutex::new(()),
            damaged: Mutex::new(HashSet::new()),
            changed: Notify::new(),
            trees: Trees::new(trees),
            compressors: Mutex::default(),
            writer: Writer::new("store-writer"),
            recovery,
            _lock: lock,
        };
        let store = Self(Arc::new(inner));
        store.fill_reserve();
        store.finish_publishing()?;
        Ok(store)
    }

    /// Sets space aside for GC, if there is enough.
    pub(super) fn fill_reserve(&self) {
        let path = self.dir().join("reserve");
        if disk::available(self.dir()).is_ok_and(|free| free > MARGIN + RESERVE) && !path.exists() {
            let file = OpenOptions::new().write(true).create_new(true).open(&path);
            let filled = file.map(|file| rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, RESERVE));
            if !matches!(filled, Ok(Ok(()))) {
                tracing::debug!(path = %path.display(), "no space is set aside for GC");
            }
        }
    }

    /// Whether what is deleted should be erased at once.
    pub(super) fn is_short_of_space(&self) -> Result<bool, StoreError> {
        Ok(disk::available(self.dir())? < MARGIN)
    }

    /// Gives back the space that was set aside, if there is hardly any left: deleting takes some, too.
    pub(super) fn make_room(&self) {
        make_room(self.dir());
    }
}

fn make_room(dir: &Path) {
    if disk::available(dir).is_ok_and(|free| free < RESERVE) {
        // Nothing was set aside when there is no such file.
        let _ = fs::remove_file(dir.join("reserve"));
    }
}

/// Takes the lock that one process holds.
fn acquire(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.map_err(StoreError::io("open", &path))?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(dir.to_owned())),
            Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", &path)(e)),
        }
    }
}

/// Checks the version of the store, or sets it for a new one, and returns the salt.
fn format(dir: &Path, packs: &Path, disk: &Disk) -> Result<Salt, StoreError> {
    let path = dir.join("format");
    let found = match fs::read(&path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(StoreError::io("read", &path)(e)),
    };
    if let Some(text) = found {
        let mut lines = text.lines();
        return match (lines.next(), lines.next().and_then(|line| line.strip_prefix("salt "))) {
            (Some(FORMAT), Some(salt)) => parse_salt(salt).ok_or(StoreError::BadFile(path)),
            (Some(version), _) if version.parse::<u32>().is_ok_and(|version| version > 1) => {
                Err(StoreError::Newer { path: dir.to_owned(), version: version.to_owned() })
            }
            _ => Err(StoreError::BadFile(path)),
        };
    }
    // A new store; or one that lost this file, whose segments all repeat the salt.
    let known = if packs.exists() { segments::find_salt(packs)? } else { None };
    let salt = known.unwrap_or_else(|| rand::random::<u128>().to_le_bytes());
    disk.replace(&path, format!("{FORMAT}\nsalt {:032x}\n", u128::from_be_bytes(salt)).as_bytes())?;
    Ok(salt)
}

fn parse_salt(text: &str) -> Option<Salt> {
    u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32).map(u128::to_be_bytes)
}

type Opened = (Index, Option<(Arc<Segment>, u64)>);

/// Opens the index and replays the log behind its position; rebuilds it from all packs when that is not possible.
fn open_index(dir: &Path, segments: &Segments, recovery: &mut Recovery) -> Result<Opened, StoreError> {
    let path = dir.join("index");
    match follow(&path, segments, recovery) {
        Ok(Some(opened)) => return Ok(opened),
        Ok(None) => tracing::info!("the index does not fit the packs: rebuilding it"),
        Err(StoreError::Index(error)) => {
            tracing::warn!(%error, "the index cannot be read: rebuilding it");
            *recovery = Recovery::default();
        }
        Err(error) => return Err(error),
    }
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("remove", &path)(e)),
        _ => {}
    }
    recovery.rebuilt = true;
    let index = Index::open(&path)?;
    let last = replay::replay(segments, &index, Position::default(), recovery)?;
    index.flush()?;
    Ok((index, last))
}

/// `None` when the position that the index remembers is not in the packs.
fn follow(path: &Path, segments: &Segments, recovery: &mut Recovery) -> Result<Option<Opened>, StoreError> {
    let fresh = !path.exists();
    let has_segments = !segments.list()?.is_empty();
    if fresh && has_segments {
        return Ok(None);
    }
    let index = Index::open(path)?;
    let from = index.state().position;
    let length = match segments.open(from.segment)? {
        Some(segment) => segment.len()?,
        None => 0,
    };
    if length < from.offset {
        recovery.damage(from.segment, length..from.offset);
        return Ok(None);
    }
    if has_segments && from == Position::default() {
        return Ok(None);
    }
    let last = replay::replay(segments, &index, from, recovery)?;
    Ok(Some((index, last)))
}
