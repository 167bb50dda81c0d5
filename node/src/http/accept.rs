//! Taking connections, and giving them up: the part of the server that faces slow and hostile clients.
//!
//! - A request's head must be complete within [`Limits::head`] of the connection being ready for one.
//! - A client that does not read what it asked for is left after [`Limits::stall`] (see [`super::stall`]).
//! - There are at most [`Limits::connections`]; a new one takes the place of the oldest that has asked nothing for
//!   [`Limits::grace`], or waits in the kernel's backlog.
//! - When the server stops, requests that were read are answered, for at most [`Limits::drain`].

use super::stall::Stalling;
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Bytes after which a request head is refused with 431 or 414. Twice as many may have been read by then.
const MAX_HEAD: usize = 32 << 10;
/// How long to wait when the process has no file descriptor left.
const OUT_OF_FILES: Duration = Duration::from_millis(100);

/// How many clients, and how long to wait for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) connections: usize,
    /// For a first request when others wait.
    pub(super) grace: Duration,
    /// For the head of a request, from the moment that the connection is ready for one.
    pub(super) head: Duration,
    /// For a client to take [`super::stall::FLOOR`] bytes.
    pub(super) stall: Duration,
    /// For requests that were read when the server stopped.
    pub(super) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // Half of the file descriptors are for the store, the peers and the upstreams.
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self {
            connections: usize::try_from(files / 2).unwrap_or(usize::MAX).clamp(8, 1024),
            grace: Duration::from_secs(1),
            head: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            drain: Duration::from_secs(7),
        }
    }
}

/// Who asks: the address at the other end of the connection. An extension of every request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// A connection that can be told to go while it has asked nothing.
#[derive(Debug)]
struct Guest {
    since: Instant,
    asked: AtomicBool,
    leave: Notify,
}

/// Serves `router` on `listener` until `stop`, then drains. Everything that was started here has ended afterwards.
pub(super) async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut silent: VecDeque<Weak<Guest>> = VecDeque::new();
    loop {
        let full = connections.len() >= limits.connections;
        if full {
            send_one_away(&mut silent, limits.grace);
        }
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            () = sleep(limits.grace), if full => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, address)) => {
                    let guest = Arc::new(Guest { since: Instant::now(), asked: false.into(), leave: Notify::new() });
                    silent.retain(|guest| guest.upgrade().is_some_and(|guest| !guest.asked.load(Ordering::Relaxed)));
                    silent.push_back(Arc::downgrade(&guest));
                    connections.spawn(attend(stream, Peer(address), guest, router.clone(), limits, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    sleep(OUT_OF_FILES).await;
                }
            },
        }
    }
    drop(listener);
    let all_gone = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain, all_gone).await.is_err() {
        tracing::warn!("{} HTTP connections are cut off", connections.len());
        connections.shutdown().await;
    }
}

/// Tells the oldest connection that never asked anything to go, if it had its `grace`.
fn send_one_away(silent: &mut VecDeque<Weak<Guest>>, grace: Duration) {
    while let Some(guest) = silent.front() {
        match guest.upgrade().filter(|guest| !guest.asked.load(Ordering::Relaxed)) {
            Some(guest) if guest.since.elapsed() < grace => return,
            Some(guest) => {
                silent.pop_front();
                return guest.leave.notify_one();
            }
            None => {
                silent.pop_front();
            }
        }
    }
}

/// Serves one connection to its end.
async fn attend(
    stream: TcpStream,
    peer: Peer,
    guest: Arc<Guest>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    // Without it small answers wait for the client's delayed acknowledgement; a refusal only costs time.
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    let asked = guest.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        asked.asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Stalling::new(stream, limits.stall)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = guest.leave.notified() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %peer.0, %error, "connection ended");
    }
}
