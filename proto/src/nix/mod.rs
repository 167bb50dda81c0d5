//! The formats of Nix: base32, store paths, NARs, narinfos, signatures, cache info.

pub mod base32;
pub mod cache_info;
pub mod nar;
mod nar_hash;
pub mod narinfo;
pub mod signature;
pub mod store_path;
pub mod trust;

pub use nar_hash::{NarHash, NarHashError};
