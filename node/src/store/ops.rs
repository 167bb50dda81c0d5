//! What is recorded beside blocks, and how a batch of changes is written.
//!
//! A batch record's payload is one protobuf message: fields may be added later, and an unknown kind of
//! change (from a newer nipfs) is seen as such instead of being skipped in silence.

mod packed;
mod wire;

use super::StoreError;
use super::record::MAX_BATCH;
use bytes::Bytes;
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::store_path::{StorePath, StorePathHash};
use prost::Message;
use serde::{Deserialize, Serialize};

/// A NAR that the store can give out, and the roots of the DAGs that hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarRecord {
    /// The hash of the NAR: its key in the store.
    pub nar_hash: NarHash,
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// Profile name and root CID; one root for each profile.
    pub roots: Vec<(String, Cid)>,
}

impl NarRecord {
    /// Takes over the roots of `newer`; a profile that both have follows `newer`.
    pub(super) fn merge(&mut self, newer: Self) {
        self.roots.retain(|(profile, _)| newer.roots.iter().all(|(other, _)| other != profile));
        self.roots.extend(newer.roots);
        self.roots.sort();
    }
}

/// Where the blocks of a path lie that are parts of its NAR, and what happens to the path when they go from there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// In the packs.
    #[default]
    Copy,
    /// In the tree of the path on this machine, which a GC root of Nix's keeps while the path is pinned.
    Rooted,
    /// In the tree of the path on this machine. When Nix deletes that, the path goes from here too.
    Weak,
}

/// A store path of the cache: its narinfo and what holds it here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRecord {
    /// The path; its hash part is the key in the store.
    pub store_path: StorePath,
    /// The narinfo as it is answered.
    pub narinfo: Bytes,
    /// The hash of the path's NAR.
    pub nar_hash: NarHash,
    /// Everybody may see it.
    pub published: bool,
    /// GC keeps it.
    pub pinned: bool,
    /// Address of a mirror that has proved to hold it. With `pinned` off, GC then drops the blocks only.
    pub mirror: Option<String>,
    /// When it was added, in seconds since 1970.
    pub added_unix: u64,
    /// Where its blocks lie. [`Keep::Copy`] when it is not pinned.
    pub keep: Keep,
}

impl PathRecord {
    /// Whether it was fetched and everybody may see it, as long as it happens to be here.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.published && !self.pinned && self.mirror.is_none()
    }

    /// Whether its blocks may be absent: they are left to a mirror.
    pub(super) fn is_remote(&self) -> bool {
        self.mirror.is_some() && !self.pinned
    }
}

/// A DAG that is kept and published for its own sake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidPin {
    /// The root.
    pub cid: Cid,
    /// When it was added, in seconds since 1970.
    pub added_unix: u64,
}

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Records a NAR; its roots join those that are recorded already.
    PutNar(NarRecord),
    /// Records a path in place of what was recorded for it. Its NAR must be on record or in the same commit.
    PutPath(PathRecord),
    /// Forgets the path with this hash part.
    RemovePath(StorePathHash),
    /// Forgets a NAR by its hash. GC does this for a NAR that no path refers to.
    RemoveNar(NarHash),
    /// Pins and publishes a DAG.
    PutPin(CidPin),
    /// Removes a pin.
    RemovePin(Cid),
}

/// A block that GC deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) digest: Digest,
    pub(super) segment: u32,
    pub(super) offset: u32,
}

const GONE_BYTES: usize = 40;

/// Where a batch stands in a snapshot of all metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SnapshotPart {
    pub(super) first: bool,
    pub(super) last: bool,
}

/// Changes that happen together, in one record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) ops: Vec<Op>,
    pub(super) gone: Vec<Gone>,
    /// The ops repeat what is on record; after the last part, nothing else is.
    pub(super) snapshot: Option<SnapshotPart>,
}

impl Batch {
    pub(super) fn of(ops: Vec<Op>) -> Self {
        Self { ops, ..Self::default() }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let mut gone = Vec::with_capacity(self.gone.len() * GONE_BYTES);
        for block in &self.gone {
            gone.extend_from_slice(&block.digest.0);
            gone.extend_from_slice(&block.segment.to_le_bytes());
            gone.extend_from_slice(&block.offset.to_le_bytes());
        }
        let snapshot = self.snapshot.map(|part| wire::Part { first: part.first, last: part.last });
        let ops = self.ops.iter().map(|op| wire::Op { change: Some(op.into()) }).collect();
        let bytes = wire::Batch { version: wire::VERSION, ops, gone: gone.into(), snapshot }.encode_to_vec();
        if bytes.len() > MAX_BATCH { Err(StoreError::CommitTooLarge(bytes.len())) } else { Ok(bytes) }
    }

    /// `None` when the bytes are not a batch that this version knows.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let batch = wire::Batch::decode(bytes).ok().filter(|b| b.version == wire::VERSION)?;
        let (gone, rest) = batch.gone.as_chunks::<GONE_BYTES>();
        let gone = gone.iter().map(|bytes| {
            let (digest, place) = bytes.split_at(32);
            let (segment, offset) = place.split_at(4);
            let digest = Digest(digest.try_into().ok()?);
            let segment = u32::from_le_bytes(segment.try_into().ok()?);
            Some(Gone { digest, segment, offset: u32::from_le_bytes(offset.try_into().ok()?) })
        });
        let gone = gone.collect::<Option<Vec<_>>>().filter(|_| rest.is_empty())?;
        let ops = batch.ops.into_iter().map(|op| op.change.and_then(|change| change.try_into().ok()));
        let snapshot = batch.snapshot.map(|part| SnapshotPart { first: part.first, last: part.last });
        Some(Self { ops: ops.collect::<Option<Vec<_>>>()?, gone, snapshot })
    }
}

/// A record as the bytes of an index row.
pub(super) trait Row: Sized {
    fn to_row(&self) -> Vec<u8>;
    fn from_row(bytes: &[u8]) -> Option<Self>;
}

macro_rules! row {
    ($record:ty, $wire:ty) => {
        impl Row for $record {
            fn to_row(&self) -> Vec<u8> {
                <$wire>::from(self).encode_to_vec()
            }

            fn from_row(bytes: &[u8]) -> Option<Self> {
                <$wire>::decode(bytes).ok()?.try_into().ok()
            }
        }
    };
}
row!(NarRecord, wire::Nar);
row!(CidPin, wire::Pin);

/// A narinfo is most of a path's row, and half of it is names of fields and the same hash again.
impl Row for PathRecord {
    fn to_row(&self) -> Vec<u8> {
        let mut path = wire::Path::from(self);
        if let Some(packed) = packed::pack(&path.narinfo) {
            path.narinfo.clear();
            path.packed = Some(wire::Packed { store_path: std::mem::take(&mut path.store_path), ..packed });
        }
        path.encode_to_vec()
    }

    fn from_row(bytes: &[u8]) -> Option<Self> {
        let mut path = wire::Path::decode(bytes).ok()?;
        if let Some(packed) = path.packed.take() {
            path.narinfo = packed::unpack(&packed)?;
            path.store_path = packed.store_path;
        }
        path.try_into().ok()
    }
}
