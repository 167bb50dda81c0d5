//! `/HASH.narinfo`: what is here, else what another cache says.

use super::reply::not_found;
use super::site::Site;
use crate::cache::Audience;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::store_path::StorePathHash;

/// With our lines.
pub(super) async fn full(State(site): State<Site>, audience: Audience, Path(file): Path<String>) -> Response {
    let Some(hash) = asked(&file) else { return not_found() };
    let Some(text) = text(&site, audience, hash).await else { return not_found() };
    answer(roots(&text), text)
}

/// Without them: the roots are in the header only.
pub(super) async fn plain(State(site): State<Site>, audience: Audience, Path(file): Path<String>) -> Response {
    let Some(hash) = asked(&file) else { return not_found() };
    let Some(text) = text(&site, audience, hash).await else { return not_found() };
    match NarInfo::parse(&hash, text.as_bytes()) {
        Ok(narinfo) => answer(roots(&text), narinfo.plain().text().to_owned()),
        Err(error) => {
            tracing::error!(path = %hash, %error, "a recorded narinfo is not one");
            not_found()
        }
    }
}

fn asked(file: &str) -> Option<StorePathHash> {
    file.strip_suffix(".narinfo")?.parse().ok()
}

async fn text(site: &Site, audience: Audience, hash: StorePathHash) -> Option<String> {
    let Some(record) = site.look(move |cache| cache.lookup(&hash, audience)).await else {
        return site.passing().narinfo(&hash).await.map(|passed| passed.text.clone());
    };
    let text = String::from_utf8(record.narinfo.into()).ok()?;
    let url = format!("nar/{}.nar", record.nar_hash.to_base32());
    if text.contains(&format!("\nURL: {url}\nCompression: none\n")) {
        return Some(text);
    }
    // It came from a cache that keeps its NARs elsewhere or compressed.
    let narinfo = NarInfo::parse(&hash, text.as_bytes());
    narinfo.ok().map(|narinfo| readdress(&narinfo, &url))
}

/// The text with `url`, a plain NAR, in place of where another cache has it. What is signed stays as it is.
pub(super) fn readdress(narinfo: &NarInfo, url: &str) -> String {
    let (hash, size) = (narinfo.nar_hash(), narinfo.nar_size());
    let ours = format!("URL: {url}\nCompression: none\nFileHash: {hash}\nFileSize: {size}\n");
    let mut text = String::new();
    for line in narinfo.text().split_inclusive('\n') {
        match line.split(':').next() {
            Some("URL") => text += &ours,
            Some("Compression" | "FileHash" | "FileSize") => {}
            _ => text += line,
        }
    }
    text
}

/// The value of the `IPFSHash` line, if any.
fn roots(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("IPFSHash: ")).map(str::to_owned)
}

fn answer(roots: Option<String>, text: String) -> Response {
    let roots = roots.map(|cid| [("x-ipfs-roots", cid)]);
    let kind = [(header::CONTENT_TYPE, "text/x-nix-narinfo")];
    match roots {
        Some(roots) => (kind, roots, text).into_response(),
        None => (kind, text).into_response(),
    }
}
