//! UnixFS: what a block means as a part of a file.
//!
//! Follows <https://specs.ipfs.tech/unixfs/>; the schema is in `schema/unixfs.proto`. A file is a raw block,
//! or a dag-pb node of type File (or the deprecated Raw) whose bytes are its own data followed by its
//! children in order. Checked here, for one node: the type is there, as many `blocksizes` as links,
//! links without names, `filesize` equal to data plus `blocksizes`. Whether a child is as large as its parent
//! says is the walk's to check. `Tsize` is never looked at.
//!
//! A NAR is one file; directories are there to be walked down by name: others' content that is pinned here, and the index of
//! what is published.

mod directory;
mod murmur3;

pub use directory::{Directory, Lookup, Shard, directory_node};

use super::codec::{Link, Node, NodeError, put_varint};
use crate::block::{Cid, DAG_PB, RAW};
use bytes::Bytes;
use prost::Message;

/// A block as a file: its own bytes, then those of its children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNode {
    /// Bytes of the file in this block; they come before the children's.
    pub data: Bytes,
    /// The children in order, each with the bytes of the file below it.
    pub children: Vec<(Cid, u64)>,
    /// Bytes of the file in this block and below: `data` plus all children.
    pub size: u64,
}

/// A block as what it means by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entity {
    /// A file, or a part of one.
    File(FileNode),
    /// A directory, or a shard of one.
    Directory(Directory),
    /// Anything else: a symbolic link, a dag-pb node that is not UnixFS, a block of another codec.
    Other,
}

impl Entity {
    /// Reads the block `cid`.
    ///
    /// # Errors
    /// [`NodeError`] when a dag-pb block is not one, or breaks a rule of what it says it is.
    pub fn decode(cid: &Cid, block: &Bytes) -> Result<Self, NodeError> {
        if cid.codec() != DAG_PB {
            return if cid.codec() == RAW { FileNode::decode(cid, block).map(Self::File) } else { Ok(Self::Other) };
        }
        let node = Node::decode(block)?;
        let Some(Ok(data)) = node.data.clone().map(Data::decode) else { return Ok(Self::Other) };
        match data.kind.map(DataType::try_from) {
            Some(Ok(DataType::File | DataType::Raw)) => FileNode::from_node(node).map(Self::File),
            Some(Ok(DataType::Directory)) => Ok(Self::Directory(Directory::Plain(node.links))),
            Some(Ok(DataType::HamtShard)) => Shard::new(&data, node.links).map(Directory::Shard).map(Self::Directory),
            _ => Ok(Self::Other),
        }
    }
}

/// The message in the data of a dag-pb node.
#[derive(Clone, PartialEq, Message)]
struct Data {
    /// Required, but checked by hand: prost would read a missing one as 0.
    #[prost(enumeration = "DataType", optional, tag = "1")]
    kind: Option<i32>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    data: Option<Bytes>,
    #[prost(uint64, optional, tag = "3")]
    filesize: Option<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    blocksizes: Vec<u64>,
    #[prost(uint64, optional, tag = "5")]
    hash_type: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    fanout: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum DataType {
    Raw = 0,
    Directory = 1,
    File = 2,
    Metadata = 3,
    Symlink = 4,
    HamtShard = 5,
}

impl FileNode {
    /// Reads the block `cid` as a part of a file; `data` shares its memory.
    ///
    /// # Errors
    /// [`NodeError`]; a directory, a symbolic link or another codec is named as such.
    pub fn decode(cid: &Cid, block: &Bytes) -> Result<Self, NodeError> {
        check_codec(cid)?;
        if cid.codec() == DAG_PB {
            return Self::from_node(Node::decode(block)?);
        }
        Ok(Self { data: block.clone(), children: Vec::new(), size: block.len() as u64 })
    }

