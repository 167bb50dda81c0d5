//! Visiting every block of a DAG once.

use super::WalkError;
use crate::block::{Block, Cid, DAG_PB, Digest, check_cid};
use crate::dag::codec::Node;
use std::collections::HashSet;

/// Links that may wait to be named, beside the roots: five full nodes of the largest block.
const MAX_PENDING: usize = 1 << 18;

/// A walk over a DAG, or several, that names each block once, however often it is linked.
///
/// Only dag-pb nodes have links here; blocks of any other codec are leaves. As long as each dag-pb block is fed
/// before the next CID is taken, the order is that of a depth-first walk. Memory is a digest for every
/// block named so far and the links not yet followed.
#[derive(Debug, Default)]
pub struct Visit {
    /// Last is next.
    pending: Vec<Cid>,
    /// Named blocks; whether as a node, because the same bytes may be linked as a raw leaf too.
    named: HashSet<(bool, Digest)>,
    /// Named dag-pb blocks that were not fed yet.
    awaited: HashSet<Digest>,
    roots: usize,
}

impl Visit {
    /// A walk over everything below `roots`, and these themselves.
    ///
    /// # Errors
    /// [`WalkError::Root`].
    pub fn new(roots: impl IntoIterator<Item = Cid>) -> Result<Self, WalkError> {
        let mut visit = Self::default();
        for root in roots {
            check_cid(&root).map_err(|source| WalkError::Root { root, source })?;
            visit.pending.push(root);
        }
        visit.pending.reverse();
        visit.roots = visit.pending.len();
        Ok(visit)
    }

    /// The next block, never an identity one. `None` means that the walk is done, or goes on below
    /// blocks that were named and not fed yet: see [`Self::is_done`].
    ///
    /// # Errors
    /// As [`Self::feed`], for an identity CID of a node.
    pub fn next_cid(&mut self) -> Result<Option<Cid>, WalkError> {
        while let Some(cid) = self.pending.pop() {
            let is_node = cid.codec() == DAG_PB;
            let Ok(Some(digest)) = Digest::of_cid(&cid) else {
                if let Some(inline) = Block::inline(&cid).filter(|_| is_node) {
                    self.follow(&inline)?;
                }
                continue;
            };
            if self.named.insert((is_node, digest)) {
                if is_node {
                    self.awaited.insert(digest);
                }
                return Ok(Some(cid));
            }
        }
        Ok(None)
    }

    /// Follows the links of `block`, if it was named as a dag-pb block and not fed before. Blocks are matched
    /// by digest, so the block's own CID may be of another version or codec. Leaves need not be fed.
    ///
    /// # Errors
    /// [`WalkError::Node`] when the block is no dag-pb node, or links to a CID that is refused;
    /// [`WalkError::TooWide`].
    pub fn feed(&mut self, block: &Block) -> Result<(), WalkError> {
        match block.digest() {
            Some(digest) if self.awaited.remove(&digest) => self.follow(block),
            _ => Ok(()),
        }
    }

    /// Whether every block was named, and every dag-pb one fed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.pending.is_empty() && self.awaited.is_empty()
    }

    fn follow(&mut self, block: &Block) -> Result<(), WalkError> {
        let node = Node::decode(block.bytes()).map_err(|source| WalkError::Node { cid: *block.cid(), source })?;
        let named = |cid: &Cid| {
            let digest = Digest::of_cid(cid).ok().flatten();
            digest.is_some_and(|digest| self.named.contains(&(cid.codec() == DAG_PB, digest)))
        };
        let links = node.links.iter().rev().map(|link| link.cid).filter(|cid| !named(cid));
        self.pending.extend(links);
        if self.pending.len() > self.roots + MAX_PENDING {
            return Err(WalkError::TooWide(*block.cid()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
