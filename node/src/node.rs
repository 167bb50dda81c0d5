//! The handle that jobs and servers share.

use crate::cache::{Audience, Cache};
use crate::control::frame::End;
use crate::control::protocol::{Announced, Class, Done, Failure, SourceBytes, Status};
use crate::control::server::converse;
use crate::dag::read::Counters;
use crate::network::{self, BlockSource, Network, Profile};
use crate::nix::gc_roots::GcRoots;
use crate::store::{Lease, Op, Store, StoreError};
use crate::upstream::Router;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use nipfs_proto::Cid;
use nipfs_proto::bitswap::message::WantKind;
use nipfs_proto::bitswap::server::{HAVE_REPLACED_BY_BLOCK, Outcome};
use nipfs_proto::block::Digest;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::signature::Signature;
use nipfs_proto::nix::trust::TrustedKeys;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Notify, OnceCell, watch};

/// What a node is opened with.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The state directory; made when missing, mode 0700.
    pub state: PathBuf,
    /// Multiaddrs to listen on; empty for a node that only dials.
    pub listen: Vec<Multiaddr>,
    /// Peers to stay connected to: multiaddrs that end in `/p2p/ID`.
    pub peers: Vec<Multiaddr>,
    /// What the node does unasked.
    pub profile: Profile,
    /// Where to enter the DHTs, for profiles that use them: multiaddrs that end in `/p2p/ID`.
    pub bootstrap: Vec<Multiaddr>,
    /// Asked who may have a DAG when no known peer has it, whatever the profile.
    pub routers: Arc<[Router]>,
    /// Names of the keys whose paths others may see once they were fetched, if the profile shares at all.
    pub share_signed_by: Vec<String>,
    /// Whether this is a running `serve`.
    pub serving: bool,
    /// Where this machine's Nix keeps its database (`/nix/var/nix`).
    pub nix_state: PathBuf,
}

/// A node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    keypair: Keypair,
    cache: Cache,
    network: OnceCell<Network>,
    http: OnceLock<String>,
    counters: Arc<Counters>,
    /// Woken when something was published.
    published: Notify,
    announced: watch::Sender<Option<Announced>>,
    gc_roots: GcRoots,
}

impl Node {
    /// Opens the store and reads the identity. The network starts when it is first needed.
    ///
    /// # Errors
    /// `InUse` when another process has the store, `Damaged`, `NoSpace`, or `Usage` when the state
    /// directory cannot be used.
    pub async fn open(settings: Settings) -> Result<Self, Failure> {
        let state = settings.state.clone();
        let roots = std::path::absolute(&state).unwrap_or_else(|_| state.clone()).join("gcroots");
        let opened = tokio::task::spawn_blocking(move || {
            make_private(&state)?;
            let store = Store::open(&state.join("store"))?;
            let keypair = network::identity(&state)?;
            Ok::<_, Failure>((store, keypair))
        });
        let (store, keypair) = opened.await.map_err(|error| Failure::from_error(Class::Failed, &error))??;
        let gc_roots = GcRoots::new(roots, &settings.nix_state);
        Ok(Self(Arc::new(Inner {
            settings,
            keypair,
            cache: Cache::new(store),
            network: OnceCell::new(),
            http: OnceLock::new(),
            counters: Arc::new(Counters::default()),
            published: Notify::new(),
            announced: watch::Sender::default(),
            gc_roots,
        })))
    }

    /// Answers a client at the other end, until it goes.
    pub async fn handle(&self, end: End) {
        converse(self.clone(), end).await;
    }

    /// Stops the network. The store closes with its last handle.
    pub async fn shutdown(&self) {
        if let Some(network) = self.0.network.get() {
            network.shutdown().await;
        }
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.0.settings.state
    }

    /// The block store.
    #[must_use]
    pub fn store(&self) -> &Store {
        self.0.cache.store()
    }

    /// The cache on top of it.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Where this machine's Nix keeps its database.
    #[must_use]
    pub fn nix_state(&self) -> &Path {
        &self.0.settings.nix_state
    }

    /// Our GC roots in this machine's Nix.
    #[must_use]
    pub fn gc_roots(&self) -> &GcRoots {
        &self.0.gc_roots
    }

    /// Who may see a path once it was fetched: everybody, if the profile shares and one of `keys` that is on the share
    /// list signed it.
    #[must_use]
    pub fn audience_of_fetched(&self, keys: &TrustedKeys, narinfo: &NarInfo) -> Audience {
        let shares = self.0.settings.profile.shares() && keys.signers(narinfo).any(|name| self.is_on_share_list(name));
        if shares { Audience::World } else { Audience::Loopback }
    }

