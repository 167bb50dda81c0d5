//! A client of other people's caches and gateways, over HTTP.
//!
//! - [`Upstream`]: a Nix binary cache: `nix-cache-info`, narinfos, NARs, and the `nipfs-info` of a cache of ours.
//! - [`Gateway`]: a trustless IPFS gateway: single blocks, or those of a file in order, each checked against its CID.
//! - [`Router`]: somebody who knows providers.
//!
//! What comes from there is foreign and may be hostile:
//!
//! - Nothing leaves the base URL's scheme, host and port, be it by a `URL:` field or by a redirect, and a `URL:` field
//!   does not leave the base path either.
//! - Every answer has a ceiling in bytes and every wait an end: small answers have a deadline, NARs and CARs a floor of
//!   speed.
//! - `Content-Encoding` is never asked for and never accepted.
//! - A NAR is exactly as long as its narinfo says, or its stream ends in an error. Its hash is the caller's to check.
//!
//! The standard proxy variables are honoured, except for loopback addresses.

mod client;
#[cfg(test)]
pub(crate) mod fake;
mod gateway;
mod nar;
mod nipfs_info;
mod router;
#[cfg(test)]
mod tests;

pub use gateway::{Car, Gateway};
pub(crate) use nar::decoder;
pub use nipfs_info::NipfsInfo;
pub use router::{Provider, Router};

use bytes::Bytes;
use client::Client;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use nipfs_proto::Cid;
use nipfs_proto::block::BlockError;
use nipfs_proto::dag::car::CarError;
use nipfs_proto::dag::walk::WalkError;
use nipfs_proto::nix::cache_info::{CacheInfo, CacheInfoError};
use nipfs_proto::nix::narinfo::{MAX_NARINFO, NarInfo};
use nipfs_proto::nix::store_path::{StorePath, StorePathError, StorePathHash};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

/// Longest `nix-cache-info` and `nipfs-info` in bytes.
const MAX_INFO: usize = 64 << 10;
/// Longest line of `nipfs-paths` in bytes: the base name of a store path is at most 32 + 1 + 211.
const MAX_PATH_LINE: usize = 256;

