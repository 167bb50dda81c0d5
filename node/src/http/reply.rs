//! Answers that several routes give.

use super::range::{self, Part};
use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use std::ops::Range;

/// `Cache-Control` of what never changes under its name: the IPFS gateway spec's 48 weeks.
pub(super) const FOR_EVER: &str = "public, max-age=29030400, immutable";

/// 404, for what is absent and for what may not be seen.
pub(super) fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "not found\n").into_response()
}

/// 400 with a few words.
pub(super) fn bad_request(why: &'static str) -> Response {
    (StatusCode::BAD_REQUEST, why).into_response()
}

/// A resource of known size that never changes under its name: its bytes, or a range of them.
#[derive(Debug)]
pub(super) struct Fixed {
    /// Its bytes.
    pub(super) size: u64,
    /// Strong validator, with its quotes.
    pub(super) etag: String,
    pub(super) content_type: &'static str,
}

/// What is to be sent of a [`Fixed`].
#[derive(Debug)]
pub(super) enum Wanted {
    /// Nothing but this.
    Head(Response),
    /// These bytes, as the body of this.
    Body(Range<u64>, Response),
}

impl Fixed {
    /// Settles preconditions, range and method.
    pub(super) fn wanted(&self, method: &Method, asked: &HeaderMap) -> Wanted {
        let Self { size, etag, content_type } = self;
        let fill = |status: StatusCode, length: u64| {
            let fields = [
                (header::CONTENT_TYPE, (*content_type).to_owned()),
                (header::CONTENT_LENGTH, length.to_string()),
                (header::ACCEPT_RANGES, "bytes".to_owned()),
                (header::ETAG, etag.clone()),
                (header::CACHE_CONTROL, FOR_EVER.to_owned()),
            ];
            (status, fields, Body::empty()).into_response()
        };
        if range::is_known(asked, etag) {
            let mut response = fill(StatusCode::NOT_MODIFIED, 0);
            response.headers_mut().remove(header::CONTENT_LENGTH);
            return Wanted::Head(response);
        }
        // RFC 9110 defines ranges for GET only.
        if *method == Method::HEAD {
            return Wanted::Head(fill(StatusCode::OK, *size));
        }
        match range::part(asked, etag, *size) {
            Part::Whole => Wanted::Body(0..*size, fill(StatusCode::OK, *size)),
            Part::Some(range) => {
                let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                let response = fill(StatusCode::PARTIAL_CONTENT, range.end - range.start);
                Wanted::Body(range, ([(header::CONTENT_RANGE, content_range)], response).into_response())
            }
            Part::Beyond => {
                let fields = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                Wanted::Head((StatusCode::RANGE_NOT_SATISFIABLE, fields).into_response())
            }
        }
    }
}
