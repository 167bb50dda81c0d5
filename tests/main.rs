//! Black-box tests: the binary, started as a user starts it, and what holds of the source tree itself.
//! Hermetic: loopback only, temporary directories, free ports.

mod tidy;
