//! Stops the store at the n-th operation on the disk.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The faults of one store, shared with its test.
#[derive(Clone, Default)]
pub(in crate::store) struct Faults(Arc<Mutex<State>>, Arc<Mutex<Option<Call>>>);

type Call = Box<dyn FnOnce() + Send>;

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, Default)]
struct State {
    steps: u64,
    freeze_at: Option<u64>,
    is_full: bool,
    /// Fails once, when its turn comes.
    failing: Option<&'static str>,
    durable: HashMap<PathBuf, u64>,
    keeps_erased: bool,
    /// What was erased since the last sync: file, offset, bytes.
    erased: Vec<(PathBuf, u64, Vec<u8>)>,
}

impl Faults {
    /// All operations from the n-th on fail, and nothing reaches the disk any more.
    pub(super) fn freeze_at(&self, step: u64) {
        self.0.lock().unwrap().freeze_at = Some(step);
    }

    /// The next write, or the file made for it, finds the disk full.
    pub(super) fn fill(&self) {
        self.0.lock().unwrap().is_full = true;
    }

    /// From now on, what is erased is kept until it is synced.
    pub(super) fn keep_erased(&self) {
        self.0.lock().unwrap().keeps_erased = true;
    }

    /// The next operation of this kind fails.
    pub(super) fn fail(&self, action: &'static str) {
        self.0.lock().unwrap().failing = Some(action);
    }

    /// Calls back in the middle of the next sync.
    pub(super) fn during_sync(&self, call: impl FnOnce() + Send + 'static) {
        *self.1.lock().unwrap() = Some(Box::new(call));
    }

    /// Operations so far.
    pub(super) fn steps(&self) -> u64 {
        self.0.lock().unwrap().steps
    }

    /// Bytes of a file that were synced.
    pub(super) fn durable(&self, path: &Path) -> u64 {
        self.0.lock().unwrap().durable.get(path).copied().unwrap_or(0)
    }

    /// What of a file was erased and not synced: offset and bytes, the oldest first.
    pub(super) fn unsynced_holes(&self, path: &Path) -> Vec<(u64, Vec<u8>)> {
        let state = self.0.lock().unwrap();
        let holes = state.erased.iter().filter(|(erased, ..)| erased == path);
        holes.map(|(_, offset, bytes)| (*offset, bytes.clone())).collect()
    }

    pub(in crate::store) fn step(&self, path: &Path, action: &str) -> io::Result<()> {
        let call = if action == "sync" { self.1.lock().unwrap().take() } else { None };
        if let Some(call) = call {
            call();
        }
        let mut state = self.0.lock().unwrap();
        state.steps += 1;
        if state.failing == Some(action) {
            state.failing = None;
            return Err(io::Error::other("this once"));
        }
        if state.is_full && matches!(action, "write" | "create") {
            state.is_full = false;
            return Err(io::ErrorKind::StorageFull.into());
        }
        match state.freeze_at {
            Some(step) if state.steps > step => Err(io::Error::other(format!("frozen: {action} {}", path.display()))),
            _ => Ok(()),
        }
    }

    pub(in crate::store) fn synced(&self, path: &Path, file: &File) {
        let length = file.metadata().unwrap().len();
        let mut state = self.0.lock().unwrap();
        state.durable.insert(path.to_owned(), length);
        state.erased.retain(|(erased, ..)| erased != path);
    }

    pub(in crate::store) fn erasing(&self, path: &Path, file: &File, offset: u64, len: u64) {
        if !self.0.lock().unwrap().keeps_erased {
            return;
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut bytes, offset).unwrap();
        self.0.lock().unwrap().erased.push((path.to_owned(), offset, bytes));
    }
}
