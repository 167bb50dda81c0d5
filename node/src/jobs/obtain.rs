//! Getting one NAR, verified: store → peers → gateways → HTTP.
//!
//! The signature is the truth: whatever a source sends, the whole must match the NarHash of the
//! [`TrustedNarInfo`]. A source that runs dry is followed by the next at the same byte; a source that
//! lied is followed by the next from the first byte, and the listener is told to start again.

use super::Events;
use crate::cache::{Audience, Cache, CacheError, Purpose, Staged};
use crate::control::protocol::{Class, Failure, Report, SourceBytes};
use crate::dag::pipe::pipe;
use crate::dag::read::{Counters, ReadError, Sources, read};
use crate::store::{Lease, StoreError};
use crate::upstream::Upstream;
use bytes::Bytes;
use futures::{Stream, StreamExt, pin_mut};
use nipfs_proto::Cid;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::nar::Reader;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::trust::TrustedNarInfo;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// Where one NAR may come from, besides the store.
#[derive(Debug, Clone)]
pub struct Places {
    /// Peers and gateways.
    pub blocks: Sources,
    /// The cache that sent the narinfo.
    pub upstream: Option<Upstream>,
    /// For messages: whom `blocks` asks besides the store; `None` when there is nobody.
    pub peers: Option<String>,
}

/// A NAR that arrived and matched.
#[derive(Debug)]
pub struct Obtained {
    /// Root of its DAG.
    pub root: Cid,
    /// Where its bytes came from; those of a source that lied are counted too.
    pub bytes: SourceBytes,
    /// The source that delivered most of what matched: `local`, `bitswap`, `gateway` or `http`.
    pub source: &'static str,
    /// Keeps GC away from its blocks; `None` when they are not here.
    pub lease: Option<Arc<Lease>>,
}

fn obtained(root: Cid, counters: &Counters, lease: Option<Arc<Lease>>) -> Obtained {
    let bytes = counters.snapshot();
    Obtained { root, bytes, source: most(bytes), lease }
}

/// The source that delivered most.
fn most(bytes: SourceBytes) -> &'static str {
    let SourceBytes { local, bitswap, gateway, http } = bytes;
    let sources = [(local, "local"), (http, "http"), (gateway, "gateway"), (bitswap, "bitswap")];
    sources.into_iter().max_by_key(|(bytes, _)| *bytes).map_or("local", |(_, name)| name)
}

/// One path's way through its sources.
#[derive(Debug)]
pub struct Obtain<'a> {
    /// Where results are committed.
    pub cache: &'a Cache,
    /// The claim.
    pub trusted: &'a TrustedNarInfo,
    /// How the narinfo's root was cut, when a trusted key says so.
    pub profile: Option<Profile>,
    /// The sources.
    pub places: Places,
    /// The listener.
    pub events: &'a Events,
    /// Send the bytes to the listener.
    pub data: bool,
    /// What for.
    pub purpose: Purpose,
}

/// What is known of the bytes that came so far.
#[derive(Default)]
struct Progress {
    hash: Sha256,
    done: u64,
    /// What a stranger's root names need not even be a NAR; a listener shall not have to find out.
    grammar: Reader,
}

/// How reading blocks ended.
enum Ended {
    /// Everything came and matched.
    Whole,
    /// No source has the next block.
    Dry(Progress),
    /// What came is not what was signed.
    Wrong(Failure),
}

