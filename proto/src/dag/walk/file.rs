//! Reading a UnixFS file in order.

use super::WalkError;
use crate::block::{Block, Cid, MAX_BLOCK, check_cid};
use crate::dag::codec::NodeError;
use crate::dag::unixfs::{FileNode, check_codec};
use bytes::Bytes;
use std::ops::Range;

/// Levels of nodes below the root that a file may have. Kubo's 174 links a node reach 10¹⁷ leaves in 8.
pub const MAX_DEPTH: u8 = 64;
/// Links that may be open at once: the unread ones of all nodes between the root and the reader. One
/// block of 2 MiB has fewer.
pub const MAX_OPEN: usize = 1 << 16;
/// Open links ahead of the reader that are looked at.
const MAX_AHEAD: usize = 1024;

/// A walk over the bytes of a UnixFS file, or of a range of it, in order.
///
/// The driver's loop: while its window has room, start to fetch what [`Self::upcoming`] names; feed each block
/// that arrives, in any order; take [`Self::next_bytes`] until it has none; end when [`Self::is_done`].
///
/// The blocks that were fed and not read yet are the driver's window. Beside them the walk holds one
/// node's links for each level, at most [`MAX_OPEN`]. Each block is checked against the size that its parent
/// declares, so nothing beyond the root's size comes out. A child of no bytes must be a leaf: a tree of them would be
/// endless work for nothing.
#[derive(Debug)]
pub struct FileWalk {
    /// What lies ahead, disjoint and complete; last is next.
    open: Vec<Part>,
    range: Range<u64>,
    /// Bytes of the file before this are read, or before the range.
    position: u64,
    size: Option<u64>,
}

/// A part of the file that was not read yet.
#[derive(Debug)]
struct Part {
    /// Offset in the file, in bytes.
    offset: u64,
    depth: u8,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A block that is to come, and the bytes of the file in it and below; only the root's are not known.
    Wanted(Cid, Option<u64>),
    Bytes(Bytes),
}

impl FileWalk {
    /// A walk over the bytes of `range` of the file `root`; `0..u64::MAX` is all of it. What the range has
    /// beyond the end of the file is ignored.
    ///
    /// # Errors
    /// [`WalkError`] when the root's CID is refused, or is an identity CID of a bad node.
    pub fn new(root: Cid, range: Range<u64>) -> Result<Self, WalkError> {
        check_cid(&root).map_err(|source| WalkError::Root { root, source })?;
        check_codec(&root).map_err(|source| WalkError::Node { cid: root, source })?;
        let whole = Part { offset: 0, depth: 0, content: Content::Wanted(root, None) };
        let mut walk = Self { open: vec![whole], position: range.start, range, size: None };
        walk.open_inline(0..1)?;
        Ok(walk)
    }

    /// Bytes of the whole file, whatever the range; known once the root was fed.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether all bytes of the range came out.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// The next bytes in order, if their block was fed. Never empty.
    pub fn next_bytes(&mut self) -> Option<Bytes> {
        let Content::Bytes(_) = self.open.last()?.content else { return None };
        let Some(Part { offset, content: Content::Bytes(bytes), .. }) = self.open.pop() else { return None };
        self.position = offset + bytes.len() as u64;
        Some(bytes)
    }

    /// The CIDs that are wanted next, in read order: of leaves and inner nodes that begin less than `window` bytes
    /// of the file after the reader, always the first, and each as often as it occurs. With each comes an estimate
    /// of its block's bytes: those of the file in it and below, by its parent, and at most [`MAX_BLOCK`].
    pub fn upcoming(&self, window: u64) -> impl Iterator<Item = (Cid, u64)> {
        let end = self.position.saturating_add(window);
        let ahead = self.open.iter().rev().take(self.ahead());
        ahead.enumerate().take_while(move |(index, part)| *index == 0 || part.offset < end).filter_map(|(_, part)| {
            let Content::Wanted(cid, size) = &part.content else { return None };
            Some((*cid, size.map_or(MAX_BLOCK as u64, |size| size.min(MAX_BLOCK as u64))))
        })
    }

