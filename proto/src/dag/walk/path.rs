//! Walking down a path of names through UnixFS directories.

use super::WalkError;
use crate::block::{Block, Cid, check_cid};
use crate::dag::codec::NodeError;
use crate::dag::unixfs::{Directory, Entity, Lookup};

/// A walk from a root down to the block that a path of names ends at.
///
/// The driver's loop: until [`Self::wanted`] has none, feed it that block. A name takes one block, or one for each level
/// of a sharded directory, so the walk ends after a bounded number of them.
#[derive(Debug)]
pub struct PathWalk {
    at: Cid,
    /// Last is next.
    names: Vec<String>,
    /// Shards of one directory that were passed since its top, and their fanout.
    shards: Option<(u32, u32)>,
    passed: Vec<Cid>,
    roots: Vec<Cid>,
}

impl PathWalk {
    /// A walk from `root` by `names` in order.
    ///
    /// # Errors
    /// [`WalkError::Root`].
    pub fn new(root: Cid, mut names: Vec<String>) -> Result<Self, WalkError> {
        check_cid(&root).map_err(|source| WalkError::Root { root, source })?;
        names.reverse();
        Ok(Self { at: root, names, shards: None, passed: Vec::new(), roots: vec![root] })
    }

    /// The block to be fed next; `None` at the end of the path.
    #[must_use]
    pub fn wanted(&self) -> Option<Cid> {
        (!self.names.is_empty()).then_some(self.at)
    }

    /// Follows the next name in `block`, which was wanted. False when it leads nowhere: there is no such entry, or the
    /// block is no directory.
    ///
    /// # Errors
    /// [`WalkError::Node`]: the block is a directory that breaks the rules of one.
    pub fn feed(&mut self, block: &Block) -> Result<bool, WalkError> {
        let Some(name) = self.names.last() else { return Ok(true) };
        let cid = self.at;
        let broken = |source| WalkError::Node { cid, source };
        let directory = match Entity::decode(&cid, block.bytes()).map_err(broken)? {
            Entity::Directory(directory) => directory,
            _ if self.shards.is_some() => return Err(broken(NodeError::Directory("a shard that is none"))),
            _ => return Ok(false),
        };
        let level = match (&directory, self.shards) {
            (_, None) => 0,
            (Directory::Shard(shard), Some((level, fanout))) if shard.fanout() == fanout => level,
            _ => return Err(broken(NodeError::Directory("shards of different fanout"))),
        };
        let found = directory.look_up(name, level);
        self.passed.push(cid);
        match (found, directory) {
            (Lookup::Absent, _) => return Ok(false),
            (Lookup::Shard(next), Directory::Shard(shard)) => {
                self.at = next;
                self.shards = Some((level + 1, shard.fanout()));
            }
            (Lookup::Entry(next) | Lookup::Shard(next), _) => {
                self.at = next;
                self.shards = None;
                self.names.pop();
                self.roots.push(next);
            }
        }
        Ok(true)
    }

    /// The block that the walk is at; the target once nothing more is wanted.
    #[must_use]
    pub fn at(&self) -> Cid {
        self.at
    }

    /// The blocks passed on the way, without the one that the walk is at.
    #[must_use]
    pub fn passed(&self) -> &[Cid] {
        &self.passed
    }

    /// What the names so far lead to: the root, and for each name its entry.
    #[must_use]
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }
}

#[cfg(test)]
mod tests;
