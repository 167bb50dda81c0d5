//! `/ipfs/CID`: a trustless gateway over what is published here (IPFS trustless gateway spec).
//!
//! A block as it is (`raw`) or a whole DAG as a CAR, depth first, each block once. Nothing is looked for elsewhere, and
//! a block that is not published is answered as one that is not here. Paths below a CID are not walked.

use super::nar::{body, busy};
use super::reply::{Fixed, Wanted, bad_request, not_found};
use super::site::Site;
use crate::store::{Store, StoreError};
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream::try_unfold;
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, Digest, parse_cid};
use nipfs_proto::dag::car;
use nipfs_proto::dag::walk::Visit;
use std::io;

const RAW: &str = "application/vnd.ipld.raw";
const CAR: &str = "application/vnd.ipld.car";
const CAR_AS_SENT: &str = "application/vnd.ipld.car; version=1; order=dfs; dups=n";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    /// The whole DAG, or the root block only.
    Car {
        whole: bool,
    },
}

pub(super) async fn serve(
    State(site): State<Site>,
    method: Method,
    headers: HeaderMap,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let (cid, below) = path.split_once('/').unwrap_or((&path, ""));
    let Ok(cid) = parse_cid(cid) else { return bad_request("not a CID that is accepted\n") };
    let query = query.unwrap_or_default();
    let format = match format(&query, &headers) {
        Ok(Some(format)) => format,
        Ok(None) => return (StatusCode::NOT_ACCEPTABLE, "ask for format=raw or format=car\n").into_response(),
        Err(why) => return bad_request(why),
    };
    if !below.is_empty() {
        return not_found();
    }
    let Some(root) = site.look(move |cache| published(cache.store(), &cid)).await else { return not_found() };
    let name = file_name(&query);
    let mut response = match format {
        Format::Raw => raw(&method, &headers, root),
        Format::Car { whole } => match car(site, &method, &headers, root, whole).await {
            Some(response) => response,
            None => return busy(),
        },
    };
    let extension = if format == Format::Raw { "bin" } else { "car" };
    let name = name.map_or_else(|| format!("{cid}.{extension}"), str::to_owned);
    let fields = [
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::HeaderName::from_static("x-ipfs-path"), format!("/ipfs/{cid}")),
        (header::HeaderName::from_static("x-ipfs-roots"), cid.to_string()),
    ];
    for (key, value) in fields {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(key, value);
        }
    }
    response
}

/// The format that the query asks for, or else the `Accept` header (IPIP-523).
fn format(query: &str, headers: &HeaderMap) -> Result<Option<Format>, &'static str> {
    // A file's entity is all of it. A directory's would be less; all of it is more than was asked for.
    let whole = match parameter(query, "dag-scope") {
        None | Some("all" | "entity") => true,
        Some("block") => false,
        Some(_) => return Err("unknown dag-scope\n"),
    };
    if parameter(query, "entity-bytes").is_some() {
        return Err("entity-bytes is not supported\n");
    }
    match parameter(query, "format") {
        Some("raw") => return Ok(Some(Format::Raw)),
        Some("car") => return Ok(Some(Format::Car { whole })),
        Some(_) => return Ok(None),
        None => {}
    }
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    for kind in accepted.flat_map(|list| list.split(',')) {
        let mut parts = kind.split(';').map(str::trim);
        match parts.next() {
            Some(RAW) => return Ok(Some(Format::Raw)),
            Some(CAR) if parts.all(|part| !part.starts_with("version=") || part == "version=1") => {
                return Ok(Some(Format::Car { whole }));
            }
            _ => {}
        }
    }
    Ok(None)
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The name for the file that the client asked for, if it is a plain one.
fn file_name(query: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    parameter(query, "filename").filter(|name| (1..=128).contains(&name.len()) && name.bytes().all(plain))
}

/// A block, if everybody may have it. The bytes of an identity CID are no secret to whoever has the CID.
fn published(store: &Store, cid: &Cid) -> Result<Option<Block>, StoreError> {
    match Digest::of_cid(cid) {
        Ok(Some(digest)) if !store.is_public(&digest)? => Ok(None),
        _ => store.block(cid),
    }
}

fn raw(method: &Method, headers: &HeaderMap, block: Block) -> Response {
    let (cid, bytes) = block.into_parts();
    let fixed = Fixed { size: bytes.len() as u64, etag: format!("\"{cid}.raw\""), content_type: RAW };
    match fixed.wanted(method, headers) {
        Wanted::Head(response) => response,
        Wanted::Body(range, response) => {
            let of = |end: u64| usize::try_from(end).unwrap_or(usize::MAX);
            response.map(|_| Body::from(bytes.slice(of(range.start)..of(range.end))))
        }
    }
}

/// The DAG as a CAR; `None` when too many are being sent.
async fn car(site: Site, method: &Method, headers: &HeaderMap, root: Block, whole: bool) -> Option<Response> {
    let etag = format!("W/\"{}.car{}\"", root.cid(), if whole { "" } else { ".block" });
    let fields = [
        (header::CONTENT_TYPE, CAR_AS_SENT.to_owned()),
        (header::ACCEPT_RANGES, "none".to_owned()),
        (header::ETAG, etag.clone()),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable".to_owned()),
    ];
    if super::range::is_known(headers, &etag) {
        return Some((StatusCode::NOT_MODIFIED, fields).into_response());
    }
    if *method == Method::HEAD {
        return Some((fields, Body::empty()).into_response());
    }
    let turn = site.body_turn().await?;
    let mut begin = car::header(&[*root.cid()]);
    if !whole {
        begin.extend(section(&root));
        return Some((fields, body(turn, begin.into(), futures::stream::empty::<io::Result<Bytes>>())).into_response());
    }
    let visit = Visit::new([*root.cid()]).ok()?;
    let store = site.node().store().clone();
    let sections = try_unfold((store, visit), |(store, mut visit)| async move {
        let next = tokio::task::spawn_blocking(move || {
            let section = next_section(&store, &mut visit)?;
            Ok::<_, io::Error>(section.map(|section| (section, (store, visit))))
        });
        next.await.map_err(io::Error::other)?
    });
    Some((fields, body(turn, begin.into(), sections)).into_response())
}

/// The next block of the walk as a section. One that is missing ends the CAR in an error.
fn next_section(store: &Store, visit: &mut Visit) -> io::Result<Option<Bytes>> {
    let Some(cid) = visit.next_cid().map_err(io::Error::other)? else { return Ok(None) };
    let block = published(store, &cid).map_err(io::Error::other)?;
    let block = block.ok_or_else(|| io::Error::other(format!("block {cid} is not here")))?;
    visit.feed(&block).map_err(io::Error::other)?;
    Ok(Some(section(&block).into()))
}

fn section(block: &Block) -> Vec<u8> {
    if block.digest().is_none() {
        return Vec::new();
    }
    let mut section = car::section_head(block);
    section.extend_from_slice(block.bytes());
    section
}
