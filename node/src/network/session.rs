//! A session: wants over one set of peers.
//!
//! The future of a want is the want: dropping it cancels. A drop cannot wait for a place in the
//! command queue, so it leaves a note in [`Dropped`], which holds at most one entry for each want and
//! session that the task was told of or will find gone when it reads the command.

use super::Shared;
use super::task::Command;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either, Shared as Common, select};
use libp2p::{Multiaddr, PeerId};
use nipfs_proto::Cid;
use nipfs_proto::block::Block;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, OnceCell, oneshot};

/// Searches in a row that may bring nobody: what one cache publishes, the same peers have.
const MAX_FRUITLESS: usize = 3;

/// Why a want was not met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WantError {
    /// None of the session's peers has the block, or none is connected, or all were silent.
    #[error("no peer delivered {0}")]
    Missing(Cid),
    /// The network has been shut down.
    #[error("the network has been shut down")]
    Stopped,
}

/// Asks a set of peers for blocks. Dropped together with its last want, it closes.
#[derive(Debug, Clone)]
pub struct Session {
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    id: u64,
    peers: Arc<[PeerId]>,
    shared: Arc<Shared>,
    /// The roots that peers were looked for, and whether that brought somebody.
    searched: Mutex<HashMap<Cid, Arc<OnceCell<bool>>>>,
    /// Searches in a row that brought nobody.
    fruitless: AtomicUsize,
    /// The searches for indexes. They hold the network, not the session.
    indexes: Mutex<HashMap<Cid, Common<BoxFuture<'static, bool>>>>,
}

/// A block and who sent it, or why there is none.
pub(super) type Outcome = Result<(Block, PeerId), WantError>;

impl Session {
    pub(super) fn open(shared: Arc<Shared>, peers: Vec<PeerId>) -> Self {
        let (searched, fruitless, indexes) = (Mutex::default(), AtomicUsize::new(0), Mutex::default());
        Self {
            open: Arc::new(Open { id: shared.fresh_id(), peers: peers.into(), shared, searched, fruitless, indexes }),
        }
    }

    /// Wants a block. The request goes out when the future is first polled; dropping the future
    /// cancels it. The future does not borrow the session and keeps it open.
    ///
    /// # Errors
    /// [`WantError::Missing`] when the peers do not have it or do not answer in time: an answer comes
    /// in any case. [`WantError::Stopped`].
    pub fn want(&self, cid: Cid) -> impl Future<Output = Result<(Block, PeerId), WantError>> + Send + 'static {
        let open = Arc::clone(&self.open);
        async move {
            let (reply, outcome) = oneshot::channel();
            let want = open.shared.fresh_id();
            // Declared before the receiver, so dropped after it: whoever finds the note also finds
            // the reply closed.
            let mut note = Note { want, cid, open: &open, waiting: true };
            let outcome = outcome;
            let command = Command::Want { session: open.id, peers: Arc::clone(&open.peers), want, cid, reply };
            let answer = match open.shared.commands.send(command).await {
                Ok(()) => outcome.await.unwrap_or(Err(WantError::Stopped)),
                Err(_) => Err(WantError::Stopped),
            };
            note.waiting = false;
            answer
        }
    }
}

impl Session {
    /// Whether there may be more than one peer to ask.
    #[must_use]
    pub fn has_choice(&self) -> bool {
        self.open.peers.len() != 1
    }

    /// As [`Network::stored`](super::Network::stored) for a block that came over this session.
    pub async fn stored(&self, cid: Cid) {
        // Only fails while the network ends; nobody waits then.
        let _ = self.open.shared.commands.send(Command::Stored(vec![cid])).await;
    }

