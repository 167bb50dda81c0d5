//! Narinfos of other caches, passed on.
//!
//! A client must never wait for a cache that is away, and never be told that a path is gone because its cache is:
//!
//! - All caches are asked at once, under one deadline; the first that has the path wins.
//! - One that does not answer in time is left out for a while.
//! - What was known is served, however old, while nobody can say better. What all caches denied is denied for
//!   [`ABSENT_FOR`]; a failure is not a denial and is not remembered.
//!
//! A narinfo is passed on with its signatures and our lines, but with a URL of ours: the plain NAR by its hash, and the
//! store path's hash as a parameter, so that the NAR is found again after a restart. Clients keep URLs for 30 days.

use super::narinfo::readdress;
use crate::upstream::{Upstream, UpstreamError};
use futures::stream::{FuturesUnordered, StreamExt as _};
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::store_path::StorePathHash;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long all caches together may take for a narinfo.
const DEADLINE: Duration = Duration::from_millis(1900);
/// How long a narinfo is passed on without asking again.
const FRESH_FOR: Duration = Duration::from_secs(600);
/// How long a path that no cache has is not asked for again.
const ABSENT_FOR: Duration = Duration::from_secs(30);
/// How long a cache that did not answer is not asked.
const AWAY_FOR: Duration = Duration::from_secs(10);
/// What is remembered: answers, and bytes of their texts.
const MAX_ANSWERS: usize = 16 << 10;
const MAX_BYTES: usize = 16 << 20;

/// A narinfo that another cache sent.
#[derive(Debug)]
pub(super) struct Passed {
    /// The cache.
    pub(super) upstream: Upstream,
    /// The narinfo as the cache has it.
    pub(super) narinfo: NarInfo,
    /// The narinfo as we pass it on.
    pub(super) text: String,
}

/// The other caches, and what they said.
#[derive(Debug)]
pub(super) struct Passing {
    caches: Vec<Cache>,
    deadline: Duration,
    memory: Mutex<Memory>,
}

#[derive(Debug)]
struct Cache {
    upstream: Upstream,
    away_until: Mutex<Option<Instant>>,
}

/// What the caches say about one path.
enum Verdict {
    Here(Arc<Passed>),
    /// All of them answered, and none has it.
    Absent,
    /// None is known to have it, but not all of them answered.
    Unknown,
}

impl Passing {
    pub(super) fn new(upstreams: Vec<Upstream>) -> Self {
        Self::with_deadline(upstreams, DEADLINE)
    }

    fn with_deadline(upstreams: Vec<Upstream>, deadline: Duration) -> Self {
        let cache = |upstream| Cache { upstream, away_until: Mutex::new(None) };
        Self { caches: upstreams.into_iter().map(cache).collect(), deadline, memory: Mutex::default() }
    }

    /// The narinfo of a path, if another cache has it or had it.
    pub(super) async fn narinfo(&self, hash: &StorePathHash) -> Option<Arc<Passed>> {
        if self.caches.is_empty() {
            return None;
        }
        let known = lock(&self.memory).get(hash);
        if let Some((answer, _)) = known.as_ref().filter(|(answer, age)| *age < keep_for(answer)) {
            return answer.clone();
        }
        let answer = match self.ask(hash).await {
            Verdict::Here(passed) => Some(passed),
            Verdict::Absent => None,
            Verdict::Unknown => return known.and_then(|(answer, _)| answer),
        };
        lock(&self.memory).put(*hash, answer.clone());
        answer
    }

    /// The narinfo of a NAR that was passed on: the one remembered, or that of the path which its URL names.
    pub(super) async fn nar(&self, nar: NarHash, path: Option<StorePathHash>) -> Option<Arc<Passed>> {
        let known = lock(&self.memory).path_of(&nar);
        let passed = self.narinfo(&known.or(path)?).await?;
        (passed.narinfo.nar_hash() == nar).then_some(passed)
    }

