//! The effects of nipfs: everything that touches a disk, a socket or a clock.
//!
//! Arrows point down only (a test holds them): `control, serve → jobs, http → cache → dag → store,
//! network, upstream`; `network` reads the store; `store` knows only `nipfs-proto`.
//!
//! [`Node`] is the handle that the jobs share: the store, the cache on top of it, and the network,
//! which starts when somebody first needs it.

#![forbid(unsafe_code)]

pub mod announce;
pub mod cache;
pub mod control;
pub mod dag;
mod failure;
pub mod http;
pub mod jobs;
pub mod network;
pub mod nix;
mod node;

mod scope;
pub mod serve;
pub mod store;
pub mod upstream;

pub use node::{Node, Settings};
