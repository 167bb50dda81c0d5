//! Foreign software on the other side: Kubo, Helia, stock Nix, sshd. Never part of plain `cargo test`; `make test` installs what
//! they need, and a test whose counterpart is missing fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../tests/common/mod.rs"]
mod common;
mod disk;
mod driver;
mod helia;
mod keep;
mod kubo;
mod lan;
mod memory;
mod nix;
#[cfg(feature = "quic")]
mod quic;
mod ssh;
mod wants;
