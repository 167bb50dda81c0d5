//! x

pub mod control;
