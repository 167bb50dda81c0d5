//! `nipfs publish`: store paths, files, directories and binary caches become NARs in the node's store
//! and signed narinfos in the cache directory.
//!
//! Inputs and keys are read here, with the rights of who runs the command; the node gets NAR bytes, or with `--keep
//! rooted` and `weak` the names of store paths, which it checks and reads itself.
//! What we sign is what this machine made: registered store paths, and paths whose content address
//! was computed here. A path is committed in the node first and written to the cache directory then,
//! dependencies before what refers to them, so that a crash leaves nothing half published (see [`group`]).

mod cache_directory;
mod group;
mod input;
mod nars;
mod record;
mod stage;

use super::{App, cache, key, patiently};
use crate::args;
use crate::config::{Settings, nix_state};
use crate::outcome::{Stop, Tally};
use group::{Group, Ready};
use input::Input;
use nipfs_node::control::client::Client;
use nipfs_node::control::protocol::{Class, Done, Failure, Keep, Request};
use nipfs_node::nix::closure::closure;
use nipfs_proto::block::Cid;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::narinfo::PathInfo;
use nipfs_proto::nix::signature::SecretKey;
use nipfs_proto::nix::store_path::{StorePath, add_path};
use stage::Source;
use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// Takes one thing after the other, and publishes those that are small together.
struct Publisher<'a> {
    app: &'a App<'a>,
    /// Empty with `--unsigned`.
    keys: Vec<SecretKey>,
    profile: Profile,
    cache: PathBuf,
    write_nars: bool,
    keep: Keep,
    /// The connection on which NARs are staged; what is, goes with it.
    client: Option<Client>,
    group: Group,
    tally: Tally,
}

/// Runs the verb.
pub(crate) async fn run(app: &App<'_>, args: args::Publish) -> Result<(), Stop> {
    let keys = if args.unsigned { Vec::new() } else { key::signing_keys(&app.settings)? };
    let profile = profile(&app.settings)?;
    let cache = app.settings.cache.value.clone();
    cache::sweep(&cache)?;
    let keep = match args.keep {
        args::Keep::Copy => Keep::Copy,
        args::Keep::Rooted => Keep::Rooted,
        args::Keep::Weak => Keep::Weak,
    };
    let (write_nars, tally) = (args.write_nars, Tally::default());
    let mut publisher =
        Publisher { app, keys, profile, cache, write_nars, keep, client: None, group: Group::default(), tally };
    let mut inputs = Vec::new();
    let mut paths = args.paths.clone();
    if args.stdin {
        paths.extend(patiently(lines_of_stdin).await?);
    }
    for path in paths {
        let input = Input::of(&path)?;
        if keep != Keep::Copy && !matches!(input, Input::StorePath(_)) {
            let failure =
                Failure::new(Class::Usage, format!("not a store path, so it must be copied: {}", path.display()));
            return Err(failure.hint("publish it without --keep").into());
        }
        inputs.push(input);
    }
    let roots =
        inputs.iter().filter_map(|input| if let Input::StorePath(path) = input { Some(path.clone()) } else { None });
    let roots: Vec<StorePath> = roots.collect();
    if !roots.is_empty() {
        publisher.store_paths(roots, &args).await?;
    }
    for input in inputs {
        match input {
            Input::StorePath(_) => {}
            Input::CacheDirectory(directory) => {
                // It may be the one that what waits is written to.
                publisher.publish_group().await?;
                cache_directory::publish(&mut publisher, &directory).await?;
            }
            Input::Tree(path) => {
                let ready = publisher.tree(&path).await;
                publisher.add(path.display().to_string(), ready).await?;
            }
        }
    }
    publisher.publish_group().await?;
    publisher.tally.outcome()
}

/// How NARs are cut.
///
/// # Errors
/// Class `Usage` for a name that is not known.
pub(crate) fn profile(settings: &Settings) -> Result<Profile, Failure> {
    let name = &settings.chunker.value;
    name.parse().map_err(|error| Failure::new(Class::Usage, format!("unknown chunker: {name}")).because(&error))
}

fn lines_of_stdin() -> Result<Vec<PathBuf>, Failure> {
    let mut paths = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| Failure::new(Class::Usage, "cannot read: standard input").because(&error))?;
        paths.extend(Some(line.trim_end_matches('\r')).filter(|line| !line.is_empty()).map(PathBuf::from));
    }
    Ok(paths)
}

