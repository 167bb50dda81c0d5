//! The swarm: TCP, noise and yamux, with the feature `quic` QUIC, the protocols spoken over them, and the limits that rust-libp2p
//! does not set by itself.

use super::behaviour::Behaviour;
use super::dht::Dht;
use super::muxer::Yamux;
#[cfg(feature = "nat")]
use super::nat::Nat;
use super::security::Noise;
use super::{Config, DIAL_TIMEOUT, NetworkError};
use crate::scope::Scope;
use futures::StreamExt as _;
use libp2p::core::transport::TransportError;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::toggle::Toggle;
#[cfg(not(feature = "nat"))]
use libp2p::swarm::dummy::Behaviour as Nat;
use libp2p::swarm::{self, NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, connection_limits, identify, mdns, memory_connection_limits, ping, tcp,
};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::time::timeout;

/// Inbound handshakes at once.
const MAX_PENDING_INBOUND: u32 = 64;
/// Dials at once.
const MAX_PENDING_OUTBOUND: u32 = 32;
/// Connections to one peer.
const MAX_PER_PEER: u32 = 8;
/// Streams of one connection, both directions and all protocols together.
const MAX_STREAMS: u32 = 256;
/// Inbound streams of one connection that are still agreeing on a protocol.
const MAX_NEGOTIATING: usize = 64;
/// Messages that may wait for a connection's task before the swarm does.
const TO_HANDLER: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");
/// How long a connection stays open after the last protocol has stopped keeping it.
const IDLE_GRACE: Duration = Duration::from_secs(5);
/// How long an address may take until it is listened on.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The protocol version that identify states: the one of Kubo and Helia.
const PROTOCOL_VERSION: &str = "ipfs/0.1.0";

/// All that is spoken on a connection.
#[derive(NetworkBehaviour)]
pub(super) struct Protocols {
    pub(super) limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(super) bitswap: Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) lan_dht: Toggle<Dht>,
    pub(super) world_dht: Toggle<Dht>,
    /// Never on without the feature.
    nat: Toggle<Nat>,
}

/// Builds the swarm. It listens nowhere yet. Needs a tokio runtime.
pub(super) fn build(config: &Config, keypair: &Keypair) -> Result<Swarm<Protocols>, NetworkError> {
    let transport = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), Noise::new, || Yamux::new(MAX_STREAMS))
        .map_err(NetworkError::Authentication)?;
    #[cfg(feature = "quic")]
    let transport = transport.with_quic_config(|mut quic| {
        quic.max_concurrent_stream_limit = MAX_STREAMS;
        quic.handshake_timeout = DIAL_TIMEOUT;
        quic
    });
    let protocols = protocols(config, keypair).map_err(NetworkError::Interfaces)?;
    // Inbound handshakes have the deadline of dials: junk is gone after it.
    #[cfg(feature = "nat")]
    if config.profile.gets_around_nat() {
        let relayed = transport
            .with_relay_client(Noise::new, || Yamux::new(MAX_STREAMS))
            .map_err(NetworkError::Authentication)?;
        let own = keypair.public().to_peer_id();
        let Ok(builder) =
            relayed.with_behaviour(|_, relay| Protocols { nat: Some(Nat::new(own, relay)).into(), ..protocols });
        return Ok(builder.with_swarm_config(configure).with_connection_timeout(DIAL_TIMEOUT).build());
    }
    let Ok(builder) = transport.with_behaviour(|_| protocols);
    Ok(builder.with_swarm_config(configure).with_connection_timeout(DIAL_TIMEOUT).build())
}

fn configure(swarm: swarm::Config) -> swarm::Config {
    swarm
        .with_idle_connection_timeout(IDLE_GRACE)
        // The name of the protocol travels with its first message: a round trip less a stream.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_max_negotiating_inbound_streams(MAX_NEGOTIATING)
        .with_notify_handler_buffer_size(TO_HANDLER)
}

fn protocols(config: &Config, keypair: &Keypair) -> io::Result<Protocols> {
    // A quarter is left for our own dials, however many strangers come.
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_PENDING_INBOUND))
        .with_max_pending_outgoing(Some(MAX_PENDING_OUTBOUND))
        .with_max_established_incoming(Some(config.max_connections / 4 * 3))
        .with_max_established_per_peer(Some(MAX_PER_PEER))
        .with_max_established(Some(config.max_connections));
    // Without the cache identify forgets what strangers say about addresses: we dial nobody for it.
    let identify = identify::Config::new(PROTOCOL_VERSION.to_owned(), keypair.public())
        .with_agent_version(concat!("nipfs/", env!("CARGO_PKG_VERSION")).to_owned())
        .with_cache_size(0);
    let own = keypair.public().to_peer_id();
    let dht = |scope| Toggle::from(config.profile.uses_dht().then(|| Dht::new(scope, own)));
    let mdns = config.profile.uses_mdns().then(|| mdns::Behaviour::new(mdns::Config::default(), own));
    Ok(Protocols {
        limits: connection_limits::Behaviour::new(limits),
        memory: memory_connection_limits::Behaviour::with_max_bytes(config.max_memory),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(ping::Config::new()),
        bitswap: Behaviour::new(),
        mdns: mdns.transpose()?.into(),
        lan_dht: dht(Scope::Lan),
        world_dht: dht(Scope::World),
        nat: None.into(),
    })
}

/// Listens on all of `addrs`; returns when each has a port.
///
/// # Errors
/// [`NetworkError::Listen`] with the first address that cannot be used.
pub(super) async fn listen(swarm: &mut Swarm<Protocols>, addrs: &[Multiaddr]) -> Result<(), NetworkError> {
    let failed = |addr: &Multiaddr, source| NetworkError::Listen { addr: addr.clone(), source };
    let mut waiting = HashMap::new();
    for addr in addrs {
        free_port(addr).map_err(|source| failed(addr, source))?;
        let listener = swarm.listen_on(addr.clone()).map_err(|error| match error {
            TransportError::Other(source) => failed(addr, source),
            TransportError::MultiaddrNotSupported(_) => failed(addr, io::ErrorKind::Unsupported.into()),
        })?;
        waiting.insert(listener, addr);
    }
    while let Some(addr) = waiting.values().next() {
        let event = timeout(LISTEN_TIMEOUT, swarm.select_next_some()).await;
        match event.map_err(|late| failed(addr, late.into()))? {
            SwarmEvent::NewListenAddr { listener_id, .. } => {
                waiting.remove(&listener_id);
            }
            SwarmEvent::ListenerClosed { listener_id, reason: Err(source), .. }
            | SwarmEvent::ListenerError { listener_id, error: source } => {
                if let Some(addr) = waiting.get(&listener_id) {
                    return Err(failed(addr, source));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Fails when somebody listens on the address already. libp2p would share the port, and the kernel
/// would spread connections over both. The port of a relay is not ours.
fn free_port(addr: &Multiaddr) -> io::Result<()> {
    if addr.iter().any(|part| part == Protocol::P2pCircuit) {
        return Ok(());
    }
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind((ip, port)).map(drop),
        _ => Ok(()),
    }
}

/// The peer that an address names at its end.
pub(super) fn peer_of(addr: &Multiaddr) -> Option<PeerId> {
    match addr.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}
