//! `serve`: the node as a service. Bitswap, HTTP and the control socket, until a signal.
//!
//! Ends within [`DRAIN`] and [`CLOSE`] of the signal: accepted requests are finished, then connections are closed.

use crate::announce::announce;
use crate::control::protocol::{Class, Failure};
use crate::http::{self, Site, Uploads};
use crate::jobs::collect::hold;
use crate::node::{Node, Settings};
use crate::upstream::{Gateway, Upstream};
use nipfs_proto::nix::store_path::StorePath;
use nipfs_proto::nix::trust::TrustedKeys;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long accepted work may go on after the signal.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the network may take to send what is under way after that.
const CLOSE: Duration = Duration::from_secs(4);

/// What `serve` is started with.
#[derive(Debug)]
pub struct Serve {
    /// The node. Its `serving` is set here.
    pub node: Settings,
    /// Where HTTP listens; port 0 takes a free one.
    pub http: SocketAddr,
    /// Caches whose narinfos and NARs are passed on.
    pub upstreams: Vec<Upstream>,
    /// Trustless gateways, asked when no peer has a block.
    pub gateways: Vec<Gateway>,
    /// Keys whose signature is believed.
    pub trusted_keys: TrustedKeys,
    /// What lets clients add paths over HTTP.
    pub uploads: Option<Uploads>,
    /// Bytes that the store shall not take more of.
    pub max_size: Option<u64>,
}

/// A node that is ready for its users.
#[derive(Debug)]
pub struct Ready {
    /// Base URL of the cache.
    pub http: String,
    /// Multiaddrs that end in `/p2p/ID`.
    pub peers: Vec<String>,
}

/// Runs until SIGTERM or SIGINT. `informed` is called with the text of `/nipfs-info`, first when everything listens and
/// again when it names another index, until it could take that; `ready` once, after the first; `dropped` with the paths that went because the store was
/// larger than [`Serve::max_size`].
///
/// # Errors
/// `Usage` when an address cannot be listened on, and what [`Node::open`] says.
pub async fn serve(
    serve: Serve,
    informed: impl Fn(&str) -> Result<(), Failure> + Send + 'static,
    ready: impl FnOnce(&Ready) -> Result<(), Failure>,
    dropped: impl Fn(&[StorePath]) + Send + 'static,
) -> Result<(), Failure> {
    let mut terminate = listen_for(SignalKind::terminate())?;
    let mut interrupt = listen_for(SignalKind::interrupt())?;
    let node = Node::open(Settings { serving: true, ..serve.node }).await?;
    node.withdraw().await?;
    node.network().await?;
    let listener = TcpListener::bind(serve.http).await.map_err(|error| {
        let failure = Failure::new(Class::Usage, format!("{}: cannot listen for HTTP", serve.http)).because(&error);
        failure.hint("choose another address with --http ADDR:PORT, or port 0 for a free one")
    })?;
    let address = listener.local_addr().map_err(|error| Failure::from_error(Class::Failed, &error))?;
    node.set_http(address.to_string());
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let site = Site::new(node.clone(), serve.upstreams, serve.gateways, serve.trusted_keys, serve.uploads);
    inform(&site, &informed);
    tasks.spawn(http::serve(listener, site.clone(), stop.clone()));
    let control = crate::control::server::Door::open(&node)
        .map_err(|error| Failure::new(Class::Failed, "cannot make the control socket").because(&error))?;
    tasks.spawn(control.serve(node.clone(), stop.clone()));
    if let Some(max_size) = serve.max_size {
        tasks.spawn(hold(node.clone(), max_size, stop.clone(), dropped));
    }
    if node.announces() {
        tasks.spawn(announce(node.clone(), stop.clone()));
        tasks.spawn(follow_index(site, stop.clone(), informed));
    }
    ready(&Ready { http: format!("http://{address}"), peers: node.addresses() })?;
    notify("READY=1");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify("STOPPING=1");
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("requests were still running {} s after the signal", DRAIN.as_secs());
    }
    let _ = tokio::time::timeout(CLOSE, node.shutdown()).await;
    Ok(())
}

fn inform(site: &Site, informed: impl Fn(&str) -> Result<(), Failure>) -> bool {
    let said = informed(&site.info().to_text());
    if let Err(failure) = &said {
        tracing::warn!("{failure}");
    }
    said.is_ok()
}

/// Says what `/nipfs-info` is whenever it names another index than before, until `stop`.
async fn follow_index(site: Site, stop: CancellationToken, informed: impl Fn(&str) -> Result<(), Failure>) {
    let mut announced = site.node().announced();
    let mut last = None;
    loop {
        let index = announced.borrow_and_update().as_ref().and_then(|announced| announced.index.clone());
        // After a failure the next round of the announcer is another try.
        if index != last && inform(&site, &informed) {
            last = index;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = announced.changed() => if changed.is_err() { return },
        }
    }
}

fn listen_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Class::Failed, "cannot listen for signals").because(&error))
}

/// Tells systemd, when it asked to be told (sd_notify(3)).
fn notify(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let name = name.as_bytes();
    let address = match name.strip_prefix(b"@") {
        Some(abstract_name) => std::os::unix::net::SocketAddr::from_abstract_name(abstract_name),
        None => std::os::unix::net::SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!("systemd was not told {state}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::Announced;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    #[tokio::test]
    async fn what_the_cache_says_of_itself_is_said_again_with_each_other_index_until_it_is_taken() {
        let state = tempfile::tempdir().unwrap();
        let node = Node::open(Settings { state: state.path().to_owned(), ..Settings::default() }).await.unwrap();
        let site = Site::new(node.clone(), Vec::new(), Vec::new(), TrustedKeys::default(), None);
        let (texts, said) = mpsc::channel();
        let stop = CancellationToken::new();
        let failed = AtomicBool::new(false);
        let informed = move |text: &str| {
            texts.send(text.to_owned()).unwrap();
            let fails = text.contains("bafyone") && !failed.swap(true, Ordering::Relaxed);
            if fails { Err(Failure::new(Class::NoSpace, "full")) } else { Ok(()) }
        };
        let following = tokio::spawn(follow_index(site, stop.clone(), informed));
        let announce = async |index: Option<&str>| {
            node.set_announced(Announced { index: index.map(str::to_owned), ..Announced::default() });
            // The one other task of this thread runs until it waits again.
            tokio::task::yield_now().await;
        };
        for index in [None, Some("bafyone"), Some("bafyone"), Some("bafytwo"), None] {
            announce(index).await;
        }
        stop.cancel();
        following.await.unwrap();
        let said: Vec<_> = said.iter().collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[..2].iter().all(|text| text.contains("bafyone")));
        assert!(said[2].contains("bafytwo") && !said[3].contains("index"));
    }
}
