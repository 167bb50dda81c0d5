//! NARs that have come and wait for the narinfo that names them.

use crate::cache::Staged;
use nipfs_proto::nix::NarHash;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

/// Staged NARs: a bounded number of them, each for a bounded time. Nix sends a narinfo right after its NAR, so when there
/// are too many the oldest is the one whose uploader has most likely gone.
#[derive(Debug)]
pub(super) struct Waiting {
    most: usize,
    age: Duration,
    /// Oldest first, each NarHash once.
    nars: Mutex<VecDeque<Nar>>,
}

#[derive(Debug)]
struct Nar {
    staged: Arc<Staged>,
    /// Forgets the NAR when its time has come.
    _expiry: AbortOnDropHandle<()>,
}

impl Waiting {
    pub(super) fn new(most: usize, age: Duration) -> Self {
        Self { most, age, nars: Mutex::default() }
    }

    pub(super) fn get(&self, hash: &NarHash) -> Option<Arc<Staged>> {
        self.lock().iter().find(|nar| nar.staged.nar_hash == *hash).map(|nar| nar.staged.clone())
    }

    /// Keeps a NAR, in the place of the oldest if there are too many.
    pub(super) fn put(self: &Arc<Self>, staged: Staged) {
        let (hash, age, waiting) = (staged.nar_hash, self.age, Arc::downgrade(self));
        let expiry = tokio::spawn(async move {
            sleep(age).await;
            if let Some(waiting) = waiting.upgrade() {
                waiting.forget(&hash);
            }
        });
        let mut nars = self.lock();
        nars.retain(|nar| nar.staged.nar_hash != hash);
        if nars.len() >= self.most {
            nars.pop_front();
        }
        nars.push_back(Nar { staged: Arc::new(staged), _expiry: AbortOnDropHandle::new(expiry) });
    }

    /// Lets go of a NAR. If nothing refers to its blocks by now, GC may take them.
    pub(super) fn forget(&self, hash: &NarHash) {
        self.lock().retain(|nar| nar.staged.nar_hash != *hash);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Nar>> {
        self.nars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