    /// Hides what an earlier profile or share list showed of what was fetched, and this one does not.
    ///
    /// # Errors
    /// The store's.
    pub async fn withdraw(&self) -> Result<(), Failure> {
        let node = self.clone();
        let may_stay = move |narinfo: &NarInfo| {
            let mut signers = narinfo.signatures().iter().map(Signature::key);
            node.0.settings.profile.shares() && signers.any(|name| node.is_on_share_list(name))
        };
        let cache = self.cache().clone();
        let withdrawn = tokio::task::spawn_blocking(move || cache.withdraw(may_stay)).await;
        Ok(withdrawn.map_err(|error| Failure::from_error(Class::Failed, &error))??)
    }

    fn is_on_share_list(&self, name: &str) -> bool {
        self.0.settings.share_signed_by.iter().any(|shared| shared == name)
    }

    /// Whether a session that names no peer may have some to ask: those that are configured, or can be found.
    #[must_use]
    pub fn has_peers(&self) -> bool {
        !self.0.settings.peers.is_empty() || self.finds_peers()
    }

    /// Whether peers can be found that nobody named.
    #[must_use]
    pub fn finds_peers(&self) -> bool {
        let Settings { profile, routers, .. } = &self.0.settings;
        profile.finds_peers() || !routers.is_empty()
    }

    /// Who is asked for providers.
    #[must_use]
    pub fn routers(&self) -> Arc<[Router]> {
        self.0.settings.routers.clone()
    }

    /// Whether the profile lets the node tell others what it publishes.
    #[must_use]
    pub fn announces(&self) -> bool {
        self.0.settings.profile.uses_dht()
    }

    /// Waits until something is published. What was published since the last wait counts.
    pub async fn published(&self) {
        self.0.published.notified().await;
    }

    /// Remembers how announcing goes, for `status`.
    pub fn set_announced(&self, announced: Announced) {
        self.0.announced.send_replace(Some(announced));
    }

    /// How announcing goes, and when that changes.
    #[must_use]
    pub fn announced(&self) -> watch::Receiver<Option<Announced>> {
        self.0.announced.subscribe()
    }

    /// The root of the index of what is published, if one is told.
    #[must_use]
    pub fn index(&self) -> Option<String> {
        self.0.announced.borrow().as_ref()?.index.clone()
    }

    /// Bytes of NARs served and fetched since the start.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Adds to what `status` shows.
    pub fn count(&self, bytes: SourceBytes) {
        let counters = &self.0.counters;
        counters.local.fetch_add(bytes.local, Ordering::Relaxed);
        counters.bitswap.fetch_add(bytes.bitswap, Ordering::Relaxed);
        counters.gateway.fetch_add(bytes.gateway, Ordering::Relaxed);
        counters.http.fetch_add(bytes.http, Ordering::Relaxed);
    }

    /// The network; the first call starts it.
    ///
    /// # Errors
    /// `Usage` when an address cannot be listened on.
    pub async fn network(&self) -> Result<Network, Failure> {
        // A swarm is large, and everybody who may be the first to need it would carry it along.
        Ok(self.0.network.get_or_try_init(|| Box::pin(self.start_network())).await?.clone())
    }

    async fn start_network(&self) -> Result<Network, Failure> {
        let Settings { listen, profile, bootstrap, peers, .. } = self.0.settings.clone();
        let config = network::Config { listen, profile, bootstrap, ..network::Config::default() };
        let network = Network::start(config, self.0.keypair.clone(), published(self.store().clone())).await?;
        for peer in peers {
            // It is redialled for as long as the node lives; being away now is no reason not to start.
            let network = network.clone();
            tokio::spawn(async move {
                if let Err(error) = network.keep(peer).await {
                    tracing::warn!("{error}");
                }
            });
        }
        Ok(network)
    }

    /// Remembers where HTTP listens, for `status`.
    pub fn set_http(&self, address: String) {
        let _ = self.0.http.set(address);
    }

