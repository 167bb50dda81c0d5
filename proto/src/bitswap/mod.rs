//! Bitswap 1.2.0: the message on the wire and the two state machines of the exchange.
//!
//! - [`message`]: bytes to [`Received`](message::Received), [`Message`](message::Message) to bytes.
//! - [`client`]: sessions that want blocks; decides whom to ask for what, and when to give a peer up.
//! - [`server`]: ledgers of what peers want; decides what to load from the store and what to send.
//!
//! The machines hold no socket, store or clock. The caller tells them what happened, with the time
//! where time matters, then takes actions from `poll` until there are none. Both are generic over the
//! [`Peer`]: a libp2p peer id in the node, a number in the simulation.

pub mod client;
pub mod message;
pub mod server;
#[cfg(test)]
mod simulation;
mod wire;

use std::fmt::Debug;
use std::hash::Hash;

/// What names a peer. Ordered so that the machines walk their peers in a fixed order.
pub trait Peer: Copy + Eq + Hash + Ord + Debug {}

impl<P: Copy + Eq + Hash + Ord + Debug> Peer for P {}
