//! The machine's Nix: what its store holds, the keys that sign it, and trees as NARs.

pub mod closure;
pub mod database;
pub mod dump;
pub mod gc_roots;
pub mod import;
pub mod keys;
pub mod path_info;
pub mod unpack;
