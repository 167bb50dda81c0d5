//! One base URL and the connection pool to it.

use super::{ByteStream, UpstreamError};
use crate::scope::Scope;
use bytes::{Bytes, BytesMut};
use futures::stream::{StreamExt as _, TryStreamExt as _, try_unfold};
use reqwest::header::{self, HeaderValue};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Response, StatusCode, Url};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// Tries of one small request.
const TRIES: u32 = 3;
/// Redirects that are followed, all within one origin.
const MAX_REDIRECTS: usize = 3;
/// Bytes that must come in every [`Limits::patience`] of waiting.
const FLOOR: u64 = 64 << 10;

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For a connection.
    pub(super) connect: Duration,
    /// For the head of an answer whose body is a stream, and for [`FLOOR`] bytes of that body.
    pub(super) patience: Duration,
    /// Before the second try; twice that before the third.
    pub(super) pause: Duration,
}

const LIMITS: Limits =
    Limits { connect: Duration::from_secs(5), patience: Duration::from_secs(15), pause: Duration::from_millis(200) };

/// A base URL, and how to get what is below it.
#[derive(Debug, Clone)]
pub(super) struct Client {
    base: Url,
    http: reqwest::Client,
    limits: Limits,
}

impl Client {
    pub(super) fn new(base: &str) -> Result<Self, UpstreamError> {
        Self::with_limits(base, LIMITS)
    }

    pub(super) fn with_limits(base: &str, limits: Limits) -> Result<Self, UpstreamError> {
        let base = parse_base(base).map_err(|reason| UpstreamError::Address { text: base.to_owned(), reason })?;
        // An error means that another room was first: one provider is as good as the next.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("nipfs/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::custom(same_origin))
            .connect_timeout(limits.connect)
            .pool_idle_timeout(Duration::from_secs(30))
            .referer(false);
        if base.scheme() == "http" {
            // Redirects stay on http, so a machine without CA certificates can do without them.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|source| UpstreamError::Setup { base: base.to_string(), source })?;
        Ok(Self { base, http, limits })
    }

    /// Whether the base is an address of this machine or a network that it is in.
    pub(super) fn is_local(&self) -> bool {
        let ip = self.base.host_str().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        ip.is_some_and(|ip| Scope::Lan.contains(&ip.into()))
    }

    /// The URL of `reference` below the base.
    pub(super) fn resolve(&self, reference: &str) -> Result<Url, UpstreamError> {
        let outside = || UpstreamError::Outside { base: self.base.to_string(), reference: reference.to_owned() };
        // The URL parser drops tabs and newlines and takes a backslash for a slash: none of them is in an honest one.
        if reference.is_empty() || !reference.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err(outside());
        }
        let url = self.base.join(reference).map_err(|_| outside())?;
        let below = url.path().len() > self.base.path().len() && url.path().starts_with(self.base.path());
        let plain = url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
        if origin(&url) == origin(&self.base) && below && plain { Ok(url) } else { Err(outside()) }
    }

    /// A small text; `None` when it is not there.
    pub(super) async fn text(
        &self,
        url: &Url,
        limit: usize,
        within: Duration,
    ) -> Result<Option<String>, UpstreamError> {
        let Some(bytes) = self.small(url, None, limit, within).await? else { return Ok(None) };
        let text = String::from_utf8(bytes.into());
        text.map(Some).map_err(|_| UpstreamError::NotUtf8 { url: url.to_string() })
    }

