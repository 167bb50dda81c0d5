//! Commits: what is said of NARs is compared with what is here, and becomes records, several of them in one step.

use super::text::{names, text_of, with_signatures_of};
use super::{Audience, Cache, CacheError, Staged, unix_now};
use crate::store::{Commit, Keep, Lease, NarRecord, Op, PathRecord, StoreError};
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::store_path::StorePathHash;
use nipfs_proto::nix::trust::TrustedNarInfo;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Commits in one record: far below what is too long for one, but for narinfos that no one writes.
pub(super) const MOST: usize = 32;

/// Under this name stands a root that somebody cut in a way that he did not sign.
const UNKNOWN_PROFILE: &str = "unknown";

/// What a narinfo is backed by.
#[derive(Debug, Clone, Copy)]
pub enum Claim<'a> {
    /// Content computed on this machine by its owner, who says where its blocks shall lie.
    Own(&'a NarInfo, Keep),
    /// Foreign content whose narinfo a trusted key signed.
    Trusted(&'a TrustedNarInfo),
    /// The same, sent by somebody who may add paths and signatures, and change nothing that is published.
    Uploaded(&'a TrustedNarInfo),
    /// The same, brought here for this machine's own use: not pinned, so GC may take it, and it changes nothing that is
    /// published. The world sees it only under the root that its narinfo names.
    Fetched(&'a TrustedNarInfo),
}

impl Claim<'_> {
    fn narinfo(&self) -> &NarInfo {
        match self {
            Self::Own(narinfo, _) => narinfo,
            Self::Trusted(trusted) | Self::Uploaded(trusted) | Self::Fetched(trusted) => trusted.info(),
        }
    }

    fn keep(&self) -> Keep {
        match self {
            Self::Own(_, keep) => *keep,
            Self::Trusted(_) | Self::Uploaded(_) | Self::Fetched(_) => Keep::Copy,
        }
    }
}

/// What shall be committed: what is said of a NAR, where it is unless it is held already, and who may see it then.
pub type Wanted<'a> = (Claim<'a>, Option<&'a Staged>, Audience);

impl Cache {
    /// Makes a claim true and durable: entry, narinfo and, unless it was only fetched, pin in one step. `staged` may be
    /// `None` when the NAR is held already.
    ///
    /// # Errors
    /// [`CacheError::Mismatch`] when the claim and the content differ, [`CacheError::NoNar`] when there
    /// is no content, and the store's errors.
    pub fn commit(&self, claim: Claim<'_>, staged: Option<&Staged>, audience: Audience) -> Result<(), CacheError> {
        let narinfo = claim.narinfo();
        let _path = hold(&*self.paths, [narinfo.store_path().hash_part().as_str().as_bytes()]);
        let _nar = hold(&*self.nars, [&narinfo.nar_hash().0[..]]);
        match self.prepare(claim, staged, audience)? {
            Some((lease, ops)) => Ok(lease.commit(ops)?),
            None => Ok(()),
        }
    }

    /// [`Self::commit`] of several, in this order and in as few records of the log as that takes; the result of each.
    #[must_use]
    pub fn commit_all(&self, wanted: &[Wanted<'_>]) -> Vec<Result<(), CacheError>> {
        wanted.chunks(MOST).flat_map(|group| self.commit_group(group)).collect()
    }

    fn commit_group(&self, group: &[Wanted<'_>]) -> Vec<Result<(), CacheError>> {
        let narinfos = || group.iter().map(|(claim, ..)| claim.narinfo());
        let (paths, nars): (Vec<_>, Vec<_>) =
            narinfos().map(|narinfo| (narinfo.store_path().hash_part(), narinfo.nar_hash())).unzip();
        let _paths = hold(&*self.paths, paths.iter().map(|hash| hash.as_str().as_bytes()));
        let _nars = hold(&*self.nars, nars.iter().map(|hash| &hash.0[..]));
        let (mut record, mut results) = (Record::default(), Vec::with_capacity(group.len()));
        for ((claim, staged, audience), (path, nar)) in group.iter().zip(paths.into_iter().zip(nars)) {
            // What goes on from a record that changes here must see the change.
            if record.paths.contains(&path) || record.nars.contains(&nar) {
                self.write(std::mem::take(&mut record), &mut results);
            }
            let prepared = self.prepare(*claim, *staged, *audience);
            if let Ok(Some(_)) = prepared {
                record.places.push(results.len());
                record.paths.insert(path);
                record.nars.insert(nar);
            }
            results.push(prepared.map(|commit| record.commits.extend(commit)));
        }
        self.write(record, &mut results);
        results
    }

    /// Writes a record, and leaves the results of its commits in their places.
    fn write(&self, record: Record, results: &mut [Result<(), CacheError>]) {
        if record.commits.is_empty() {
            return;
        }
        for (place, written) in record.places.into_iter().zip(self.store.commit_all(&record.commits)) {
            results[place] = written.map_err(CacheError::from);
        }
    }

    /// What [`Self::commit`] has to change, and the lease that protects what it needs; `None` when it is done already.
    /// The locks of the path and of the NAR are held.
    fn prepare(
        &self,
        claim: Claim<'_>,
        staged: Option<&Staged>,
        audience: Audience,
    ) -> Result<Option<Commit>, CacheError> {
        let narinfo = claim.narinfo();
        let path = narinfo.store_path().to_absolute_path();
        let hash = narinfo.store_path().hash_part();
        let fetched = matches!(claim, Claim::Fetched(_));
        let published = |path: &PathRecord| path.published && !path.is_shared() && self.store.is_backed(path);
        let published = self.store.path(&hash)?.filter(published);
        if let (Claim::Uploaded(_), Some(before)) = (&claim, published) {
            return self.add_signatures(before, narinfo).map(|()| None);
        }
        let held = self.store.nar(&narinfo.nar_hash())?;
        let mut record = match (staged, held) {
            (None, None) => return Err(CacheError::NoNar { path, nar_hash: narinfo.nar_hash() }),
            (_, Some(held)) => held,
            (Some(staged), None) => {
                NarRecord { nar_hash: staged.nar_hash, nar_size: staged.nar_size, roots: Vec::new() }
            }
        };
        if let Some(staged) = staged {
            compare(&path, "NarHash", &narinfo.nar_hash(), &staged.nar_hash)?;
            compare(&path, "NarSize", &narinfo.nar_size(), &staged.nar_size)?;
            let profile = staged.profile.map_or_else(|| UNKNOWN_PROFILE.to_owned(), |profile| profile.to_string());
            if !record.roots.iter().any(|(_, root)| *root == staged.root) {
                record.roots.push((profile, staged.root));
            }
        }
        compare(&path, "NarSize", &narinfo.nar_size(), &record.nar_size)?;
        let lease = staged.map_or_else(|| Arc::new(self.store.lease()), |staged| staged.lease.clone());
        let forget = keep_whole(&mut record, &lease)?;
        if record.roots.is_empty() {
            return Err(CacheError::NoNar { path, nar_hash: narinfo.nar_hash() });
        }
        let text = text_of(narinfo, &record, fetched)?;
        let is_named = narinfo.root().is_some_and(|claimed| names(&record, claimed));
        let before = self.store.path(&hash)?;
        let text = match (&claim, &before) {
            (Claim::Own(..), Some(before)) if before.published && before.nar_hash == narinfo.nar_hash() => {
                with_signatures_of(&before.narinfo, &text)
            }
            _ => text,
        };
        let put = Op::PutNar(record);
        let ops = match before {
            // What somebody else says of a path that is published here changes nothing of what we say. Its blocks are
            // shown again, where they had been left to a mirror.
            Some(before) if fetched && (before.published || before.pinned) => {
                if before.nar_hash != narinfo.nar_hash() {
                    return Ok(None);
                }
                let left = (!before.pinned).then_some(Op::PutPath(before));
                [put].into_iter().chain(left).collect()
            }
            // A root that is not whole here may be the one that a published path names: only its publisher forgets it.
            _ if fetched && forget.is_some() => vec![put],
            before => {
                let path = Op::PutPath(PathRecord {
                    store_path: narinfo.store_path().clone(),
                    narinfo: text.into(),
                    nar_hash: narinfo.nar_hash(),
                    published: audience == Audience::World && (is_named || !fetched),
                    pinned: audience == Audience::World && !fetched,
                    mirror: None,
                    added_unix: before.map_or_else(unix_now, |before| before.added_unix),
                    keep: claim.keep(),
                });
                forget.into_iter().chain([put, path]).collect()
            }
        };
        Ok(Some((lease, ops)))
    }

    /// Adds the signatures of `narinfo` to a published path; its lock is held.
    fn add_signatures(&self, before: PathRecord, narinfo: &NarInfo) -> Result<(), CacheError> {
        compare(&before.store_path.to_absolute_path(), "NarHash", &narinfo.nar_hash(), &before.nar_hash)?;
        let text = with_signatures_of(narinfo.text().as_bytes(), &String::from_utf8_lossy(&before.narinfo));
        if text.as_bytes() != &before.narinfo[..] {
            self.store.commit(vec![Op::PutPath(PathRecord { narinfo: text.into(), ..before })])?;
        }
        Ok(())
    }
}

/// What goes into one record of the log.
#[derive(Default)]
struct Record {
    commits: Vec<Commit>,
    /// Of their results.
    places: Vec<usize>,
    paths: HashSet<StorePathHash>,
    nars: HashSet<NarHash>,
}

/// Holds those of `locks` that belong to `keys`: always in the same order, so that nobody waits in a circle.
pub(super) fn hold<'a, 'k>(
    locks: &'a [Mutex<()>],
    keys: impl IntoIterator<Item = &'k [u8]>,
) -> Vec<MutexGuard<'a, ()>> {
    let sum = |key: &[u8]| key.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let places: BTreeSet<usize> = keys.into_iter().map(|key| sum(key) % locks.len()).collect();
    places.into_iter().map(|place| locks[place].lock().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// Leaves the roots whose blocks are all here, and protects those: blocks of older ones may have been given to a mirror,
/// or dropped because they were damaged. The change that makes the store forget those.
pub(super) fn keep_whole(record: &mut NarRecord, lease: &Lease) -> Result<Option<Op>, StoreError> {
    let recorded = record.roots.len();
    let mut whole = Vec::with_capacity(recorded);
    for (profile, root) in std::mem::take(&mut record.roots) {
        if lease.touch_dag(&root)? {
            whole.push((profile, root));
        }
    }
    record.roots = whole;
    Ok((record.roots.len() < recorded).then_some(Op::RemoveNar(record.nar_hash)))
}

fn compare<T: PartialEq + ToString>(
    path: &str,
    field: &'static str,
    claimed: &T,
    actual: &T,
) -> Result<(), CacheError> {
    if claimed == actual {
        return Ok(());
    }
    Err(CacheError::Mismatch { path: path.to_owned(), field, claimed: claimed.to_string(), actual: actual.to_string() })
}