impl Publisher<'_> {
    /// Store paths of this machine's Nix, with their closure, dependencies first.
    async fn store_paths(&mut self, roots: Vec<StorePath>, args: &args::Publish) -> Result<(), Stop> {
        let asked: BTreeSet<StorePath> = roots.iter().cloned().collect();
        let valid = closure(&nix_state(), roots).await.map_err(|error| Failure::from_error(Class::Usage, &error))?;
        for path in valid {
            let info = path.info;
            let signed =
                info.signatures.iter().any(|signature| args.skip_signed_by.iter().any(|key| key == signature.key()));
            if signed || (args.no_closure && !asked.contains(&info.path)) {
                continue;
            }
            let name = info.path.to_absolute_path();
            self.make_way(info.nar_size).await?;
            let ready = self.store_path(info).await;
            self.add(name, ready).await?;
        }
        Ok(())
    }

    async fn store_path(&mut self, info: PathInfo) -> Result<Ready, Stop> {
        let path = info.path.to_absolute_path();
        let mut new_bytes = 0;
        let root = match self.known(info.nar_hash).await? {
            Some(root) => root,
            None => {
                let staged = match self.keep {
                    Keep::Copy => self.stage(&path, Source::Tree(PathBuf::from(&path)), info.nar_size).await?,
                    Keep::Rooted | Keep::Weak => self.stage_outside(&path).await?,
                };
                if staged.nar_hash != info.nar_hash {
                    return Err(changed(&path, info.nar_hash, staged.nar_hash).into());
                }
                new_bytes = staged.new_bytes;
                staged.root
            }
        };
        self.record(info, root, new_bytes)
    }

    /// Any file or directory: its NAR decides which store path it becomes.
    async fn tree(&mut self, path: &Path) -> Result<Ready, Stop> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unfit = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(Class::Usage, format!("cannot become a store path: {}", path.display())).because(error)
        };
        // Before anything is read: whether the name will do does not depend on the content.
        add_path(&name, &[0; 32]).map_err(|error| unfit(&error))?;
        let staged = self.stage(&path.display().to_string(), Source::Tree(path.to_owned()), 0).await?;
        let info = PathInfo {
            path: add_path(&name, &staged.nar_hash.0).map_err(|error| unfit(&error))?,
            nar_hash: staged.nar_hash,
            nar_size: staged.nar_size,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            ca: Some(format!("fixed:r:{}", staged.nar_hash)),
        };
        self.record(info, staged.root, staged.new_bytes)
    }

    /// The root of a NAR that the node holds under our profile.
    async fn known(&mut self, nar_hash: NarHash) -> Result<Option<Cid>, Stop> {
        let request = Request::Known { nar_hash: nar_hash.to_string(), profile: self.profile.to_string() };
        match self.client().await?.call(request).await? {
            Done::Known { root } => Ok(root.map(|root| stage::parse_root(&root)).transpose()?),
            other => Err(super::out_of_turn(&other).into()),
        }
    }

    async fn client(&mut self) -> Result<&mut Client, Stop> {
        if self.client.is_none() {
            self.client = Some(self.app.client().await.map_err(Stop::NoNode)?);
        }
        self.client.as_mut().ok_or_else(|| Failure::new(Class::Failed, "no connection").into())
    }

    /// Counts one item; only what concerns that item alone lets the others go on.
    fn count(&mut self, name: &str, published: Result<(), Stop>) -> Result<(), Stop> {
        match published {
            Ok(()) => self.tally.success(),
            Err(Stop::Failed(failure))
                if !matches!(failure.class, Class::NoSpace | Class::Damaged | Class::Interrupted) =>
            {
                self.app.item_failed(name, &failure);
                self.tally.failure(failure.class);
            }
            Err(stop) => return Err(stop),
        }
        Ok(())
    }
}

fn changed(path: &str, registered: NarHash, found: NarHash) -> Failure {
    let failure = Failure::new(Class::Refused, format!("hash of path {path} has changed"));
    let cause = std::io::Error::other(format!("registered as {registered}, found {found}"));
    failure.because(&cause).hint(format!("run: nix-store --verify-path {path}"))
}
