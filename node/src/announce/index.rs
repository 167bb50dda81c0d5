//! The index: a DAG that names all published paths, so that one root in the DHTs stands for more than can be told.
//!
//! It is made of plain UnixFS directories, to be read on any gateway: the first two characters of the hash part, then
//! `<base name>.nar`, lead to the root of the path's NAR. A directory of more than [`MAX_ENTRIES`] is cut by the next
//! character of the hash part, and again if need be, so that no block comes near what peers take at most. Links have no
//! `Tsize`: how much is below is not known. Pinned CIDs are not in it, for they have no names. The same paths make the
//! same index.
//!
//! Its blocks are here, and shown, as long as the [`Index`] lives. They are not pinned, for a pin would keep all NARs.
//! Memory does not grow with the number of paths: what is held is a directory's entries, and the links of those above it.

use super::public_root;
use crate::cache::Cache;
use crate::store::{Lease, StoreError};
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, DAG_PB};
use nipfs_proto::dag::codec::Link;
use nipfs_proto::dag::unixfs::directory_node;
use std::collections::VecDeque;

/// Paths in one directory: below 300 bytes each, so a third of a MiB.
const MAX_ENTRIES: usize = 1000;

/// An index that can be had from here.
#[derive(Debug)]
pub(super) struct Index {
    /// Its root.
    pub(super) root: Cid,
    _lease: Lease,
}

impl Index {
    /// Makes the index of what is published now. Blocks the thread.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn make(cache: &Cache) -> Result<Self, StoreError> {
        let lease = cache.store().lease();
        lease.show();
        let entries = cache.store().paths().filter_map(|path| {
            let entry = path.and_then(|path| {
                let root = public_root(cache, &path)?;
                Ok(root.map(|root| (format!("{}.nar", path.store_path.base_name()), root)))
            });
            entry.transpose()
        });
        let root = Directories { entries, ahead: VecDeque::new(), lease: &lease }.root()?;
        Ok(Self { root, _lease: lease.standing() })
    }
}

/// A name and where it leads.
type Entry = (String, Cid);

/// Makes directories of entries, which come in the order of their names.
struct Directories<'a, I> {
    entries: I,
    /// Those that come next: one more than fit in a directory, while there are so many.
    ahead: VecDeque<Entry>,
    lease: &'a Lease,
}

impl<I: Iterator<Item = Result<Entry, StoreError>>> Directories<'_, I> {
    fn root(mut self) -> Result<Cid, StoreError> {
        self.fill()?;
        self.cut("", 2)
    }

    /// The directory of all entries whose names begin with `prefix`, which come next.
    fn directory(&mut self, prefix: &str) -> Result<Cid, StoreError> {
        self.fill()?;
        let count = self.ahead.iter().take_while(|(name, _)| name.starts_with(prefix)).count();
        if count > MAX_ENTRIES {
            return self.cut(prefix, 1);
        }
        let entries = self.ahead.drain(..count).collect();
        self.put(entries)
    }

    /// The same, with a directory below for each of the next `width` characters. It ends with the hash part, which is no
    /// other path's, and is a depth of 31 at most.
    fn cut(&mut self, prefix: &str, width: usize) -> Result<Cid, StoreError> {
        let mut below = Vec::new();
        while let Some((name, _)) = self.ahead.front().filter(|(name, _)| name.starts_with(prefix)) {
            let longer = name[..prefix.len() + width].to_owned();
            let directory = self.directory(&longer)?;
            below.push((longer[prefix.len()..].to_owned(), directory));
            self.fill()?;
        }
        self.put(below)
    }

    fn fill(&mut self) -> Result<(), StoreError> {
        while self.ahead.len() <= MAX_ENTRIES
            && let Some(entry) = self.entries.next()
        {
            self.ahead.push_back(entry?);
        }
        Ok(())
    }

    fn put(&self, entries: Vec<Entry>) -> Result<Cid, StoreError> {
        let link = |(name, cid)| Link { cid, name: Some(name), tsize: None };
        let node = directory_node(entries.into_iter().map(link).collect());
        let block = Block::v1(DAG_PB, node).expect("1024 links of 300 bytes are below 2 MiB");
        self.lease.put(&block)?;
        Ok(*block.cid())
    }
}

#[cfg(test)]
mod tests;
