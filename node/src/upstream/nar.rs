//! A NAR over HTTP, as plain bytes.
//!
//! `URL` and `Compression` are not signed, so both ends of the decompressor are bounded: what goes in by a little more
//! than the NAR's size, what comes out by exactly the NAR's size, and what it holds by [`MAX_MEMORY`].

use super::client::Client;
use super::{ByteStream, UpstreamError};
use async_compression::tokio::bufread::{BzDecoder, XzDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::{Buf as _, Bytes};
use futures::stream::{StreamExt as _, TryStreamExt as _, try_unfold};
use nipfs_proto::nix::narinfo::{Compression, NarInfo};
use reqwest::{Response, StatusCode, Url, header};
use std::io;
use std::pin::Pin;
use tokio::io::{AsyncBufRead, AsyncRead};
use tokio_util::io::{ReaderStream, StreamReader};

/// Memory of a decompressor in bytes. `xz -9` takes 65 MiB; bzip2 never takes more than 4.
const MAX_MEMORY: u64 = 128 << 20;
/// The zstd window of that size, as a power of two.
const MAX_WINDOW: u32 = 27;
/// Bytes that come out of a decompressor at once.
const CHUNK: usize = 64 << 10;

/// The plain NAR from `offset` on.
pub(super) async fn open(client: &Client, narinfo: &NarInfo, offset: u64) -> Result<ByteStream, UpstreamError> {
    let url = client.resolve(narinfo.url())?;
    let size = narinfo.nar_size();
    let plain = narinfo.compression() == Compression::None;
    let response = client.open(&url, None, if plain { offset } else { 0 }).await?;
    let response = response.ok_or_else(|| UpstreamError::Status { url: url.to_string(), status: 404 })?;
    let came_from = starts_at(&url, &response, offset)?;
    let body = client.floored(&url, response);
    let bytes = if plain {
        body
    } else {
        // Incompressible data grows by a percent at the worst.
        let ceiling = size + size / 64 + (1 << 20);
        decompress(&url, narinfo.compression(), at_most(&url, body, ceiling))
    };
    Ok(exactly(&url, bytes, offset.saturating_sub(came_from), size.saturating_sub(offset)))
}

/// The NAR byte with which `response` starts: a server may answer a range request with the whole.
fn starts_at(url: &Url, response: &Response, asked: u64) -> Result<u64, UpstreamError> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(0);
    }
    let answered = response.headers().get(header::CONTENT_RANGE);
    let answered = answered.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default();
    if answered.starts_with(&format!("bytes {asked}-")) {
        return Ok(asked);
    }
    Err(UpstreamError::Range { url: url.to_string(), asked, answered })
}

fn decompress(url: &Url, compression: Compression, body: ByteStream) -> ByteStream {
    plain_bytes(url, decoder(compression, StreamReader::new(body.map_err(io::Error::other))))
}

/// The plain bytes of `input`. A hostile one makes it take [`MAX_MEMORY`] at the worst, and give any number of bytes.
pub(crate) fn decoder(
    compression: Compression,
    input: impl AsyncBufRead + Send + 'static,
) -> Pin<Box<dyn AsyncRead + Send>> {
    match compression {
        Compression::None => Box::pin(input),
        Compression::Xz => {
            let mut decoder = XzDecoder::with_mem_limit(input, MAX_MEMORY);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Compression::Zstd => {
            let mut decoder = ZstdDecoder::with_params(input, &[DParameter::window_log_max(MAX_WINDOW)]);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
        Compression::Bzip2 => {
            let mut decoder = BzDecoder::new(input);
            decoder.multiple_members(true);
            Box::pin(decoder)
        }
    }
}

fn plain_bytes(url: &Url, reader: impl AsyncRead + Send + 'static) -> ByteStream {
    let url = url.to_string();
    let error = move |error: io::Error| match error.downcast::<UpstreamError>() {
        Ok(upstream) => upstream,
        Err(source) => UpstreamError::Decompress { url: url.clone(), source },
    };
    ReaderStream::with_capacity(reader, CHUNK).map_err(error).boxed()
}

/// `bytes`, with an error in place of the byte after `limit`.
fn at_most(url: &Url, bytes: ByteStream, limit: u64) -> ByteStream {
    let url = url.to_string();
    let mut came = 0;
    let mut check = move |chunk: Bytes| {
        came += chunk.len() as u64;
        if came > limit { Err(UpstreamError::TooLong { url: url.clone(), limit }) } else { Ok(chunk) }
    };
    bytes.map(move |chunk| chunk.and_then(&mut check)).boxed()
}

/// `length` bytes after the first `skip`, with an error when there are more or fewer.
fn exactly(url: &Url, bytes: ByteStream, skip: u64, length: u64) -> ByteStream {
    let next = move |(mut bytes, url, mut skip, mut left): (ByteStream, String, u64, u64)| async move {
        loop {
            let Some(mut chunk) = bytes.try_next().await? else {
                return if skip + left == 0 {
                    Ok(None)
                } else {
                    Err(UpstreamError::TooShort { url, missing: skip + left })
                };
            };
            let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            chunk.advance(skipped);
            skip -= skipped as u64;
            if chunk.len() as u64 > left {
                return Err(UpstreamError::TooLong { url, limit: length });
            }
            left -= chunk.len() as u64;
            if !chunk.is_empty() {
                return Ok(Some((chunk, (bytes, url, skip, left))));
            }
        }
    };
    try_unfold((bytes, url.to_string(), skip, length), next).boxed()
}
