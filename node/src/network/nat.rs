//! Ways around NAT, for public nodes that are built with the cargo feature `nat`: the router is asked for a port (UPnP), other
//! nodes whether an address of ours can be reached (AutoNAT 2), a relay that `--listen` names passes connections on, and
//! what came over a relay is tried directly (DCUtR). An address that proves good is told to the DHTs.

use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, autonat, dcutr, relay, upnp};

/// All of it together.
#[derive(NetworkBehaviour)]
pub(super) struct Nat {
    relay: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
    autonat: autonat::v2::client::Behaviour,
    upnp: upnp::tokio::Behaviour,
}

impl Nat {
    /// `relay` is the other half of the transport. Needs a tokio runtime.
    pub(super) fn new(own: PeerId, relay: relay::client::Behaviour) -> Self {
        Self {
            relay,
            dcutr: dcutr::Behaviour::new(own),
            autonat: autonat::v2::client::Behaviour::default(),
            upnp: upnp::tokio::Behaviour::default(),
        }
    }
}
