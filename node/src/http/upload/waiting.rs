//! NARs that have come and wait for the narinfo that names them.

use crate::cache::Staged;
use nipfs_proto::nix::NarHash;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

/// Staged NARs by NarHash: a bounded number of them, each for a bounded time.
#[derive(Debug)]
pub(super) struct Waiting {
    most: usize,
    age: Duration,
    nars: Mutex<HashMap<NarHash, Nar>>,
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

    pub(super) fn is_full(&self) -> bool {
        self.lock().len() >= self.most
    }

    pub(super) fn get(&self, hash: &NarHash) -> Option<Arc<Staged>> {
        self.lock().get(hash).map(|nar| nar.staged.clone())
    }

    /// Keeps a NAR; false when there are too many.
    pub(super) fn put(self: &Arc<Self>, staged: Staged) -> bool {
        let (hash, age, waiting) = (staged.nar_hash, self.age, Arc::downgrade(self));
        let mut nars = self.lock();
        if nars.len() >= self.most && !nars.contains_key(&hash) {
            return false;
        }
        let expiry = tokio::spawn(async move {
            sleep(age).await;
            if let Some(waiting) = waiting.upgrade() {
                waiting.forget(&hash);
            }
        });
        nars.insert(hash, Nar { staged: Arc::new(staged), _expiry: AbortOnDropHandle::new(expiry) });
        true
    }

    /// Lets go of a NAR. If nothing refers to its blocks by now, GC may take them.
    pub(super) fn forget(&self, hash: &NarHash) {
        self.lock().remove(hash);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NarHash, Nar>> {
        self.nars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