    /// A whole small resource; `None` when it is not there. Tries again what may have been an accident.
    pub(super) async fn small(
        &self,
        url: &Url,
        accept: Option<&'static str>,
        limit: usize,
        within: Duration,
    ) -> Result<Option<Bytes>, UpstreamError> {
        let deadline = Instant::now() + within;
        let mut tries = 1;
        loop {
            let answer = timeout_at(deadline, self.small_once(url, accept, limit)).await;
            let error = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => return Err(UpstreamError::Deadline { url: url.to_string(), within }),
            };
            let pause = self.limits.pause.mul_f64(f64::from(tries) * rand::random_range(0.5..1.5));
            if tries == TRIES || !may_pass(&error) || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(%url, %error, "trying again");
            tries += 1;
            tokio::time::sleep(pause).await;
        }
    }

    async fn small_once(
        &self,
        url: &Url,
        accept: Option<&'static str>,
        limit: usize,
    ) -> Result<Option<Bytes>, UpstreamError> {
        let mut request = self.http.get(url.clone());
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, HeaderValue::from_static(accept));
        }
        let Some(mut response) = check(url, request.send().await)? else { return Ok(None) };
        if response.status() != StatusCode::OK {
            return Err(UpstreamError::Status { url: url.to_string(), status: response.status().as_u16() });
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|source| broken(url, source))? {
            if body.len() + chunk.len() > limit {
                return Err(UpstreamError::TooLong { url: url.to_string(), limit: limit as u64 });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body.freeze()))
    }

    /// The head of a large resource, asked for from byte `offset` on; `None` when it is not there.
    pub(super) async fn open(
        &self,
        url: &Url,
        accept: Option<&'static str>,
        offset: u64,
    ) -> Result<Option<Response>, UpstreamError> {
        let mut request = self.http.get(url.clone());
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, HeaderValue::from_static(accept));
        }
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        match timeout(self.limits.patience, request.send()).await {
            Ok(answer) => check(url, answer),
            Err(_) => Err(UpstreamError::Deadline { url: url.to_string(), within: self.limits.patience }),
        }
    }

    /// The body of `response`; an error when we have waited [`Limits::patience`] for [`FLOOR`] bytes. The time that
    /// the reader takes does not count.
    pub(super) fn floored(&self, url: &Url, response: Response) -> ByteStream {
        let patience = self.limits.patience;
        let state = (response.bytes_stream().boxed(), url.clone(), patience, 0);
        let next = move |(mut body, url, mut left, mut came): (
            futures::stream::BoxStream<'static, _>,
            Url,
            Duration,
            u64,
        )| async move {
            let asked = Instant::now();
            let chunk: Option<Bytes> = match timeout(left, body.try_next()).await {
                Ok(chunk) => chunk.map_err(|source| broken(&url, source))?,
                Err(_) => return Err(UpstreamError::Stalled { url: url.to_string() }),
            };
            let Some(chunk) = chunk else { return Ok(None) };
            left = left.saturating_sub(asked.elapsed());
            came += chunk.len() as u64;
            if came >= FLOOR {
                (left, came) = (patience, 0);
            }
            Ok(Some((chunk, (body, url, left, came))))
        };
        try_unfold(state, next).boxed()
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)
    }
}

fn parse_base(text: &str) -> Result<Url, &'static str> {
    let mut url = Url::parse(text).map_err(|_| "not a URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a password in an address ends in logs");
    }
    // Parameters such as Nix's `?priority=10` are for the one who chooses among caches, not for the cache.
    url.set_query(None);
    url.set_fragment(None);
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str().map(|host| host.trim_matches(['[', ']'])) {
        Some("localhost") => true,
        Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}

fn origin(url: &Url) -> (&str, Option<&str>, Option<u16>) {
    (url.scheme(), url.host_str(), url.port_or_known_default())
}

fn same_origin(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let first = attempt.previous().first().map(origin);
    if first != Some(origin(attempt.url())) {
        let error = format!("a redirect to {} leaves the cache", attempt.url());
        return attempt.error(error);
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    attempt.follow()
}

/// Sorts answers: success (whole or in part), not here, or an error.
fn check(url: &Url, answer: reqwest::Result<Response>) -> Result<Option<Response>, UpstreamError> {
    let response = answer.map_err(|source| broken(url, source))?;
    match response.status() {
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::GONE => return Ok(None),
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
        status => return Err(UpstreamError::Status { url: url.to_string(), status: status.as_u16() }),
    }
    match response.headers().get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            Err(UpstreamError::Encoding { url: url.to_string(), encoding })
        }
        _ => Ok(Some(response)),
    }
}

fn broken(url: &Url, source: reqwest::Error) -> UpstreamError {
    UpstreamError::Request { url: url.to_string(), source: source.without_url() }
}

/// Whether the same request may succeed in a moment.
fn may_pass(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Request { source, .. } => !source.is_redirect(),
        UpstreamError::Status { status, .. } => *status >= 500 || *status == 429,
        _ => false,
    }
}
