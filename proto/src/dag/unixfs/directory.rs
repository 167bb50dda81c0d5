//! UnixFS directories: which block a name leads to, and the node of a plain one.
//!
//! A directory is one node whose links are its entries, or a tree of shards (a HAMT): a shard's links are named by
//! the next bits of the entry's hashed name as hex digits, followed by the entry's name, or by nothing where another
//! shard is below. What the specification asks of a shard is checked when it is read; that all shards of a
//! directory have the same fanout, and are not more than the hash has bits for, is the walk's to check.

use super::{Data, DataType, murmur3};
use crate::block::Cid;
use crate::dag::codec::{Link, Node, NodeError};
use bytes::Bytes;
use prost::Message as _;

/// Links that a shard may have at most (IPFS UnixFS spec).
const MAX_FANOUT: u64 = 1024;
/// Multicodec of the hash that names are spread by.
const MURMUR3_X64_64: u64 = 0x22;

/// A directory, or a shard of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// The links are the entries.
    Plain(Vec<Link>),
    /// One node of a sharded directory.
    Shard(Shard),
}

/// One node of a sharded directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    links: Vec<Link>,
    /// Bits of the hash that this level takes.
    bits: u32,
}

/// Where a name leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// To this entry.
    Entry(Cid),
    /// On to this shard.
    Shard(Cid),
    /// Nowhere.
    Absent,
}

/// The dag-pb node of a directory with these entries, in the order of their names. Each has a name, and no two the same.
#[must_use]
pub fn directory_node(entries: Vec<Link>) -> Bytes {
    let data = Data { kind: Some(DataType::Directory.into()), ..Data::default() };
    Node { links: entries, data: Some(data.encode_to_vec().into()) }.encode().into()
}

impl Directory {
    /// Looks for `name`; a shard is the `level`th from the top, which is 0. Below the levels that the hash has bits for
    /// there is nothing.
    #[must_use]
    pub fn look_up(&self, name: &str, level: u32) -> Lookup {
        match self {
            Self::Plain(links) => {
                let link = links.iter().find(|link| link.name.as_deref() == Some(name));
                link.map_or(Lookup::Absent, |link| Lookup::Entry(link.cid))
            }
            Self::Shard(shard) => shard.look_up(name, level),
        }
    }
}

impl Shard {
    pub(super) fn new(data: &Data, links: Vec<Link>) -> Result<Self, NodeError> {
        let fanout = data.fanout.unwrap_or(0);
        if !fanout.is_power_of_two() || !(8..=MAX_FANOUT).contains(&fanout) {
            return Err(NodeError::Directory("the fanout of a shard is no power of two from 8 to 1024"));
        }
        if data.hash_type != Some(MURMUR3_X64_64) {
            return Err(NodeError::Directory("a shard by another hash than murmur3-x64-64"));
        }
        if data.data.as_ref().is_some_and(|bits| bits.len() as u64 > fanout / 8) {
            return Err(NodeError::Directory("the bitfield of a shard is longer than its fanout"));
        }
        let shard = Self { links, bits: fanout.trailing_zeros() };
        let digits = shard.digits();
        let short = |link: &Link| link.name.as_ref().is_none_or(|name| !name.is_char_boundary(digits));
        if shard.links.iter().any(short) {
            return Err(NodeError::Directory("a link of a shard without its digits"));
        }
        Ok(shard)
    }

    /// Links that it may have: the same for all shards of a directory.
    #[must_use]
    pub fn fanout(&self) -> u32 {
        1 << self.bits
    }

    /// The shards right below, in order.
    pub fn shards(&self) -> impl DoubleEndedIterator<Item = Cid> {
        let digits = self.digits();
        let is_shard = move |link: &&Link| link.name.as_ref().is_some_and(|name| name.len() == digits);
        self.links.iter().filter(is_shard).map(|link| link.cid)
    }

    fn look_up(&self, name: &str, level: u32) -> Lookup {
        let Some(left) = u64::BITS.checked_sub(level.saturating_add(1).saturating_mul(self.bits)) else {
            return Lookup::Absent;
        };
        let hash = murmur3::murmur3_x64_64(name.as_bytes());
        let place = (hash >> left) & ((1 << self.bits) - 1);
        let digits = self.digits();
        let prefix = format!("{place:0digits$X}");
        for link in &self.links {
            match link.name.as_deref().and_then(|full| full.strip_prefix(&prefix)) {
                Some("") => return Lookup::Shard(link.cid),
                Some(rest) if rest == name => return Lookup::Entry(link.cid),
                _ => {}
            }
        }
        Lookup::Absent
    }

    /// Hex digits before the names of links: those of the highest index.
    fn digits(&self) -> usize {
        self.bits.div_ceil(4) as usize
    }
}
