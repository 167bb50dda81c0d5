//! Why an upload is not taken, in words for the one who sent it.

use crate::cache::CacheError;
use crate::store::StoreError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::narinfo::{NarInfoError, Reason};
use nipfs_proto::nix::trust::Untrusted;
use std::error::Error;
use std::io;
use tokio::task::JoinError;

/// Why something is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("not kept here: only nar/HASH.nar (also .xz, .zst, .bz2) and HASH.narinfo are")]
    NotKept,
    #[error("Content-Encoding is not taken: leave narinfo-compression and the like out of the cache's URL")]
    Encoding,
    #[error("too many uploads at once")]
    Busy,
    #[error("the body came too slowly")]
    Stalled,
    #[error("the body is too large")]
    TooLarge,
    #[error("the body ends early, or is not compressed as its name says")]
    Body(#[source] io::Error),
    #[error("sent as nar/{}.nar, but its NarHash is {actual}", named.to_base32())]
    OtherNar { named: NarHash, actual: NarHash },
    #[error(transparent)]
    NarInfo(#[from] NarInfoError),
    #[error("{0}: sign with a key that nipfs serve has as --trusted-public-key")]
    Untrusted(Untrusted),
    #[error("not a root")]
    Root(#[from] Reason),
    #[error("{0}: send it first")]
    NoNar(CacheError),
    #[error(transparent)]
    NotANar(CacheError),
    #[error(transparent)]
    Mismatch(CacheError),
    #[error("no space left")]
    NoSpace(#[source] CacheError),
    #[error("the store failed")]
    Store(#[source] CacheError),
    #[error("the import failed")]
    Thread(#[from] JoinError),
}

impl From<CacheError> for Refused {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Input(error) => Self::body(error),
            CacheError::NoNar { .. } => Self::NoNar(error),
            CacheError::Nar(_) => Self::NotANar(error),
            CacheError::Mismatch { .. } => Self::Mismatch(error),
            CacheError::Store(StoreError::NoSpace { .. }) => Self::NoSpace(error),
            CacheError::Store(_) | CacheError::Abandoned => Self::Store(error),
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        CacheError::from(error).into()
    }
}

impl Refused {
    pub(super) fn body(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Stalled,
            io::ErrorKind::FileTooLarge => Self::TooLarge,
            _ => Self::Body(error),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NotKept => StatusCode::METHOD_NOT_ALLOWED,
            Self::Encoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(_) | Self::OtherNar { .. } | Self::NarInfo(_) | Self::NotANar(_) => StatusCode::BAD_REQUEST,
            Self::Untrusted(_) => StatusCode::FORBIDDEN,
            Self::NoNar(_) | Self::Mismatch(_) => StatusCode::CONFLICT,
            Self::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Root(_) | Self::Store(_) | Self::Thread(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, error) = (self.status(), &self as &dyn Error);
        if status.is_server_error() && !matches!(self, Self::Busy) {
            tracing::error!(error, "an upload failed");
        } else {
            tracing::info!(error, "an upload is refused");
        }
        response(status, &format!("{self}\n"))
    }
}

/// An answer after which the connection closes: a body that was not read to its end may be in the way.
pub(super) fn response(status: StatusCode, text: &str) -> Response {
    let mut response = (status, [(header::CONNECTION, "close")], text.to_owned()).into_response();
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}