/// Why an upstream did not deliver. Says which URL, and what about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// The base URL is not one.
    #[error("not the address of a cache: {text}: {reason}")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The HTTP client cannot be set up: for `https`, usually because the machine has no CA certificates.
    #[error("cannot speak to {base}")]
    Setup {
        /// The base URL.
        base: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// A reference in a narinfo that does not stay in its cache.
    #[error("{reference:?} leaves the cache {base}")]
    Outside {
        /// The base URL.
        base: String,
        /// The reference.
        reference: String,
    },
    /// No connection, a refused redirect, or an answer that broke off.
    #[error("cannot get {url}")]
    Request {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that is neither success nor "not here".
    #[error("{url} answered {status}")]
    Status {
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// No complete answer before the deadline.
    #[error("{url} did not answer in {within:?}")]
    Deadline {
        /// The URL.
        url: String,
        /// How long it had.
        within: Duration,
    },
    /// A NAR or a CAR that comes slower than the floor of 64 KiB in 15 seconds.
    #[error("{url} stalled")]
    Stalled {
        /// The URL.
        url: String,
    },
    /// More bytes than the resource may have.
    #[error("{url} is longer than {limit} bytes")]
    TooLong {
        /// The URL.
        url: String,
        /// The ceiling.
        limit: u64,
    },
    /// Fewer bytes than the narinfo says.
    #[error("{url} ended {missing} bytes early")]
    TooShort {
        /// The URL.
        url: String,
        /// Bytes that did not come.
        missing: u64,
    },
    /// A `Content-Encoding` that was not asked for.
    #[error("{url} came with an unasked Content-Encoding {encoding:?}")]
    Encoding {
        /// The URL.
        url: String,
        /// The encoding.
        encoding: String,
    },
    /// An answer to a range request that is about another range.
    #[error("{url} answered with another range than bytes {asked}-: {answered:?}")]
    Range {
        /// The URL.
        url: String,
        /// First byte asked for.
        asked: u64,
        /// The `Content-Range`.
        answered: String,
    },
    /// Compressed bytes that do not decompress.
    #[error("cannot decompress {url}")]
    Decompress {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Text that is not UTF-8.
    #[error("{url} is not UTF-8")]
    NotUtf8 {
        /// The URL.
        url: String,
    },
    /// A `nix-cache-info` that is not one.
    #[error("{url} is not a nix-cache-info")]
    CacheInfo {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: CacheInfoError,
    },
    /// A `nipfs-info` that is not one.
    #[error("{url} is not a nipfs-info")]
    NipfsInfo {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A list of providers that is not one.
    #[error("{url} is not a list of providers")]
    Providers {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A line of `nipfs-paths` that is not a store path.
    #[error("{url}: {line:?} is not a store path")]
    Path {
        /// The URL.
        url: String,
        /// The line.
        line: String,
        /// The cause.
        #[source]
        source: StorePathError,
    },
    /// A block that is not what its CID says.
    #[error("{url} is not the block it should be")]
    Block {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: BlockError,
    },
    /// An answer that is not the CAR that was asked for.
    #[error("{url} came as {found:?}, not as the CAR that was asked for")]
    Type {
        /// The URL.
        url: String,
        /// The `Content-Type`.
        found: String,
    },
    /// A CAR that cannot be read, or holds a wrong block.
    #[error("{url} is not a CAR that is accepted")]
    Car {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: CarError,
    },
    /// A CAR with another block than the one that must be next.
    #[error("{url} holds another block where {expected} was next")]
    Unasked {
        /// The URL.
        url: String,
        /// The block that should have come.
        expected: Cid,
    },
    /// A CAR that ends early.
    #[error("{url} ended before block {cid}")]
    Ended {
        /// The URL.
        url: String,
        /// The block that did not come.
        cid: Cid,
    },
    /// A DAG that is not a file.
    #[error("{url} cannot be walked")]
    Dag {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: WalkError,
    },
}

/// Bytes as they come.
pub type ByteStream = BoxStream<'static, Result<Bytes, UpstreamError>>;

/// A text that somebody keeps at `url`: at most `limit` bytes, within `within`. `None` when there is none.
///
/// # Errors
/// [`UpstreamError::Address`], and all but the block ones.
pub async fn text(url: &str, limit: usize, within: Duration) -> Result<Option<String>, UpstreamError> {
    // Everything up to the last slash is the base, so that the one place where URLs are checked checks this one.
    let (base, name) = url.rsplit_once('/').unwrap_or((url, ""));
    let client = Client::new(&format!("{base}/"))?;
    let url = client.resolve(name)?;
    client.text(&url, limit, within).await
}

/// Someone's Nix binary cache. Cheap to clone, and small: each path of a closure keeps one.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: Arc<Client>,
}

impl Upstream {
    /// The cache at `base`: an `http` or `https` URL, whose path is kept.
    ///
    /// # Errors
    /// [`UpstreamError::Address`] and [`UpstreamError::Setup`].
    pub fn new(base: &str) -> Result<Self, UpstreamError> {
        Client::new(base).map(|client| Self { client: Arc::new(client) })
    }

    /// Its `nix-cache-info`; `None` when it has none.
    ///
    /// # Errors
    /// All but the block ones, after at most `within`.
    pub async fn cache_info(&self, within: Duration) -> Result<Option<CacheInfo>, UpstreamError> {
        let url = self.client.resolve("nix-cache-info")?;
        let Some(text) = self.client.text(&url, MAX_INFO, within).await? else { return Ok(None) };
        let parsed = CacheInfo::parse(text.as_bytes());
        parsed.map(Some).map_err(|source| UpstreamError::CacheInfo { url: url.to_string(), source })
    }

    /// The narinfo of a store path as text, not looked at; `None` when the cache does not have it (404, 403 or 410).
    ///
    /// # Errors
    /// Anything else, after at most three tries and `within`.
    pub async fn narinfo(&self, hash: &StorePathHash, within: Duration) -> Result<Option<String>, UpstreamError> {
        let url = self.client.resolve(&format!("{hash}.narinfo"))?;
        self.client.text(&url, MAX_NARINFO, within).await
    }

    /// The plain NAR from byte `offset` on, whatever its compression there. Ends in an error unless exactly
    /// `NarSize - offset` bytes came. The hash is not checked here.
    ///
    /// # Errors
    /// Those before the first byte; later ones come in the stream.
    pub async fn nar(&self, narinfo: &NarInfo, offset: u64) -> Result<ByteStream, UpstreamError> {
        nar::open(&self.client, narinfo, offset).await
    }

    /// What a cache of ours says about itself; `None` for any other cache. Not verified: the caller has the keys.
    ///
    /// # Errors
    /// All but the block ones, after at most `within`.
    pub async fn nipfs_info(&self, within: Duration) -> Result<Option<NipfsInfo>, UpstreamError> {
        let url = self.client.resolve("nipfs-info")?;
        let Some(text) = self.client.text(&url, MAX_INFO, within).await? else { return Ok(None) };
        let parsed = NipfsInfo::parse(&text);
        parsed.map(Some).map_err(|source| UpstreamError::NipfsInfo { url: url.to_string(), source })
    }

    /// The store paths that a cache of ours publishes, in no order; `None` for any other cache.
    ///
    /// # Errors
    /// Those before the first path; later ones come in the stream, which ends with them.
    pub async fn paths(&self) -> Result<Option<BoxStream<'static, Result<StorePath, UpstreamError>>>, UpstreamError> {
        let url = self.client.resolve("nipfs-paths")?;
        let Some(body) = self.client.open(&url, None, 0).await? else { return Ok(None) };
        let reader = StreamReader::new(self.client.floored(&url, body).map_err(io::Error::other));
        let lines = FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_PATH_LINE));
        let url = url.to_string();
        Ok(Some(lines.map(move |line| path_of(&url, line)).boxed()))
    }
}

fn path_of(url: &str, line: Result<String, LinesCodecError>) -> Result<StorePath, UpstreamError> {
    let url = url.to_owned();
    match line {
        Ok(line) => StorePath::from_base_name(&line).map_err(|source| UpstreamError::Path { url, line, source }),
        Err(LinesCodecError::MaxLineLengthExceeded) => Err(UpstreamError::TooLong { url, limit: MAX_PATH_LINE as u64 }),
        Err(LinesCodecError::Io(error)) => Err(error.downcast().unwrap_or(UpstreamError::NotUtf8 { url })),
    }
}

impl fmt::Display for Upstream {
    /// The base URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}
