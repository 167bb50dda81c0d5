//! The narinfos of a closure, many at a time, each checked before it counts.

use crate::control::protocol::{Class, Failure};
use crate::upstream::Upstream;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::signature::PublicKey;
use nipfs_proto::nix::store_path::{StorePath, StorePathHash};
use nipfs_proto::nix::trust::{TrustedKeys, TrustedNarInfo, TrustedText};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Narinfo requests in flight.
const NARINFOS_AT_ONCE: usize = 32;
/// How long one cache may take for one narinfo, retries included.
const NARINFO_DEADLINE: Duration = Duration::from_secs(15);
/// Paths of one closure: far above any system, far below what fills memory.
pub(crate) const MAX_CLOSURE: usize = 1 << 18;

/// A narinfo that was checked, and the cache that sent it, if one did.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    pub(crate) trusted: TrustedNarInfo,
    /// How its root was cut, when a trusted key says so.
    pub(crate) profile: Option<Profile>,
    pub(crate) upstream: Option<Upstream>,
}

/// A [`Checked`] narinfo of a closure until its turn comes: thousands wait, so only the text is kept, and what turns are
/// made of.
#[derive(Debug)]
pub(crate) struct Waiting {
    text: TrustedText,
    pub(crate) nar_size: u64,
    pub(crate) references: Box<[StorePathHash]>,
    profile: Option<Profile>,
    upstream: Option<Upstream>,
}

impl Waiting {
    pub(crate) fn new(checked: Checked) -> Self {
        let Checked { trusted, profile, upstream } = checked;
        let narinfo = trusted.info();
        let references = narinfo.references().iter().map(StorePath::hash_part).collect();
        Self { text: TrustedText::from(&trusted), nar_size: narinfo.nar_size(), references, profile, upstream }
    }

    /// The narinfo again.
    ///
    /// # Errors
    /// None, as its text was read before.
    pub(crate) fn checked(&self) -> Result<Checked, Failure> {
        let trusted = self.text.read().map_err(|error| Failure::from_error(Class::Refused, &error))?;
        Ok(Checked { trusted, profile: self.profile, upstream: self.upstream.clone() })
    }
}

/// Asks for narinfos, and for those of all they refer to.
pub(crate) struct Narinfos<'a> {
    upstreams: &'a [Upstream],
    keys: (&'a TrustedKeys, bool),
    closure: bool,
    /// What is not asked for again: found, asked for, or had by the client already.
    seen: BTreeSet<StorePathHash>,
    waiting: VecDeque<StorePathHash>,
    asking: FuturesUnordered<BoxFuture<'a, Result<Checked, Failure>>>,
    /// What came so far.
    pub(crate) found: BTreeMap<StorePathHash, Waiting>,
}

