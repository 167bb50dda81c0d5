//! Blocks whose bytes lie outside the store: the payload of such a record says which part of which tree's NAR the
//! block is made of, and how.
//!
//! ```text
//! part   kind u8 (0 raw, 1 dag-pb) · zero 3 · length u32 · offset u64 · base name of the store path
//! ```
//!
//! Numbers are little-endian. A record so says everything itself: it moves, dies and is found again as any other
//! block's.

use nipfs_proto::block::MAX_BLOCK;
use nipfs_proto::dag::LeafKind;
use nipfs_proto::nix::store_path::StorePath;

/// A part of the NAR of a store path on this machine, and how a block carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) tree: StorePath,
    /// Where it begins in the NAR, in bytes.
    pub(super) offset: u64,
    /// Its bytes, at most [`MAX_BLOCK`]: as many are allocated to read it.
    pub(super) length: u32,
    pub(super) kind: LeafKind,
}

impl Part {
    pub(super) fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            LeafKind::Raw => 0,
            LeafKind::DagPb => 1,
        };
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.extend_from_slice(self.tree.base_name().as_bytes());
        bytes
    }

    /// `None` when the bytes are not a part.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[kind, 0, 0, 0], rest) = bytes.split_first_chunk()? else { return None };
        let (length, rest) = rest.split_first_chunk()?;
        let length = Some(u32::from_le_bytes(*length)).filter(|length| *length as usize <= MAX_BLOCK)?;
        let (offset, name) = rest.split_first_chunk()?;
        let kind = match kind {
            0 => LeafKind::Raw,
            1 => LeafKind::DagPb,
            _ => return None,
        };
        let tree = StorePath::from_base_name(str::from_utf8(name).ok()?).ok()?;
        Some(Self { tree, offset: u64::from_le_bytes(*offset), length, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_survives_the_round_trip_and_garbage_is_none() {
        let tree = StorePath::from_base_name(&format!("{}-name", "0".repeat(32))).unwrap();
        for kind in [LeafKind::Raw, LeafKind::DagPb] {
            let part = Part { tree: tree.clone(), offset: u64::MAX - 1, length: 262_144, kind };
            let bytes = part.encode();
            assert_eq!(Part::decode(&bytes), Some(part));
            (0..bytes.len() - "-name".len()).for_each(|cut| assert_eq!(Part::decode(&bytes[..cut]), None));
            assert_eq!(Part::decode(&[&[2], &bytes[1..]].concat()), None);
            assert_eq!(Part::decode(&[&bytes[..7], &[1], &bytes[8..]].concat()), None, "16 MiB are no block");
            assert_eq!(Part::decode(&[&bytes, &b"/x"[..]].concat()), None);
        }
    }
}
