//! The blocks of a file out of one answer of a gateway, each checked as it comes.
//!
//! A [`Selection`] walks along and says which block must be next. So nothing comes out that was not asked for, an answer
//! without an end ends, and one that ends early is an error.

use crate::upstream::client::Client;
use crate::upstream::{ByteStream, UpstreamError};
use futures::stream::TryStreamExt as _;
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, MAX_BLOCK};
use nipfs_proto::dag::car::{CarError, Reader};
use nipfs_proto::dag::walk::{EntityBytes, Scope, Selection, WalkError};
use reqwest::header;
use std::collections::VecDeque;
use std::fmt;

const CAR: &str = "application/vnd.ipld.car";
/// Bytes that may come without a block among them: the header, and a section that is not complete.
const MAX_GAP: usize = MAX_BLOCK + (1 << 20);

/// An answer that is being read.
pub struct Car {
    url: String,
    body: ByteStream,
    reader: Reader,
    ready: VecDeque<Block>,
    selection: Selection,
    /// Bytes that came since the last block.
    gap: usize,
}

impl Car {
    pub(super) async fn open(
        client: &Client,
        root: &Cid,
        from: u64,
        duplicates: bool,
    ) -> Result<Option<Self>, UpstreamError> {
        let (dups, accept) = if duplicates {
            ('y', "application/vnd.ipld.car; version=1; order=dfs; dups=y")
        } else {
            ('n', "application/vnd.ipld.car; version=1; order=dfs; dups=n")
        };
        let bytes = EntityBytes::starting(from);
        // The whole needs no range, which not every gateway knows.
        let range = if from == 0 { String::new() } else { format!("&entity-bytes={bytes}") };
        let asked = format!("ipfs/{root}?format=car&dag-scope=entity{range}&car-order=dfs&car-dups={dups}");
        let url = client.resolve(&asked)?;
        let Some(response) = client.open(&url, Some(accept), 0).await? else { return Ok(None) };
        let found = response.headers().get(header::CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()));
        let found = found.unwrap_or_default().into_owned();
        let sent_twice = found.contains("dups=y");
        if !found.starts_with(CAR) || (duplicates && !sent_twice) {
            return Err(UpstreamError::Type { url: url.to_string(), found });
        }
        let selection = Selection::new(*root, Scope::Entity(bytes), sent_twice);
        let selection = selection.map_err(|source| UpstreamError::Dag { url: url.to_string(), source })?;
        let body = client.floored(&url, response);
        let (reader, ready) = (Reader::new(), VecDeque::new());
        Ok(Some(Self { url: url.to_string(), body, reader, ready, selection, gap: 0 }))
    }

    /// The next block in the order of the file. `None` at its end, and where it goes on below a block that came before
    /// and is not sent again.
    ///
    /// # Errors
    /// [`UpstreamError`]; nothing more comes then.
    pub async fn next_block(&mut self) -> Result<Option<Block>, UpstreamError> {
        let expected = self.selection.next_block().map_err(|source| self.dag(source))?;
        let Some(expected) = expected.filter(|next| !next.again).map(|next| next.cid) else { return Ok(None) };
        let Some(block) = self.arrive().await? else {
            return Err(UpstreamError::Ended { url: self.url.clone(), cid: expected });
        };
        let block = block.with_cid(expected);
        let block = block.map_err(|_| UpstreamError::Unasked { url: self.url.clone(), expected })?;
        self.selection.feed(&block).map_err(|source| self.dag(source))?;
        Ok(Some(block))
    }

    /// The next block in the order of the answer; `None` at its end.
    async fn arrive(&mut self) -> Result<Option<Block>, UpstreamError> {
        loop {
            if let Some(block) = self.ready.pop_front() {
                return Ok(Some(block));
            }
            let Some(piece) = self.body.try_next().await? else { return Ok(None) };
            let ready = &mut self.ready;
            let mut keep = |block| {
                ready.push_back(block);
                Ok::<_, CarError>(())
            };
            let read = self.reader.push(&piece, &mut keep);
            read.map_err(|source| UpstreamError::Car { url: self.url.clone(), source })?;
            self.gap = if self.ready.is_empty() { self.gap + piece.len() } else { 0 };
            if self.gap > MAX_GAP {
                return Err(UpstreamError::TooLong { url: self.url.clone(), limit: MAX_GAP as u64 });
            }
        }
    }

    fn dag(&self, source: WalkError) -> UpstreamError {
        UpstreamError::Dag { url: self.url.clone(), source }
    }
}

impl fmt::Debug for Car {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Car").field("url", &self.url).field("selection", &self.selection).finish_non_exhaustive()
    }
}
