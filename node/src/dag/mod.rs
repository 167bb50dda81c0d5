//! DAGs with effects: streams into blocks.

pub mod import;
