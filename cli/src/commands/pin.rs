//! `nipfs pin`: what stays when `gc` runs.

use super::{App, cache, out_of_turn};
use crate::args::Pin;
use crate::outcome::{Stop, Tally};
use nipfs_node::control::protocol::{Item, Request};
use serde::Serialize;
use std::fmt;

/// A line of `pin ls`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    target: String,
    root: String,
    nar_size: u64,
    added: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target)
    }
}

/// A line of `pin add` and `pin rm`.
#[derive(Debug, Serialize)]
struct Changed {
    target: String,
    pinned: bool,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.pinned { "pinned" } else { "unpinned" }, self.target)
    }
}

/// Runs the verb.
pub(crate) async fn run(app: &App<'_>, verb: Pin) -> Result<(), Stop> {
    match verb {
        Pin::Ls => list(app).await,
        Pin::Add { targets, .. } => {
            let peers = app.settings.peers.value.clone();
            let request = |target| Request::PinAdd { target, peers: peers.clone() };
            each(app, targets, request, |target| app.printer.item(&Changed { target, pinned: true })).await
        }
        Pin::Rm { targets } => {
            let request = |target| Request::PinRemove { target };
            let follow = |target: String| {
                cache::retract(&app.settings.cache.value, &target)?;
                app.printer.item(&Changed { target, pinned: false })
            };
            each(app, targets, request, follow).await
        }
    }
}

async fn list(app: &App<'_>) -> Result<(), Stop> {
    app.items(Request::PinList { check: false }, |item| match item {
        Item::Pin { target, root, nar_size, added, .. } => app.printer.item(&Line { target, root, nar_size, added }),
        other => Err(out_of_turn(&other).into()),
    })
    .await?;
    Ok(())
}

/// One request a target, and what follows from it here; one that fails does not stop the others.
async fn each(
    app: &App<'_>,
    targets: Vec<String>,
    request: impl Fn(String) -> Request,
    follow: impl Fn(String) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut tally = Tally::default();
    for target in targets {
        let done = app.items(request(target.clone()), |_| Ok(())).await;
        match done.and_then(|_| follow(target.clone())) {
            Ok(()) => tally.success(),
            Err(Stop::Failed(failure)) => {
                app.item_failed(&target, &failure);
                tally.failure(failure.class);
            }
            Err(stop) => return Err(stop),
        }
    }
    tally.outcome()
}
