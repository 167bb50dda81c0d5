//! The protobuf messages of a batch. Field numbers are for ever.

use super::{Bytes, Cid, CidPin, NarHash, NarRecord, PathRecord, StorePath};

pub(super) const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Batch {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) ops: Vec<Op>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) gone: Bytes,
    #[prost(message, optional, tag = "4")]
    pub(super) snapshot: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Part {
    #[prost(bool, tag = "1")]
    pub(super) first: bool,
    #[prost(bool, tag = "2")]
    pub(super) last: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Op {
    #[prost(oneof = "Change", tags = "1, 2, 3, 4, 5, 6")]
    pub(super) change: Option<Change>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Change {
    #[prost(message, tag = "1")]
    PutNar(Nar),
    #[prost(message, tag = "2")]
    PutPath(Path),
    #[prost(string, tag = "3")]
    RemovePath(String),
    #[prost(bytes = "bytes", tag = "4")]
    RemoveNar(Bytes),
    #[prost(message, tag = "5")]
    PutPin(Pin),
    #[prost(bytes = "bytes", tag = "6")]
    RemovePin(Bytes),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Nar {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) nar_hash: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) nar_size: u64,
    #[prost(message, repeated, tag = "3")]
    pub(super) roots: Vec<Root>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Root {
    #[prost(string, tag = "1")]
    pub(super) profile: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) cid: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Path {
    #[prost(string, tag = "1")]
    pub(super) store_path: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) narinfo: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) nar_hash: Bytes,
    #[prost(bool, tag = "4")]
    pub(super) published: bool,
    #[prost(bool, tag = "5")]
    pub(super) pinned: bool,
    #[prost(string, optional, tag = "6")]
    pub(super) mirror: Option<String>,
    #[prost(uint64, tag = "7")]
    pub(super) added_unix: u64,
    #[prost(enumeration = "Keep", tag = "8")]
    pub(super) keep: i32,
    /// In rows of the index, in place of path and narinfo.
    #[prost(message, optional, tag = "9")]
    pub(super) packed: Option<Packed>,
}

/// A narinfo as a frame of zstd with our dictionary.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Packed {
    #[prost(uint32, tag = "1")]
    pub(super) length: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) frame: Bytes,
    /// Here, so that a version which does not know this message finds no path, and makes the index anew.
    #[prost(string, tag = "3")]
    pub(super) store_path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Keep {
    Copy = 0,
    Rooted = 1,
    Weak = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Pin {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) cid: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) added_unix: u64,
}

/// A field that cannot be what it says.
#[derive(Debug)]
pub(super) struct Malformed;

fn hash(bytes: &[u8]) -> Result<NarHash, Malformed> {
    bytes.try_into().map(NarHash).map_err(|_| Malformed)
}

fn cid(bytes: &[u8]) -> Result<Cid, Malformed> {
    Cid::try_from(bytes).map_err(|_| Malformed)
}

impl From<&super::Op> for Change {
    fn from(op: &super::Op) -> Self {
        match op {
            super::Op::PutNar(nar) => Self::PutNar(nar.into()),
            super::Op::PutPath(path) => Self::PutPath(path.into()),
            super::Op::RemovePath(hash) => Self::RemovePath(hash.to_string()),
            super::Op::RemoveNar(hash) => Self::RemoveNar(hash.0.to_vec().into()),
            super::Op::PutPin(pin) => Self::PutPin(pin.into()),
            super::Op::RemovePin(cid) => Self::RemovePin(cid.to_bytes().into()),
        }
    }
}

impl TryFrom<Change> for super::Op {
    type Error = Malformed;

    fn try_from(change: Change) -> Result<Self, Malformed> {
        Ok(match change {
            Change::PutNar(nar) => Self::PutNar(nar.try_into()?),
            Change::PutPath(path) => Self::PutPath(path.try_into()?),
            Change::RemovePath(hash) => Self::RemovePath(hash.parse().map_err(|_| Malformed)?),
            Change::RemoveNar(bytes) => Self::RemoveNar(hash(&bytes)?),
            Change::PutPin(pin) => Self::PutPin(pin.try_into()?),
            Change::RemovePin(bytes) => Self::RemovePin(cid(&bytes)?),
        })
    }
}

impl From<&NarRecord> for Nar {
    fn from(nar: &NarRecord) -> Self {
        let root = |(profile, cid): &(String, Cid)| Root { profile: profile.clone(), cid: cid.to_bytes().into() };
        let roots = nar.roots.iter().map(root).collect();
        Self { nar_hash: nar.nar_hash.0.to_vec().into(), nar_size: nar.nar_size, roots }
    }
}

impl TryFrom<Nar> for NarRecord {
    type Error = Malformed;

    fn try_from(nar: Nar) -> Result<Self, Malformed> {
        let roots = nar.roots.into_iter().map(|root| Ok((root.profile, cid(&root.cid)?)));
        Ok(Self { nar_hash: hash(&nar.nar_hash)?, nar_size: nar.nar_size, roots: roots.collect::<Result<_, _>>()? })
    }
}

impl From<&PathRecord> for Path {
    fn from(path: &PathRecord) -> Self {
        Self {
            store_path: path.store_path.base_name(),
            narinfo: path.narinfo.clone(),
            nar_hash: path.nar_hash.0.to_vec().into(),
            published: path.published,
            pinned: path.pinned,
            mirror: path.mirror.clone(),
            added_unix: path.added_unix,
            keep: match path.keep {
                super::Keep::Copy => Keep::Copy,
                super::Keep::Rooted => Keep::Rooted,
                super::Keep::Weak => Keep::Weak,
            }
            .into(),
            packed: None,
        }
    }
}

impl TryFrom<Path> for PathRecord {
    type Error = Malformed;

    fn try_from(path: Path) -> Result<Self, Malformed> {
        Ok(Self {
            store_path: StorePath::from_base_name(&path.store_path).map_err(|_| Malformed)?,
            narinfo: path.narinfo,
            nar_hash: hash(&path.nar_hash)?,
            published: path.published,
            pinned: path.pinned,
            mirror: path.mirror,
            added_unix: path.added_unix,
            keep: match Keep::try_from(path.keep).map_err(|_| Malformed)? {
                Keep::Copy => super::Keep::Copy,
                Keep::Rooted => super::Keep::Rooted,
                Keep::Weak => super::Keep::Weak,
            },
        })
    }
}

impl From<&CidPin> for Pin {
    fn from(pin: &CidPin) -> Self {
        Self { cid: pin.cid.to_bytes().into(), added_unix: pin.added_unix }
    }
}

impl TryFrom<Pin> for CidPin {
    type Error = Malformed;

    fn try_from(pin: Pin) -> Result<Self, Malformed> {
        Ok(Self { cid: cid(&pin.cid)?, added_unix: pin.added_unix })
    }
}
