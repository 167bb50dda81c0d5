//! Importing fetched paths into a Nix store: Nix itself takes them from us over loopback.

use super::Line;
use crate::commands::{App, out_of_turn};
use crate::config::Origin;
use crate::config::nix_state;
use crate::door::Door;
use bytes::Bytes;
use nipfs_node::control::client::Event;
use nipfs_node::control::protocol::{Class, Failure, Request};
use nipfs_node::nix::database::Database;
use nipfs_node::nix::import::{ImportError, ImportOptions, Nars, import};
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::narinfo::{NarInfo, PathInfo};
use nipfs_proto::nix::store_path::StorePath;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Pieces of a NAR that wait for Nix.
const AHEAD: usize = 4;

/// Valid paths that are named to the node as not wanted: what fits in one request. Nix itself leaves out
/// any others that it has.
const MAX_SKIP: usize = 100_000;

/// What is to be imported, dependencies first.
#[derive(Debug)]
pub(crate) struct Import {
    /// The directory above `nix/store`; `None` for the machine's own store.
    root: Option<PathBuf>,
    narinfos: Vec<NarInfo>,
}

impl Import {
    /// An import into the machine's store, or the one below `root`.
    pub(crate) fn new(root: Option<PathBuf>) -> Self {
        Self { root, narinfos: Vec::new() }
    }

    /// Hash parts of the paths that the store has, and what is known of those that are `wanted`.
    pub(crate) fn valid(&self, wanted: &[StorePath]) -> (Vec<String>, Vec<PathInfo>) {
        // A store that is not there yet, or whose database only its daemon may read, has nothing to skip.
        let state = self.root.as_ref().map_or_else(nix_state, |root| root.join("nix/var/nix"));
        let Ok(database) = Database::open(&state) else { return (Vec::new(), Vec::new()) };
        let known = wanted.iter().filter_map(|path| Some(database.path_info(path).ok()?.info)).collect();
        let paths = database.valid_paths(MAX_SKIP).unwrap_or_default();
        (paths.iter().map(|path| path.hash_part().to_string()).collect(), known)
    }

    /// A path whose NAR will be in the node's store.
    ///
    /// # Errors
    /// When the narinfo is not one.
    pub(crate) fn add(&mut self, path: &StorePath, narinfo: &str) -> Result<(), Failure> {
        let parsed = NarInfo::parse(&path.hash_part(), narinfo.as_bytes());
        // Nix reads a narinfo that says where we have the NAR, not where the cache had it.
        let ours = parsed.and_then(|narinfo| NarInfo::new(narinfo.path_info()));
        self.narinfos.push(ours.map_err(|error| Failure::from_error(Class::Refused, &error))?);
        Ok(())
    }

    /// The path added last could not be had.
    pub(crate) fn forget_last(&mut self) {
        self.narinfos.pop();
    }

    /// Where a path is when it is imported.
    pub(crate) fn place(&self, path: &StorePath) -> PathBuf {
        let absolute = path.to_absolute_path();
        self.root.as_ref().map_or_else(|| PathBuf::from(&absolute), |root| root.join(absolute.trim_start_matches('/')))
    }

    /// Lets Nix take everything.
    ///
    /// # Errors
    /// What Nix says; class `Refused` when it does not trust a signature.
    pub(crate) async fn run(&mut self, app: &App<'_>, lines: &[Line], no_check_sigs: bool) -> Result<(), Failure> {
        if lines.is_empty() {
            return Ok(());
        }
        let keys = &app.settings.trusted_public_keys;
        let options = ImportOptions {
            store: self.root.clone(),
            check_sigs: !no_check_sigs,
            trusted_keys: if keys.origin == Origin::Default { Vec::new() } else { keys.value.clone() },
        };
        let door = app.door().await?.clone();
        let nars: Nars = Arc::new(move |nar_hash| {
            let (pieces, waiting) = mpsc::channel(AHEAD);
            // Ends when Nix does not listen any more.
            tokio::spawn(send_nar(door.clone(), nar_hash, pieces));
            waiting
        });
        import(&std::mem::take(&mut self.narinfos), nars, &options).await.map_err(|error| refused(&error))
    }
}

/// Reads a NAR from the node, on a connection of its own.
async fn send_nar(door: Door, nar_hash: NarHash, pieces: mpsc::Sender<io::Result<Bytes>>) {
    let read = async {
        let mut client = door.client().await?;
        let mut exchange = client.request(Request::Nar { nar_hash: nar_hash.to_string() }).await?;
        loop {
            match exchange.next().await? {
                Event::Data(bytes) => {
                    if pieces.send(Ok(bytes)).await.is_err() {
                        return Ok(());
                    }
                }
                Event::Report(_) => {}
                Event::Done(_) => return Ok(()),
                other => return Err(out_of_turn(&other)),
            }
        }
    };
    if let Err(failure) = read.await {
        let _ = pieces.send(Err(io::Error::other(failure))).await;
    }
}

fn refused(error: &ImportError) -> Failure {
    match error {
        ImportError::Signature(_) => Failure::from_error(Class::Refused, error)
            .hint("add the key to trusted-public-keys in nix.conf; only trusted users may name one with a flag"),
        ImportError::Run(_) => Failure::from_error(Class::Usage, error).hint("without Nix, unpack with --out DIR"),
        _ => Failure::from_error(Class::Failed, error),
    }
}
