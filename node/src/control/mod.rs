//! The control socket: how every verb of the command line reaches the node that owns the store.
//!
//! One way in. While `serve` runs, a verb connects to its Unix socket; otherwise it opens the node
//! itself and talks to it over an in-memory pipe. Both ends speak [`protocol`], so the output is the
//! same by construction (DESIGN invariant 8).
//!
//! A connection carries one request at a time, in order. What a connection staged lives as long as
//! the connection: a client that dies leaves nothing but garbage for GC.
//!
//! Trust: the socket is mode 0600, and its peer must have our uid or be root. The client reads inputs
//! and keys and writes outputs with its own rights; the node gets NAR bytes, never path names of
//! somebody's files (DESIGN invariant 13).

pub mod address;
pub mod client;
pub mod frame;
pub mod protocol;
pub mod server;