    /// Looks for more peers to ask for the DAG `root`: as far as the node's profile lets it, and among `hints`, which is
    /// awaited meanwhile. To be called when a want of it was [`WantError::Missing`]. True when somebody joined the session.
    /// Looks once for each root, and no more at all after [`MAX_FRUITLESS`] searches in a row that brought nobody.
    pub async fn search(&self, root: Cid, hints: impl Future<Output = Vec<(PeerId, Vec<Multiaddr>)>>) -> bool {
        let open = &self.open;
        let searched = {
            let mut searched = open.searched.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(searched.entry(root).or_default())
        };
        let search = async {
            if open.fruitless.load(Ordering::Relaxed) >= MAX_FRUITLESS {
                return false;
            }
            let found = open.shared.look(open.id, root, hints).await;
            if found {
                open.fruitless.store(0, Ordering::Relaxed);
            } else {
                open.fruitless.fetch_add(1, Ordering::Relaxed);
            }
            found
        };
        *searched.get_or_init(|| search).await
    }

    /// Looks, once for the session, for whoever has the index of a cache, and with it all that the cache publishes. As
    /// [`Self::search`], and beside it: true to all who ask before it is over, if it brought somebody. To whoever asks later
    /// it is false, for the session's peers have been asked by then.
    pub async fn search_index(
        &self,
        index: Cid,
        hints: impl Future<Output = Vec<(PeerId, Vec<Multiaddr>)>> + Send + 'static,
    ) -> bool {
        let (shared, id) = (Arc::clone(&self.open.shared), self.open.id);
        let search = {
            let mut indexes = self.open.indexes.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = || async move { shared.look(id, index, hints).await }.boxed().shared();
            indexes.entry(index).or_insert_with(begin).clone()
        };
        search.peek().is_none() && search.await
    }
}

impl Shared {
    /// Looks for peers who may have a root, for a session: see [`Session::search`].
    async fn look(&self, session: u64, root: Cid, hints: impl Future<Output = Vec<(PeerId, Vec<Multiaddr>)>>) -> bool {
        let asked = self.ask(|reply| Command::Search { session, root, reply });
        let hinted = async {
            let peers = hints.await;
            !peers.is_empty() && self.ask(|reply| Command::Meet { session, peers, reply }).await
        };
        match select(pin!(asked), pin!(hinted)).await {
            Either::Left((true, _)) | Either::Right((true, _)) => true,
            Either::Left((false, rest)) => rest.await,
            Either::Right((false, rest)) => rest.await,
        }
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<bool>) -> Command) -> bool {
        let (reply, answer) = oneshot::channel();
        let asked = self.commands.send(command(reply)).await;
        asked.is_ok() && answer.await.unwrap_or(false)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.dropped.push(Drops::Session(self.id));
    }
}

/// Leaves the note that a want is no longer waited for, unless it has been answered.
struct Note<'a> {
    want: u64,
    cid: Cid,
    open: &'a Open,
    waiting: bool,
}

impl Drop for Note<'_> {
    fn drop(&mut self) {
        if self.waiting {
            self.open.shared.dropped.push(Drops::Want { session: self.open.id, want: self.want, cid: self.cid });
        }
    }
}

/// Something whose owner has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drops {
    Want { session: u64, want: u64, cid: Cid },
    Session(u64),
}

/// The notes that wait for the task; `None` when it has ended.
#[derive(Debug)]
pub(super) struct Dropped {
    notes: Mutex<Option<Vec<Drops>>>,
    wake: Notify,
}

impl Default for Dropped {
    fn default() -> Self {
        Self { notes: Mutex::new(Some(Vec::new())), wake: Notify::new() }
    }
}

impl Dropped {
    fn push(&self, note: Drops) {
        if let Some(notes) = &mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner) {
            notes.push(note);
            self.wake.notify_one();
        }
    }

    /// Takes no more notes: nobody will read them.
    pub(super) fn close(&self) {
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until there are notes and takes them. Cancel-safe.
    pub(super) async fn take(&self) -> Vec<Drops> {
        loop {
            let woken = self.wake.notified();
            let notes = self
                .notes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_mut()
                .map(std::mem::take)
                .unwrap_or_default();
            if !notes.is_empty() {
                return notes;
            }
            woken.await;
        }
    }
}