    async fn ask(&self, hash: &StorePathHash) -> Verdict {
        let mut answers: FuturesUnordered<_> = self.caches.iter().map(|cache| cache.ask(hash, self.deadline)).collect();
        let mut all = true;
        while let Some(answer) = answers.next().await {
            match answer {
                Verdict::Absent => {}
                Verdict::Unknown => all = false,
                here @ Verdict::Here(_) => return here,
            }
        }
        if all { Verdict::Absent } else { Verdict::Unknown }
    }
}

impl Cache {
    async fn ask(&self, hash: &StorePathHash, within: Duration) -> Verdict {
        if lock(&self.away_until).is_some_and(|until| Instant::now() < until) {
            return Verdict::Unknown;
        }
        let answer = self.upstream.narinfo(hash, within).await;
        let failed = match answer {
            Ok(None) => return Verdict::Absent,
            Ok(Some(text)) => match NarInfo::parse(hash, text.as_bytes()) {
                Ok(narinfo) => {
                    let url = format!("nar/{}.nar?hash={hash}", narinfo.nar_hash().to_base32());
                    let text = readdress(&narinfo, &url);
                    return Verdict::Here(Arc::new(Passed { upstream: self.upstream.clone(), narinfo, text }));
                }
                Err(error) => {
                    tracing::warn!(cache = %self.upstream, path = %hash, %error, "a narinfo is not passed on");
                    return Verdict::Absent;
                }
            },
            Err(error) => error,
        };
        tracing::warn!(cache = %self.upstream, error = &failed as &dyn std::error::Error, "cannot ask a cache");
        if !matches!(
            failed,
            UpstreamError::Encoding { .. } | UpstreamError::NotUtf8 { .. } | UpstreamError::TooLong { .. }
        ) {
            *lock(&self.away_until) = Some(Instant::now() + AWAY_FOR);
        }
        Verdict::Unknown
    }
}

type Answer = Option<Arc<Passed>>;

fn keep_for(answer: &Answer) -> Duration {
    if answer.is_some() { FRESH_FOR } else { ABSENT_FOR }
}

/// Answers, the oldest forgotten first.
#[derive(Debug, Default)]
struct Memory {
    answers: HashMap<StorePathHash, (Answer, Instant)>,
    nars: HashMap<NarHash, StorePathHash>,
    /// Oldest first; a path that was asked again is in it twice.
    order: VecDeque<(StorePathHash, Instant)>,
    bytes: usize,
}

impl Memory {
    fn get(&self, hash: &StorePathHash) -> Option<(Answer, Duration)> {
        self.answers.get(hash).map(|(answer, at)| (answer.clone(), at.elapsed()))
    }

    fn path_of(&self, nar: &NarHash) -> Option<StorePathHash> {
        self.nars.get(nar).copied()
    }

    fn put(&mut self, hash: StorePathHash, answer: Answer) {
        self.forget(&hash);
        let now = Instant::now();
        self.bytes += weight(&answer);
        if let Some(passed) = &answer {
            self.nars.insert(passed.narinfo.nar_hash(), hash);
        }
        self.answers.insert(hash, (answer, now));
        self.order.push_back((hash, now));
        while self.order.len() > MAX_ANSWERS || self.bytes > MAX_BYTES {
            let Some((oldest, at)) = self.order.pop_front() else { break };
            if self.answers.get(&oldest).is_some_and(|(_, latest)| *latest == at) {
                self.forget(&oldest);
            }
        }
    }

    fn forget(&mut self, hash: &StorePathHash) {
        let Some((answer, _)) = self.answers.remove(hash) else { return };
        self.bytes -= weight(&answer);
        if let Some(passed) = answer {
            let nar = passed.narinfo.nar_hash();
            // Another path with the same content may have come since.
            if self.nars.get(&nar) == Some(hash) {
                self.nars.remove(&nar);
            }
        }
    }
}

/// Bytes that an answer takes: the text is kept as it came, as it goes, and in fields.
fn weight(answer: &Answer) -> usize {
    256 + answer.as_ref().map_or(0, |passed| 3 * passed.text.len())
}

/// A panic under the lock leaves a memory that is merely incomplete.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
