//! DAG-PB: nodes of links and data.
//!
//! Follows <https://ipld.io/specs/codecs/dag-pb/spec/>; the schema is in `schema/dag-pb.proto`. Decoding is
//! strict where the specification asks for it: link fields in order, nothing twice, no unknown field,
//! `Hash` present and a CID, links not on both sides of the data. Data is accepted before or after
//! the links, and links keep the order they have. Encoding is canonical: links sorted by name, then data.
//!
//! Links to CIDs that [`crate::block::check_cid`] refuses are refused here: nothing could verify what
//! they point to. Nothing is allocated from a length field, and decoding is linear in the block.

use crate::block::{Cid, CidError, read_cid};
use bytes::Bytes;
use std::ops::Range;

const NODE_DATA: u64 = 0x0a;
const NODE_LINK: u64 = 0x12;
const LINK_HASH: u64 = 0x0a;
const LINK_NAME: u64 = 0x12;
const LINK_TSIZE: u64 = 0x18;

/// A dag-pb node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The links, in the order of the block.
    pub links: Vec<Link>,
    /// The data; absent and empty are different nodes.
    pub data: Option<Bytes>,
}

/// A link of a [`Node`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The target.
    pub cid: Cid,
    /// The name; absent and empty encode differently.
    pub name: Option<String>,
    /// Bytes of the target's block and all below it, as the writer claims: a hint, never trusted.
    pub tsize: Option<u64>,
}

/// Why bytes are not the node they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The bytes break the dag-pb format.
    #[error("not dag-pb: {why} at byte {offset}")]
    Malformed {
        /// Offset in the block, in bytes.
        offset: usize,
        /// The rule that is broken.
        why: &'static str,
    },
    /// A link's target is refused.
    #[error("link {index} cannot be followed")]
    Link {
        /// Index of the link, from 0.
        index: usize,
        /// Why.
        #[source]
        source: CidError,
    },
    /// The data is not a UnixFS message.
    #[error("the data is not UnixFS")]
    Unixfs(#[source] prost::DecodeError),
    /// The node breaks a rule of UnixFS files.
    #[error("not a valid UnixFS file: {0}")]
    File(&'static str),
    /// The node breaks a rule of UnixFS directories.
    #[error("not a valid UnixFS directory: {0}")]
    Directory(&'static str),
    /// A UnixFS node of another type.
    #[error("a {0}, not a file")]
    NotAFile(&'static str),
    /// A codec that files are not made of, and whose links are not known here.
    #[error("blocks of codec 0x{0:x} are not understood (only raw and dag-pb are)")]
    Codec(u64),
}

impl Node {
    /// Decodes a block; the data shares its memory.
    ///
    /// # Errors
    /// [`NodeError::Malformed`] and [`NodeError::Link`].
    pub fn decode(block: &Bytes) -> Result<Self, NodeError> {
        let mut fields = Fields { bytes: block, at: 0 };
        let mut node = Self::default();
        let mut links_ended = false;
        while !fields.is_empty() {
            match fields.varint()? {
                NODE_DATA if node.data.is_some() => return Err(fields.broken("data twice")),
                NODE_DATA => {
                    node.data = Some(block.slice(fields.delimited()?));
                    links_ended = !node.links.is_empty();
                }
                NODE_LINK if links_ended => return Err(fields.broken("links before and after the data")),
                NODE_LINK => {
                    let Range { start, end } = fields.delimited()?;
                    let link = Fields { bytes: &block[..end], at: start };
                    node.links.push(Link::decode(link, node.links.len())?);
                }
                _ => return Err(fields.broken("unknown field of a node")),
            }
        }
        Ok(node)
    }

    /// Encodes the node: links sorted by name, those with equal names in the order they have.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut links: Vec<&Link> = self.links.iter().collect();
        links.sort_by_key(|link| link.name.as_deref().unwrap_or_default());
        let (mut out, mut scratch) = (Vec::new(), Vec::new());
        for link in links {
            scratch.clear();
            link.encode(&mut scratch);
            put_delimited(&mut out, NODE_LINK, &scratch);
        }
        if let Some(data) = &self.data {
            put_delimited(&mut out, NODE_DATA, data);
        }
        out
    }
}

impl Link {
    fn decode(mut fields: Fields<'_>, index: usize) -> Result<Self, NodeError> {
        let (mut cid, mut name, mut tsize) = (None, None, None);
        let mut last = 0;
        while !fields.is_empty() {
            let field = fields.varint()?;
            if field <= last {
                return Err(fields.broken("link field twice or out of order"));
            }
            last = field;
            match field {
                LINK_HASH => {
                    let hash = &fields.bytes[fields.delimited()?];
                    cid = Some(read_cid(hash).map_err(|source| NodeError::Link { index, source })?);
                }
                LINK_NAME => {
                    let text = fields.bytes[fields.delimited()?].to_vec();
                    name = Some(String::from_utf8(text).map_err(|_| fields.broken("link name that is not UTF-8"))?);
                }
                LINK_TSIZE => tsize = Some(fields.varint()?),
                _ => return Err(fields.broken("unknown field of a link")),
            }
        }
        let cid = cid.ok_or_else(|| fields.broken("link without a hash"))?;
        Ok(Self { cid, name, tsize })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_delimited(out, LINK_HASH, &self.cid.to_bytes());
        if let Some(name) = &self.name {
            put_delimited(out, LINK_NAME, name.as_bytes());
        }
        if let Some(tsize) = self.tsize {
            put_varint(out, LINK_TSIZE);
            put_varint(out, tsize);
        }
    }
}

/// Protobuf fields of a part of a block. Offsets are the block's, also within a link.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn broken(&self, why: &'static str) -> NodeError {
        NodeError::Malformed { offset: self.at, why }
    }

    /// A protobuf varint: at most ten bytes, not necessarily minimal.
    fn varint(&mut self) -> Result<u64, NodeError> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or_else(|| self.broken("unexpected end"))?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                break;
            }
            value |= bits << shift;
            self.at += 1;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.broken("number over 64 bits"))
    }

    /// Where the bytes of a length-delimited field lie.
    fn delimited(&mut self) -> Result<Range<usize>, NodeError> {
        let length = self.varint()?;
        let left = self.bytes.len() - self.at;
        let length = usize::try_from(length).ok().filter(|length| *length <= left);
        let start = self.at;
        self.at += length.ok_or_else(|| self.broken("length beyond the end"))?;
        Ok(start..self.at)
    }
}

fn put_delimited(out: &mut Vec<u8>, tag: u64, bytes: &[u8]) {
    put_varint(out, tag);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(unsigned_varint::encode::u64(value, &mut unsigned_varint::encode::u64_buffer()));
}

#[cfg(test)]
mod tests;
