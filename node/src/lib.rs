//! x

pub mod control;
pub mod network;
