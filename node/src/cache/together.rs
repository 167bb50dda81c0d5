//! Commits of small NARs that are asked for at the same time become one record of the log and wait for one sync.
//!
//! What waits is bounded by its callers: each has one commit under way, and what a caller that left has asked for is
//! made all the same. Large NARs are committed alone: what it takes to make sure that such a DAG is whole, and here to
//! stay, nobody else shall wait for.

use super::commit::MOST;
use super::{Audience, Cache, CacheError, Claim, Staged, Wanted};
use crate::store::writer::Writer;
use nipfs_proto::nix::trust::TrustedNarInfo;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Bytes of the largest NAR that is committed together with others.
const SMALL: u64 = 2 << 20;

/// What somebody else's NAR is brought here for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be held for everybody, as the DAG that its narinfo names.
    Mirror,
    /// To be used here; this audience may see it afterwards.
    Use(Audience),
}

/// One commit that waits.
#[derive(Debug)]
struct Waiting {
    cache: Cache,
    trusted: TrustedNarInfo,
    staged: Staged,
    purpose: Purpose,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<(), CacheError>>;

impl Waiting {
    fn wanted(&self) -> Wanted<'_> {
        let (claim, audience) = self.purpose.claim(&self.trusted);
        (claim, Some(&self.staged), audience)
    }
}

/// The commits that wait, and the thread that makes them.
#[derive(Debug)]
pub(super) struct Together {
    waiting: Mutex<Vec<Waiting>>,
    thread: Writer,
}

impl Default for Together {
    fn default() -> Self {
        Self { waiting: Mutex::default(), thread: Writer::new("store-commits") }
    }
}

