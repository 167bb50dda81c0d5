//! The one task that owns the swarm.
//!
//! It waits in one place, its `select!`, for whatever comes first: a swarm event, a command, a dropped
//! want, a finished load or lookup, the time of a redial or of a search's end, the end. Its parts are
//! in the modules below: `search` finds peers, `dht` speaks with the tables. Answers go out by oneshot, which never waits.

mod dht;
mod search;

use super::behaviour::Event;
use super::known::Known;
use super::loads::{BlockSource, Loads};
use super::nearby::Nearby;
use super::session::{Dropped, Drops, Outcome};
use super::swarm::{Protocols, ProtocolsEvent};
use super::wants::Wants;
use super::{COMMANDS, Config, NetworkError, PeerSummary, ProvideError, dns, quic, trim};
use crate::scope::Scope;
use dht::{Entry, Provide};
use futures::StreamExt as _;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, mdns, ping};
use nipfs_proto::Cid;
use nipfs_proto::bitswap::client::SessionId;
use search::Searches;
use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// How long the end may take.
const DRAIN: Duration = Duration::from_secs(8);
/// A connection that carried a message so lately is alive without an answer to a ping.
const BUSY: Duration = Duration::from_secs(20);
/// Characters that are kept of what a peer calls itself.
const MAX_AGENT: usize = 64;

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<T>;

/// What the handle asks for.
#[derive(Debug)]
pub(super) enum Command {
    Connect { peer: PeerId, addr: Multiaddr, keep: bool, reply: Reply<Result<(), NetworkError>> },
    Want { session: u64, peers: Arc<[PeerId]>, want: u64, cid: Cid, reply: Reply<Outcome> },
    Search { session: u64, root: Cid, reply: Reply<bool> },
    Meet { session: u64, peers: Vec<(PeerId, Vec<Multiaddr>)>, reply: Reply<bool> },
    Provide { root: Cid, reply: Reply<Result<(), ProvideError>> },
    Stored(Vec<Cid>),
    Peers(Reply<Vec<PeerSummary>>),
}

/// A dial under way, and who waits for it.
#[derive(Debug)]
struct Dial {
    peer: PeerId,
    /// The address that was asked for; `None` for a redial.
    addr: Option<Multiaddr>,
    replies: Vec<Reply<Result<(), NetworkError>>>,
    /// Addresses to try when those that are tried now fail.
    later: Vec<Multiaddr>,
}

impl Dial {
    fn new(peer: PeerId, addr: Option<Multiaddr>) -> Self {
        Self { peer, addr, replies: Vec::new(), later: Vec::new() }
    }
}

/// The task's state.
pub(super) struct Task {
    swarm: Swarm<Protocols>,
    commands: mpsc::Receiver<Command>,
    dropped: Arc<Dropped>,
    listening: watch::Sender<Vec<Multiaddr>>,
    cancel: CancellationToken,
    wants: Wants,
    loads: Loads,
    known: Known,
    nearby: Nearby,
    searches: Searches,
    entry: Entry,
    provides: Vec<Provide>,
    lookups: JoinSet<(io::Result<Vec<Multiaddr>>, Dial)>,
    dials: HashMap<ConnectionId, Dial>,
    agents: HashMap<PeerId, String>,
    /// Where peers that are connected over QUIC say they can be had over TCP.
    beside: HashMap<PeerId, Vec<Multiaddr>>,
    grace: Duration,
}

impl Task {
    pub(super) fn new(
        swarm: Swarm<Protocols>,
        commands: mpsc::Receiver<Command>,
        dropped: Arc<Dropped>,
        listening: watch::Sender<Vec<Multiaddr>>,
        cancel: CancellationToken,
        source: BlockSource,
        config: &Config,
    ) -> Self {
        let task = Self {
            swarm,
            commands,
            dropped,
            listening,
            cancel,
            wants: Wants::default(),
            loads: Loads::new(source),
            known: Known::default(),
            nearby: Nearby::default(),
            searches: Searches::new(config.profile.finds_peers(), Instant::now()),
            entry: Entry::new(config.dht_entry(), Instant::now()),
            provides: Vec::new(),
            lookups: JoinSet::new(),
            dials: HashMap::new(),
            agents: HashMap::new(),
            beside: HashMap::new(),
            grace: config.grace,
        };
        task.publish_listeners();
        task
    }

