//! Black-box tests: the binary, started as a user starts it, and what holds of the source tree itself.
//! Hermetic: loopback only, temporary directories, free ports.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cids;
mod cli;
mod common;
mod discovery;
mod faults;
mod limits;
mod publish;
mod share;
mod sources;
mod tidy;
mod upload;
mod walk;
