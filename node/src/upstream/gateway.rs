//! A trustless IPFS gateway as a source of blocks (IPFS trustless gateway spec): one by one, or those of a file in order.

mod car;

pub use car::Car;

use super::UpstreamError;
use super::client::Client;
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, MAX_BLOCK};
use std::fmt;
use std::time::Duration;

/// How long one block may take. At most 2 MiB: a gateway that is slower does not help.
const BLOCK_DEADLINE: Duration = Duration::from_secs(10);

/// A trustless gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway {
    client: Client,
}

impl Gateway {
    /// The gateway at `base`, below which `/ipfs/` is.
    ///
    /// # Errors
    /// [`UpstreamError::Address`] and [`UpstreamError::Setup`].
    pub fn new(base: &str) -> Result<Self, UpstreamError> {
        Client::new(base).map(|client| Self { client })
    }

    /// A block, checked against its CID; `None` when the gateway does not have it.
    ///
    /// # Errors
    /// [`UpstreamError::Block`] for wrong bytes; all others of a small resource, after at most 10 seconds.
    pub async fn block(&self, cid: &Cid) -> Result<Option<Block>, UpstreamError> {
        let url = self.client.resolve(&format!("ipfs/{cid}?format=raw"))?;
        let accept = Some("application/vnd.ipld.raw");
        let Some(bytes) = self.client.small(&url, accept, MAX_BLOCK, BLOCK_DEADLINE).await? else { return Ok(None) };
        let block = Block::verify(*cid, bytes);
        block.map(Some).map_err(|source| UpstreamError::Block { url: url.to_string(), source })
    }

    /// The blocks of the file `root` that hold its bytes from `from` on, and those above them, in order. With
    /// `duplicates` a block comes as often as it occurs: for a reader that keeps none. `None` when the gateway does not
    /// have the file.
    ///
    /// # Errors
    /// [`UpstreamError`], also when the gateway makes no such CARs; after at most 15 seconds.
    pub async fn car(&self, root: &Cid, from: u64, duplicates: bool) -> Result<Option<Car>, UpstreamError> {
        Car::open(&self.client, root, from, duplicates).await
    }
}

impl fmt::Display for Gateway {
    /// The base URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}

#[cfg(test)]
mod tests;
