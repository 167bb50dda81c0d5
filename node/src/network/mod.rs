//! The node on the IPFS network: one task owns the libp2p swarm, [`Network`] is its handle.
//!
//! - [`Network`]: start, dial, list peers, open sessions, shut down. Cheap to clone.
//! - [`Session`]: asks a set of peers for blocks over bitswap 1.2.0; dropping a want cancels it.
//! - [`BlockSource`]: where blocks that other peers want come from, and the place that decides what
//!   they may see.
//!
//! Invariants: only the task touches the swarm, and it never waits for anything but its `select!`;
//! every queue has a bound; a peer can fill only its own budget; everything that was started here has
//! ended when [`Network::shutdown`] returns.
//!
//! Inside: `task` (the loop), `swarm` (transport, limits, the set of protocols), `behaviour` (bitswap
//! on libp2p: peers and their traffic, messages, the machines of `nipfs_proto::bitswap`), `handler` and `frame` (one
//! connection's streams), `security` (noise), `muxer` (yamux), `quic` (the other transport), `known` and `dns` (addresses and
//! redialling), `profile` (what is done unasked), `nearby` (who was found on the local network), `dht` (who
//! provides what, in the world's tables), `allowance` (how many dials strangers may cause), `trim` (which idle peers
//! to leave), `wants` (who waits for which block), `loads` (reads from the store).

mod allowance;
mod behaviour;
mod dht;
mod dns;
mod frame;
mod handler;
mod identity;
mod known;
mod loads;
mod muxer;
#[cfg(feature = "nat")]
mod nat;
mod nearby;
mod profile;
mod quic;
mod security;
mod session;
mod swarm;
mod task;
#[cfg(test)]
mod tests;
mod trim;
mod wants;

pub use behaviour::Traffic;
pub use identity::load_or_create as identity;
pub use libp2p::identity::Keypair;
pub use libp2p::{Multiaddr, PeerId};
pub use loads::BlockSource;
pub use profile::{Profile, ProfileError};
pub use session::{Session, WantError};

use nipfs_proto::Cid;
use session::Dropped;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use task::{Command, Reply};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Commands that wait for the task; senders wait when there are more.
const COMMANDS: usize = 64;
/// How long a dial may take, handshakes included. A name in the address may take half as long before.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How the node shows itself on the network.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on; `/tcp/0` takes a free port. Empty: the node only dials.
    pub listen: Vec<Multiaddr>,
    /// What the node does unasked.
    pub profile: Profile,
    /// Where to enter the DHTs: multiaddrs that end in `/p2p/ID`. Unused by profiles without them.
    pub bootstrap: Vec<Multiaddr>,
    /// Established connections, both directions together; peers that are kept come on top. Others may
    /// use three quarters of them to dial us.
    pub max_connections: u32,
    /// Resident bytes of the whole process above which no new connection is made or taken.
    pub max_memory: usize,
    /// A peer that was idle for so long may be left when there are too many.
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            profile: Profile::Private,
            bootstrap: Vec::new(),
            max_connections: 256,
            max_memory: 1 << 30,
            grace: trim::GRACE,
        }
    }
}

impl Config {
    fn dht_entry(&self) -> Vec<Multiaddr> {
        if self.profile.uses_dht() { self.bootstrap.clone() } else { Vec::new() }
    }
}

/// Why nobody was told that we provide a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProvideError {
    /// The profile knows no DHT, or there is no address of ours to give to others.
    #[error("this node has no address that others could be told")]
    Unreachable,
    /// The DHTs know no node, or none answered.
    #[error("no node of the DHT answered")]
    Nobody,
    /// The network has been shut down.
    #[error("the network has been shut down")]
    Stopped,
}

