//! A distributed hash table (Kademlia, as IPFS speaks it) for one [`Scope`]: who provides which root.
//!
//! The two tables of IPFS are two of these, `/ipfs/lan/kad/1.0.0` and `/ipfs/kad/1.0.0`. Each lives in its scope alone:
//! its protocol is spoken only on connections to addresses of the scope, it dials no others, and it publishes only such
//! addresses of ours as it can be reached at there. So an address of the local network never gets into the world's table.
//!
//! We ask, and answer nobody, until somebody of the scope has reached us: then we are a server too. No records of values
//! are kept, and of providers a bounded number ([`Records`]).

mod records;

use self::records::Records;
use super::allowance::{Allowance, NODES, few};
use crate::scope::Scope;
use either::Either;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::{self, Caching, InboundRequest, Mode, QueryId, RecordKey, StoreInserts};
use libp2p::swarm::behaviour::{
    ConnectionClosed, ConnectionEstablished, DialFailure, ExternalAddrConfirmed, ExternalAddrExpired,
};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use nipfs_proto::Cid;
use std::collections::{HashMap, HashSet};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stranger's record is kept: the time after which the DHT's servers forget.
const RECORD_TTL: Duration = Duration::from_secs(48 * 3600);

type Kademlia = kad::Behaviour<Records>;

/// The behaviour.
pub(super) struct Dht {
    scope: Scope,
    kademlia: Kademlia,
    /// The connections of the scope, oldest first.
    connections: HashMap<PeerId, Vec<ConnectionId>>,
    /// Where we can be reached in the scope, as far as we know.
    own: HashSet<Multiaddr>,
    /// The nodes that the user named, and the only addresses at which they are dialled.
    entry: HashMap<PeerId, Vec<Multiaddr>>,
    /// For the others.
    allowance: Allowance,
}

impl Dht {
    pub(super) fn new(scope: Scope, own: PeerId) -> Self {
        let mut config = kad::Config::new(protocol(scope));
        config
            .set_query_timeout(QUERY_TIMEOUT)
            .set_record_filtering(StoreInserts::FilterBoth)
            .set_replication_interval(None)
            .set_publication_interval(None)
            .set_provider_publication_interval(None)
            .set_provider_record_ttl(Some(RECORD_TTL))
            .set_caching(Caching::Disabled);
        let mut kademlia = Kademlia::with_config(own, Records::new(own, scope), config);
        kademlia.set_mode(Some(Mode::Client));
        Self {
            scope,
            kademlia,
            connections: HashMap::new(),
            own: HashSet::new(),
            entry: HashMap::new(),
            allowance: Allowance::new(NODES),
        }
    }

    /// A node by which to get into the table, which the user named.
    pub(super) fn enter(&mut self, peer: PeerId, addrs: &[Multiaddr]) {
        let addrs = self.dialled_here(addrs.to_vec());
        for addr in &addrs {
            self.kademlia.add_address(&peer, addr.clone());
        }
        if !addrs.is_empty() {
            self.entry.insert(peer, addrs);
        }
    }

    /// Without the addresses of other scopes, and not too many.
    fn dialled_here(&self, mut addrs: Vec<Multiaddr>) -> Vec<Multiaddr> {
        addrs.retain(|addr| self.scope.contains(addr));
        few(addrs)
    }

    /// A connected peer says what it speaks and where it listens.
    pub(super) fn identified(&mut self, peer: PeerId, protocols: &[StreamProtocol], addrs: &[Multiaddr]) {
        if self.connections.contains_key(&peer) && protocols.contains(&protocol(self.scope)) {
            for addr in self.dialled_here(addrs.to_vec()) {
                self.kademlia.add_address(&peer, addr);
            }
        }
    }

    /// Where a peer can be dialled that the table or a query under way has named.
    pub(super) fn addrs_of(&mut self, peer: PeerId) -> Vec<Multiaddr> {
        // The question is always the same to Kademlia, whatever the connection.
        let (id, role) = (ConnectionId::new_unchecked(0), Endpoint::Dialer);
        let named = self.kademlia.handle_pending_outbound_connection(id, Some(peer), &[], role);
        self.dialled_here(named.unwrap_or_default())
    }

    /// Whether the table names any node.
    pub(super) fn has_nodes(&mut self) -> bool {
        self.kademlia.kbuckets().next().is_some()
    }

    /// Whether others of the scope can be told where to reach us.
    pub(super) fn has_address(&self) -> bool {
        !self.own.is_empty()
    }

    /// Says that we provide a root. The outcome is [`kad::QueryResult::StartProviding`].
    pub(super) fn provide(&mut self, root: &Cid) -> Option<QueryId> {
        // Fails only when the records have no room, and ours take none.
        self.kademlia.start_providing(key(root)).ok()
    }

    /// Asks who provides a root. The outcomes are [`kad::QueryResult::GetProviders`].
    pub(super) fn find(&mut self, root: &Cid) -> QueryId {
        self.kademlia.get_providers(key(root))
    }

    /// Ends a query.
    pub(super) fn stop(&mut self, query: QueryId) {
        if let Some(mut query) = self.kademlia.query_mut(&query) {
            query.finish();
        }
    }

