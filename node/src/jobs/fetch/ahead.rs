//! Small NARs that are got into the store before their turn.
//!
//! Those in work are bounded, in number and in bytes. Of those that are here a few bytes are kept in memory until their
//! turn, for as many paths as a closure may have at most: they wait for what they refer to, so that bounding them could
//! stop everything. A lease keeps the blocks of up to [`TOGETHER`] of them here, until the last of these had its turn.

use super::Getter;
use super::closure::{Closure, Known, PathId};
use crate::control::protocol::{Class, Failure, SourceBytes};
use crate::jobs::obtain::Obtained;
use crate::store::{Lease, Store};
use nipfs_proto::Cid;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// A NAR of at most this many bytes is got ahead of its turn.
const SMALL: u64 = 2 << 20;
/// Bytes of those in work, by NarSize: on a far link each path costs round trips, so many have to be.
const BYTES_AHEAD: u32 = 6 << 20;
/// What a path counts for at least: 64 of the smallest are in work.
const MIN_COST: u32 = BYTES_AHEAD / 64;
/// Paths in work, and those that are next.
const PATHS_AHEAD: usize = 2 * 64;

/// Paths that share a lease: one each took 200 bytes and more a path.
const TOGETHER: usize = 256;

/// Whether a NAR is got ahead of its turn.
pub(super) fn is_small(known: &Known) -> bool {
    known.nar_size <= SMALL
}

/// What is got ahead. Dropping it stops all that is in work.
#[derive(Debug)]
pub(super) struct Ahead {
    waiting: VecDeque<PathId>,
    work: JoinSet<(PathId, Result<Obtained, Failure>)>,
    /// Bytes that may be in work.
    window: Arc<Semaphore>,
    paths: Vec<Early>,
    store: Store,
    /// What those that come next leave their blocks to.
    lease: Arc<Lease>,
    /// How many came.
    arrived: usize,
}

/// Where a path is.
#[derive(Debug, Default)]
enum Early {
    /// Not begun.
    #[default]
    Ahead,
    InWork,
    Here(Box<Arrived>),
    Failed(Box<Failure>),
    /// Its turn has come.
    Over,
}

/// A NAR in the store.
#[derive(Debug)]
pub(super) struct Arrived {
    /// The bytes of its root's CID, which are half as many as those of a [`Cid`].
    root: Box<[u8]>,
    pub(super) bytes: SourceBytes,
    pub(super) source: &'static str,
    /// Keeps GC away from its blocks, and from those of others.
    _lease: Arc<Lease>,
}

impl Arrived {
    /// Its root.
    pub(super) fn root(&self) -> Cid {
        Cid::try_from(&*self.root).expect("these bytes were a CID's")
    }
}

impl Ahead {
    /// Nothing yet.
    pub(super) fn new(store: Store) -> Self {
        let window = Arc::new(Semaphore::new(BYTES_AHEAD as usize));
        let lease = Arc::new(store.lease());
        Self { waiting: VecDeque::new(), work: JoinSet::new(), window, paths: Vec::new(), store, lease, arrived: 0 }
    }

    /// Will get this one, after those that wait already.
    pub(super) fn add(&mut self, id: PathId) {
        self.waiting.push_back(id);
    }

    /// Those of `order` that are not in work yet wait in that order now.
    pub(super) fn wait_in(&mut self, order: impl Iterator<Item = PathId>) {
        let begun = |id: &PathId| self.paths.get(id.index()).is_some_and(|path| !matches!(path, Early::Ahead));
        self.waiting = order.filter(|id| !begun(id)).collect();
    }

