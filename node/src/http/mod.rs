//! The node's HTTP face: a substituter for Nix, and a trustless gateway for IPFS clients. GET and HEAD only, but for
//! uploads ([`upload`]).
//!
//! | path | what |
//! |---|---|
//! | `/nix-cache-info`, `/HASH.narinfo`, `/nar/NARHASH.nar` | the cache, with our lines in the narinfos |
//! | `/plain/…` | the same for readers that refuse unknown lines |
//! | `/nipfs-info`, `/nipfs-paths` | whom to ask for blocks, and what is published |
//! | `/ipfs/CID[/path]?format=raw\|car` | blocks and DAGs, if they are published |
//! | `/health` | `ok` |
//! | `/status` | figures, for this machine only |
//!
//! Invariants:
//!
//! - A narinfo request is answered 200 or 404 within two seconds, whatever fails behind it: Nix gives up a whole
//!   build for a 5xx.
//! - No status line is sent before the first byte of a NAR is at hand. What fails later cuts the body off; a body that
//!   ends is whole.
//! - The world sees what is published; what was only fetched is for this machine. Absent and invisible look alike.
//! - Nothing is looked for on behalf of a stranger but what is published here, and what the caches have that the
//!   operator named.
//! - Bodies of errors are a few words, without paths or causes; those are in the log. Uploaders are told more.

mod accept;
mod gateway;
mod info;
mod nar;
mod narinfo;
mod passing;
mod range;
mod reply;
mod site;
mod splice;
mod stall;
#[cfg(test)]
mod tests;
mod upload;

pub use site::Site;
pub use upload::{Token, Uploads};

use accept::Limits;
use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `site` on `listener` until `stop`; requests that were read by then are answered, for at most 7 seconds.
pub async fn serve(listener: TcpListener, site: Site, stop: CancellationToken) {
    accept::serve(listener, router(site), Limits::default(), stop).await;
}

fn router(site: Site) -> Router {
    let cache = Router::new().route("/nix-cache-info", get(info::cache_info)).route("/nar/{file}", get(nar::serve));
    let uploads = Router::new().route("/nar/{file}", put(upload::nar)).route("/{file}", put(upload::narinfo));
    let full = cache.clone().route("/{file}", get(narinfo::full)).merge(uploads);
    let plain = cache.route("/{file}", get(narinfo::plain));
    full.nest("/plain", plain)
        .route("/nipfs-info", get(info::nipfs_info))
        .route("/nipfs-paths", get(info::paths))
        .route("/ipfs/{*path}", get(gateway::serve))
        .route("/status", get(info::status))
        .route("/health", get(async || "ok\n"))
        .fallback(absent)
        .method_not_allowed_fallback(upload::not_kept)
        .layer(from_fn_with_state(site.clone(), only_ours))
        .with_state(site)
}

/// What no route is for.
async fn absent(request: Request) -> Response {
    if request.method() == Method::PUT { upload::not_kept(request).await } else { reply::not_found() }
}

/// Refuses what nothing is for: other methods, uploads without the token, and requests that take us for a proxy.
async fn only_ours(State(site): State<Site>, request: Request, next: Next) -> Response {
    match (request.method(), site.uploads()) {
        (&Method::GET | &Method::HEAD, _) => {}
        (&Method::PUT, Some(uploads)) if uploads.admits(request.headers()) => {}
        (&Method::PUT, Some(_)) => return upload::refuse(request, upload::unauthorized()),
        (&Method::PUT, None) => return upload::refuse(request, upload::off()),
        _ => {
            let allow = [(header::ALLOW, HeaderValue::from_static("GET, HEAD"))];
            return (StatusCode::METHOD_NOT_ALLOWED, allow, "only GET and HEAD\n").into_response();
        }
    }
    if request.uri().authority().is_some() {
        return (StatusCode::MISDIRECTED_REQUEST, "not a proxy\n").into_response();
    }
    if is_ambiguous(&request) {
        let close = [(header::CONNECTION, HeaderValue::from_static("close"))];
        return (StatusCode::BAD_REQUEST, close, "bad request\n").into_response();
    }
    next.run(request).await
}

/// Whether somebody between the client and us may read the request, or where it ends, in another way (RFC 9112 §3.2
/// and §11.2): it has a body that it should not have, or more or fewer names of ours than one.
fn is_ambiguous(request: &Request) -> bool {
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter().count();
    let body = headers.contains_key(header::TRANSFER_ENCODING) || !request.body().is_end_stream();
    (body && request.method() != Method::PUT) || hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11)
}
