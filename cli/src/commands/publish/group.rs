//! Paths that are ready are published together: each time has to wait for the disk, in the node and for the files.
//!
//! The order stays: in the node first, then the NARs, then the narinfos, dependencies before what refers to them.

use super::Publisher;
use crate::commands::{cache, out_of_turn, patiently};
use crate::files::{Draft, replace_all};
use crate::outcome::Stop;
use nipfs_node::control::protocol::{Done, Request};
use nipfs_proto::nix::narinfo::NarInfo;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Paths that are published at once: each holds a file open.
const MOST: usize = 64;
/// Bytes of NARs after which no path waits for others: to wait for the disk takes less time than they did.
const ENOUGH: u64 = 16 << 20;
/// Bytes of narinfos after which no more wait: they go to the node in one frame.
const MAX_TEXT: usize = 1 << 20;

/// What waits to be published: names for messages, and what they stand for.
#[derive(Debug, Default)]
pub(super) struct Group {
    waiting: Vec<(String, Ready)>,
    /// Of their NARs.
    bytes: u64,
    /// Bytes of their narinfos.
    text: usize,
}

impl Group {
    /// What `file` will say.
    pub(super) fn narinfo(&self, file: &Path) -> Option<&NarInfo> {
        self.waiting.iter().rev().find(|(_, ready)| ready.file == file).map(|(_, ready)| &ready.narinfo)
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= MOST || self.bytes >= ENOUGH || self.text >= MAX_TEXT
    }
}

/// A path whose NAR is staged or held, and its narinfo complete.
#[derive(Debug)]
pub(super) struct Ready {
    /// What is published.
    pub(super) narinfo: NarInfo,
    /// Where it is written.
    pub(super) file: PathBuf,
    /// Plain bytes of blocks that the node did not hold before.
    pub(super) new_bytes: u64,
}

/// A line of `publish`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    path: String,
    narinfo: &'a Path,
    root: String,
    nar_hash: String,
    nar_size: u64,
    new_bytes: u64,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.root)
    }
}

impl Publisher<'_> {
    /// Takes the path that comes next, or why it does not come.
    ///
    /// # Errors
    /// As [`Self::count`], for this path or one that waited for it.
    pub(super) async fn add(&mut self, name: String, ready: Result<Ready, Stop>) -> Result<(), Stop> {
        match ready {
            Ok(ready) => {
                self.make_way(ready.narinfo.nar_size()).await?;
                self.group.bytes += ready.narinfo.nar_size();
                self.group.text += ready.narinfo.text().len();
                self.group.waiting.push((name, ready));
                if self.group.is_full() { self.publish_group().await } else { Ok(()) }
            }
            Err(stop) => {
                let published = self.publish_group().await;
                // With the connection goes what was staged for nothing.
                self.client = None;
                let counted = self.count(&name, Err(stop));
                published.and(counted)
            }
        }
    }

    /// Publishes what waits, if a NAR of this size comes next: nothing shall wait for that.
    ///
    /// # Errors
    /// As [`Self::count`].
    pub(super) async fn make_way(&mut self, nar_size: u64) -> Result<(), Stop> {
        if nar_size >= ENOUGH { self.publish_group().await } else { Ok(()) }
    }

    /// Publishes what waits, and prints its lines.
    ///
    /// # Errors
    /// As [`Self::count`].
    pub(super) async fn publish_group(&mut self) -> Result<(), Stop> {
        let group = std::mem::take(&mut self.group).waiting;
        if group.is_empty() {
            return Ok(());
        }
        let narinfos = group.iter().map(|(_, ready)| ready.narinfo.text().to_owned()).collect();
        let request = Request::Commit { narinfos, keep: self.keep };
        let mut results: Vec<Result<(), Stop>> = match self.client().await?.call(request).await? {
            Done::Committed { failures } if failures.len() == group.len() => {
                failures.into_iter().map(|failure| failure.map_or(Ok(()), |failure| Err(failure.into()))).collect()
            }
            other => return Err(out_of_turn(&other).into()),
        };
        // Before the narinfos: who finds one of those can have the NAR.
        if self.write_nars {
            let mut drafts = Vec::with_capacity(group.len());
            for ((_, ready), result) in group.iter().zip(results) {
                drafts.push(match result {
                    Ok(()) => self.draft_nar(&ready.narinfo).await,
                    Err(stop) => Err(stop),
                });
            }
            results = place(drafts).await?;
        }
        let draft = |(ready, result): (&Ready, Result<(), Stop>)| {
            result?;
            Ok(cache::draft(&ready.file, ready.narinfo.text().as_bytes())?)
        };
        results = place(group.iter().map(|(_, ready)| ready).zip(results).map(draft).collect()).await?;
        let mut outcome = Ok(());
        for ((name, ready), result) in group.iter().zip(results) {
            // The others are published, or are not, all the same.
            let counted = self.count(name, result.and_then(|()| self.print(ready)));
            outcome = outcome.and(counted);
        }
        outcome
    }

    fn print(&self, ready: &Ready) -> Result<(), Stop> {
        let narinfo = &ready.narinfo;
        self.app.printer.item(&Line {
            path: narinfo.store_path().to_absolute_path(),
            narinfo: &ready.file,
            root: narinfo.root().map(|root| root.cid().to_string()).unwrap_or_default(),
            nar_hash: narinfo.nar_hash().to_string(),
            nar_size: narinfo.nar_size(),
            new_bytes: ready.new_bytes,
        })
    }
}

/// Makes the drafts durable that there are; the result of each.
async fn place(drafts: Vec<Result<Option<Draft>, Stop>>) -> Result<Vec<Result<(), Stop>>, Stop> {
    let (mut there, mut places, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    let mut results = Vec::with_capacity(drafts.len());
    for draft in drafts {
        results.push(draft.map(|draft| {
            if let Some(draft) = draft {
                places.push(results.len());
                targets.push(draft.target().to_owned());
                there.push(draft);
            }
        }));
    }
    let placed = patiently(move || Ok(replace_all(there))).await?;
    for ((place, target), placed) in places.into_iter().zip(&targets).zip(placed) {
        results[place] = placed.map_err(|error| cache::unwritable(target, &error).into());
    }
    Ok(results)
}
