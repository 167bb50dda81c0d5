//! A CAR that is made while it is sent: the blocks of the path, then those of the selection.

use super::published;
use crate::store::Store;
use bytes::Bytes;
use futures::stream::{Stream, try_unfold};
use nipfs_proto::Cid;
use nipfs_proto::block::Block;
use nipfs_proto::dag::car;
use nipfs_proto::dag::walk::Selection;
use std::collections::VecDeque;
use std::io;

/// The sections that are still to come. One block is in memory at a time.
#[derive(Debug)]
pub(super) struct Sections {
    store: Store,
    passed: VecDeque<Cid>,
    selection: Selection,
}

impl Sections {
    /// The blocks `passed`, then those of `selection`.
    pub(super) fn new(store: Store, passed: &[Cid], selection: Selection) -> Self {
        Self { store, passed: passed.iter().copied().collect(), selection }
    }

    /// The sections as they are taken. A block that is missing, or not what it should be, ends them in an error.
    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        try_unfold(self, |mut sections| async move {
            let next = tokio::task::spawn_blocking(move || {
                let section = sections.next_section()?;
                Ok::<_, io::Error>(section.map(|section| (section, sections)))
            });
            let next = next.await.map_err(io::Error::other).flatten();
            if next.is_err() {
                // The server sends what it holds when it has to wait: so a short CAR is cut off and not withheld.
                tokio::task::yield_now().await;
            }
            next
        })
    }

    fn next_section(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(cid) = self.passed.pop_front() {
            let block = self.block(&cid)?;
            // Identity blocks have no place in a CAR.
            if block.digest().is_some() {
                return Ok(Some(section(&block)));
            }
        }
        while let Some(next) = self.selection.next_block().map_err(io::Error::other)? {
            let block = self.block(&next.cid)?;
            self.selection.feed(&block).map_err(io::Error::other)?;
            if !next.again {
                return Ok(Some(section(&block)));
            }
        }
        Ok(None)
    }

    fn block(&self, cid: &Cid) -> io::Result<Block> {
        let block = published(&self.store, cid).map_err(io::Error::other)?;
        block.ok_or_else(|| io::Error::other(format!("block {cid} is not here")))
    }
}

fn section(block: &Block) -> Bytes {
    let mut section = car::section_head(block);
    section.extend_from_slice(block.bytes());
    section.into()
}
