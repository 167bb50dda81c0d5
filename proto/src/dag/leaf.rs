//! Leaves: a part of a file as a block, and back.
//!
//! A block that is only an envelope around a part of a file need not be stored where the file is: its bytes are made
//! again from the part.

use super::unixfs::{FileNode, LEAF_HEAD, LEAF_TAIL, leaf_node};
use crate::block::{Block, DAG_PB};
use bytes::Bytes;

/// How a leaf carries its part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeafKind {
    /// The part as it is.
    Raw,
    /// The dag-pb node of a UnixFS file without children.
    DagPb,
}

impl LeafKind {
    /// The kind of a leaf, and its part of the file. `None` for a node with children, and for a leaf that
    /// [`Self::wrap`] would not make again byte for byte.
    #[must_use]
    pub fn of(block: &Block) -> Option<(Self, Bytes)> {
        let kind = if block.cid().codec() == DAG_PB { Self::DagPb } else { Self::Raw };
        let node = FileNode::decode(block.cid(), block.bytes()).ok()?;
        let same = node.children.is_empty() && kind.wrap(&node.data) == block.bytes();
        same.then_some((kind, node.data))
    }

    /// The bytes of the leaf that carries `part`, which must be shorter than 2³² bytes.
    #[must_use]
    pub fn wrap(self, part: &[u8]) -> Bytes {
        match self {
            Self::Raw => Bytes::copy_from_slice(part),
            Self::DagPb => {
                let mut buffer = Vec::with_capacity(LEAF_HEAD + part.len() + LEAF_TAIL);
                buffer.resize(LEAF_HEAD, 0);
                buffer.extend_from_slice(part);
                leaf_node(buffer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::RAW;
    use crate::dag::Profile;
    use crate::dag::build::Builder;
    use std::convert::Infallible;

    #[test]
    fn the_parts_of_all_leaves_are_the_file_and_make_the_leaves_again() {
        let file: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        for profile in [Profile::UnixfsV0_2015, Profile::UnixfsV1_2025] {
            let mut blocks = Vec::new();
            let mut keep = |block| {
                blocks.push(block);
                Ok::<_, Infallible>(())
            };
            let mut builder = Builder::new(profile);
            builder.write(&file, &mut keep).unwrap();
            builder.finish(&mut keep).unwrap();
            let mut parts = Vec::new();
            for block in &blocks {
                if let Some((kind, part)) = LeafKind::of(block) {
                    assert_eq!(kind.wrap(&part), block.bytes());
                    parts.extend_from_slice(&part);
                }
            }
            assert_eq!(parts, file, "{profile}");
        }
    }

    #[test]
    fn leaves_that_others_encode_in_another_way_are_none() {
        let dag_pb = |bytes: &'static [u8]| Block::v1(DAG_PB, Bytes::from_static(bytes)).unwrap();
        let ours = Block::v0(LeafKind::DagPb.wrap(b"hi")).unwrap();
        assert_eq!(LeafKind::of(&ours), Some((LeafKind::DagPb, Bytes::from_static(b"hi"))));
        // The type Raw instead of File; no UnixFS at all.
        assert_eq!(LeafKind::of(&dag_pb(b"\x0a\x08\x08\x00\x12\x02hi\x18\x02")), None);
        assert_eq!(LeafKind::of(&dag_pb(b"\x0a\x02hi")), None);
        let raw = Block::v1(RAW, Bytes::from_static(b"hi")).unwrap();
        assert_eq!(LeafKind::of(&raw), Some((LeafKind::Raw, Bytes::from_static(b"hi"))));
    }
}
