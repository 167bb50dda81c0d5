//! A Nix binary cache on top of the block store: every way in is *stage*, then *commit*; every way out
//! is *lookup*, then *open*.
//!
//! - [`Cache::stage`] imports a NAR under a lease: its grammar is checked, its hash and root computed.
//!   What is staged is not yet believed and nobody sees it.
//! - [`Cache::commit`] compares it with a claim and writes entry, narinfo and pin in one durable step.
//!   A claim about foreign content is a [`TrustedNarInfo`]; nothing less is taken.
//! - [`Cache::lookup`] finds a narinfo for an audience: the world sees what is published; loopback sees
//!   what was fetched too.

mod commit;
mod error;
mod text;
mod together;

pub use self::commit::{Claim, Wanted};
pub use self::error::CacheError;
pub use self::together::Purpose;

use self::commit::{hold, keep_whole};
use self::together::Together;
use crate::dag::import::{ImportError, import};
use crate::store::{Keep, Lease, Op, PathRecord, Put, Store, StoreError};
use nipfs_proto::Cid;
use nipfs_proto::block::Block;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::nar::{NarError, Reader};
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::store_path::{StorePath, StorePathHash};
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// A NAR in the store that nothing refers to yet. Dropping it leaves its blocks to GC.
#[derive(Debug)]
pub struct Staged {
    /// Root of its DAG.
    pub root: Cid,
    /// How it was cut; `None` when somebody else cut it and did not say.
    pub profile: Option<Profile>,
    /// Its hash, computed here.
    pub nar_hash: NarHash,
    /// Its bytes, counted here.
    pub nar_size: u64,
    /// Plain bytes of blocks that the store did not hold before.
    pub new_bytes: u64,
    lease: Arc<Lease>,
}

impl Staged {
    /// A NAR whose blocks were put under `lease` one by one, while its reader computed its hash.
    #[must_use]
    pub fn by_reading(
        lease: Arc<Lease>,
        root: Cid,
        profile: Option<Profile>,
        nar_hash: NarHash,
        nar_size: u64,
    ) -> Self {
        Self { root, profile, nar_hash, nar_size, new_bytes: 0, lease }
    }
}

impl Staged {
    /// What keeps GC away from its blocks.
    #[must_use]
    pub fn lease(&self) -> Arc<Lease> {
        self.lease.clone()
    }
}

/// Paths that are forgotten in one commit.
const MAX_FORGOTTEN: usize = 10_000;

/// Who may see a committed path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Everybody, on every surface.
    World,
    /// Only this machine.
    Loopback,
}

/// The cache. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache {
    store: Store,
    /// One is held while a path's record is read, changed and written: the path's hash part says which.
    paths: Arc<[Mutex<()>; 64]>,
    /// The same for the records of NARs, by NarHash; taken after the path's.
    nars: Arc<[Mutex<()>; 64]>,
    together: Arc<Together>,
}

impl Cache {
    /// A cache over `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let locks = || Arc::new([const { Mutex::new(()) }; 64]);
        Self { store, paths: locks(), nars: locks(), together: Arc::default() }
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Imports a NAR. Blocks the thread; memory does not grow with the NAR.
    ///
    /// # Errors
    /// [`CacheError::Nar`] when the bytes are not a NAR, and the store's and the input's errors.
    pub fn stage(&self, input: impl Read + Send, profile: Profile) -> Result<Staged, CacheError> {
        self.stage_with(input, profile, Lease::put)
    }

    /// Imports the NAR of `tree` on this machine without storing its leaves: blocks are made of the tree when they are
    /// read. The rest as [`Self::stage`] does it.
    ///
    /// # Errors
    /// As [`Self::stage`]; and when no blocks can be made of the tree.
    pub fn stage_outside(
        &self,
        input: impl Read + Send,
        profile: Profile,
        tree: &StorePath,
    ) -> Result<Staged, CacheError> {
        self.store.take_tree(tree)?;
        let mut offset = 0;
        self.stage_with(input, profile, |lease, block| {
            let (put, length) = lease.put_outside(block, tree, offset)?;
            offset += length;
            Ok(put)
        })
    }

    fn stage_with(
        &self,
        input: impl Read + Send,
        profile: Profile,
        mut put: impl FnMut(&Lease, &Block) -> Result<Put, StoreError>,
    ) -> Result<Staged, CacheError> {
        let lease = Arc::new(self.store.lease());
        let mut new_bytes = 0;
        let mut checked = Checked { input, grammar: Some(Reader::new()), error: None };
        let put = |block: Block| {
            let length = block.bytes().len() as u64;
            put(&lease, &block).map(|put| new_bytes += if put.new { length } else { 0 })
        };
        let imported = import(&mut checked, profile, put);
        if let Some(error) = checked.error {
            return Err(error.into());
        }
        let imported = imported.map_err(|error| match error {
            ImportError::Put(error) => CacheError::Store(error),
            ImportError::Read(error) | ImportError::Thread(error) => CacheError::Input(error),
        })?;
        let nar_hash = NarHash(imported.nar_hash);
        Ok(Staged {
            root: imported.root.cid,
            profile: Some(profile),
            nar_hash,
            nar_size: imported.size,
            new_bytes,
            lease,
        })
    }

