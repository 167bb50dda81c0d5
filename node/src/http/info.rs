//! What the node says about itself.

use super::reply::not_found;
use super::site::Site;
use crate::cache::Audience;
use crate::store::{PathRecord, Store, StoreError};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream::try_unfold;
use nipfs_proto::nix::cache_info::CacheInfo;
use std::io;

/// Paths that are read from the store at once.
const BATCH: usize = 1000;

pub(super) async fn cache_info() -> Response {
    ([(header::CONTENT_TYPE, "text/x-nix-cache-info")], CacheInfo::OURS.to_text()).into_response()
}

pub(super) async fn nipfs_info(State(site): State<Site>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], site.info().to_text()).into_response()
}

/// The base names of all published paths, one a line.
pub(super) async fn paths(State(site): State<Site>) -> Response {
    let store = site.node().store().clone();
    let lines = try_unfold(Some(None), move |rest| {
        let store = store.clone();
        async move {
            let Some(rest) = rest else { return Ok(None) };
            let batch = tokio::task::spawn_blocking(move || {
                let mut all = rest.unwrap_or_else(|| store.paths());
                let lines = published(&store, all.by_ref().take(BATCH))?;
                Ok::<_, StoreError>(lines.map(|lines| (lines, all)))
            });
            let batch = batch.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
            Ok::<_, io::Error>(batch.map(|(lines, all)| (lines, Some(Some(all)))))
        }
    });
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(lines)).into_response()
}

/// The lines of one batch; `None` when there is no batch left.
fn published(
    store: &Store,
    batch: impl Iterator<Item = Result<PathRecord, StoreError>>,
) -> Result<Option<Bytes>, StoreError> {
    let (mut lines, mut any) = (String::new(), false);
    for record in batch {
        let record = record?;
        any = true;
        if record.published && store.is_backed(&record) {
            lines += &record.store_path.base_name();
            lines.push('\n');
        }
    }
    Ok(any.then(|| lines.into()))
}

pub(super) async fn status(State(site): State<Site>, audience: Audience) -> Response {
    if audience != Audience::Loopback {
        return not_found();
    }
    match site.node().status().await {
        Ok(status) => Json(status).into_response(),
        Err(failure) => {
            tracing::error!(%failure, "no status");
            not_found()
        }
    }
}