    fn from_node(node: Node) -> Result<Self, NodeError> {
        let data = node.data.ok_or(NodeError::File("a node without data"))?;
        let data = Data::decode(data).map_err(NodeError::Unixfs)?;
        let kind = data.kind.ok_or(NodeError::File("the type is missing"))?;
        match DataType::try_from(kind) {
            Ok(DataType::File | DataType::Raw) => {}
            Ok(DataType::Directory) => return Err(NodeError::NotAFile("directory")),
            Ok(DataType::HamtShard) => return Err(NodeError::NotAFile("sharded directory")),
            Ok(DataType::Symlink) => return Err(NodeError::NotAFile("symbolic link")),
            Ok(DataType::Metadata) => return Err(NodeError::NotAFile("metadata node")),
            Err(_) => return Err(NodeError::File("unknown type")),
        }
        if data.blocksizes.len() != node.links.len() {
            return Err(NodeError::File("the number of blocksizes is not the number of links"));
        }
        let named = |link: &Link| link.name.as_ref().is_some_and(|name| !name.is_empty());
        if node.links.iter().any(named) {
            return Err(NodeError::File("a link has a name"));
        }
        let bytes = data.data.unwrap_or_default();
        let size = data.blocksizes.iter().try_fold(bytes.len() as u64, |sum, size| sum.checked_add(*size));
        if size != Some(data.filesize.unwrap_or(0)) {
            return Err(NodeError::File("filesize is not the sum of data and blocksizes"));
        }
        node.links.iter().try_for_each(|link| check_codec(&link.cid))?;
        let children = node.links.iter().map(|link| link.cid).zip(data.blocksizes).collect();
        Ok(Self { data: bytes, children, size: data.filesize.unwrap_or(0) })
    }
}

/// Refuses a block that cannot be a part of a file by its codec alone, before anybody fetches it.
pub(super) fn check_codec(cid: &Cid) -> Result<(), NodeError> {
    match cid.codec() {
        RAW | DAG_PB => Ok(()),
        other => Err(NodeError::Codec(other)),
    }
}

/// A child to be linked by [`inner_node`].
#[derive(Debug, Clone)]
pub(super) struct Child {
    pub(super) cid: Cid,
    /// Bytes of the file in it and below.
    pub(super) size: u64,
    /// Bytes of its block and all blocks below.
    pub(super) tsize: u64,
}

/// The dag-pb node of a file that is the concatenation of `children`, as Kubo writes it.
pub(super) fn inner_node(children: &[Child]) -> Bytes {
    let data = Data {
        kind: Some(DataType::File.into()),
        data: None,
        filesize: Some(children.iter().map(|child| child.size).sum()),
        blocksizes: children.iter().map(|child| child.size).collect(),
        ..Data::default()
    };
    // The specification would leave the name out; Kubo writes an empty one, and the CID depends on it.
    let link = |child: &Child| Link { cid: child.cid, name: Some(String::new()), tsize: Some(child.tsize) };
    Node { links: children.iter().map(link).collect(), data: Some(data.encode_to_vec().into()) }.encode().into()
}

/// Room that [`leaf_node`] wants before the bytes of the file: two tags with lengths, and the type.
pub(super) const LEAF_HEAD: usize = 1 + 5 + 2 + 1 + 5;
/// Room that [`leaf_node`] wants after them: the file size.
pub(super) const LEAF_TAIL: usize = 1 + 5;

/// The dag-pb leaf of the bytes after [`LEAF_HEAD`] in `buffer`, which are not moved. They must be fewer than 2³².
pub(super) fn leaf_node(mut buffer: Vec<u8>) -> Bytes {
    let size = buffer.len() - LEAF_HEAD;
    let mut tail = vec![0x18];
    put_varint(&mut tail, size as u64);
    let mut kind = vec![0x08, 0x02];
    if size > 0 {
        kind.push(0x12);
        put_varint(&mut kind, size as u64);
    }
    let mut head = vec![0x0a];
    put_varint(&mut head, (kind.len() + size + tail.len()) as u64);
    head.append(&mut kind);

    let start = LEAF_HEAD - head.len();
    buffer[start..LEAF_HEAD].copy_from_slice(&head);
    buffer.append(&mut tail);
    Bytes::from(buffer).slice(start..)
}

#[cfg(test)]
mod tests;
