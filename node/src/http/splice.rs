//! One NAR out of several places: when one fails, the next goes on at the same byte.
//!
//! A whole NAR from outside is hashed on its way through: if it is not what its hash names, its last piece is withheld,
//! so that it never ends well. If it is, and all of it came as blocks, it is kept for this machine.

use super::passing::Passed;
use super::site::Site;
use crate::cache::{Audience, Purpose, Staged};
use crate::dag::read::{Sources, read};
use crate::store::Lease;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _, try_unfold};
use nipfs_proto::Cid;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::trust::TrustedNarInfo;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::error::Error;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::OwnedSemaphorePermit;

/// Where a NAR can be had.
#[derive(Debug)]
pub(super) enum Place {
    /// Our store.
    Here(Cid),
    /// Whoever has its blocks.
    Peers {
        root: Cid,
        /// Address of the peer that has them for certain; `None` asks everybody.
        mirror: Option<String>,
        /// What to do with a whole one.
        keep: Option<Box<Keep>>,
    },
    /// The cache that sent its narinfo.
    Upstream(Arc<Passed>),
}

/// Under which name a NAR is kept.
#[derive(Debug)]
pub(super) struct Keep {
    pub(super) trusted: TrustedNarInfo,
    pub(super) profile: Profile,
    pub(super) audience: Audience,
}

/// The bytes of `range` of the NAR `hash`, which is all of it if `whole`. Ends in an error unless all of them came.
pub(super) fn splice(
    site: Site,
    hash: NarHash,
    places: VecDeque<Place>,
    range: Range<u64>,
    whole: bool,
) -> BoxStream<'static, io::Result<Bytes>> {
    // Under a root that the store records, what came in was compared, wherever its blocks are by now.
    let recorded = matches!(places.front(), Some(Place::Here(_)))
        && places.iter().all(|place| matches!(place, Place::Here(_) | Place::Peers { keep: None, .. }));
    let check = (whole && !recorded).then(Sha256::new);
    let splice =
        Splice { site, hash, places, range, now: futures::stream::empty().boxed(), check, kept: None, far: None };
    let next = |mut splice: Splice| async move { Ok(splice.next().await?.map(|bytes| (bytes, splice))) };
    try_unfold(splice, next).boxed()
}

struct Splice {
    site: Site,
    hash: NarHash,
    places: VecDeque<Place>,
    /// What is still to come.
    range: Range<u64>,
    now: BoxStream<'static, io::Result<Bytes>>,
    check: Option<Sha256>,
    /// Holds the blocks of a NAR that has come as blocks so far.
    kept: Option<(Box<Keep>, Cid, Arc<Lease>)>,
    /// Held while peers are read from.
    far: Option<OwnedSemaphorePermit>,
}

impl Splice {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.range.is_empty() {
            match self.now.next().await {
                Some(Ok(mut bytes)) => {
                    let left = self.range.end - self.range.start;
                    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    self.range.start += bytes.len() as u64;
                    self.check(&bytes).await?;
                    return Ok(Some(bytes));
                }
                Some(Err(error)) => {
                    let (nar, at) = (self.hash, self.range.start);
                    tracing::warn!(%nar, at, error = &error as &dyn Error, "a source of a NAR failed");
                }
                None => {}
            }
            let Some(place) = self.places.pop_front() else {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no source has the rest of the NAR"));
            };
            self.open(place).await;
        }
        Ok(None)
    }

    async fn open(&mut self, place: Place) {
        (self.kept, self.far) = (None, None);
        self.now = match place {
            Place::Here(root) => self.blocks(self.site.here(), root),
            Place::Peers { root, mirror, keep } => {
                self.far = self.site.far_turn().await;
                if self.far.is_none() {
                    self.now = futures::stream::iter([Err(io::ErrorKind::QuotaExceeded.into())]).boxed();
                    return;
                }
                let mut sources = self.site.anywhere(mirror.as_deref()).await;
                if let Some(keep) = keep.filter(|_| self.check.is_some() && self.range.start == 0) {
                    let lease = Arc::new(sources.store.lease());
                    sources.lease = Some(lease.clone());
                    self.kept = Some((keep, root, lease));
                }
                self.blocks(sources, root)
            }
            Place::Upstream(passed) => {
                let counters = self.site.node().counters().clone();
                let count = move |bytes: &Bytes| {
                    counters.http.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                };
                match passed.upstream.nar(&passed.narinfo, self.range.start).await {
                    Ok(bytes) => bytes.inspect_ok(count).map_err(io::Error::other).boxed(),
                    Err(error) => futures::stream::iter([Err(io::Error::other(error))]).boxed(),
                }
            }
        };
    }

    fn blocks(&self, sources: Sources, root: Cid) -> BoxStream<'static, io::Result<Bytes>> {
        let counters = self.site.node().counters().clone();
        read(sources, counters, root, self.range.clone()).map_err(io::Error::other).boxed()
    }

    /// Books a piece, and settles the matter with the last one.
    async fn check(&mut self, bytes: &Bytes) -> io::Result<()> {
        let Some(hash) = &mut self.check else { return Ok(()) };
        hash.update(bytes);
        if !self.range.is_empty() {
            return Ok(());
        }
        let hash = NarHash(self.check.take().unwrap_or_default().finalize().into());
        if hash != self.hash {
            let text = format!("what came as NAR {} is {hash}", self.hash);
            tracing::error!("{text}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if let Some((keep, root, lease)) = self.kept.take() {
            self.keep(keep, root, lease).await;
        }
        Ok(())
    }

    /// Lets this machine find the NAR here the next time. A failure costs only that.
    async fn keep(&mut self, keep: Box<Keep>, root: Cid, lease: Arc<Lease>) {
        let Keep { trusted, profile, audience } = *keep;
        let staged = Staged::by_reading(lease, root, Some(profile), self.hash, trusted.info().nar_size());
        if let Err(error) = self.site.node().cache().commit_soon(trusted, staged, Purpose::Use(audience)).await {
            tracing::warn!(nar = %self.hash, error = &error as &dyn Error, "a NAR is not kept");
        }
    }
}
