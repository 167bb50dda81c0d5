//! x

pub mod control;
pub mod dag;
pub mod network;
pub mod nix;
pub mod store;
pub mod upstream;
