//! `/nar/NARHASH.nar`: a NAR from the first place that has it, and from the next when that one fails.

use super::passing::Passed;
use super::reply::{Fixed, Wanted, not_found};
use super::site::Site;
use crate::cache::{Audience, Cache};
use crate::dag::read::read;
use crate::store::{NarRecord, StoreError};
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt as _, TryStreamExt as _, try_unfold};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::store_path::StorePathHash;
use nipfs_proto::nix::{NarHash, base32};
use std::collections::VecDeque;
use std::error::Error;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// How long a request waits for its turn when too many bodies are being sent.
const TURN: Duration = Duration::from_secs(1);
/// How long to look for the first byte before the client is sent elsewhere.
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// A NAR that can be had.
#[derive(Debug)]
struct Found {
    size: u64,
    /// In the order in which they are tried.
    places: VecDeque<Place>,
}

/// Where a NAR can be had.
#[derive(Debug)]
enum Place {
    /// Our store.
    Here(Cid),
    /// Anybody who has blocks.
    Peers(Cid),
    /// The cache that sent its narinfo.
    Upstream(Arc<Passed>),
}

pub(super) async fn serve(
    State(site): State<Site>,
    audience: Audience,
    method: Method,
    headers: HeaderMap,
    Path(file): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let Some(hash) = asked(&file) else { return not_found() };
    let Some(found) = find(&site, audience, hash, path_of(query.as_deref())).await else { return not_found() };
    let etag = format!("\"{}\"", hash.to_base32());
    let fixed = Fixed { size: found.size, etag, content_type: "application/x-nix-nar" };
    let (range, response) = match fixed.wanted(&method, &headers) {
        Wanted::Head(response) => return response,
        Wanted::Body(range, response) => (range, response),
    };
    let Some(turn) = turn(&site).await else { return busy() };
    let mut bytes = splice(site, hash, found.places, range);
    match timeout(FIRST_BYTE, bytes.try_next()).await {
        Ok(Ok(Some(first))) => response.map(|_| body(turn, first, bytes)),
        _ => not_found(),
    }
}

fn asked(file: &str) -> Option<NarHash> {
    base32::decode::<32>(file.strip_suffix(".nar")?).ok().map(NarHash)
}

/// The store path that the URL of a passed-on narinfo names.
fn path_of(query: Option<&str>) -> Option<StorePathHash> {
    query?.split('&').find_map(|pair| pair.strip_prefix("hash="))?.parse().ok()
}

/// Leave to send a body that keeps blocks in memory; `None` after [`TURN`].
pub(super) async fn turn(site: &Site) -> Option<OwnedSemaphorePermit> {
    timeout(TURN, site.bodies().acquire_owned()).await.ok()?.ok()
}

/// 503: come back in a moment. Never for a narinfo.
pub(super) fn busy() -> Response {
    let fields = [(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")];
    (StatusCode::SERVICE_UNAVAILABLE, fields, "busy\n").into_response()
}

/// A body that has begun; `turn` is held to its end. An error in it cuts the connection.
pub(super) fn body<E>(
    turn: OwnedSemaphorePermit,
    first: Bytes,
    rest: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Body
where
    E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
{
    let all = futures::stream::iter([Ok(first)]).chain(rest);
    Body::from_stream(all.inspect(move |_| {
        let _held = &turn;
    }))
}

async fn find(site: &Site, audience: Audience, hash: NarHash, path: Option<StorePathHash>) -> Option<Found> {
    let mut places = VecDeque::new();
    let here = site.look(move |cache| visible(cache, audience, hash)).await;
    let mut size = here.as_ref().map(|record| record.nar_size);
    if let Some(&(_, root)) = here.as_ref().and_then(|record| record.roots.first()) {
        places.extend([Place::Here(root), Place::Peers(root)]);
    }
    if let Some(passed) = site.passing().nar(hash, path).await {
        size = size.or_else(|| Some(passed.narinfo.nar_size()));
        let bound = site.trusted().check_root(&passed.narinfo, &Profile::NAMES).is_some();
        if let Some(root) = passed.narinfo.root().filter(|_| bound && places.is_empty()) {
            places.push_back(Place::Peers(*root.cid()));
        }
        places.push_back(Place::Upstream(passed));
    }
    Some(Found { size: size?, places })
}

/// The record of a NAR, if `audience` may see it: the world sees those whose root is published.
fn visible(cache: &Cache, audience: Audience, hash: NarHash) -> Result<Option<NarRecord>, StoreError> {
    let Some(record) = cache.store().nar(&hash)? else { return Ok(None) };
    if audience == Audience::Loopback {
        return Ok(Some(record));
    }
    for (_, root) in &record.roots {
        if let Ok(Some(digest)) = Digest::of_cid(root)
            && cache.store().is_public(&digest)?
        {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

type Bytestream = BoxStream<'static, io::Result<Bytes>>;

/// The bytes of `range` of a NAR, from place after place.
fn splice(site: Site, hash: NarHash, places: VecDeque<Place>, range: Range<u64>) -> Bytestream {
    let splice = Splice { site, hash, places, range, now: futures::stream::empty().boxed() };
    let next = |mut splice: Splice| async move { Ok(splice.next().await?.map(|bytes| (bytes, splice))) };
    try_unfold(splice, next).boxed()
}

struct Splice {
    site: Site,
    hash: NarHash,
    places: VecDeque<Place>,
    /// What is still to come.
    range: Range<u64>,
    now: Bytestream,
}

impl Splice {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.range.is_empty() {
            match self.now.next().await {
                Some(Ok(mut bytes)) => {
                    let left = self.range.end - self.range.start;
                    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    self.range.start += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Some(Err(error)) => {
                    let (nar, at) = (self.hash, self.range.start);
                    tracing::warn!(%nar, at, error = &error as &dyn Error, "a source of a NAR failed");
                }
                None => {}
            }
            let Some(place) = self.places.pop_front() else {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no source has the rest of the NAR"));
            };
            self.now = open(&self.site, place, self.range.clone()).await;
        }
        Ok(None)
    }
}

async fn open(site: &Site, place: Place, range: Range<u64>) -> Bytestream {
    let counters = site.node().counters().clone();
    let (sources, root) = match place {
        Place::Here(root) => (site.here(), root),
        Place::Peers(root) => (site.anywhere().await, root),
        Place::Upstream(passed) => {
            return match passed.upstream.nar(&passed.narinfo, range.start).await {
                Ok(bytes) => {
                    let count = move |bytes: &Bytes| {
                        counters.http.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    };
                    bytes.inspect_ok(count).map_err(io::Error::other).boxed()
                }
                Err(error) => futures::stream::iter([Err(io::Error::other(error))]).boxed(),
            };
        }
    };
    read(sources, counters, root, range).map_err(io::Error::other).boxed()
}
