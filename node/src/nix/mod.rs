//! The machine's Nix: what its store holds, and the keys that sign it.

pub mod closure;
pub mod database;
pub mod keys;
pub mod path_info;
