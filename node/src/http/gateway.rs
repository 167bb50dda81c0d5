//! `/ipfs/CID[/path]`: a trustless gateway over what is published here (IPFS trustless gateway spec).
//!
//! A block as it is (`raw`), or what a scope takes in of a DAG as a CAR, depth first. Nothing is looked for elsewhere,
//! and a block that is not published is answered as one that is not here. A CAR that cannot be made to its end is
//! cut off. There are no files and no listings here: whoever asks for neither format is refused.

mod asked;
mod car;

use super::nar::{body, busy};
use super::reply::{FOR_EVER, Fixed, Wanted, bad_request, not_found};
use super::site::Site;
use crate::store::{Store, StoreError};
use asked::{Format, Parameters, RAW, Refused, Select};
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream::empty;
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, DAG_PB, Digest, RAW as RAW_CODEC, parse_cid};
use nipfs_proto::dag::car::header as car_header;
use nipfs_proto::dag::walk::{PathWalk, Scope, Selection};
use std::convert::Infallible;
use tokio::sync::OwnedSemaphorePermit;

pub(super) async fn serve(
    State(site): State<Site>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    Path(path): Path<String>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Response {
    let (cid, below) = path.split_once('/').unwrap_or((&path, ""));
    let Ok(cid) = parse_cid(cid) else { return bad_request("not a CID that is accepted\n") };
    let Ok(Query(parameters)) = query else { return bad_request("a query that is not understood\n") };
    let cached_only = is_cached_only(&headers);
    let absent = || if cached_only { StatusCode::PRECONDITION_FAILED.into_response() } else { not_found() };
    let Some(turn) = site.body_turn().await else { return busy() };
    // Whether the root is here is asked without a format too.
    if cached_only && site.look(move |cache| published(cache.store(), &cid)).await.is_none() {
        return absent();
    }
    let (format, names) = match Format::of(&parameters, &headers).and_then(|format| Ok((format, asked::names(below)?)))
    {
        Ok(asked) => asked,
        Err(Refused::Bad(why)) => return bad_request(why),
        Err(Refused::NotAcceptable) => {
            return (StatusCode::NOT_ACCEPTABLE, "only format=raw and format=car, version 1\n").into_response();
        }
    };
    let Some(found) = site.look(move |cache| find(cache.store(), cid, names)).await else { return absent() };
    let target = *found.block.cid();
    let shared = [
        (header::CONTENT_DISPOSITION, disposition(&parameters, format, &target)),
        (header::CONTENT_LOCATION, format!("{}?{}", uri.path(), query_of(format))),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("x-ipfs-path"), format!("/ipfs/{path}")),
        (HeaderName::from_static("x-ipfs-roots"), found.roots()),
    ];
    let mut response = match format {
        Format::Raw => raw(turn, &method, &headers, found.block),
        Format::Car(select) => car(turn, &site, &method, &headers, &found, select, uri.path()),
    };
    for (key, value) in shared {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(key, value);
        }
    }
    response
}

/// The end of a path, and how it was reached.
#[derive(Debug)]
struct Found {
    path: PathWalk,
    block: Block,
}

impl Found {
    fn roots(&self) -> String {
        self.path.roots().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Walks down from `root`; `None` when a name leads nowhere that is published.
fn find(store: &Store, root: Cid, names: Vec<String>) -> Result<Option<Found>, StoreError> {
    let Ok(mut path) = PathWalk::new(root, names) else { return Ok(None) };
    while let Some(cid) = path.wanted() {
        let Some(block) = published(store, &cid)? else { return Ok(None) };
        match path.feed(&block) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                tracing::info!(%root, error = &error as &dyn std::error::Error, "a path cannot be walked");
                return Ok(None);
            }
        }
    }
    Ok(published(store, &path.at())?.map(|block| Found { path, block }))
}

/// A block, if everybody may have it. The bytes of an identity CID are no secret to whoever has the CID.
fn published(store: &Store, cid: &Cid) -> Result<Option<Block>, StoreError> {
    match Digest::of_cid(cid) {
        Ok(Some(digest)) if !store.is_public(&digest)? => Ok(None),
        _ => store.block(cid),
    }
}

fn is_cached_only(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(header::CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|directive| directive.trim() == "only-if-cached")
}

fn disposition(parameters: &Parameters, format: Format, target: &Cid) -> String {
    let extension = if format == Format::Raw { "bin" } else { "car" };
    let name = parameters.file_name().map_or_else(|| format!("{target}.{extension}"), str::to_owned);
    format!("attachment; filename=\"{name}\"")
}

fn query_of(format: Format) -> String {
    match format {
        Format::Raw => "format=raw".to_owned(),
        Format::Car(select) => select.query(),
    }
}

fn raw(turn: OwnedSemaphorePermit, method: &Method, headers: &HeaderMap, block: Block) -> Response {
    let (cid, bytes) = block.into_parts();
    let fixed = Fixed { size: bytes.len() as u64, etag: format!("\"{cid}.raw\""), content_type: RAW };
    match fixed.wanted(method, headers) {
        Wanted::Head(response) => response,
        Wanted::Body(range, response) => {
            let of = |end: u64| usize::try_from(end).unwrap_or(usize::MAX);
            let bytes = bytes.slice(of(range.start)..of(range.end));
            response.map(|_| body(turn, bytes, empty::<Result<Bytes, Infallible>>()))
        }
    }
}

/// The CAR of `found` under the URL path `location`.
fn car(
    turn: OwnedSemaphorePermit,
    site: &Site,
    method: &Method,
    headers: &HeaderMap,
    found: &Found,
    select: Select,
    location: &str,
) -> Response {
    let target = *found.block.cid();
    if select.scope == Scope::All && !matches!(target.codec(), RAW_CODEC | DAG_PB) {
        return (StatusCode::NOT_IMPLEMENTED, "links are followed in dag-pb only; ask for a block\n").into_response();
    }
    let Ok(selection) = Selection::new(target, select.scope, select.duplicates) else { return not_found() };
    // All that decides which blocks come, and in which order.
    let digest = Digest::of(format!("{location}?{}", select.query()).as_bytes());
    let etag = format!("W/\"{target}.car.{:.16}\"", format!("{digest:?}"));
    let fields = [
        (header::CONTENT_TYPE, select.content_type()),
        (header::ACCEPT_RANGES, "none".to_owned()),
        (header::ETAG, etag.clone()),
        (header::CACHE_CONTROL, FOR_EVER.to_owned()),
    ];
    if super::range::is_known(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, fields).into_response();
    }
    if *method == Method::HEAD {
        return (fields, Body::empty()).into_response();
    }
    let sections = car::Sections::new(site.node().store().clone(), found.path.passed(), selection);
    (fields, body(turn, car_header(&[target]).into(), sections.stream())).into_response()
}
