//! Building: a stream of bytes → the blocks of a UnixFS file and its root.
//!
//! The tree is balanced, as Kubo and IPIP-499 have it: leaves from left to right, every node full but the
//! last of its level, a file of one leaf without any node above. Memory does not grow with the
//! file: one chunk, and at each level the links of one node.

use super::profile::{Layout, Profile};
use super::unixfs::{Child, LEAF_HEAD, LEAF_TAIL, inner_node, leaf_node};
use crate::block::{Block, Cid, DAG_PB, RAW};
use bytes::Bytes;
use cid::Version;

/// Cuts a stream into blocks and hands them out, children before parents.
#[derive(Debug)]
pub struct Builder {
    layout: Layout,
    /// The next leaf: room for its head, then bytes of the file.
    leaf: Vec<u8>,
    /// Links that wait for their node, by height above the leaves.
    levels: Vec<Vec<Child>>,
}

/// What a stream became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// The CID of the file.
    pub cid: Cid,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of all its blocks, those that occur several times counted each time.
    pub tsize: u64,
}

impl Builder {
    /// An empty file.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self::with_layout(profile.layout())
    }

    pub(super) fn with_layout(layout: Layout) -> Self {
        Self { layout, leaf: empty_leaf(layout), levels: Vec::new() }
    }

    /// Appends `bytes`; `out` takes each block as it is complete.
    ///
    /// # Errors
    /// What `out` returns; the builder is of no use afterwards.
    pub fn write<E>(&mut self, mut bytes: &[u8], out: &mut impl FnMut(Block) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let room = self.layout.chunk - self.filled();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.leaf.extend_from_slice(now);
            bytes = later;
            if self.filled() == self.layout.chunk {
                self.cut(out)?;
            }
        }
        Ok(())
    }

    /// Ends the file; `out` takes the remaining blocks, the root's last.
    ///
    /// # Errors
    /// What `out` returns.
    pub fn finish<E>(mut self, out: &mut impl FnMut(Block) -> Result<(), E>) -> Result<Root, E> {
        if self.filled() > 0 || self.levels.is_empty() {
            self.cut(out)?;
        }
        let mut height = 0;
        loop {
            let children = std::mem::take(&mut self.levels[height]);
            height += 1;
            if let ([root], true) = (&children[..], height == self.levels.len()) {
                return Ok(Root { cid: root.cid, size: root.size, tsize: root.tsize });
            }
            let parent = self.link(&children, out)?;
            self.place(height, parent, out)?;
        }
    }

    fn filled(&self) -> usize {
        self.leaf.len() - leaf_head(self.layout)
    }

    fn cut<E>(&mut self, out: &mut impl FnMut(Block) -> Result<(), E>) -> Result<(), E> {
        let size = self.filled() as u64;
        let leaf = std::mem::replace(&mut self.leaf, empty_leaf(self.layout));
        let block = if self.layout.raw_leaves {
            Block::v1(RAW, leaf.into()).expect("a chunk is below 2 MiB")
        } else {
            self.dag_pb(leaf_node(leaf))
        };
        let child = Child { cid: *block.cid(), size, tsize: block.bytes().len() as u64 };
        out(block)?;
        self.place(0, child, out)
    }

    /// Puts `child` at `height`, and the nodes that this completes at the heights above.
    fn place<E>(
        &mut self,
        mut height: usize,
        mut child: Child,
        out: &mut impl FnMut(Block) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            if self.levels.len() == height {
                self.levels.push(Vec::new());
            }
            // A full node waits for its next sibling: the last node of the file has none, and is the root.
            if self.levels[height].len() < self.layout.max_links {
                self.levels[height].push(child);
                return Ok(());
            }
            let full = std::mem::replace(&mut self.levels[height], vec![child]);
            child = self.link(&full, out)?;
            height += 1;
        }
    }

    fn link<E>(&self, children: &[Child], out: &mut impl FnMut(Block) -> Result<(), E>) -> Result<Child, E> {
        let block = self.dag_pb(inner_node(children));
        let below: u64 = children.iter().map(|child| child.tsize).sum();
        let parent = Child {
            cid: *block.cid(),
            size: children.iter().map(|child| child.size).sum(),
            tsize: below + block.bytes().len() as u64,
        };
        out(block)?;
        Ok(parent)
    }

    fn dag_pb(&self, bytes: Bytes) -> Block {
        let block = match self.layout.cid_version {
            Version::V0 => Block::v0(bytes),
            Version::V1 => Block::v1(DAG_PB, bytes),
        };
        block.expect("chunks and 1024 links are below 2 MiB")
    }
}

fn leaf_head(layout: Layout) -> usize {
    if layout.raw_leaves { 0 } else { LEAF_HEAD }
}

fn empty_leaf(layout: Layout) -> Vec<u8> {
    let head = leaf_head(layout);
    let mut leaf = Vec::with_capacity(head + layout.chunk + LEAF_TAIL);
    leaf.resize(head, 0);
    leaf
}

#[cfg(test)]
mod tests;
