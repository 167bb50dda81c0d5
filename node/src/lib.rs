//! x

pub mod control;
pub mod network;
pub mod upstream;