    /// Runs until cancelled, or until the last handle and session are gone.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::with_capacity(COMMANDS);
        loop {
            let wake = [self.known.next_due(), self.searches.next_deadline(Instant::now()), self.entry.next_due()]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                () = self.cancel.cancelled() => break,
                received = self.commands.recv_many(&mut batch, COMMANDS) => match received {
                    0 => break,
                    // In batches, so that a burst of wants leaves in few messages.
                    _ => batch.drain(..).for_each(|command| self.on_command(command)),
                },
                notes = self.dropped.take() => notes.into_iter().for_each(|note| self.on_dropped(note)),
                Some(Ok((found, dial))) = self.lookups.join_next() => self.on_looked_up(found, dial),
                (peer, found) = self.entry.looked_up() => self.on_entry(peer, found),
                (id, loaded) = self.loads.next() => self.swarm.behaviour_mut().bitswap.loaded(id, loaded),
                event = self.swarm.select_next_some() => self.on_swarm(event),
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => self.on_wake(),
            }
        }
        // With all features the swarm is large.
        Box::pin(self.finish()).await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { peer, addr, keep, reply } => self.connect(peer, addr, keep, reply),
            Command::Want { session, peers, want, cid, reply } => {
                if !reply.is_closed() {
                    self.want(SessionId(session), &peers, want, cid, reply);
                }
            }
            Command::Search { session, root, reply } => self.search(SessionId(session), &root, reply),
            Command::Meet { session, peers, reply } => self.meet(SessionId(session), peers, reply),
            Command::Provide { root, reply } => self.provide(root, reply),
            Command::Stored(cids) => self.swarm.behaviour_mut().bitswap.stored(&cids),
            // The one who asked may have gone: then nobody needs it.
            Command::Peers(reply) => drop(reply.send(self.peers())),
        }
    }

    fn want(&mut self, session: SessionId, peers: &Arc<[PeerId]>, want: u64, cid: Cid, reply: Reply<Outcome>) {
        if self.wants.open(session, peers) {
            self.swarm.behaviour_mut().bitswap.open(session, peers);
            for peer in peers.iter() {
                self.known.session_opened(*peer);
                self.keep_if_wanted(*peer);
            }
        }
        if self.wants.add(session, cid, want, reply) {
            self.swarm.behaviour_mut().bitswap.want(session, cid);
        }
    }

    fn on_dropped(&mut self, note: Drops) {
        match note {
            Drops::Want { session, want, cid } => {
                let session = SessionId(session);
                if self.wants.remove(session, cid, want) {
                    self.swarm.behaviour_mut().bitswap.cancel(session, &cid);
                }
            }
            Drops::Session(session) => {
                let session = SessionId(session);
                let Some(peers) = self.wants.close(session) else { return };
                self.swarm.behaviour_mut().bitswap.close(session);
                for peer in peers.iter() {
                    self.known.session_closed(*peer);
                    self.keep_if_wanted(*peer);
                }
            }
        }
    }

    fn keep_if_wanted(&mut self, peer: PeerId) {
        self.swarm.behaviour_mut().bitswap.keep(peer, self.known.is_wanted(&peer));
    }

    fn connect(&mut self, peer: PeerId, addr: Multiaddr, keep: bool, reply: Reply<Result<(), NetworkError>>) {
        self.known.add(peer, addr.clone(), keep, Instant::now());
        if keep {
            self.swarm.behaviour_mut().limits.bypass_peer_id(&peer);
        }
        self.keep_if_wanted(peer);
        let also = |dial: &&mut Dial| {
            let is_first = dial.addr.as_ref().is_some_and(|first| quic::is_quic(&addr) && !quic::is_quic(first));
            dial.peer == peer && (is_first || dial.addr.as_ref() == Some(&addr))
        };
        if self.swarm.is_connected(&peer) {
            self.dial_done(Dial { replies: vec![reply], ..Dial::new(peer, Some(addr)) });
        } else if let Some(dial) = self.dials.values_mut().find(also) {
            if dial.addr.as_ref() != Some(&addr) && !dial.later.contains(&addr) {
                dial.later.push(addr);
            }
            dial.replies.push(reply);
        } else {
            let addrs = if quic::is_quic(&addr) { self.known.addrs(&peer).to_vec() } else { vec![addr.clone()] };
            self.dial(addrs, Dial { replies: vec![reply], ..Dial::new(peer, Some(addr)) });
        }
    }

    fn on_wake(&mut self) {
        self.sweep_searches();
        self.enter(Instant::now());
        self.redial();
    }

    fn redial(&mut self) {
        for (peer, addrs) in self.known.due(Instant::now()) {
            self.dial(addrs, Dial::new(peer, None));
        }
    }

    /// Dials the addresses, those of QUIC after all others.
    fn dial(&mut self, addrs: Vec<Multiaddr>, mut dial: Dial) {
        self.known.dialling(&dial.peer);
        let (quic, others): (Vec<_>, Vec<_>) = addrs.into_iter().partition(quic::is_quic);
        let addrs = if others.is_empty() {
            quic
        } else {
            dial.later = quic;
            others
        };
        if addrs.iter().any(dns::is_name) {
            self.lookups.spawn(async move { (dns::resolve(&addrs).await, dial) });
        } else {
            self.dial_resolved(addrs, dial);
        }
    }

    fn on_looked_up(&mut self, found: io::Result<Vec<Multiaddr>>, dial: Dial) {
        match found {
            Ok(addrs) => self.dial_resolved(addrs, dial),
            Err(error) => self.dial_failed(dial, error),
        }
    }

    fn dial_resolved(&mut self, addrs: Vec<Multiaddr>, dial: Dial) {
        // A port of its own: two nodes that dial each other from their listening ports at the same
        // moment would meet in one TCP connection, both as its dialler.
        let options =
            DialOpts::peer_id(dial.peer).addresses(addrs).condition(PeerCondition::Always).allocate_new_port().build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(id, dial);
            }
            Err(error) => self.dial_failed(dial, error),
        }
    }

    fn dial_failed(&mut self, mut dial: Dial, error: impl Error + Send + Sync + 'static) {
        tracing::debug!(peer = %dial.peer, %error, "dial failed");
        if self.swarm.is_connected(&dial.peer) {
            // By another dial, or by the peer's own.
            return self.dial_done(dial);
        }
        if !dial.later.is_empty() {
            return self.dial(std::mem::take(&mut dial.later), dial);
        }
        self.known.away(&dial.peer, Instant::now());
        let Some(addr) = dial.addr else { return };
        let error = Arc::new(error);
        for reply in dial.replies {
            let source = io::Error::other(Arc::clone(&error));
            drop(reply.send(Err(NetworkError::Dial { addr: addr.clone(), source })));
        }
    }

    fn dial_done(&mut self, dial: Dial) {
        self.known.connected(&dial.peer, Instant::now());
        for reply in dial.replies {
            drop(reply.send(Ok(())));
        }
    }

    fn peers(&self) -> Vec<PeerSummary> {
        let peers = self.swarm.behaviour().bitswap.peers();
        peers
            .map(|(peer, addr, traffic)| PeerSummary {
                peer,
                addr: addr.clone(),
                traffic,
                agent: self.agents.get(&peer).cloned().unwrap_or_default(),
            })
            .collect()
    }

    fn on_swarm(&mut self, event: SwarmEvent<ProtocolsEvent>) {
        match event {
            SwarmEvent::Behaviour(ProtocolsEvent::Bitswap(event)) => self.on_bitswap(event),
            SwarmEvent::Behaviour(ProtocolsEvent::Mdns(event)) => self.on_mdns(event),
            SwarmEvent::Behaviour(ProtocolsEvent::LanDht(event)) => self.on_dht(Scope::Lan, event),
            SwarmEvent::Behaviour(ProtocolsEvent::WorldDht(event)) => self.on_dht(Scope::World, event),
            SwarmEvent::Behaviour(ProtocolsEvent::Identify(identify::Event::Received { peer_id, info, .. }))
                if self.swarm.is_connected(&peer_id) =>
            {
                for dht in Scope::ALL {
                    if let Some(dht) = self.dht(dht) {
                        dht.identified(peer_id, &info.protocols, &info.listen_addrs);
                    }
                }
                let printable = info.agent_version.chars().filter(|c| !c.is_control());
                self.agents.insert(peer_id, printable.take(MAX_AGENT).collect());
                if let Some(remote) = self.swarm.behaviour().bitswap.quic_addr(&peer_id) {
                    self.beside.insert(peer_id, quic::tcp_beside(remote, &info.listen_addrs));
                }
            }
            // A peer need not know ping; one that has stopped answering is gone, unless the answer waits
            // behind a transfer on a slow line.
            SwarmEvent::Behaviour(ProtocolsEvent::Ping(ping::Event {
                peer,
                connection,
                result: Err(ping::Failure::Timeout),
            })) if !self.swarm.behaviour().bitswap.is_active(&peer, BUSY) => {
                tracing::debug!(%peer, "no answer to a ping, closing the connection");
                self.swarm.close_connection(connection);
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                tracing::debug!(peer = %peer_id, cause = ?cause, "disconnected");
                self.agents.remove(&peer_id);
                self.beside.remove(&peer_id);
                self.known.away(&peer_id, Instant::now());
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.dial_of_search_failed(connection_id);
                if let Some(dial) = self.dials.remove(&connection_id) {
                    self.dial_failed(dial, error);
                }
            }
            SwarmEvent::NewListenAddr { .. } | SwarmEvent::ExpiredListenAddr { .. } => self.publish_listeners(),
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                tracing::error!(?addresses, %error, "no longer listening");
                self.publish_listeners();
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "inbound connection failed");
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        tracing::debug!(%peer, addr = %endpoint.get_remote_address(), "connected");
        self.known.connected(&peer, Instant::now());
        if let Some(dial) = self.dials.remove(&connection) {
            self.dial_done(dial);
        }
        self.join_searches(peer);
        self.trim();
    }

    fn on_mdns(&mut self, event: mdns::Event) {
        match event {
            mdns::Event::Discovered(found) => {
                found.into_iter().for_each(|(peer, addr)| self.nearby.discovered(peer, addr));
                self.ask_known();
            }
            mdns::Event::Expired(gone) => gone.iter().for_each(|(peer, addr)| self.nearby.expired(peer, addr)),
        }
    }

    /// Leaves idle peers when there are too many.
    fn trim(&mut self) {
        let idle = self.swarm.behaviour().bitswap.idle();
        let peers = idle.map(|(peer, since)| (peer, since, self.known.is_wanted(&peer)));
        for peer in trim::surplus(peers, self.grace, Instant::now()) {
            tracing::debug!(%peer, "leaving an idle peer, there are too many");
            // An error says that it has gone by itself.
            _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn on_bitswap(&mut self, event: Event) {
        match event {
            Event::Deliver { session, peer, block } => self.wants.deliver(session, peer, &block),
            Event::Missing { session, cid } => self.wants.missing(session, cid),
            Event::Mute { peer } => self.turn_to_tcp(peer),
            Event::Load(load) => self.loads.push(load),
            // Only comes after a stop, to `finish`.
            Event::Drained => {}
        }
    }

    /// Dials a peer that does not answer over QUIC where it may be had over TCP.
    fn turn_to_tcp(&mut self, peer: PeerId) {
        let named = self.known.addrs(&peer).iter().filter(|addr| !quic::is_quic(addr));
        let addrs: Vec<_> = named.chain(self.beside.get(&peer).into_iter().flatten()).cloned().collect();
        if !addrs.is_empty() {
            tracing::info!(%peer, "no answer over QUIC, dialling over TCP");
            self.dial(addrs, Dial::new(peer, None));
        }
    }

    fn publish_listeners(&self) {
        let me = *self.swarm.local_peer_id();
        // An address at a relay ends in our name already.
        let named = |addr: &Multiaddr| addr.clone().with_p2p(me).unwrap_or_else(|other| other);
        let listeners = self.swarm.listeners().map(named).collect();
        self.listening.send_replace(listeners);
    }

    /// Fails what waits, sends what is under way, closes the connections: until [`DRAIN`] is over.
    async fn finish(mut self) {
        let deadline = tokio::time::Instant::now() + DRAIN;
        self.commands.close();
        self.dropped.close();
        drop(std::mem::take(&mut self.wants));
        self.lookups.shutdown().await;
        self.entry.shutdown().await;
        self.dials.clear();
        self.swarm.behaviour_mut().bitswap.stop();
        while let Ok(event) = timeout_at(deadline, self.swarm.select_next_some()).await {
            if matches!(event, SwarmEvent::Behaviour(ProtocolsEvent::Bitswap(Event::Drained))) {
                break;
            }
        }
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error says that it has gone by itself.
            _ = self.swarm.disconnect_peer_id(peer);
        }
        while self.swarm.network_info().num_peers() > 0 {
            if timeout_at(deadline, self.swarm.select_next_some()).await.is_err() {
                break;
            }
        }
        drop(timeout_at(deadline, self.loads.finish()).await);
    }
}