    /// Starts what may be in work.
    pub(super) fn start(&mut self, getter: &Getter, closure: &Closure) {
        while self.work.len() < PATHS_AHEAD
            && let Some(id) = self.waiting.pop_front()
        {
            let Some(known) = closure.get(id) else { continue };
            let bytes = u32::try_from(known.nar_size).unwrap_or(BYTES_AHEAD);
            let (getter, window, checked) = (getter.clone(), self.window.clone(), closure.checked(known));
            self.set(id, Early::InWork);
            self.work.spawn(async move {
                let _part = window.acquire_many_owned(bytes.clamp(MIN_COST, BYTES_AHEAD)).await;
                // What only waits for its part stays small.
                (id, Box::pin(async { getter.obtain(&checked?, false).await }).await)
            });
        }
    }

    fn set(&mut self, id: PathId, early: Early) {
        if self.paths.len() <= id.index() {
            self.paths.resize_with(id.index() + 1, Early::default);
        }
        self.paths[id.index()] = early;
    }

    /// The next one that is here, or failed; `None` when nothing is in work. Cancel-safe.
    ///
    /// # Errors
    /// When getting one panicked.
    pub(super) async fn next(&mut self) -> Result<Option<PathId>, Failure> {
        let Some(joined) = self.work.join_next().await else { return Ok(None) };
        let (id, obtained) = joined.map_err(|error| Failure::from_error(Class::Failed, &error))?;
        let early = match obtained {
            Ok(Obtained { root, bytes, source, lease }) => {
                self.arrived += 1;
                if self.arrived.is_multiple_of(TOGETHER) {
                    self.lease = Arc::new(self.store.lease());
                }
                if let Some(lease) = lease {
                    self.lease.take_over(&lease);
                }
                let _lease = self.lease.clone();
                Early::Here(Box::new(Arrived { root: root.to_bytes().into(), bytes, source, _lease }))
            }
            Err(failure) => Early::Failed(Box::new(failure)),
        };
        self.set(id, early);
        Ok(Some(id))
    }

    /// All that is here, or failed.
    pub(super) fn here(&self) -> impl Iterator<Item = PathId> {
        let is_here = |path: &Early| matches!(path, Early::Here(_) | Early::Failed(_));
        self.paths.iter().enumerate().filter(move |(_, path)| is_here(path)).map(|(index, _)| PathId::at(index))
    }

    /// Whether [`Self::next`] would return `None`.
    pub(super) fn is_idle(&self) -> bool {
        self.work.is_empty()
    }

    /// What became of one that is here; `None` when it was not got ahead.
    pub(super) fn take(&mut self, id: PathId) -> Option<Result<Box<Arrived>, Failure>> {
        match std::mem::replace(self.paths.get_mut(id.index())?, Early::Over) {
            Early::Here(arrived) => Some(Ok(arrived)),
            Early::Failed(failure) => Some(Err(*failure)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::GcOptions;
    use nipfs_proto::block::{Block, RAW};

    #[tokio::test]
    async fn blocks_of_early_nars_stay_until_all_who_share_their_lease_had_their_turn() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut ahead = Ahead::new(store.clone());
        let held = || store.stats().unwrap().blocks;
        let all = 2 * TOGETHER;
        for index in 0..all {
            let lease = Arc::new(store.lease());
            let block = Block::v1(RAW, index.to_le_bytes().to_vec().into()).unwrap();
            lease.put(&block).unwrap();
            let obtained =
                Obtained { root: *block.cid(), bytes: SourceBytes::default(), source: "http", lease: Some(lease) };
            ahead.work.spawn(async move { (PathId::at(index), Ok(obtained)) });
            assert_eq!(ahead.next().await.unwrap(), Some(PathId::at(index)));
        }
        // The first lease was left when the last of them came.
        let first = TOGETHER - 1;
        for index in 0..first {
            if index % 64 == 0 {
                store.gc(&GcOptions::default()).unwrap();
                assert_eq!(held(), all as u64, "{index} had their turn");
            }
            drop(ahead.take(PathId::at(index)).unwrap().unwrap());
        }
        store.gc(&GcOptions::default()).unwrap();
        assert_eq!(held(), (all - first) as u64);
        drop(ahead);
        store.gc(&GcOptions::default()).unwrap();
        assert_eq!(held(), 0);
    }
}