/// What went wrong on the way to the network or to a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The network has been shut down.
    #[error("the network has been shut down")]
    Stopped,
    /// The address does not say whom to expect there.
    #[error("{0} does not end in /p2p/PEER-ID")]
    NoPeerId(Multiaddr),
    /// The peer was not reached within [`DIAL_TIMEOUT`], refused, or is another one.
    #[error("cannot reach {addr}")]
    Dial {
        /// The address that was dialled.
        addr: Multiaddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An address to listen on cannot be used.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: Multiaddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The transport could not be set up from the identity.
    #[error("the identity cannot be used to authenticate")]
    Authentication(#[source] libp2p::noise::Error),
    /// The machine's network interfaces cannot be watched, which finding nodes on the local network takes.
    #[error("cannot watch the network interfaces")]
    Interfaces(#[source] io::Error),
    /// The identity file cannot be read or written.
    #[error("identity {}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The identity file can be read by others.
    #[error("identity {} has mode {mode:o}, it must not be open to group or others", path.display())]
    IdentityMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// A peer that is connected now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSummary {
    /// Its identity.
    pub peer: PeerId,
    /// The remote address of its oldest connection, without `/p2p/…`.
    pub addr: Multiaddr,
    /// What was exchanged with it.
    pub traffic: Traffic,
    /// What it calls itself, at most 64 printable characters; empty until it has said so.
    pub agent: String,
}

/// The handle of the network task.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

/// What the handle and its sessions share with the task.
#[derive(Debug)]
struct Shared {
    peer_id: PeerId,
    commands: mpsc::Sender<Command>,
    dropped: Arc<Dropped>,
    listeners: watch::Receiver<Vec<Multiaddr>>,
    next_id: AtomicU64,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Network {
    /// Listens on every address of `config` and starts the task; `source` answers peers' wants.
    ///
    /// # Errors
    /// [`NetworkError::Listen`] when one of the addresses cannot be used.
    pub async fn start(config: Config, keypair: Keypair, source: BlockSource) -> Result<Self, NetworkError> {
        let peer_id = keypair.public().to_peer_id();
        let mut swarm = swarm::build(&config, &keypair)?;
        swarm::listen(&mut swarm, &config.listen).await?;
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (listening, listeners) = watch::channel(Vec::new());
        let dropped = Arc::new(Dropped::default());
        let cancel = CancellationToken::new();
        let tasks = TaskTracker::new();
        let task = task::Task::new(swarm, receiver, Arc::clone(&dropped), listening, cancel.clone(), source, &config);
        tasks.spawn(task.run());
        tasks.close();
        let next_id = AtomicU64::new(0);
        Ok(Self { shared: Arc::new(Shared { peer_id, commands, dropped, listeners, next_id, cancel, tasks }) })
    }

    /// This node's identity.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.shared.peer_id
    }

    /// The addresses listened on now, with real ports and `/p2p/ID`: ready for another node's
    /// [`Network::connect`].
    #[must_use]
    pub fn listeners(&self) -> Vec<Multiaddr> {
        self.shared.listeners.borrow().clone()
    }

    /// Connects to the peer at an address that ends in `/p2p/PEER-ID`. At once when it is connected
    /// already. The address is remembered for redialling while a session names the peer.
    ///
    /// # Errors
    /// [`NetworkError::NoPeerId`], [`NetworkError::Dial`] after at most [`DIAL_TIMEOUT`],
    /// [`NetworkError::Stopped`].
    pub async fn connect(&self, addr: Multiaddr) -> Result<PeerId, NetworkError> {
        self.dial(addr, false).await
    }

    /// As [`Network::connect`], and stays connected from now on: redials, with growing pauses, also
    /// when the first dial fails.
    ///
    /// # Errors
    /// As [`Network::connect`]. Only after [`NetworkError::NoPeerId`] and [`NetworkError::Stopped`]
    /// there will be no redial.
    pub async fn keep(&self, addr: Multiaddr) -> Result<PeerId, NetworkError> {
        self.dial(addr, true).await
    }

    async fn dial(&self, addr: Multiaddr, keep: bool) -> Result<PeerId, NetworkError> {
        let peer = swarm::peer_of(&addr).ok_or_else(|| NetworkError::NoPeerId(addr.clone()))?;
        self.ask(|reply| Command::Connect { peer, addr, keep, reply }).await??;
        Ok(peer)
    }

    /// Opens a session over `peers`, in order of preference; empty: over all that are connected, now
    /// and later. Nothing is sent until the first want.
    #[must_use]
    pub fn session(&self, peers: Vec<PeerId>) -> Session {
        Session::open(Arc::clone(&self.shared), peers)
    }

    /// Says that these blocks can be had from the [`BlockSource`] now: peers that wait for one of
    /// them get it.
    ///
    /// # Errors
    /// [`NetworkError::Stopped`].
    pub async fn stored(&self, cids: Vec<Cid>) -> Result<(), NetworkError> {
        self.shared.commands.send(Command::Stored(cids)).await.map_err(|_| NetworkError::Stopped)
    }

    /// Tells the DHTs that we provide a root. They forget it after a day or two; telling them again is the caller's
    /// business, as is to tell nobody of what is not published. Takes two minutes at most.
    ///
    /// # Errors
    /// [`ProvideError`]: nobody was told.
    pub async fn provide(&self, root: Cid) -> Result<(), ProvideError> {
        let provided = self.ask(|reply| Command::Provide { root, reply }).await;
        provided.unwrap_or(Err(ProvideError::Stopped))
    }

    /// The peers that are connected.
    ///
    /// # Errors
    /// [`NetworkError::Stopped`].
    pub async fn peers(&self) -> Result<Vec<PeerSummary>, NetworkError> {
        self.ask(Command::Peers).await
    }

    /// Ends the network: wants fail with [`WantError::Stopped`], messages under way are finished,
    /// connections are closed. Returns when all has ended, after 8 s at most. May be called more
    /// than once, and by several.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.wait().await;
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, NetworkError> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.send(command(reply)).await.map_err(|_| NetworkError::Stopped)?;
        answer.await.map_err(|_| NetworkError::Stopped)
    }
}

impl Shared {
    fn fresh_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}
