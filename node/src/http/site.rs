//! What the routes share.

use super::accept::Peer;
use super::passing::Passing;
use super::upload::Uploads;
use crate::cache::{Audience, Cache, unix_now};
use crate::control::protocol::Failure;
use crate::dag::read::Sources;
use crate::network::{Multiaddr, Session};
use crate::node::Node;
use crate::store::StoreError;
use crate::upstream::{Gateway, NipfsInfo, Upstream};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Version, header};
use nipfs_proto::nix::trust::TrustedKeys;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Bodies at once that keep blocks of the store in memory: NARs and CARs, a MiB or two each.
const MAX_BODIES: usize = 256;
/// NARs at once that come from peers, with up to 16 MiB each on the way.
const MAX_FAR: usize = 32;
/// How long a request waits for its turn.
const TURN: Duration = Duration::from_secs(1);
/// How long a `nipfs-info` is good for, in seconds: static copies of it stay where they were put.
const INFO_FOR: u64 = 30 * 86_400;

/// Headers that proxies add.
const PROXIES: [&str; 4] = ["via", "forwarded", "x-forwarded-for", "x-real-ip"];

/// Everything that a request is answered from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Site(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: Node,
    passing: Passing,
    gateways: Arc<[Gateway]>,
    trusted: TrustedKeys,
    uploads: Option<Uploads>,
    bodies: Arc<Semaphore>,
    far: Arc<Semaphore>,
}

impl Site {
    /// The face of `node`. Narinfos that it does not have are asked of `upstreams`; their NARs come as blocks when one
    /// of the `trusted` keys bound the root, from peers or else `gateways`, and over HTTP otherwise. Without `uploads`,
    /// nobody can add anything.
    #[must_use]
    pub fn new(
        node: Node,
        upstreams: Vec<Upstream>,
        gateways: Vec<Gateway>,
        trusted: TrustedKeys,
        uploads: Option<Uploads>,
    ) -> Self {
        Self(Arc::new(Inner {
            node,
            passing: Passing::new(upstreams),
            gateways: gateways.into(),
            trusted,
            uploads,
            bodies: Arc::new(Semaphore::new(MAX_BODIES)),
            far: Arc::new(Semaphore::new(MAX_FAR)),
        }))
    }

    /// What `/nipfs-info` says now, unsigned.
    #[must_use]
    pub fn info(&self) -> NipfsInfo {
        let now = unix_now();
        NipfsInfo::new(now, now + INFO_FOR, self.0.node.addresses(), self.0.node.index())
    }

    pub(crate) fn node(&self) -> &Node {
        &self.0.node
    }

    pub(super) fn passing(&self) -> &Passing {
        &self.0.passing
    }

    pub(super) fn trusted(&self) -> &TrustedKeys {
        &self.0.trusted
    }

    pub(super) fn uploads(&self) -> Option<&Uploads> {
        self.0.uploads.as_ref()
    }

    /// Leave to send a body that keeps blocks in memory; `None` when too many are being sent.
    pub(super) async fn body_turn(&self) -> Option<OwnedSemaphorePermit> {
        timeout(TURN, self.0.bodies.clone().acquire_owned()).await.ok()?.ok()
    }

    /// Leave to read from peers; `None` when too many do.
    pub(super) async fn far_turn(&self) -> Option<OwnedSemaphorePermit> {
        timeout(TURN, self.0.far.clone().acquire_owned()).await.ok()?.ok()
    }

    /// Blocks from the store only.
    pub(super) fn here(&self) -> Sources {
        Sources::local(self.0.node.store().clone())
    }

    /// Blocks from the store, from `mirror` or else whoever is connected, and from the gateways.
    pub(super) async fn anywhere(&self, mirror: Option<&str>) -> Sources {
        let session = match self.session(mirror).await {
            Ok(session) => Some(Arc::new(session)),
            Err(failure) => {
                tracing::warn!(%failure, "no peers can be asked");
                None
            }
        };
        Sources { session, routers: self.0.node.routers(), gateways: self.0.gateways.clone(), ..self.here() }
    }

    async fn session(&self, mirror: Option<&str>) -> Result<Session, Failure> {
        let network = self.0.node.network().await?;
        let Some(mirror) = mirror.and_then(|address| address.parse::<Multiaddr>().ok()) else {
            return Ok(network.session(Vec::new()));
        };
        Ok(network.session(vec![network.connect(mirror).await?]))
    }

    /// Reads the cache off the event loop. A store that fails has nothing, and the log says why.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Cache) -> Result<Option<T>, StoreError> + Send + 'static,
    ) -> Option<T> {
        let cache = self.0.node.cache().clone();
        match tokio::task::spawn_blocking(move || what(&cache)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store failed a request");
                None
            }
            Err(error) => {
                tracing::error!(%error, "a read of the store did not end");
                None
            }
        }
    }
}

/// A request comes from this machine when its connection and the name that it was sent to are loopback's, and nothing
/// shows that a proxy stands between: a web page that points its own name at us is the world, and so are the clients of
/// a web server here. One that passes on neither their host name nor their address cannot be told apart.
impl<S: Sync> FromRequestParts<S> for Audience {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>().is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
        let host = parts.headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let host = host.is_some_and(|host| is_loopback(host.host()));
        // nginx speaks HTTP/1.0 to the servers behind it.
        let proxied = parts.version != Version::HTTP_11 || PROXIES.iter().any(|key| parts.headers.contains_key(*key));
        Ok(if peer && host && !proxied { Self::Loopback } else { Self::World })
    }
}

fn is_loopback(host: &str) -> bool {
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}
