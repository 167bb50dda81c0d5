//! DAGs: the dag-pb codec, UnixFS file nodes, building and walking; CAR files.
//!
//! - [`codec`]: dag-pb nodes, strict on decoding and canonical on encoding.
//! - [`unixfs`]: what a node means: as a file its bytes, children and their sizes; as a directory where names lead.
//! - [`Profile`]: where a stream is cut and how the tree above it looks; it decides the root's CID.
//! - [`build`]: a stream of bytes → blocks and a root.
//! - [`LeafKind`]: a leaf ↔ its part of the file.
//! - [`walk`]: a root → the CIDs below it, the bytes of a file in order, the end of a path.
//! - [`car`]: blocks in a file.

pub mod build;
pub mod car;
pub mod codec;
mod leaf;
mod profile;
pub mod unixfs;
pub mod walk;

pub use leaf::LeafKind;
pub use profile::{Profile, UnknownProfile};
