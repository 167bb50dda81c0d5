//! Foreign software on the other side: Kubo, Helia, stock Nix, sshd. Never part of plain `cargo test`; `make test` installs what
//! they need, and a test whose counterpart is missing fails.
//!
//! Over bitswap each of these is shown to wait for 64 blocks and more at one time, by the asker or by the asked (`wants`):
//!
//! | | Kubo asks us | we ask Kubo | Helia asks us | we ask Helia | we ask us |
//! |---|---|---|---|---|---|
//! | TCP | `wants` | `helia`, a stream for each message | `helia` | `helia` | `wants` |
//! | QUIC | `quic` | turns to TCP, `quic` | `quic` | `quic` | `quic` |

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