impl<'a> Narinfos<'a> {
    /// Will ask for `wanted`, with all they refer to when `closure` is set; neither for what is in `skip` nor for
    /// what only that refers to. Without `check_sigs` the signatures need not be of a key in `keys`.
    pub(crate) fn new(
        wanted: &[StorePathHash],
        skip: BTreeSet<StorePathHash>,
        closure: bool,
        upstreams: &'a [Upstream],
        (keys, check_sigs): (&'a TrustedKeys, bool),
    ) -> Self {
        let mut seen = skip;
        let waiting = wanted.iter().copied().filter(|hash| seen.insert(*hash)).collect();
        let (asking, found) = (FuturesUnordered::new(), BTreeMap::new());
        Self { upstreams, keys: (keys, check_sigs), closure, seen, waiting, asking, found }
    }

    /// The next one that came; `None` when all are there. Cancel-safe.
    ///
    /// # Errors
    /// When one cannot be had or trusted, or there are more than [`MAX_CLOSURE`].
    pub(crate) async fn next(&mut self) -> Result<Option<StorePathHash>, Failure> {
        while self.asking.len() < NARINFOS_AT_ONCE
            && let Some(hash) = self.waiting.pop_front()
        {
            self.asking.push(Box::pin(narinfo(hash, self.upstreams, self.keys)));
        }
        let Some(checked) = self.asking.next().await.transpose()? else { return Ok(None) };
        let path = checked.trusted.info().store_path().clone();
        let found = Waiting::new(checked);
        if self.closure {
            self.waiting.extend(found.references.iter().copied().filter(|hash| self.seen.insert(*hash)));
        }
        if self.seen.len() > MAX_CLOSURE {
            let text = format!("{}: closure of more than {MAX_CLOSURE} paths", path.to_absolute_path());
            return Err(Failure::new(Class::Refused, text));
        }
        let hash = path.hash_part();
        self.found.insert(hash, found);
        Ok(Some(hash))
    }
}

/// The first narinfo that a cache sends and a key signed.
pub(crate) async fn narinfo(
    hash: StorePathHash,
    upstreams: &[Upstream],
    (keys, check_sigs): (&TrustedKeys, bool),
) -> Result<Checked, Failure> {
    let mut refused = None;
    let mut unreachable = None;
    for upstream in upstreams {
        let text = match upstream.narinfo(&hash, NARINFO_DEADLINE).await {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            Err(error) => {
                unreachable = Some(Failure::from(error));
                continue;
            }
        };
        let checked = NarInfo::parse(&hash, text.as_bytes()).map_err(|error| {
            let text = format!("{hash}.narinfo from {upstream}: {error}");
            Failure::new(Class::Refused, text)
        });
        let checked = checked.and_then(|narinfo| match keys.check(&narinfo) {
            Ok(trusted) => Ok(trusted),
            Err(_) if !check_sigs => Ok(TrustedNarInfo::own(narinfo)),
            Err(error) => Err(Failure::from_error(Class::Refused, &error)
                .hint("name the key that signs this cache with --trusted-public-key NAME:BASE64")),
        });
        match checked {
            Ok(trusted) => {
                let profile = bound_profile(keys, trusted.info());
                return Ok(Checked { trusted, profile, upstream: Some(upstream.clone()) });
            }
            Err(failure) => refused = Some(failure),
        }
    }
    let caches = upstreams.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let nowhere = || Failure::new(Class::NotFound, format!("{hash}.narinfo: not found at {caches}"));
    Err(refused.or(unreachable).unwrap_or_else(nowhere))
}

/// The profile under which a trusted key bound the narinfo's root to its NAR.
pub(crate) fn bound_profile(keys: &TrustedKeys, narinfo: &NarInfo) -> Option<Profile> {
    keys.check_root(narinfo, &Profile::NAMES)?.parse().ok()
}

/// Each path after what it refers to; cycles (which Nix does not make) end in some order.
pub(crate) fn dependencies_first(found: &BTreeMap<StorePathHash, Waiting>) -> Vec<StorePathHash> {
    let mut order = Vec::with_capacity(found.len());
    let mut seen = BTreeSet::new();
    for start in found.keys() {
        let mut stack = vec![(*start, false)];
        while let Some((hash, expanded)) = stack.pop() {
            if expanded {
                order.push(hash);
            } else if seen.insert(hash) {
                stack.push((hash, true));
                let next = found[&hash].references.iter().filter(|next| found.contains_key(next));
                stack.extend(next.map(|next| (*next, false)));
            }
        }
    }
    order
}

/// Reads `/nix/store/<hash>-<name>`, `<hash>-<name>` or `<hash>`.
pub(crate) fn parse_hash(text: &str) -> Result<StorePathHash, Failure> {
    let base = text.strip_prefix("/nix/store/").unwrap_or(text);
    let hash = base.split_once('-').map_or(base, |(hash, _)| hash);
    hash.parse().map_err(|error| {
        let failure = Failure::new(Class::Usage, format!("{text}: not a store path")).because(&error);
        failure.hint("a store path looks like /nix/store/<32 characters>-<name>")
    })
}

pub(crate) fn parse_keys(keys: &[String]) -> Result<TrustedKeys, Failure> {
    let parse = |key: &String| {
        let bad = |error| Failure::new(Class::Usage, format!("{key}: not a public key")).because(&error);
        key.parse::<PublicKey>().map_err(bad)
    };
    keys.iter().map(parse).collect()
}
