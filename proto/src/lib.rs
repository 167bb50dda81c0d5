//! Bytes and rules of nipfs, without effects.
//!
//! Everything here is synchronous and deterministic: no clock, no file, no socket, no randomness, no
//! task. Time comes in as an argument, bytes come in as slices, and what shall be done goes out as a
//! value. The effects live in `nipfs-node`.
//!
//! - [`block`]: a CID and the bytes that are known to match it.
//! - [`dag`]: dag-pb, UnixFS files, chunking, building and walking; CAR.
//! - [`bitswap`]: the wire format and the two state machines of the exchange.
//! - [`nix`]: store paths, NARs, narinfos, signatures.

#![forbid(unsafe_code)]

pub mod bitswap;
pub mod block;
pub mod dag;
pub mod nix;
#[cfg(test)]
mod vectors;

pub use block::Cid;