impl Together {
    /// Makes all commits that wait.
    fn work_off(&self) {
        loop {
            let mut waiting = self.waiting();
            let most = waiting.len().min(MOST);
            let group: Vec<_> = waiting.drain(..most).collect();
            drop(waiting);
            let Some(cache) = group.first().map(|one| &one.cache) else { return };
            let answers = cache.commit_all(&group.iter().map(Waiting::wanted).collect::<Vec<_>>());
            // Whoever has an answer may close the store, and expects that nobody else holds it or a lease.
            let replies: Vec<_> = group.into_iter().map(|one| one.reply).collect();
            for (reply, answer) in replies.into_iter().zip(answers) {
                // Whoever asked may have gone.
                let _ = reply.send(answer);
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Purpose {
    fn claim(self, trusted: &TrustedNarInfo) -> (Claim<'_>, Audience) {
        match self {
            Self::Mirror => (Claim::Trusted(trusted), Audience::World),
            Self::Use(audience) => (Claim::Fetched(trusted), audience),
        }
    }
}

impl Cache {
    /// [`Self::commit`] of somebody else's content, with whatever else is to be committed at the time. Once asked for, it
    /// is made while the process lives, even if nobody waits for it any more.
    ///
    /// # Errors
    /// As [`Self::commit`], and [`CacheError::Abandoned`].
    pub async fn commit_soon(
        &self,
        trusted: TrustedNarInfo,
        staged: Staged,
        purpose: Purpose,
    ) -> Result<(), CacheError> {
        let cache = self.clone();
        if staged.nar_size > SMALL {
            let commit = move || {
                let (claim, audience) = purpose.claim(&trusted);
                cache.commit(claim, Some(&staged), audience)
            };
            return tokio::task::spawn_blocking(commit).await.unwrap_or(Err(CacheError::Abandoned));
        }
        let (reply, mut answer) = oneshot::channel();
        self.together.waiting().push(Waiting { cache, trusted, staged, purpose, reply });
        let together = self.together.clone();
        let work = move || together.work_off();
        let made = self.together.thread.run(work.clone());
        tokio::select! {
            biased;
            answer = &mut answer => return answer.unwrap_or(Err(CacheError::Abandoned)),
            Err(_) = made => {}
        }
        // There is no thread, or it panicked over somebody else's.
        tokio::task::spawn_blocking(work);
        answer.await.unwrap_or(Err(CacheError::Abandoned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use nipfs_proto::dag::Profile;
    use nipfs_proto::nix::nar::{Event, Writer};
    use nipfs_proto::nix::narinfo::{NarInfo, PathInfo, Root};
    use nipfs_proto::nix::store_path::StorePath;

    /// The NAR of a file of this many zeros.
    fn nar(size: usize) -> Vec<u8> {
        let (mut writer, mut nar) = (Writer::new(), Vec::new());
        let (file, contents) = (Event::File { name: b"", executable: false, size: size as u64 }, vec![0; size]);
        for event in [file, Event::Contents(&contents), Event::FileEnd] {
            writer.write(&event, &mut nar);
        }
        nar
    }

    fn path(digit: char) -> StorePath {
        StorePath::from_base_name(&format!("{}-nipfs-test", digit.to_string().repeat(32))).unwrap()
    }

    /// A path, how its NAR is cut, and whether its narinfo tells its size right.
    type Wanted = (char, Profile, bool);

    fn waiting(cache: &Cache, wanted: Wanted, size: usize) -> (Waiting, oneshot::Receiver<Result<(), CacheError>>) {
        let (digit, profile, is_right) = wanted;
        let staged = cache.stage(&nar(size)[..], profile).unwrap();
        let (nar_hash, references, signatures) = (staged.nar_hash, Vec::new(), Vec::new());
        let nar_size = staged.nar_size + u64::from(!is_right);
        let info = PathInfo { path: path(digit), nar_hash, nar_size, references, deriver: None, signatures, ca: None };
        let trusted = TrustedNarInfo::own(NarInfo::new(&info).unwrap());
        let (reply, answer) = oneshot::channel();
        (Waiting { cache: cache.clone(), trusted, staged, purpose: Purpose::Use(Audience::World), reply }, answer)
    }

    #[test]
    fn a_fetch_in_the_group_of_a_mirror_of_the_same_path_leaves_it_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(Store::open(dir.path()).unwrap());
        let group = [Purpose::Mirror, Purpose::Use(Audience::Loopback)].map(|purpose| {
            let (mut one, _) = waiting(&cache, ('1', Profile::UnixfsV0_2015, true), 9);
            let root = Root::new(one.staged.root, None).unwrap();
            one.trusted = one.trusted.with_ipfs(root);
            Waiting { purpose, ..one }
        });
        assert!(cache.commit_all(&group.each_ref().map(Waiting::wanted)).iter().all(Result::is_ok));
        let record = cache.store().path(&path('1').hash_part()).unwrap().unwrap();
        assert!(record.pinned && record.published);
    }

    #[test]
    fn commits_in_one_group_fail_each_for_itself_and_may_be_of_one_nar() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(Store::open(dir.path()).unwrap());
        let (old, new) = (Profile::UnixfsV0_2015, Profile::UnixfsV1_2025);
        // The same NAR cut in two ways, for two paths and then for one of them again; and one that lies about its size.
        let all = [('1', old, true), ('2', new, true), ('1', new, true), ('3', old, false)];
        let mut group: Vec<_> = all.into_iter().map(|wanted| waiting(&cache, wanted, 9).0).collect();
        group.push(waiting(&cache, ('4', old, true), 99).0);
        let hash = group[0].staged.nar_hash;
        let answers = cache.commit_all(&group.iter().map(Waiting::wanted).collect::<Vec<_>>());
        assert!(matches!(answers[3], Err(CacheError::Mismatch { field: "NarSize", .. })), "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4);
        assert_eq!(cache.store().nar(&hash).unwrap().unwrap().roots.len(), 2);
        let here = ['1', '2', '3', '4'].map(|digit| cache.store().path(&path(digit).hash_part()).unwrap().is_some());
        assert_eq!(here, [true, true, false, true]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_asks_while_others_are_at_work_gets_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(Store::open(dir.path()).unwrap());
        let commits = (1..100).map(|size| {
            let digit = char::from(b'a' + u8::try_from(size % 4).unwrap());
            let (Waiting { trusted, staged, purpose, .. }, _) =
                waiting(&cache, (digit, Profile::UnixfsV0_2015, true), size);
            let cache = cache.clone();
            tokio::spawn(async move { cache.commit_soon(trusted, staged, purpose).await })
        });
        for commit in commits.collect::<Vec<_>>() {
            commit.await.unwrap().unwrap();
        }
        assert_eq!(cache.store().paths().count(), 4);
        drop(cache);
        assert!(dir.path().join("index/closed").exists(), "nobody else holds the store when all is answered");
    }
}
