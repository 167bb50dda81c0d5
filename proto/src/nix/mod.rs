//! The formats of Nix: base32, store paths, NARs, narinfos, signatures, cache info.

pub mod base32;
pub mod nar;
pub mod store_path;
