//! The closure that is being fetched: all its narinfos, asked for many at a time.
//!
//! A closure may have thousands of paths, and until the last narinfo is there nothing can be delivered. So of each path
//! little is kept in memory: its place in the closure is its name, and the text of its narinfo lies in a file ([`Texts`]).

mod texts;

use crate::control::protocol::{Class, Failure};
use crate::jobs::narinfos::{Checked, MAX_CLOSURE, narinfo};
use crate::upstream::Upstream;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::store_path::{StorePath, StorePathHash};
use nipfs_proto::nix::trust::{Seal, TrustedKeys};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use texts::{Place, Texts};

/// Narinfo requests in flight.
const NARINFOS_AT_ONCE: usize = 32;

/// A path of a closure: how many became known before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathId(u32);

impl PathId {
    /// Where the path is in a list of all.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }

    /// The path at that place in a list of all.
    pub(super) fn at(index: usize) -> Self {
        Self(u32::try_from(index).expect("a closure is bounded"))
    }
}

/// A path whose narinfo was checked.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) nar_size: u64,
    /// Those that are in the closure too.
    pub(super) references: Box<[PathId]>,
    seal: Seal,
    text: Place,
    profile: Option<Profile>,
    upstream: Option<Upstream>,
}

/// The paths of a closure. Some may not be known yet, or no more.
#[derive(Debug)]
pub(super) struct Closure {
    paths: Vec<Option<Known>>,
    texts: Texts,
}

impl Closure {
    /// An empty one; texts of narinfos lie in `dir` while it lives.
    pub(super) fn new(dir: &Path) -> Self {
        Self { paths: Vec::new(), texts: Texts::new(dir) }
    }

    /// Paths that there are, or were.
    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }

    /// A path, if it is known.
    pub(super) fn get(&self, id: PathId) -> Option<&Known> {
        self.paths.get(id.index())?.as_ref()
    }

    /// The paths that a path refers to; they are taken out.
    pub(super) fn take_references(&mut self, id: PathId) -> Box<[PathId]> {
        let known = self.paths.get_mut(id.index()).and_then(Option::as_mut);
        known.map(|known| std::mem::take(&mut known.references)).unwrap_or_default()
    }

    /// The narinfo of a path.
    ///
    /// # Errors
    /// When its text cannot be read where it lies.
    pub(super) fn checked(&self, known: &Known) -> Result<Checked, Failure> {
        let text = self.texts.read(known.text)?;
        let trusted = known.seal.open(&text).map_err(|error| Failure::from_error(Class::Damaged, &error))?;
        Ok(Checked { trusted, profile: known.profile, upstream: known.upstream.clone() })
    }

    /// The narinfo of a path that is not known any more then; `None` when it was not.
    ///
    /// # Errors
    /// As [`Self::checked`].
    pub(super) fn take(&mut self, id: PathId) -> Result<Option<Checked>, Failure> {
        let known = self.paths.get_mut(id.index()).and_then(Option::take);
        known.map(|known| self.checked(&known)).transpose()
    }

    /// Adds a path; `references` are those in the closure.
    ///
    /// # Errors
    /// When its text cannot be written.
    pub(super) fn insert(&mut self, id: PathId, checked: Checked, references: Box<[PathId]>) -> Result<(), Failure> {
        let Checked { trusted, profile, upstream } = checked;
        let text = self.texts.push(trusted.info().text().as_bytes())?;
        let (nar_size, seal) = (trusted.info().nar_size(), Seal::of(&trusted));
        if self.paths.len() <= id.index() {
            self.paths.resize_with(id.index() + 1, || None);
        }
        self.paths[id.index()] = Some(Known { nar_size, references, seal, text, profile, upstream });
        Ok(())
    }
}

/// Asks for narinfos, and for those of all they refer to.
pub(super) struct Narinfos<'a> {
    upstreams: &'a [Upstream],
    keys: (&'a TrustedKeys, bool),
    /// Whether what they refer to belongs to the closure.
    whole: bool,
    /// What is not asked for: the client has it.
    skip: HashSet<StorePathHash>,
    ids: HashMap<StorePathHash, PathId>,
    /// Not asked for yet.
    next: VecDeque<StorePathHash>,
    asking: FuturesUnordered<BoxFuture<'a, Result<Checked, Failure>>>,
    /// What came so far.
    pub(super) closure: Closure,
}

impl<'a> Narinfos<'a> {
    /// Will ask for `wanted`, with all they refer to when `whole` is set; neither for what is in `skip` nor for what
    /// only that refers to. Without `check_sigs` the signatures need not be of a key in `keys`.
    pub(super) fn new(
        wanted: &[StorePathHash],
        skip: HashSet<StorePathHash>,
        whole: bool,
        upstreams: &'a [Upstream],
        (keys, check_sigs): (&'a TrustedKeys, bool),
        closure: Closure,
    ) -> Self {
        let (ids, next, asking) = (HashMap::new(), VecDeque::new(), FuturesUnordered::new());
        let mut narinfos = Self { upstreams, keys: (keys, check_sigs), whole, skip, ids, next, asking, closure };
        for hash in wanted {
            narinfos.id(*hash, true);
        }
        narinfos
    }

    /// The next one that came; `None` when all are there. Cancel-safe.
    ///
    /// # Errors
    /// When one cannot be had or trusted, or there are more than [`MAX_CLOSURE`].
    pub(super) async fn next(&mut self) -> Result<Option<PathId>, Failure> {
        while self.asking.len() < NARINFOS_AT_ONCE
            && let Some(hash) = self.next.pop_front()
        {
            self.asking.push(Box::pin(narinfo(hash, self.upstreams, self.keys)));
        }
        let Some(checked) = self.asking.next().await.transpose()? else { return Ok(None) };
        let info = checked.trusted.info();
        let hashes = info.references().iter().map(StorePath::hash_part);
        let references = hashes.filter_map(|hash| self.id(hash, self.whole)).collect();
        if self.ids.len() > MAX_CLOSURE {
            let path = info.store_path().to_absolute_path();
            let text = format!("{path}: closure of more than {MAX_CLOSURE} paths");
            return Err(Failure::new(Class::Refused, text));
        }
        let id = self.ids[&info.store_path().hash_part()];
        self.closure.insert(id, checked, references)?;
        Ok(Some(id))
    }

    /// Which path of the closure that is. One that is new becomes one if it `belongs`, and will be asked for.
    fn id(&mut self, hash: StorePathHash, belongs: bool) -> Option<PathId> {
        if let Some(id) = self.ids.get(&hash) {
            return Some(*id);
        }
        if !belongs || self.skip.contains(&hash) {
            return None;
        }
        let id = PathId::at(self.ids.len());
        self.ids.insert(hash, id);
        self.next.push_back(hash);
        Some(id)
    }
}
