//! Bitswap as a libp2p behaviour: feeds the client and server machines with what connections report,
//! and does what they ask for.
//!
//! All connections to a peer are one peer to the machines. A message goes over the oldest connection
//! and is kept until that one reports it sent; should the connection close first, blocks go over
//! another, and the client asks again for what it wants. So a simultaneous dial, or one connection of
//! two that breaks, loses nothing, and the machines hear of a disconnect only when the last connection
//! is gone.
//!
//! Nothing here hashes or touches the store; `poll` does only bookkeeping.

mod peer;

pub use peer::Traffic;

use super::handler::{Arrived, FromHandler, Handler, Lane, StreamError, ToHandler};
use super::quic;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use nipfs_proto::Cid;
use nipfs_proto::bitswap::client::{self, Client, SessionId};
use nipfs_proto::bitswap::message::Message;
use nipfs_proto::bitswap::server::{self, Load, LoadId, Loaded, Server};
use nipfs_proto::block::Block;
use peer::{Connection, Peer};
use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep};

/// Messages that may wait at one connection. The machines keep to far fewer; a peer that makes them
/// go beyond is cut off.
const MAX_UNSENT: usize = 1024;
/// The machines' clock is looked at no more often than this.
const TICK: Duration = Duration::from_millis(1);

/// What the network task has to do.
#[derive(Debug)]
pub(super) enum Event {
    /// Hand over a wanted block.
    Deliver { session: SessionId, peer: PeerId, block: Block },
    /// Say that a block cannot be had.
    Missing { session: SessionId, cid: Cid },
    /// The peer does not answer over QUIC, the only way it is connected.
    Mute { peer: PeerId },
    /// Read from the store.
    Load(Load<PeerId>),
    /// After [`Behaviour::stop`]: everything has been sent, or its connection is gone.
    Drained,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Running,
    Draining,
    Drained,
}

/// The behaviour.
#[derive(Debug)]
pub(super) struct Behaviour {
    client: Client<PeerId>,
    server: Server<PeerId>,
    peers: HashMap<PeerId, Peer>,
    /// Peers whose connections shall not idle out.
    kept: HashSet<PeerId>,
    /// Drained before anything is asked of the machines: as long as one event's consequences.
    events: VecDeque<ToSwarm<Event, ToHandler>>,
    wake: Pin<Box<Sleep>>,
    ticked: Instant,
    phase: Phase,
}

impl Behaviour {
    /// Needs a tokio runtime.
    pub(super) fn new() -> Self {
        Self {
            client: Client::new(),
            server: Server::new(),
            peers: HashMap::new(),
            kept: HashSet::new(),
            events: VecDeque::new(),
            wake: Box::pin(sleep(Duration::ZERO)),
            ticked: Instant::now(),
            phase: Phase::Running,
        }
    }

    pub(super) fn open(&mut self, session: SessionId, peers: &[PeerId]) {
        self.client.open(session, peers);
    }

    pub(super) fn add_peer(&mut self, session: SessionId, peer: PeerId) {
        self.client.add_peers(session, &[peer]);
    }

    pub(super) fn want(&mut self, session: SessionId, cid: Cid) {
        self.client.want(session, cid);
    }

    pub(super) fn cancel(&mut self, session: SessionId, cid: &Cid) {
        self.client.cancel(session, cid);
    }

    pub(super) fn close(&mut self, session: SessionId) {
        self.client.close(session);
    }

    pub(super) fn stored(&mut self, cids: &[Cid]) {
        self.server.stored(cids);
    }

    pub(super) fn loaded(&mut self, id: LoadId, loaded: Vec<Loaded>) {
        self.server.loaded(id, loaded);
    }

