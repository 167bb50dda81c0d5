//! `PUT`: what `nix copy --to http://…` sends. NARs first, each then named by a narinfo that a trusted key signed.
//!
//! Nix asks for a narinfo (GET), and if there is none: `HEAD /nar/FILE`, `PUT /nar/FILE` unless that was there, `PUT
//! /HASH.narinfo`. A client that shows the token sees in a HEAD what it need not send.
//!
//! Invariants:
//!
//! - Who has the token may add paths and signatures. He makes nothing trusted, and changes nothing that is published.
//! - We sign nothing of it: foreign `Sig`s are kept as they are, and the `IPFSHash` that we add is not bound by a key.
//! - 201 for a narinfo: path, NAR and pin are durable, and published. 201 for a NAR: it waits under a lease for a
//!   narinfo, for [`Limits::age`] at most or until [`Limits::waiting`] others have come, and nobody but the uploaders
//!   sees it.
//! - A refusal says why: it goes to somebody who has the token, or who is told how to show it.
//!
//! Listings (`.ls`), logs, realisations and debug information are refused: nothing here would answer for them, and Nix
//! sends them only to those who ask it to.

mod refused;
mod token;
mod waiting;

pub use token::Token;

use super::site::Site;
use super::stall::floored;
use crate::cache::{Audience, Cache, Claim, Staged};
use crate::dag::pipe::pipe;
use crate::store::StoreError;
use crate::upstream::decoder;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt as _};
use nipfs_proto::Cid;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::{Compression, MAX_NAR_SIZE, MAX_NARINFO, NarInfo, Root};
use nipfs_proto::nix::store_path::StorePathHash;
use nipfs_proto::nix::trust::TrustedNarInfo;
use nipfs_proto::nix::{NarHash, base32};
use refused::Refused;
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::io::{ReaderStream, StreamReader};
use waiting::Waiting;

/// NARs that are taken in at once: each has a thread for its blocks and one for its hash.
const AT_ONCE: usize = 16;
/// Bytes that come out of a decompressor at once.
const CHUNK: usize = 64 << 10;
/// How long a client that was refused may go on sending, so that it hears why.
const LINGER: Duration = Duration::from_secs(5);

/// How much, and how long to wait for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// NARs that wait for their narinfo; one more sends the oldest away. Each keeps half a MiB or so.
    pub(super) waiting: usize,
    /// How long each of them waits.
    pub(super) age: Duration,
    /// For a turn, and for [`super::stall::FLOOR`] bytes of a body.
    pub(super) stall: Duration,
    /// Bytes of a plain NAR.
    pub(super) nar: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let (age, stall) = (Duration::from_secs(3600), Duration::from_secs(30));
        Self { waiting: 256, age, stall, nar: MAX_NAR_SIZE }
    }
}

/// Who may upload, and what has come so far.
#[derive(Debug)]
pub struct Uploads {
    token: Token,
    profile: Profile,
    limits: Limits,
    turns: Arc<Semaphore>,
    waiting: Arc<Waiting>,
}

impl Uploads {
    /// Takes uploads from clients that show `token`; their NARs are cut as `profile` says.
    #[must_use]
    pub fn new(token: Token, profile: Profile) -> Self {
        Self::with_limits(token, profile, Limits::default())
    }

    pub(super) fn with_limits(token: Token, profile: Profile, limits: Limits) -> Self {
        let waiting = Arc::new(Waiting::new(limits.waiting, limits.age));
        Self { token, profile, limits, turns: Arc::new(Semaphore::new(AT_ONCE)), waiting }
    }

