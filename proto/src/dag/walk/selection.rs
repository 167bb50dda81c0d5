//! The blocks that a scope takes in, in the order of a CAR.

use super::scope::{EntityBytes, Scope};
use super::{MAX_DEPTH, WalkError};
use crate::block::{Block, Cid, DAG_PB, Digest, RAW, check_cid};
use crate::dag::codec::{Node, NodeError};
use crate::dag::unixfs::{Directory, Entity, FileNode, Shard};
use std::collections::HashSet;
use std::ops::Range;

/// Blocks that one selection names. A DAG of few blocks can have endlessly many ways through it.
pub const MAX_SELECTED: u64 = 1 << 20;
/// Links that may wait to be followed: five full nodes of the largest block.
const MAX_PENDING: usize = 1 << 18;

/// A walk over what a [`Scope`] takes in of the DAG below a root, depth first, each node's links in their order.
///
/// The driver's loop: take [`Self::next_block`], get it, feed it, and go on. Both ends of a CAR can walk: one to send the
/// blocks, the other to know which block comes next. Memory is the links not yet followed and, without duplicates, a
/// digest for every block named so far.
///
/// A child of a file must be as large as its parent says; nothing else is checked that the scope does not need.
#[derive(Debug)]
pub struct Selection {
    /// Last is next.
    pending: Vec<Part>,
    /// The block that was named last.
    awaited: Option<Part>,
    /// Bytes of the file that are meant, known from the root on.
    range: Range<u64>,
    /// `None` to name a block as often as it is linked.
    named: Option<Named>,
    count: u64,
}

/// What was named already.
#[derive(Debug, Default)]
struct Named {
    /// Whether as a node, because the same bytes may be linked as a raw leaf too.
    blocks: HashSet<(bool, Digest)>,
    /// File nodes, all of whose bytes are meant. One that is met at an edge of the range first is walked once more.
    whole: HashSet<Digest>,
}

/// A block that is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selected {
    /// Its CID.
    pub cid: Cid,
    /// Whether it was named before: then it is wanted for its links only, and is not sent again.
    pub again: bool,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    cid: Cid,
    role: Role,
}

/// What a block is there for.
#[derive(Debug, Clone, Copy)]
enum Role {
    Alone,
    Whole,
    Entity(EntityBytes),
    /// A part of a file, from its parent's view.
    Chunk {
        offset: u64,
        size: u64,
        depth: u8,
    },
    Shard {
        level: u32,
        fanout: u32,
    },
}

impl Selection {
    /// A walk over what `scope` takes in below `root`; with `duplicates`, blocks are named as often as they are linked.
    ///
    /// # Errors
    /// [`WalkError::Root`].
    pub fn new(root: Cid, scope: Scope, duplicates: bool) -> Result<Self, WalkError> {
        check_cid(&root).map_err(|source| WalkError::Root { root, source })?;
        let role = match scope {
            Scope::Block => Role::Alone,
            Scope::Entity(bytes) => Role::Entity(bytes),
            Scope::All => Role::Whole,
        };
        let named = (!duplicates).then(Named::default);
        Ok(Self { pending: vec![Part { cid: root, role }], awaited: None, range: 0..0, named, count: 0 })
    }

    /// The next block, which is to be fed before the one after it; `None` at the end. Blocks of identity CIDs are walked
    /// in passing and never named.
    ///
    /// # Errors
    /// [`WalkError::TooMany`] after [`MAX_SELECTED`] blocks; as [`Self::feed`], for a node in an identity CID.
    pub fn next_block(&mut self) -> Result<Option<Selected>, WalkError> {
        while let Some(part) = self.pending.pop() {
            let Ok(Some(digest)) = Digest::of_cid(&part.cid) else {
                if let Some(inline) = Block::inline(&part.cid) {
                    self.follow(part, &inline)?;
                }
                continue;
            };
            let Some(again) = self.name(&part, digest) else { continue };
            self.count += 1;
            if self.count > MAX_SELECTED {
                return Err(WalkError::TooMany(part.cid));
            }
            self.awaited = Some(part);
            return Ok(Some(Selected { cid: part.cid, again }));
        }
        Ok(None)
    }

