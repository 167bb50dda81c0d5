//! Reads from the store for other peers, off the network task.
//!
//! At most [`AT_ONCE`] loads run; the others wait in order. How many can wait, and how many bytes a
//! load may read, is bounded by the server machine that asks for them.

use libp2p::PeerId;
use nipfs_proto::Cid;
use nipfs_proto::bitswap::message::WantKind;
use nipfs_proto::bitswap::server::{Load, LoadId, Loaded, Outcome};
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Loads that run at once.
const AT_ONCE: usize = 4;

/// Where the blocks come from that other peers want: called for one block at a time, on a thread that
/// may block.
///
/// It decides what the peer may see. A block that is here but not for that peer is
/// [`Outcome::Absent`], found out in the same way and the same time as one that is not here.
#[derive(Clone)]
pub struct BlockSource(Arc<Find>);

type Find = dyn Fn(&PeerId, &Cid, WantKind) -> Outcome + Send + Sync;

impl BlockSource {
    /// A source that asks `find`. For a want-block, and for a want-have of a block of at most
    /// [`HAVE_REPLACED_BY_BLOCK`](nipfs_proto::bitswap::server::HAVE_REPLACED_BY_BLOCK) bytes, it
    /// gives the bytes, which need not be hashed.
    #[must_use]
    pub fn new(find: impl Fn(&PeerId, &Cid, WantKind) -> Outcome + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    /// The source of a node that serves nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(|_, _, _| Outcome::Absent)
    }

    fn load(&self, load: &Load<PeerId>) -> Vec<Loaded> {
        let mut left = load.budget;
        let mut loaded = Vec::with_capacity(load.wants.len());
        for (cid, kind) in &load.wants {
            let outcome = (self.0)(&load.peer, cid, *kind);
            let bytes = if let Outcome::Block(bytes) = &outcome { bytes.len() } else { 0 };
            loaded.push(Loaded { cid: *cid, outcome });
            left = left.saturating_sub(bytes);
            if left == 0 {
                break;
            }
        }
        loaded
    }
}

impl fmt::Debug for BlockSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockSource")
    }
}

/// The loads that wait and run.
#[derive(Debug)]
pub(super) struct Loads {
    source: BlockSource,
    waiting: VecDeque<Load<PeerId>>,
    running: JoinSet<(LoadId, Vec<Loaded>)>,
}

impl Loads {
    pub(super) fn new(source: BlockSource) -> Self {
        Self { source, waiting: VecDeque::new(), running: JoinSet::new() }
    }

    pub(super) fn push(&mut self, load: Load<PeerId>) {
        self.waiting.push_back(load);
        self.start();
    }

    fn start(&mut self) {
        while self.running.len() < AT_ONCE {
            let Some(load) = self.waiting.pop_front() else { return };
            let source = self.source.clone();
            self.running.spawn_blocking(move || {
                // A load without an answer would hold its place at the server for ever.
                let loaded = catch_unwind(AssertUnwindSafe(|| source.load(&load)));
                (load.id, loaded.unwrap_or_default())
            });
        }
    }

    /// The next result. Waits for ever when nothing runs. Cancel-safe.
    pub(super) async fn next(&mut self) -> (LoadId, Vec<Loaded>) {
        loop {
            match self.running.join_next().await {
                Some(Ok(loaded)) => {
                    self.start();
                    return loaded;
                }
                // Cancelled: the network ends.
                Some(Err(_)) => self.start(),
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until what runs has ended; what waits is dropped.
    pub(super) async fn finish(&mut self) {
        self.waiting.clear();
        while self.running.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nipfs_proto::bitswap::message::Want;
    use nipfs_proto::bitswap::server::{Action, Server};
    use nipfs_proto::block::Digest;

    #[tokio::test]
    async fn a_load_that_panics_is_answered_with_nothing() {
        let mut server = Server::default();
        let peer = PeerId::random();
        server.connected(peer);
        let cid = Digest::of(b"x").raw_cid();
        let want = Want { cid, priority: 1, kind: WantKind::Block, cancel: false, send_dont_have: true };
        server.received(peer, &[want], false);
        let Some(Action::Load(load)) = server.poll() else { panic!("no load") };
        let id = load.id;
        let mut loads = Loads::new(BlockSource::new(|_, _, _| panic!("the store is on fire")));
        loads.push(load);
        assert_eq!(loads.next().await, (id, Vec::new()));
    }
}