    /// Pins a path whose blocks are here, `lease` protecting those of the root that its narinfo names. False when there
    /// is no such path.
    ///
    /// # Errors
    /// The store's; [`StoreError::Incomplete`] when blocks are missing.
    pub fn pin(&self, hash: &StorePathHash, lease: &Lease) -> Result<bool, StoreError> {
        let _path = hold(&*self.paths, [hash.as_str().as_bytes()]);
        let Some(path) = self.store.path(hash)? else { return Ok(false) };
        let _nar = hold(&*self.nars, [&path.nar_hash.0[..]]);
        let Some(mut record) = self.store.nar(&path.nar_hash)? else { return Ok(false) };
        let forget = keep_whole(&mut record, lease)?;
        let keep = if path.pinned && self.store.is_backed(&path) { path.keep } else { Keep::Copy };
        let pinned = Op::PutPath(PathRecord { pinned: true, mirror: None, keep, ..path });
        lease.commit(forget.into_iter().chain([Op::PutNar(record), pinned]).collect())?;
        Ok(true)
    }

    /// Hides the shared paths that `may_stay` does not name: from now on they are for this machine alone.
    ///
    /// # Errors
    /// The store's.
    pub fn withdraw(&self, may_stay: impl Fn(&NarInfo) -> bool) -> Result<(), StoreError> {
        for path in self.store.paths() {
            let path = path?;
            if path.is_shared() && !NarInfo::parse_unasked(&path.narinfo).is_ok_and(|narinfo| may_stay(&narinfo)) {
                let hidden = |record: PathRecord| {
                    record.is_shared().then(|| Op::PutPath(PathRecord { published: false, ..record }))
                };
                self.change(&path.store_path.hash_part(), &self.store.lease(), hidden)?;
            }
        }
        Ok(())
    }

    /// Changes a path's record, or removes it: `change` is given what is recorded now, and nothing else changes it
    /// meanwhile. `None` leaves it.
    ///
    /// # Errors
    /// The store's.
    pub fn change(
        &self,
        hash: &StorePathHash,
        lease: &Lease,
        change: impl FnOnce(PathRecord) -> Option<Op>,
    ) -> Result<bool, StoreError> {
        let _path = hold(&*self.paths, [hash.as_str().as_bytes()]);
        let Some(op) = self.store.path(hash)?.and_then(change) else { return Ok(false) };
        lease.commit(vec![op])?;
        Ok(true)
    }

    /// Forgets the paths that went with their trees, and returns them. With `dry_run` it only finds them.
    ///
    /// # Errors
    /// The store's.
    pub fn forget_vanished(&self, dry_run: bool) -> Result<Vec<StorePath>, StoreError> {
        let mut vanished = Vec::new();
        for record in self.store.paths() {
            let record = record?;
            if self.store.has_vanished(&record) {
                vanished.push(record.store_path);
            }
        }
        if dry_run || vanished.is_empty() {
            return Ok(vanished);
        }
        // After each commit that removes paths, all blocks are gone through for those to hide: so it is one commit.
        let _paths: Vec<_> =
            self.paths.iter().map(|path| path.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let mut forgotten = Vec::with_capacity(vanished.len());
        for path in vanished {
            if self.store.path(&path.hash_part())?.is_some_and(|now| self.store.has_vanished(&now)) {
                forgotten.push(path);
            }
        }
        for paths in forgotten.chunks(MAX_FORGOTTEN) {
            self.store.commit(paths.iter().map(|path| Op::RemovePath(path.hash_part())).collect())?;
        }
        Ok(forgotten)
    }

    /// The record of a path, if `audience` may see it, and if it can be given out (see [`Store::is_backed`]).
    ///
    /// # Errors
    /// The store's.
    pub fn lookup(&self, hash: &StorePathHash, audience: Audience) -> Result<Option<PathRecord>, StoreError> {
        let record = self.store.path(hash)?;
        let seen = record.filter(|record| record.published || audience == Audience::Loopback);
        Ok(seen.filter(|record| self.store.is_backed(record)))
    }

    /// The root of a path's NAR: the one that its narinfo names, else any.
    ///
    /// # Errors
    /// The store's.
    pub fn root_of(&self, path: &PathRecord) -> Result<Option<Cid>, StoreError> {
        let named =
            NarInfo::parse_unasked(&path.narinfo).ok().and_then(|narinfo| narinfo.root().map(|root| *root.cid()));
        Ok(match named {
            Some(root) => Some(root),
            None => self.root(&path.nar_hash, None)?.map(|(root, _)| root),
        })
    }

    /// The root of a held NAR under `profile`, or under any profile.
    ///
    /// # Errors
    /// The store's.
    pub fn root(&self, nar_hash: &NarHash, profile: Option<Profile>) -> Result<Option<(Cid, u64)>, StoreError> {
        let Some(record) = self.store.nar(nar_hash)? else { return Ok(None) };
        let wanted = profile.map(|profile| profile.to_string());
        let root = record.roots.iter().find(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted == name));
        Ok(root.map(|(_, cid)| (*cid, record.nar_size)))
    }
}

/// Seconds since 1970; 0 on a clock before that.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Hands the input on and checks the grammar of what went by.
struct Checked<R> {
    input: R,
    grammar: Option<Reader>,
    error: Option<NarError>,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.input.read(buffer)?;
        let checked = if length > 0 {
            self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.follow(&buffer[..length]))
        } else {
            self.grammar.take().map_or(Ok(()), Reader::finish)
        };
        checked.map(|()| length).map_err(|error| {
            let text = error.to_string();
            self.error.get_or_insert(error);
            std::io::Error::new(std::io::ErrorKind::InvalidData, text)
        })
    }
}
