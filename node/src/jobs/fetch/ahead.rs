//! Small NARs that are got into the store before their turn.
//!
//! Those in work are bounded, in number and in bytes. Of those that are here a result is kept in memory until their turn, for as many
//! paths as a closure may have at most: they wait for what they refer to, so that bounding them could stop everything.

use super::Getter;
use crate::control::protocol::{Class, Failure};
use crate::jobs::narinfos::Waiting;
use crate::jobs::obtain::Obtained;
use nipfs_proto::nix::store_path::StorePathHash;
use std::collections::{BTreeMap, VecDeque};
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

/// Whether a NAR is got ahead of its turn.
pub(super) fn is_small(waiting: &Waiting) -> bool {
    waiting.nar_size <= SMALL
}

/// What is got ahead. Dropping it stops all that is in work.
#[derive(Debug)]
pub(super) struct Ahead {
    waiting: VecDeque<StorePathHash>,
    work: JoinSet<(StorePathHash, Result<Obtained, Failure>)>,
    /// Bytes that may be in work.
    window: Arc<Semaphore>,
    /// In work, or has been.
    early: BTreeMap<StorePathHash, Option<Box<Result<Obtained, Failure>>>>,
}

impl Ahead {
    pub(super) fn new() -> Self {
        let window = Arc::new(Semaphore::new(BYTES_AHEAD as usize));
        Self { waiting: VecDeque::new(), work: JoinSet::new(), window, early: BTreeMap::new() }
    }

    /// Will get this one, after those that wait already.
    pub(super) fn add(&mut self, hash: StorePathHash) {
        self.waiting.push_back(hash);
    }

    /// Those of `order` that are not in work yet wait in that order now.
    pub(super) fn wait_in(&mut self, order: impl Iterator<Item = StorePathHash>) {
        self.waiting = order.filter(|hash| !self.early.contains_key(hash)).collect();
    }

    /// Starts what may be in work.
    pub(super) fn start(&mut self, getter: &Getter, found: &BTreeMap<StorePathHash, Waiting>) {
        while self.work.len() < PATHS_AHEAD
            && let Some(hash) = self.waiting.pop_front()
        {
            let (getter, window, waiting) = (getter.clone(), self.window.clone(), &found[&hash]);
            let bytes = u32::try_from(waiting.nar_size).unwrap_or(BYTES_AHEAD);
            let checked = waiting.checked();
            self.early.insert(hash, None);
            self.work.spawn(async move {
                let _part = window.acquire_many_owned(bytes.clamp(MIN_COST, BYTES_AHEAD)).await;
                // What only waits for its part stays small.
                (hash, Box::pin(async { getter.obtain(&checked?, false).await }).await)
            });
        }
    }

    /// The next one that is here, or failed; `None` when nothing is in work. Cancel-safe.
    ///
    /// # Errors
    /// When getting one panicked.
    pub(super) async fn next(&mut self) -> Result<Option<StorePathHash>, Failure> {
        let Some(joined) = self.work.join_next().await else { return Ok(None) };
        let (hash, obtained) = joined.map_err(|error| Failure::from_error(Class::Failed, &error))?;
        self.early.insert(hash, Some(Box::new(obtained)));
        Ok(Some(hash))
    }

    /// All that is here, or failed.
    pub(super) fn here(&self) -> impl Iterator<Item = StorePathHash> {
        self.early.iter().filter(|(_, obtained)| obtained.is_some()).map(|(hash, _)| *hash)
    }

    /// Whether [`Self::next`] would return `None`.
    pub(super) fn is_idle(&self) -> bool {
        self.work.is_empty()
    }

    /// What became of one that is here; `None` when it was not got ahead.
    pub(super) fn take(&mut self, hash: &StorePathHash) -> Option<Result<Obtained, Failure>> {
        self.early.remove(hash).flatten().map(|obtained| *obtained)
    }
}
