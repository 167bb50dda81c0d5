//! A connected peer, as the behaviour sees it: its connections, and what went over them.

use crate::network::quic;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use nipfs_proto::bitswap::message::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// What was exchanged with a peer over bitswap since it connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of messages received from it.
    pub bytes_in: u64,
    /// Bytes of messages that it took.
    pub bytes_out: u64,
    /// Messages received from it.
    pub messages_in: u64,
    /// Streams on which they came: Kubo opens one for each message of blocks.
    pub streams_in: u64,
    /// The most blocks that it waited for at one time.
    pub most_wants_in: u64,
    /// The most blocks that it had been asked for at one time, and owed.
    pub most_wants_out: u64,
}

impl Traffic {
    /// Logs it when the peer has gone, if there was any.
    pub(super) fn log(&self, peer: &PeerId) {
        let Self { bytes_in, bytes_out, messages_in, streams_in, most_wants_in, most_wants_out } = *self;
        if bytes_in + bytes_out > 0 {
            tracing::debug!(
                %peer, bytes_in, bytes_out, messages_in, streams_in, most_wants_in, most_wants_out,
                "exchanged with a peer that has gone"
            );
        }
    }
}

/// A connected peer.
#[derive(Debug)]
pub(super) struct Peer {
    /// Oldest first, never empty.
    pub(super) connections: Vec<Connection>,
    /// When it connected.
    pub(super) since: Instant,
    pub(super) traffic: Traffic,
    /// When a message, or a part of one, last went either way.
    pub(super) active: Option<Instant>,
    /// Since when it has left unanswered what it was asked for: since it was asked, or since something last came from it.
    pub(super) asked: Option<Instant>,
    /// When to ask again for what was lost with a QUIC connection.
    pub(super) again: Option<Instant>,
    /// It does not speak bitswap; the machines do not know it.
    pub(super) unsupported: bool,
    /// Its misbehaviour, or silence, is in the log.
    pub(super) named: bool,
}

impl Peer {
    pub(super) fn new(since: Instant) -> Self {
        Self {
            connections: Vec::new(),
            since,
            traffic: Traffic::default(),
            active: None,
            asked: None,
            again: None,
            unsupported: false,
            named: false,
        }
    }

    pub(super) fn is_on_quic_alone(&self) -> bool {
        self.connections.iter().all(|connection| quic::is_quic(&connection.addr))
    }
}

/// A connection to it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) addr: Multiaddr,
    /// Given to the handler and not reported sent, for each [`Lane`](crate::network::handler::Lane) in order.
    pub(super) unsent: [VecDeque<Arc<Message>>; 2],
}

impl Connection {
    pub(super) fn is_drained(&self) -> bool {
        self.unsent.iter().all(VecDeque::is_empty)
    }
}
