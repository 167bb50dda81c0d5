//! DAGs with effects: streams into blocks and back.

pub mod import;
pub mod read;
