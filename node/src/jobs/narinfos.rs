//! Narinfos, each checked before it counts.

use crate::control::protocol::{Class, Failure};
use crate::upstream::Upstream;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::signature::PublicKey;
use nipfs_proto::nix::store_path::StorePathHash;
use nipfs_proto::nix::trust::{TrustedKeys, TrustedNarInfo};
use std::time::Duration;

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