    /// Where in the file the block `cid` is wanted first, in bytes; `None` when it is not, or too far ahead.
    #[must_use]
    pub fn offset_of(&self, cid: &Cid) -> Option<u64> {
        let mut ahead = self.open.iter().rev().take(self.ahead());
        let part = ahead.find(|part| matches!(&part.content, Content::Wanted(wanted, _) if wanted == cid))?;
        Some(part.offset.max(self.range.start))
    }

    /// Takes `block` wherever it is among the open links ahead: a leaf at each place where it occurs, a node at the
    /// first. Blocks are matched by multihash, so the block's own CID may be of another version or codec. Returns
    /// whether it was wanted; a block that was not is forgotten.
    ///
    /// # Errors
    /// [`WalkError`] when the block is not a part of a file, not of the declared size, or the file goes too deep or
    /// too wide. The walk is of no use afterwards.
    pub fn feed(&mut self, block: &Block) -> Result<bool, WalkError> {
        let mut wanted = false;
        for index in (self.open.len() - self.ahead()..self.open.len()).rev() {
            let Content::Wanted(cid, declared) = self.open[index].content else { continue };
            if cid.hash() != block.cid().hash() {
                continue;
            }
            wanted = true;
            let opened = self.replace(index, cid, declared, block.bytes())?;
            self.open_inline(index..index + opened)?;
            // A node that occurs many times over would multiply here.
            let is_leaf = opened == 1 && matches!(self.open.get(index), Some(Part { content: Content::Bytes(_), .. }));
            if !is_leaf {
                break;
            }
        }
        Ok(wanted)
    }

    /// Puts what `block` holds of the range in the place of the wanted part at `index`; returns the number of parts.
    fn replace(&mut self, index: usize, cid: Cid, declared: Option<u64>, block: &Bytes) -> Result<usize, WalkError> {
        let Part { offset, depth, .. } = self.open[index];
        let node = FileNode::decode(&cid, block).map_err(|source| WalkError::Node { cid, source })?;
        match declared {
            Some(declared) if declared != node.size => {
                return Err(WalkError::Size { cid, declared, found: node.size });
            }
            Some(_) => {}
            None => self.size = Some(node.size),
        }
        if !node.children.is_empty() {
            if depth == MAX_DEPTH {
                return Err(WalkError::TooDeep(cid));
            }
            if node.size == 0 {
                return Err(WalkError::Node { cid, source: NodeError::File("children, and not a byte in them") });
            }
        }
        let mut parts: Vec<Part> = self.trim(offset, depth, &node.data).into_iter().collect();
        let mut at = offset + node.data.len() as u64;
        for (cid, size) in node.children {
            if at < self.range.end && (at + size > self.range.start || at == self.range.start) {
                parts.push(Part { offset: at, depth: depth + 1, content: Content::Wanted(cid, Some(size)) });
            }
            at += size;
        }
        if self.open.len() + parts.len() > MAX_OPEN {
            return Err(WalkError::TooWide(cid));
        }
        let opened = parts.len();
        self.open.splice(index..=index, parts.into_iter().rev());
        Ok(opened)
    }

    /// What the range has of `data`, which begins at `offset`.
    fn trim(&self, offset: u64, depth: u8, data: &Bytes) -> Option<Part> {
        let within = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let (start, end) = (within(self.range.start), within(self.range.end));
        let bytes = (start < end).then(|| data.slice(start..end))?;
        Some(Part { offset: offset + start as u64, depth, content: Content::Bytes(bytes) })
    }

    /// Replaces the identity CIDs among `parts`, and those that come to light by that.
    fn open_inline(&mut self, parts: Range<usize>) -> Result<(), WalkError> {
        let mut index = parts.end;
        while index > parts.start {
            index -= 1;
            let Content::Wanted(cid, declared) = self.open[index].content else { continue };
            if let Some(block) = Block::inline(&cid) {
                index += self.replace(index, cid, declared, block.bytes())?;
            }
        }
        Ok(())
    }

    /// How many open links ahead are looked at. When very many are open already, only the next may open more.
    fn ahead(&self) -> usize {
        let most = if self.open.len() > MAX_OPEN / 2 { 1 } else { MAX_AHEAD };
        self.open.len().min(most)
    }
}

#[cfg(test)]
mod tests;