    /// Whether the block of `part` was named before; `None` when nothing new is below it either.
    fn name(&mut self, part: &Part, digest: Digest) -> Option<bool> {
        let Some(named) = &mut self.named else { return Some(false) };
        let is_node = part.cid.codec() == DAG_PB;
        let again = !named.blocks.insert((is_node, digest));
        let edge = match part.role {
            Role::Chunk { offset, size, .. } if is_node => {
                let within = offset >= self.range.start && offset + size <= self.range.end;
                let walked = if within { !named.whole.insert(digest) } else { named.whole.contains(&digest) };
                !walked
            }
            _ => false,
        };
        (!again || edge).then_some(again)
    }

    /// Takes the block that was named last, and follows what the scope takes in of its links.
    ///
    /// # Errors
    /// [`WalkError`] when it is not what it should be. The walk is of no use afterwards.
    pub fn feed(&mut self, block: &Block) -> Result<(), WalkError> {
        match self.awaited.take() {
            Some(part) if part.cid.hash() == block.cid().hash() => self.follow(part, block),
            other => {
                self.awaited = other;
                Ok(())
            }
        }
    }

    fn follow(&mut self, Part { cid, role }: Part, block: &Block) -> Result<(), WalkError> {
        let broken = |source| WalkError::Node { cid, source };
        let bytes = block.bytes();
        match role {
            Role::Alone => {}
            Role::Whole => match cid.codec() {
                RAW => {}
                DAG_PB => {
                    let links = Node::decode(bytes).map_err(broken)?.links;
                    self.open(links.iter().rev().map(|link| Part { cid: link.cid, role }));
                }
                // Its links would be left out, and nobody could tell.
                other => return Err(broken(NodeError::Codec(other))),
            },
            Role::Entity(range) => match Entity::decode(&cid, bytes).map_err(broken)? {
                Entity::File(node) => {
                    self.range = range.of(node.size);
                    self.open_file(cid, &node, 0, 0)?;
                }
                Entity::Directory(Directory::Shard(shard)) => self.open_shards(&shard, 1),
                Entity::Directory(Directory::Plain(_)) | Entity::Other => {}
            },
            Role::Chunk { offset, size, depth } => {
                let node = FileNode::decode(&cid, bytes).map_err(broken)?;
                if node.size != size {
                    return Err(WalkError::Size { cid, declared: size, found: node.size });
                }
                self.open_file(cid, &node, offset, depth)?;
            }
            Role::Shard { level, fanout } => match Entity::decode(&cid, bytes).map_err(broken)? {
                _ if (level + 1) * fanout.trailing_zeros() > u64::BITS => {
                    return Err(WalkError::TooDeep(cid));
                }
                Entity::Directory(Directory::Shard(shard)) if shard.fanout() == fanout => {
                    self.open_shards(&shard, level + 1);
                }
                Entity::Directory(Directory::Shard(_)) => {
                    return Err(broken(NodeError::Directory("shards of different fanout")));
                }
                _ => return Err(broken(NodeError::Directory("a shard that is none"))),
            },
        }
        if self.pending.len() > MAX_PENDING { Err(WalkError::TooWide(cid)) } else { Ok(()) }
    }

    /// Opens the children of a file node that hold bytes of the range; with the whole file, all of them.
    fn open_file(&mut self, cid: Cid, node: &FileNode, offset: u64, depth: u8) -> Result<(), WalkError> {
        if node.children.is_empty() || self.range.is_empty() {
            return Ok(());
        }
        if depth == MAX_DEPTH {
            return Err(WalkError::TooDeep(cid));
        }
        if node.size == 0 {
            return Err(WalkError::Node { cid, source: NodeError::File("children, and not a byte in them") });
        }
        let (range, mut end) = (self.range.clone(), offset + node.size);
        let within = offset >= range.start && end <= range.end;
        let parts = node.children.iter().rev().filter_map(|(cid, size)| {
            let offset = end - size;
            let meant = within || (offset < range.end && end > range.start);
            end = offset;
            let role = Role::Chunk { offset, size: *size, depth: depth + 1 };
            meant.then_some(Part { cid: *cid, role })
        });
        self.pending.extend(parts);
        Ok(())
    }

    fn open_shards(&mut self, shard: &Shard, level: u32) {
        let role = Role::Shard { level, fanout: shard.fanout() };
        self.open(shard.shards().rev().map(|cid| Part { cid, role }));
    }

    fn open(&mut self, parts: impl Iterator<Item = Part>) {
        self.pending.extend(parts);
    }
}

#[cfg(test)]
mod tests;