impl Obtain<'_> {
    /// Gets the NAR and commits it, so that its next reader finds it here. Bytes that came partly from
    /// blocks and partly over HTTP are delivered, but not kept.
    ///
    /// # Errors
    /// `NotFound` when no source has it, `Refused` when all that came was wrong, and the store's.
    pub async fn run(self) -> Result<Obtained, Failure> {
        let counters = Arc::new(Counters::default());
        let held = self.held().await?;
        let named = self.narinfo().root().map(|root| *root.cid());
        // What we publish must be the DAG that the narinfo names; for ourselves any DAG of the NAR will do.
        let root = if self.purpose == Purpose::Mirror { named.or(held) } else { held.or(named) };
        let mut refused = None;
        if let Some(root) = root {
            self.show_arrivals(root);
            match self.by_blocks(root, &counters).await? {
                Ended::Whole => {
                    let lease = self.places.blocks.lease.clone();
                    if let Some(lease) = &lease {
                        let (hash, size) = (self.narinfo().nar_hash(), self.narinfo().nar_size());
                        self.commit(Staged::by_reading(lease.clone(), root, self.profile, hash, size)).await?;
                    }
                    return Ok(obtained(root, &counters, lease));
                }
                Ended::Dry(progress) if self.data && progress.done > 0 && self.places.upstream.is_some() => {
                    match self.rest_over_http(progress, &counters).await {
                        Ok(()) => return Ok(obtained(root, &counters, None)),
                        // What came as blocks was not the beginning of what was signed.
                        Err(why) if why.class == Class::Refused => {
                            self.events.note(format!("{why}; trying the next source")).await?;
                            self.restart().await?;
                            refused = Some(why);
                        }
                        Err(failure) => return Err(failure),
                    }
                }
                Ended::Dry(progress) if progress.done > 0 => self.restart().await?,
                Ended::Dry(_) => {}
                Ended::Wrong(why) => {
                    self.events.note(format!("{why}; trying the next source")).await?;
                    self.restart().await?;
                    refused = Some(why);
                }
            }
        }
        match self.over_http(&counters).await {
            Ok((root, lease)) => Ok(Obtained { root, bytes: counters.snapshot(), source: "http", lease: Some(lease) }),
            Err(failure) if failure.class == Class::NotFound => Err(refused.unwrap_or(failure)),
            Err(failure) => Err(failure),
        }
    }

    /// A root of the NAR, if all of its DAG is here; then it is protected.
    async fn held(&self) -> Result<Option<Cid>, Failure> {
        let Some(record) = self.cache.store().nar(&self.narinfo().nar_hash())? else { return Ok(None) };
        let Some(lease) = self.places.blocks.lease.clone() else {
            return Ok(record.roots.first().map(|(_, root)| *root));
        };
        let whole = move || {
            for (_, root) in record.roots {
                if lease.touch_dag(&root)? {
                    return Ok(Some(root));
                }
            }
            Ok(None)
        };
        let whole: Result<_, StoreError> =
            tokio::task::spawn_blocking(whole).await.map_err(|error| Failure::from_error(Class::Failed, &error))?;
        Ok(whole?)
    }

    /// Lets peers have the blocks of `root` as they come, if it will be published and a trusted key says that it is the
    /// NAR: otherwise it could be that of something else here, which is nobody's business.
    fn show_arrivals(&self, root: Cid) {
        let is_bound = self.profile.is_some() && self.narinfo().root().is_some_and(|named| *named.cid() == root);
        if self.purpose != Purpose::Use(Audience::Loopback)
            && is_bound
            && let Some(lease) = &self.places.blocks.lease
        {
            lease.show();
        }
    }

    /// Takes back what was sent; the listener may be in the middle of another path when nothing was.
    async fn restart(&self) -> Result<(), Failure> {
        if self.data { self.events.restart().await } else { Ok(()) }
    }

    fn narinfo(&self) -> &NarInfo {
        self.trusted.info()
    }

    fn path(&self) -> String {
        self.narinfo().store_path().to_absolute_path()
    }

    /// Reads the DAG, hashing what comes. More bytes than were signed are never asked for.
    async fn by_blocks(&self, root: Cid, counters: &Arc<Counters>) -> Result<Ended, Failure> {
        let size = self.narinfo().nar_size();
        let bytes = read(self.places.blocks.clone(), counters.clone(), root, 0..size + 1);
        pin_mut!(bytes);
        let mut progress = Progress::default();
        while let Some(next) = bytes.next().await {
            match next {
                Ok(chunk) if progress.done + chunk.len() as u64 > size => break,
                Ok(chunk) => {
                    if let Err(error) = progress.grammar.follow(&chunk) {
                        return Ok(Ended::Wrong(self.lie(root).because(&error)));
                    }
                    self.deliver(chunk, &mut progress, counters).await?;
                }
                Err(ReadError::Missing { cid, .. }) => {
                    self.note_missing(cid, progress.done).await?;
                    return Ok(Ended::Dry(progress));
                }
                Err(error @ ReadError::Dag { .. }) => return Ok(Ended::Wrong(self.lie(root).because(&error))),
                Err(error) => return Err(error.into()),
            }
        }
        let matches =
            progress.done == size && self.narinfo().nar_hash().0 == <[u8; 32]>::from(progress.hash.finalize());
        Ok(if matches { Ended::Whole } else { Ended::Wrong(self.lie(root)) })
    }

    fn peers(&self) -> &str {
        self.places.peers.as_deref().unwrap_or("any peer (none was named)")
    }

    async fn note_missing(&self, cid: Cid, done: u64) -> Result<(), Failure> {
        let Some(peers) = &self.places.peers else { return Ok(()) };
        let place = if done > 0 { format!(" at byte {done}") } else { String::new() };
        self.events.note(format!("{}: no peer or gateway ({peers}) has block {cid}{place}", self.path())).await
    }

    fn lie(&self, root: Cid) -> Failure {
        let text = format!(
            "{}: IPFSHash {root} from {} is not the content that NarHash {} names",
            self.path(),
            self.peers(),
            self.narinfo().nar_hash()
        );
        Failure::new(Class::Refused, text)
    }

    async fn deliver(&self, chunk: Bytes, progress: &mut Progress, counters: &Counters) -> Result<(), Failure> {
        progress.hash.update(&chunk);
        progress.done += chunk.len() as u64;
        if self.data {
            self.events.data(chunk).await?;
        }
        self.events.progress(|| Report::Progress {
            path: self.path(),
            done: progress.done,
            total: self.narinfo().nar_size(),
            source: most(counters.snapshot()).to_owned(),
        });
        Ok(())
    }

    async fn commit(&self, staged: Staged) -> Result<(), Failure> {
        let committed = self.cache.commit_soon(self.trusted.clone(), staged, self.purpose).await;
        committed.map_err(|error| self.at(error))
    }

    fn upstream(&self) -> Result<&Upstream, Failure> {
        let nowhere = || {
            let text = format!("{}: not found at {} and no cache to fall back to", self.path(), self.peers());
            Failure::new(Class::NotFound, text)
        };
        self.places.upstream.as_ref().ok_or_else(nowhere)
    }

    /// The bytes after those that came as blocks.
    async fn rest_over_http(&self, mut progress: Progress, counters: &Counters) -> Result<(), Failure> {
        let rest = self.upstream()?.nar(self.narinfo(), progress.done).await?;
        pin_mut!(rest);
        while let Some(chunk) = rest.next().await {
            let chunk = chunk?;
            counters.http.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            self.deliver(chunk, &mut progress, counters).await?;
        }
        let (size, hash) = (progress.done, NarHash(progress.hash.finalize().into()));
        if size == self.narinfo().nar_size() && hash == self.narinfo().nar_hash() {
            return Ok(());
        }
        Err(self.wrong_over_http(&hash))
    }

    fn wrong_over_http(&self, hash: &NarHash) -> Failure {
        let (path, url) = (self.path(), self.narinfo().url());
        let from = self.places.upstream.as_ref().map_or_else(String::new, ToString::to_string);
        let text = format!("{path}: {url} from {from} has NarHash {hash}, signed is {}", self.narinfo().nar_hash());
        Failure::new(Class::Refused, text)
    }

    /// The whole NAR over HTTP, imported while it comes.
    async fn over_http(&self, counters: &Counters) -> Result<(Cid, Arc<Lease>), Failure> {
        let stream = self.upstream()?.nar(self.narinfo(), 0).await?;
        let (feed, input) = pipe();
        let cache = self.cache.clone();
        let profile = self.profile.unwrap_or(Profile::UnixfsV0_2015);
        let import = tokio::task::spawn_blocking(move || cache.stage(input, profile));
        let fed = self.feed(stream, feed, counters).await;
        let staged = import.await.map_err(|error| Failure::from_error(Class::Failed, &error))?;
        fed?;
        let staged = staged.map_err(|error| self.at(error))?;
        if staged.nar_hash != self.narinfo().nar_hash() {
            return Err(self.wrong_over_http(&staged.nar_hash));
        }
        // The narinfo's own root may have been cut in a way we do not know; then its line goes with it.
        let (root, lease) = (staged.root, staged.lease());
        self.commit(staged).await?;
        Ok((root, lease))
    }

    async fn feed(
        &self,
        stream: impl Stream<Item = Result<Bytes, crate::upstream::UpstreamError>>,
        feed: mpsc::Sender<std::io::Result<Bytes>>,
        counters: &Counters,
    ) -> Result<(), Failure> {
        pin_mut!(stream);
        let mut progress = Progress::default();
        while let Some(chunk) = stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    let _ = feed.send(Err(std::io::ErrorKind::UnexpectedEof.into())).await;
                    return Err(error.into());
                }
            };
            counters.http.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if feed.send(Ok(chunk.clone())).await.is_err() {
                // The import ended early; its own error says why.
                return Ok(());
            }
            self.deliver(chunk, &mut progress, counters).await?;
        }
        Ok(())
    }

    fn at(&self, error: CacheError) -> Failure {
        let failure = Failure::from(error);
        Failure { message: format!("{}: {}", self.path(), failure.message), ..failure }
    }
}