    /// Whether the client shows the token.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        self.token.is_shown(headers)
    }

    /// The size of a NAR that need not be sent: it waits here, or every block of it is in the store.
    pub(super) async fn found(&self, site: &Site, hash: NarHash) -> Option<u64> {
        if let Some(staged) = self.waiting.get(&hash) {
            return Some(staged.nar_size);
        }
        site.look(move |cache| Ok(held(cache, hash)?.map(|staged| staged.nar_size))).await
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Refused> {
        let turn = timeout(self.limits.stall, self.turns.clone().acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or(Refused::Busy)
    }
}

/// Refuses a request of which nothing was read.
pub(super) fn refuse(request: Request, response: Response) -> Response {
    // Who waits for leave to send, and does not get it, hears us anyway.
    if !request.headers().contains_key(header::EXPECT) {
        linger(request.into_body().into_data_stream());
    }
    response
}

/// 405: nobody may send anything.
pub(super) fn off() -> Response {
    let text = "only GET and HEAD: uploads are off (nipfs serve --enable-upload --upload-token-file FILE)\n";
    refused::response(StatusCode::METHOD_NOT_ALLOWED, text)
}

/// 401: the client shows no token, or another one.
pub(super) fn unauthorized() -> Response {
    let text =
        "uploads need the token: 'machine HOST login nipfs password TOKEN' in the file that Nix's netrc-file names\n";
    let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"nipfs uploads\", charset=\"UTF-8\"")];
    (challenge, refused::response(StatusCode::UNAUTHORIZED, text)).into_response()
}

/// `PUT` of what nobody would find here.
pub(super) async fn not_kept(request: Request) -> Response {
    refuse(request, Refused::NotKept.into_response())
}

/// `PUT /nar/FILEHASH.nar`, plain or compressed.
pub(super) async fn nar(State(site): State<Site>, Path(file): Path<String>, request: Request) -> Response {
    let Some(uploads) = site.uploads() else { return refuse(request, off()) };
    let (named, compression, _turn) = match uploads.open(&file, request.headers()).await {
        Ok(opened) => opened,
        Err(refused) => return refuse(request, refused.into_response()),
    };
    let mut bytes = plain(request.into_body(), compression, uploads.limits.stall);
    match uploads.stage(&site, &mut bytes).await.and_then(|staged| uploads.keep(staged, named)) {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(refused) => {
            linger(bytes);
            refused.into_response()
        }
    }
}

/// `PUT /HASH.narinfo`.
pub(super) async fn narinfo(State(site): State<Site>, Path(file): Path<String>, request: Request) -> Response {
    let Some(uploads) = site.uploads() else { return refuse(request, off()) };
    let hash = file.strip_suffix(".narinfo").and_then(|hash| hash.parse().ok());
    let hash = match hash.ok_or(Refused::NotKept).and_then(|hash| uncoded(request.headers()).map(|()| hash)) {
        Ok(hash) => hash,
        Err(refused) => return refuse(request, refused.into_response()),
    };
    let mut bytes = plain(request.into_body(), Compression::None, uploads.limits.stall);
    match uploads.publish(&site, hash, &mut bytes).await {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(refused) => {
            linger(bytes);
            refused.into_response()
        }
    }
}

type Pieces = BoxStream<'static, io::Result<Bytes>>;

impl Uploads {
    /// What a NAR is sent as, and leave to send it. The hash is the NAR's when it is not compressed.
    async fn open(
        &self,
        file: &str,
        headers: &HeaderMap,
    ) -> Result<(Option<NarHash>, Compression, OwnedSemaphorePermit), Refused> {
        let suffixes = [
            (".nar", Compression::None),
            (".nar.xz", Compression::Xz),
            (".nar.zst", Compression::Zstd),
            (".nar.bz2", Compression::Bzip2),
        ];
        let named = suffixes.iter().find_map(|(suffix, compression)| Some((file.strip_suffix(suffix)?, *compression)));
        let (hash, compression) = named.ok_or(Refused::NotKept)?;
        let hash = NarHash(base32::decode(hash).map_err(|_| Refused::NotKept)?);
        uncoded(headers)?;
        Ok(((compression == Compression::None).then_some(hash), compression, self.turn().await?))
    }