    fn on_established(&mut self, event: ConnectionEstablished<'_>) {
        if !self.scope.contains(event.endpoint.get_remote_address()) {
            return;
        }
        let connections = self.connections.entry(event.peer_id).or_default();
        let other_established = connections.len();
        connections.push(event.connection_id);
        let event = ConnectionEstablished { other_established, ..event };
        self.kademlia.on_swarm_event(FromSwarm::ConnectionEstablished(event));
    }

    fn on_closed(&mut self, event: ConnectionClosed<'_>) {
        let Some(connections) = self.connections.get_mut(&event.peer_id) else { return };
        let Some(index) = connections.iter().position(|id| *id == event.connection_id) else { return };
        connections.remove(index);
        let remaining_established = connections.len();
        if connections.is_empty() {
            self.connections.remove(&event.peer_id);
        }
        let event = ConnectionClosed { remaining_established, ..event };
        self.kademlia.on_swarm_event(FromSwarm::ConnectionClosed(event));
    }

    /// We can be reached there, for all we know.
    fn reachable_at(&mut self, addr: &Multiaddr) {
        if self.scope.contains(addr) && self.own.insert(addr.clone()) {
            self.kademlia.on_swarm_event(FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed { addr }));
        }
    }

    fn unreachable_at(&mut self, addr: &Multiaddr) {
        if self.own.remove(addr) {
            self.kademlia.on_swarm_event(FromSwarm::ExternalAddrExpired(ExternalAddrExpired { addr }));
        }
    }

    /// Where to dial a node now, if at all.
    fn allowed(&mut self, peer: PeerId, now: Instant) -> Option<Vec<Multiaddr>> {
        if let Some(addrs) = self.entry.get(&peer) {
            return Some(addrs.clone());
        }
        let addrs = self.addrs_of(peer);
        self.allowance.take(addrs.len(), now).then_some(addrs)
    }

    /// A dial that Kademlia asks for. It hears that one failed that is not made.
    fn dial<E>(&mut self, peer: PeerId, connection_id: ConnectionId) -> Option<ToSwarm<kad::Event, E>> {
        let Some(addrs) = self.allowed(peer, Instant::now()) else {
            let failure = DialFailure { peer_id: Some(peer), error: &DialError::Aborted, connection_id };
            self.kademlia.on_swarm_event(FromSwarm::DialFailure(failure));
            return None;
        };
        // From a port of its own, as every dial of ours.
        Some(ToSwarm::Dial { opts: DialOpts::peer_id(peer).addresses(addrs).allocate_new_port().build() })
    }

    /// What Kademlia asks of the swarm, brought into its scope; `None` when that leaves nothing.
    fn translate(
        &mut self,
        action: ToSwarm<kad::Event, THandlerInEvent<Kademlia>>,
    ) -> Option<ToSwarm<kad::Event, THandlerInEvent<Self>>> {
        Some(match action {
            ToSwarm::GenerateEvent(kad::Event::InboundRequest { request }) => {
                if let InboundRequest::AddProvider { record: Some(record) } = request {
                    self.kademlia.store_mut().keep(record, Instant::now());
                }
                return None;
            }
            ToSwarm::NotifyHandler { peer_id, handler, event } => {
                // Any of *our* connections; when the last has just closed, the query will hear of it.
                let connection = match handler {
                    NotifyHandler::One(id) => id,
                    NotifyHandler::Any => *self.connections.get(&peer_id)?.first()?,
                };
                let handler = NotifyHandler::One(connection);
                ToSwarm::NotifyHandler { peer_id, handler, event: Either::Left(event) }
            }
            ToSwarm::Dial { opts } => return self.dial(opts.get_peer_id()?, opts.connection_id()),
            other => other.map_in(Either::Left),
        })
    }
}

/// The name of the scope's table.
fn protocol(scope: Scope) -> StreamProtocol {
    StreamProtocol::new(match scope {
        Scope::Lan => "/ipfs/lan/kad/1.0.0",
        Scope::World => "/ipfs/kad/1.0.0",
    })
}

/// Roots are found by multihash, whatever their codec.
fn key(root: &Cid) -> RecordKey {
    RecordKey::new(&root.hash().to_bytes())
}

impl NetworkBehaviour for Dht {
    type ConnectionHandler = Either<THandler<Kademlia>, dummy::ConnectionHandler>;
    type ToSwarm = kad::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.scope.contains(remote) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        if self.kademlia.mode() == Mode::Client {
            self.kademlia.set_mode(Some(Mode::Server));
        }
        self.kademlia.handle_established_inbound_connection(id, peer, local, remote).map(Either::Left)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.scope.contains(addr) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.kademlia.handle_established_outbound_connection(id, peer, addr, role, port).map(Either::Left)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(event),
            FromSwarm::NewListenAddr(event) => self.reachable_at(event.addr),
            FromSwarm::ExpiredListenAddr(event) => self.unreachable_at(event.addr),
            FromSwarm::ExternalAddrConfirmed(event) => self.reachable_at(event.addr),
            FromSwarm::ExternalAddrExpired(event) => self.unreachable_at(event.addr),
            FromSwarm::DialFailure(_) => self.kademlia.on_swarm_event(event),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            Either::Left(event) => self.kademlia.on_connection_handler_event(peer, id, event),
            Either::Right(never) => match never {},
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        while let Poll::Ready(action) = self.kademlia.poll(cx) {
            if let Some(action) = self.translate(action) {
                return Poll::Ready(action);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
