//! DAGs with effects: streams into blocks and back.

pub mod import;
pub(crate) mod pipe;
pub mod read;