    /// Imports a NAR while it comes.
    async fn stage(&self, site: &Site, bytes: &mut Pieces) -> Result<Staged, Refused> {
        let (feed, input) = pipe();
        let (cache, profile) = (site.node().cache().clone(), self.profile);
        let import = spawn_blocking(move || cache.stage(input, profile));
        let mut came = 0;
        while let Some(piece) = bytes.next().await {
            came += piece.as_ref().map_or(0, Bytes::len) as u64;
            let piece = if came > self.limits.nar { Err(io::ErrorKind::FileTooLarge.into()) } else { piece };
            let last = piece.is_err();
            // An import that has ended says itself why.
            if feed.send(piece).await.is_err() || last {
                break;
            }
        }
        drop(feed);
        Ok(import.await??)
    }

    /// Keeps a NAR for its narinfo.
    fn keep(&self, staged: Staged, named: Option<NarHash>) -> Result<(), Refused> {
        match named.filter(|named| *named != staged.nar_hash) {
            Some(named) => Err(Refused::OtherNar { named, actual: staged.nar_hash }),
            None => {
                self.waiting.put(staged);
                Ok(())
            }
        }
    }

    /// Publishes the path of a narinfo.
    async fn publish(&self, site: &Site, hash: StorePathHash, bytes: &mut Pieces) -> Result<(), Refused> {
        let mut text = Vec::new();
        while let Some(piece) = bytes.next().await {
            text.extend_from_slice(&piece.map_err(Refused::body)?);
            if text.len() > MAX_NARINFO {
                return Err(Refused::TooLarge);
            }
        }
        let narinfo = NarInfo::parse(&hash, &text)?;
        let trusted = site.trusted().check(&narinfo).map_err(Refused::Untrusted)?;
        let staged = self.waiting.get(&narinfo.nar_hash());
        let cache = site.node().cache().clone();
        let root = spawn_blocking(move || commit(&cache, trusted, staged)).await??;
        self.waiting.forget(&narinfo.nar_hash());
        site.node().stored(root).await;
        Ok(())
    }
}

/// Publishes the path; its narinfo names the root that its NAR has here.
fn commit(cache: &Cache, mut trusted: TrustedNarInfo, staged: Option<Arc<Staged>>) -> Result<Option<Cid>, Refused> {
    let staged = match staged {
        None => held(cache, trusted.info().nar_hash())?.map(Arc::new),
        staged => staged,
    };
    if let Some(staged) = &staged {
        let bound = trusted.info().root().filter(|root| *root.cid() == staged.root).cloned();
        trusted = trusted.with_ipfs(bound.map_or_else(|| Root::new(staged.root, None), Ok)?);
    }
    cache.commit(Claim::Uploaded(&trusted), staged.as_deref(), Audience::World)?;
    Ok(staged.map(|staged| staged.root))
}

/// A NAR that is in the store, every block of it; protected from now on.
fn held(cache: &Cache, hash: NarHash) -> Result<Option<Staged>, StoreError> {
    let Some(record) = cache.store().nar(&hash)? else { return Ok(None) };
    let lease = Arc::new(cache.store().lease());
    for (profile, root) in &record.roots {
        if lease.touch_dag(root)? {
            return Ok(Some(Staged::by_reading(lease, *root, profile.parse().ok(), hash, record.nar_size)));
        }
    }
    Ok(None)
}

/// Refuses a body that is coded for the way: Nix 2.32 and newer can be told to do that.
fn uncoded(headers: &HeaderMap) -> Result<(), Refused> {
    let coding = headers.get(header::CONTENT_ENCODING);
    if coding.is_none_or(|coding| coding == "identity") { Ok(()) } else { Err(Refused::Encoding) }
}

/// The plain bytes of a body.
fn plain(body: Body, compression: Compression, stall: Duration) -> Pieces {
    let bytes = floored(body, stall);
    if compression == Compression::None {
        return bytes.boxed();
    }
    ReaderStream::with_capacity(decoder(compression, StreamReader::new(bytes)), CHUNK).boxed()
}

/// Takes what a client still sends that has been refused: to close at once would take the answer away from it.
fn linger<T: Send>(rest: impl Stream<Item = T> + Send + 'static) {
    tokio::spawn(timeout(LINGER, rest.for_each(|_| ready(()))));
}
