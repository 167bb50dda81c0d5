//! `/nar/NARHASH.nar`: a NAR from the first place that has it, and from the next when that one fails.

use super::reply::{Fixed, Wanted, not_found};
use super::site::Site;
use super::splice::{Keep, Place, splice};
use crate::cache::Audience;
use crate::store::{Store, StoreError};
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream::{Stream, StreamExt as _, TryStreamExt as _};
use nipfs_proto::Cid;
use nipfs_proto::block::Digest;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::store_path::StorePathHash;
use nipfs_proto::nix::{NarHash, base32};
use std::collections::VecDeque;
use std::error::Error;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// How long to look for the first byte before the client is sent elsewhere.
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// A NAR that can be had.
#[derive(Debug)]
struct Found {
    size: u64,
    /// In the order in which they are tried.
    places: VecDeque<Place>,
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
    let found = match site.uploads() {
        Some(uploads) if method == Method::HEAD && uploads.admits(&headers) => {
            uploads.found(&site, hash).await.map(|size| Found { size, places: VecDeque::new() })
        }
        _ => find(&site, audience, hash, path_of(query.as_deref())).await,
    };
    let Some(found) = found else { return not_found() };
    let etag = format!("\"{}\"", hash.to_base32());
    let fixed = Fixed { size: found.size, etag, content_type: "application/x-nix-nar" };
    let (range, response) = match fixed.wanted(&method, &headers) {
        Wanted::Head(response) => return response,
        Wanted::Body(range, response) => (range, response),
    };
    let Some(turn) = site.body_turn().await else { return busy() };
    let whole = range == (0..found.size);
    let mut bytes = splice(site, hash, found.places, range, whole);
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
    let held = site.look(move |cache| visible(cache.store(), audience, hash)).await;
    let mut size = held.as_ref().map(|held| held.size);
    if let Some(Visible { roots, mirror, .. }) = held {
        let peers = roots.first().map(|root| Place::Peers { root: *root, mirror, keep: None });
        places.extend(roots.into_iter().map(Place::Here).chain(peers));
    }
    if let Some(passed) = site.passing().nar(hash, path).await {
        size = size.or_else(|| Some(passed.narinfo.nar_size()));
        if places.is_empty() {
            places.extend(bound(site, &passed.narinfo));
        }
        places.push_back(Place::Upstream(passed));
    }
    Some(Found { size: size?, places })
}

/// The root that a narinfo names, if a trusted key bound it to the NAR.
fn bound(site: &Site, narinfo: &NarInfo) -> Option<Place> {
    let root = *narinfo.root()?.cid();
    let profile = site.trusted().check_root(narinfo, &Profile::NAMES)?;
    let keep = site.trusted().check(narinfo).ok().zip(profile.parse().ok());
    let audience = site.node().audience_of_fetched(site.trusted(), narinfo);
    let keep = keep.map(|(trusted, profile)| Box::new(Keep { trusted, profile, audience }));
    Some(Place::Peers { root, mirror: None, keep })
}

/// A NAR that is on record and may be seen.
struct Visible {
    size: u64,
    /// One for each way in which it was cut. Of some the leaves may have gone, with the tree in which they lay.
    roots: Vec<Cid>,
    /// The peer that its blocks were left to.
    mirror: Option<String>,
}

/// The NAR, if `audience` may see it: the world sees what is published.
fn visible(store: &Store, audience: Audience, hash: NarHash) -> Result<Option<Visible>, StoreError> {
    let Some(record) = store.nar(&hash)? else { return Ok(None) };
    let size = record.nar_size;
    let mut roots = Vec::new();
    for (_, root) in &record.roots {
        let Ok(Some(digest)) = Digest::of_cid(root) else { continue };
        if store.has(&digest)? && (audience == Audience::Loopback || store.is_public(&digest)?) {
            roots.push(*root);
        }
    }
    if !roots.is_empty() {
        return Ok(Some(Visible { size, roots, mirror: None }));
    }
    // Without its blocks, only the records of the paths tell who may see it, and which DAG was left to whom.
    for path in store.paths() {
        let path = path?;
        if path.nar_hash == hash && (path.published || audience == Audience::Loopback) {
            let named =
                NarInfo::parse_unasked(&path.narinfo).ok().and_then(|narinfo| narinfo.root().map(|root| *root.cid()));
            let root = named.or_else(|| record.roots.first().map(|(_, root)| *root));
            return Ok(root.map(|root| Visible { size, roots: vec![root], mirror: path.mirror }));
        }
    }
    Ok(None)
}
