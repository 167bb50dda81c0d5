//! `nipfs gc` and `nipfs verify`: the state of the store.

use super::{App, cache, out_of_turn};
use crate::args;
use crate::outcome::Stop;
use crate::size;
use nipfs_node::control::protocol::{Class, Done, Failure, Item, Request};
use serde::Serialize;
use std::fmt;

/// What `gc` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Freed {
    freed_bytes: u64,
    dropped_paths: Vec<String>,
    kept_paths: u64,
    kept_because: Vec<(String, String)>,
    dry_run: bool,
}

impl fmt::Display for Freed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dropped, freed) = if self.dry_run { ("would drop", "would free") } else { ("dropped", "freed") };
        for path in &self.dropped_paths {
            writeln!(f, "{dropped} {path}")?;
        }
        for (path, reason) in &self.kept_because {
            writeln!(f, "kept {path}: {reason}")?;
        }
        let paths = if self.kept_paths == 1 { "path stays" } else { "paths stay" };
        write!(f, "{freed} {}, {} {paths} pinned", size::show(self.freed_bytes), self.kept_paths)
    }
}

/// Frees what no pin reaches.
pub(crate) async fn gc(app: &App<'_>, args: &args::Gc) -> Result<(), Stop> {
    let require_mirror = args.require_mirror.clone();
    let request = Request::Gc { dry_run: args.dry_run, max_size: args.max_size, require_mirror };
    let (mut dropped_paths, mut retracted, mut kept_because) = (Vec::new(), Vec::new(), Vec::new());
    let done = app.items(request, |item| {
        match item {
            Item::Dropped { target, left } => {
                if !left {
                    retracted.push(target.clone());
                }
                dropped_paths.push(target);
            }
            Item::Kept { path, reason } => kept_because.push((path, reason)),
            other => return Err(out_of_turn(&other).into()),
        }
        Ok(())
    });
    let done = done.await?;
    let Done::Gc { freed_bytes, kept_paths } = done else {
        return Err(out_of_turn(&done).into());
    };
    if !args.dry_run {
        retracted.iter().try_for_each(|path| cache::retract(&app.settings.cache.value, path))?;
    }
    app.printer.item(&Freed { freed_bytes, dropped_paths, kept_paths, kept_because, dry_run: args.dry_run })
}

/// What `verify` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    blocks: u64,
    damaged: Vec<String>,
    repaired: Vec<String>,
    broken_paths: Vec<String>,
    damaged_records: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cid in &self.damaged {
            let state = if self.repaired.contains(cid) { "repaired" } else { "damaged" };
            writeln!(f, "{state} {cid}")?;
        }
        for path in &self.broken_paths {
            writeln!(f, "incomplete {path}")?;
        }
        if self.damaged_records > 0 {
            writeln!(f, "lost {} records of the log: publish or mirror again what they held", self.damaged_records)?;
        }
        write!(f, "checked {} blocks, {} damaged, {} repaired", self.blocks, self.damaged.len(), self.repaired.len())
    }
}

/// Checks what is on disk. Damage that stays is exit 5.
pub(crate) async fn verify(app: &App<'_>, args: &args::Verify) -> Result<(), Stop> {
    let peers = app.settings.peers.value.clone();
    let done = app.items(Request::Verify { deep: args.deep, repair: args.repair, peers }, |_| Ok(())).await?;
    let Done::Verify { blocks, damaged, repaired, broken_paths, damaged_records } = done else {
        return Err(out_of_turn(&done).into());
    };
    let whole = damaged_records == 0 && broken_paths.is_empty() && damaged.iter().all(|cid| repaired.contains(cid));
    app.printer.item(&Verified { blocks, damaged, repaired, broken_paths, damaged_records })?;
    if whole {
        return Ok(());
    }
    let state = app.settings.state.value.display();
    let failure = Failure::new(Class::Damaged, format!("store is damaged: {state}"));
    Err(failure.hint("run: nipfs verify --deep --repair --peer MULTIADDR of a node that holds the same paths").into())
}