    /// Our peer id.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.0.keypair.public().to_peer_id()
    }

    /// Our multiaddrs, each ending in `/p2p/ID`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let listeners = self.0.network.get().map(Network::listeners).unwrap_or_default();
        listeners.iter().map(ToString::to_string).collect()
    }

    /// The answer to a greeting.
    #[must_use]
    pub fn hello(&self) -> Done {
        Done::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer_id: self.peer_id().to_string(),
            state: self.state().display().to_string(),
            serving: self.0.settings.serving,
            addresses: self.addresses(),
        }
    }

    /// Figures.
    ///
    /// # Errors
    /// The store's.
    pub async fn status(&self) -> Result<Status, Failure> {
        let store = self.store().clone();
        let stats = tokio::task::spawn_blocking(move || store.stats()).await;
        let stats = stats.map_err(|error| Failure::from_error(Class::Failed, &error))??;
        let peers = match self.0.network.get() {
            Some(network) => network.peers().await?,
            None => Vec::new(),
        };
        Ok(Status {
            peer_id: self.peer_id().to_string(),
            addresses: self.addresses(),
            http: self.0.http.get().cloned(),
            peers: peers.into_iter().map(|peer| peer.peer.to_string()).collect(),
            roots: stats.roots,
            blocks: stats.blocks,
            stored_bytes: stats.stored_bytes,
            logical_bytes: stats.logical_bytes,
            bytes: self.0.counters.snapshot(),
            serving: self.0.settings.serving,
            announced: self.0.announced.borrow().clone(),
        })
    }

    /// Writes to the store, durably.
    ///
    /// # Errors
    /// The store's.
    pub async fn commit(&self, lease: Arc<Lease>, ops: Vec<Op>) -> Result<(), Failure> {
        let committed = tokio::task::spawn_blocking(move || lease.commit(ops)).await;
        Ok(committed.map_err(|error| Failure::from_error(Class::Failed, &error))??)
    }

    /// Tells peers that wait for the root of a DAG that it can be had, and whoever announces what is published.
    pub async fn stored(&self, roots: impl IntoIterator<Item = Cid>) {
        self.0.published.notify_one();
        let roots: Vec<_> = roots.into_iter().collect();
        if let Some(network) = self.0.network.get().filter(|_| !roots.is_empty()) {
            // Only fails while the node shuts down; nobody waits then.
            let _ = network.stored(roots).await;
        }
    }

    /// Whether a block is in the store.
    ///
    /// # Errors
    /// The store's.
    pub async fn held(&self, cid: Cid) -> Result<bool, Failure> {
        let Ok(Some(digest)) = Digest::of_cid(&cid) else { return Ok(true) };
        let store = self.store().clone();
        let held = tokio::task::spawn_blocking(move || store.has(&digest)).await;
        Ok(held.map_err(|error| Failure::from_error(Class::Failed, &error))??)
    }

    /// Whether the NAR of `narinfo` is here under `root`, every block of it; then `lease` protects it.
    ///
    /// # Errors
    /// The store's.
    pub async fn holds(&self, narinfo: &NarInfo, root: Cid, lease: &Arc<Lease>) -> Result<bool, Failure> {
        let record = self.store().nar(&narinfo.nar_hash())?;
        let known = record.is_some_and(|record| record.roots.iter().any(|(_, held)| *held == root));
        Ok(known && self.protect(root, lease).await?)
    }

    /// Whether every block of the DAG is here.
    ///
    /// # Errors
    /// The store's.
    pub async fn is_complete(&self, root: Cid) -> Result<bool, Failure> {
        self.protect(root, &Arc::new(self.store().lease())).await
    }

    /// Keeps GC away from the blocks of a DAG while `lease` lives. False when one is missing.
    ///
    /// # Errors
    /// The store's.
    pub async fn protect(&self, root: Cid, lease: &Arc<Lease>) -> Result<bool, Failure> {
        let lease = lease.clone();
        let walked = tokio::task::spawn_blocking(move || lease.touch_dag(&root)).await;
        Ok(walked.map_err(|error| Failure::from_error(Class::Failed, &error))??)
    }
}

/// Answers peers' wants: only blocks of published DAGs; all else looks like absent.
fn published(store: Store) -> BlockSource {
    BlockSource::new(move |_, cid, kind| {
        let found = || -> Result<Outcome, StoreError> {
            let Ok(Some(digest)) = Digest::of_cid(cid) else { return Ok(Outcome::Absent) };
            let Some(size) = store.size(&digest)?.filter(|_| store.is_public(&digest).unwrap_or(false)) else {
                return Ok(Outcome::Absent);
            };
            if kind == WantKind::Have && size as usize > HAVE_REPLACED_BY_BLOCK {
                return Ok(Outcome::Have);
            }
            Ok(store.get(&digest)?.map_or(Outcome::Absent, Outcome::Block))
        };
        found().unwrap_or_else(|error| {
            tracing::error!("{error}");
            Outcome::Absent
        })
    })
}

/// Makes the state directory, readable by its owner only: keys and the identity lie in it.
fn make_private(state: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|error| {
        let failure = Failure::new(Class::Usage, format!("{}: cannot use as state directory", state.display()));
        failure.because(&error).hint("choose another with --state DIR")
    })
}