    /// Keeps the peer's connections open however idle they are, or no longer.
    pub(super) fn keep(&mut self, peer: PeerId, keep: bool) {
        let changed = if keep { self.kept.insert(peer) } else { self.kept.remove(&peer) };
        for connection in self.peers.get(&peer).filter(|_| changed).iter().flat_map(|peer| &peer.connections) {
            let handler = NotifyHandler::One(connection.id);
            self.events.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: ToHandler::Keep(keep) });
        }
    }

    /// The connected peers, with the remote address of their oldest connections.
    pub(super) fn peers(&self) -> impl Iterator<Item = (PeerId, &Multiaddr, Traffic)> {
        self.peers.iter().filter_map(|(id, peer)| Some((*id, &peer.connections.first()?.addr, peer.traffic)))
    }

    /// Since when each connected peer has been idle: it neither sent nor took a part of a message. `None` while
    /// messages are going out to it.
    pub(super) fn idle(&self) -> impl Iterator<Item = (PeerId, Option<Instant>)> {
        self.peers.iter().map(|(id, peer)| {
            let drained = peer.connections.iter().all(Connection::is_drained);
            (*id, drained.then(|| peer.active.unwrap_or(peer.since)))
        })
    }

    /// The address of a peer that is connected over QUIC alone.
    pub(super) fn quic_addr(&self, peer: &PeerId) -> Option<&Multiaddr> {
        let peer = self.peers.get(peer).filter(|peer| peer.is_on_quic_alone())?;
        peer.connections.first().map(|connection| &connection.addr)
    }

    /// Whether messages are going out, or went either way within the last `span`.
    pub(super) fn is_active(&self, peer: &PeerId, span: Duration) -> bool {
        let Some(peer) = self.peers.get(peer) else { return false };
        let lately = peer.active.is_some_and(|active| active.elapsed() < span);
        lately || !peer.connections.iter().all(Connection::is_drained)
    }

    /// Asks and answers nothing new from now on, and says [`Event::Drained`] in the end.
    pub(super) fn stop(&mut self) {
        self.phase = Phase::Draining;
    }

    fn is_drained(&self) -> bool {
        self.peers.values().flat_map(|peer| &peer.connections).all(Connection::is_drained)
    }

    fn on_established(&mut self, event: &ConnectionEstablished<'_>) {
        let peer = self.peers.entry(event.peer_id).or_insert_with(|| Peer::new(Instant::now()));
        let first = peer.connections.is_empty();
        let mut addr = event.endpoint.get_remote_address().clone();
        // An address that was dialled says whom, one that dialled us does not.
        if let Some(Protocol::P2p(_)) = addr.iter().last() {
            addr.pop();
        }
        peer.connections.push(Connection { id: event.connection_id, addr, unsent: Default::default() });
        if first {
            self.client.connected(event.peer_id);
            self.server.connected(event.peer_id);
        } else if !peer.is_on_quic_alone() {
            let needless = peer.connections.iter().filter(|connection| quic::is_quic(&connection.addr));
            let close = needless.map(|connection| CloseConnection::One(connection.id));
            let close = close.map(|connection| ToSwarm::CloseConnection { peer_id: event.peer_id, connection });
            self.events.extend(close);
        }
    }

    fn on_closed(&mut self, event: &ConnectionClosed<'_>) {
        let id = event.peer_id;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(index) = peer.connections.iter().position(|c| c.id == event.connection_id) else { return };
        let closed = peer.connections.remove(index);
        if peer.connections.is_empty() {
            let unsupported = peer.unsupported;
            peer.traffic.log(&id);
            self.peers.remove(&id);
            if !unsupported {
                self.forget(id);
            }
            return;
        }
        let over_quic = quic::is_quic(&closed.addr);
        if over_quic {
            peer.again = Some(Instant::now() + quic::SETTLE);
        }
        let [_wants, blocks] = closed.unsent;
        for message in blocks {
            self.send(id, Lane::Blocks, message);
        }
        // Wants, and answers on their way to us, are lost with the connection: the client asks again.
        if !over_quic {
            self.client.stream_broke(id, Instant::now());
        }
    }

    /// Tells the machines that the peer is gone.
    fn forget(&mut self, peer: PeerId) {
        self.client.disconnected(peer);
        self.server.disconnected(peer);
    }

    fn send(&mut self, id: PeerId, lane: Lane, message: Arc<Message>) {
        let connection = self.peers.get_mut(&id).and_then(|peer| peer.connections.first_mut());
        let Some(connection) = connection else {
            // Gone a moment ago, and the machines know.
            return;
        };
        let unsent = &mut connection.unsent[lane as usize];
        unsent.push_back(Arc::clone(&message));
        if unsent.len() > MAX_UNSENT {
            let connection = CloseConnection::One(connection.id);
            return self.cut(id, connection);
        }
        let handler = NotifyHandler::One(connection.id);
        self.events.push_back(ToSwarm::NotifyHandler { peer_id: id, handler, event: ToHandler::Send(lane, message) });
    }

    fn on_arrived(&mut self, id: PeerId, arrived: Arrived) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.unsupported) else { return };
        peer.traffic.bytes_in += arrived.bytes as u64;
        peer.traffic.messages_in += 1;
        peer.traffic.streams_in += u64::from(arrived.first);
        peer.active = Some(now);
        let message = arrived.message;
        self.client.received(id, message.blocks, &message.presences, &message.dropped, now);
        peer.asked = (self.client.owed(&id) > 0).then_some(now);
        self.server.received(id, &message.wants, message.full);
        peer.traffic.most_wants_in = peer.traffic.most_wants_in.max(self.server.wants(id) as u64);
    }

    fn on_progress(&mut self, id: PeerId, bytes: usize) {
        let now = Instant::now();
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.active = Some(now);
            peer.asked = (self.client.owed(&id) > 0).then_some(now);
        }
        self.client.progress(id, bytes, now);
    }

    fn on_sent(&mut self, id: PeerId, connection: ConnectionId, (lane, sent): (Lane, &Arc<Message>), bytes: usize) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.traffic.bytes_out += bytes as u64;
        peer.active = Some(Instant::now());
        let Some(connection) = peer.connections.iter_mut().find(|c| c.id == connection) else { return };
        let unsent = &mut connection.unsent[lane as usize];
        let Some(index) = unsent.iter().position(|message| Arc::ptr_eq(message, sent)) else { return };
        unsent.remove(index);
        match lane {
            Lane::Blocks => self.server.sent(id, sent.encoded_len()),
            Lane::Wants if unsent.is_empty() => {
                peer.traffic.most_wants_out = peer.traffic.most_wants_out.max(self.client.owed(&id) as u64);
            }
            Lane::Wants => {}
        }
    }

    fn on_unsupported(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !std::mem::replace(&mut peer.unsupported, true) {
            tracing::debug!(peer = %id, "peer does not speak bitswap 1.2.0");
            for connection in &mut peer.connections {
                connection.unsent = Default::default();
            }
            self.forget(id);
        }
    }

    fn on_broke(&mut self, peer: PeerId, connection: ConnectionId, error: &StreamError) {
        if error.is_breach() && self.name(peer) {
            tracing::warn!(%peer, error = error as &dyn std::error::Error, "peer breaks the protocol");
        }
        if error.is_stall() {
            self.cut(peer, CloseConnection::One(connection));
        } else {
            self.client.stream_broke(peer, Instant::now());
        }
    }

    fn cut(&mut self, peer: PeerId, connection: CloseConnection) {
        self.events.push_back(ToSwarm::CloseConnection { peer_id: peer, connection });
    }

    fn on_client(&mut self, action: client::Action<PeerId>) {
        let event = match action {
            client::Action::Send { peer, message } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.asked.get_or_insert_with(Instant::now);
                }
                return self.send(peer, Lane::Wants, Arc::new(message));
            }
            client::Action::Deliver { session, peer, block } => Event::Deliver { session, peer, block },
            client::Action::Missing { session, cid } => Event::Missing { session, cid },
            client::Action::Stalled { peer } => {
                if self.name(peer) {
                    tracing::info!(%peer, "peer went silent, asking others");
                }
                return;
            }
            client::Action::Disconnect { peer } => {
                if self.name(peer) {
                    tracing::warn!(%peer, "peer sends what nobody asked for, disconnecting");
                }
                return self.cut(peer, CloseConnection::All);
            }
        };
        self.events.push_back(ToSwarm::GenerateEvent(event));
    }

    fn on_server(&mut self, action: server::Action<PeerId>) {
        match action {
            server::Action::Load(load) => self.events.push_back(ToSwarm::GenerateEvent(Event::Load(load))),
            server::Action::Send { peer, message } => self.send(peer, Lane::Blocks, Arc::new(message)),
        }
    }

    /// Whether the peer is to be named in the log now: once while it is connected.
    fn name(&mut self, peer: PeerId) -> bool {
        self.peers.get_mut(&peer).is_some_and(|peer| !std::mem::replace(&mut peer.named, true))
    }

    /// Looks at the clock for the client. True when there may be something to do.
    fn tick(&mut self, cx: &mut Context<'_>) -> bool {
        let again = self.peers.values().filter_map(|peer| peer.again).min();
        let Some(at) = self.client.next_wake().into_iter().chain(again).min() else { return false };
        let now = Instant::now();
        let next = self.ticked + TICK;
        if at <= now && next <= now {
            self.ticked = now;
            self.find_mute(now);
            self.ask_again(now);
            self.client.tick(now);
            return true;
        }
        let at = at.max(next).into();
        if self.wake.deadline() != at {
            self.wake.as_mut().reset(at);
        }
        self.wake.as_mut().poll(cx).is_ready()
    }

    /// Tells of the peers that do not answer over QUIC. The client looks at its clock while answers are due.
    fn find_mute(&mut self, now: Instant) {
        for (id, peer) in &mut self.peers {
            let is_late = peer.asked.is_some_and(|asked| now.saturating_duration_since(asked) >= quic::PATIENCE);
            if is_late && peer.is_on_quic_alone() {
                peer.asked = None;
                self.events.push_back(ToSwarm::GenerateEvent(Event::Mute { peer: *id }));
            }
        }
    }

    /// Asks for what was lost with a QUIC connection a moment ago.
    fn ask_again(&mut self, now: Instant) {
        for (id, peer) in &mut self.peers {
            if peer.again.take_if(|at| *at <= now).is_some() {
                self.client.stream_broke(*id, now);
            }
        }
    }

    fn handler(&self, peer: &PeerId) -> Handler {
        Handler::new(self.kept.contains(peer))
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(&peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(&peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(&event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(&event),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            FromHandler::Arrived(arrived) => self.on_arrived(peer, arrived),
            FromHandler::Progress { bytes } => self.on_progress(peer, bytes),
            FromHandler::Sent { lane, message, bytes } => self.on_sent(peer, connection, (lane, &message), bytes),
            FromHandler::Failed(error) => {
                tracing::debug!(%peer, %error, "cannot send, closing the connection");
                self.cut(peer, CloseConnection::One(connection));
            }
            FromHandler::Unsupported => self.on_unsupported(peer),
            FromHandler::Broke(error) => self.on_broke(peer, connection, &error),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            match self.phase {
                Phase::Running => {}
                Phase::Draining if self.is_drained() => {
                    self.phase = Phase::Drained;
                    return Poll::Ready(ToSwarm::GenerateEvent(Event::Drained));
                }
                Phase::Draining | Phase::Drained => return Poll::Pending,
            }
            if let Some(action) = self.client.poll(Instant::now()) {
                self.on_client(action);
            } else if let Some(action) = self.server.poll() {
                self.on_server(action);
            } else if !self.tick(cx) {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests;
