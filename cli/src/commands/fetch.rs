//! `nipfs fetch`: store paths, verified, into a directory, a NAR file or a Nix store.
//!
//! The node verifies; here the bytes only take their place, after it said that they are good. An
//! interrupted fetch leaves no target, and its temporary files go with it or with the next fetch.

mod nix;
mod placing;
mod sink;

use super::{App, out_of_turn};
use crate::args;
use crate::outcome::{Stop, Tally};
use nipfs_node::control::client::{ClientError, Event};
use nipfs_node::control::protocol::{Class, Failure, Fetch, Item, Request, SourceBytes};
use nipfs_proto::nix::narinfo::PathInfo;
use nipfs_proto::nix::store_path::StorePath;
use placing::{Placed, Placing};
use serde::Serialize;
use sink::{Prepared, Sink, unpacking};
use std::fmt;
use std::path::PathBuf;

/// A line of `fetch`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    path: String,
    root: Option<String>,
    nar_hash: String,
    source: String,
    bytes: SourceBytes,
    out: PathBuf,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.out.display().fmt(f)
    }
}

impl Line {
    /// A path that was in its place before.
    fn valid(info: &PathInfo, out: PathBuf) -> Self {
        Self {
            path: info.path.to_absolute_path(),
            root: None,
            nar_hash: info.nar_hash.to_string(),
            source: "local".to_owned(),
            bytes: SourceBytes::default(),
            out,
        }
    }
}

/// Runs the verb.
pub(crate) async fn run(app: &App<'_>, args: args::Fetch) -> Result<(), Stop> {
    let mut wanted = args.paths.into_iter().map(|path| parse(&path)).collect::<Result<Vec<_>, _>>()?;
    let Prepared { mut sink, skip, valid } = Sink::prepare(args.sink, &wanted)?;
    for info in &valid {
        app.printer.item(&Line::valid(info, sink.place(&info.path)))?;
    }
    // What these refer to is valid too.
    wanted.retain(|path| !valid.iter().any(|info| info.path == *path));
    if wanted.is_empty() {
        return Ok(());
    }
    if let (Sink::Directory(directory, _), false) = (&sink, skip.is_empty()) {
        let (count, directory) = (skip.len(), directory.display());
        app.printer
            .warning(format_args!("{count} paths are in {directory} already: left as they are, and not checked"));
    }
    let settings = &app.settings;
    if settings.upstreams.value.is_empty() {
        let failure = Failure::new(Class::Usage, format!("no cache to ask for the narinfo: {}", wanted[0]));
        return Err(failure.hint("name one with --from URL").into());
    }
    let only_one = wanted.len() == 1;
    let request = Fetch {
        paths: wanted.into_iter().map(|path| path.to_absolute_path()).collect(),
        from: settings.upstreams.value.clone(),
        trusted_keys: settings.trusted_public_keys.value.clone(),
        peers: settings.peers.value.clone(),
        gateways: settings.gateways.value.clone(),
        closure: !args.no_closure && sink.takes_closures(),
        check_sigs: !args.no_check_sigs,
        data: !matches!(sink, Sink::Nix(_)),
        skip,
    };
    let (tally, placing, lines) = (Tally::default(), Placing::default(), Vec::new());
    let mut job = Job { app, sink: &mut sink, only_one, tally, placing, lines };
    let ended = job.run(request).await;
    // What was complete is not lost with what failed.
    job.place_all().await.and(ended)?;
    let Job { tally, lines, .. } = job;
    if let Sink::Nix(import) = &mut sink {
        import.run(app, &lines, args.no_check_sigs).await?;
        for line in &lines {
            app.printer.item(line)?;
        }
    }
    tally.outcome()
}

/// A store path, or the last component of one.
fn parse(text: &str) -> Result<StorePath, Failure> {
    let parsed = if text.contains('/') { StorePath::parse(text) } else { StorePath::from_base_name(text) };
    parsed.map_err(|error| Failure::new(Class::Usage, format!("not a store path: {text}")).because(&error))
}

struct Job<'a> {
    app: &'a App<'a>,
    sink: &'a mut Sink,
    /// Then a dependency that failed is the failure of the one path.
    only_one: bool,
    tally: Tally,
    placing: Placing,
    /// Paths that wait for the import into the Nix store.
    lines: Vec<Line>,
}

impl Job<'_> {
    async fn run(&mut self, request: Fetch) -> Result<(), Stop> {
        let mut client = self.app.client().await?;
        let mut exchange = client.request(Request::Fetch(request)).await.map_err(Failure::from)?;
        let mut last_failure = None;
        loop {
            let event = tokio::select! {
                placed = self.placing.next() => {
                    self.placed(placed)?;
                    continue;
                }
                event = exchange.next(), if !self.placing.is_full() => event,
            };
            match event {
                Ok(Event::Report(report)) => self.app.printer.report(&report),
                // Writing may wait for the disk; nothing else is to be done on this thread meanwhile.
                Ok(Event::Data(bytes)) => tokio::task::block_in_place(|| self.sink.write(&bytes))?,
                Ok(Event::Restart) => self.sink.restart()?,
                Ok(Event::Item(Item::Failed { path, failure })) => {
                    self.sink.abandon();
                    self.app.item_failed(&path, &failure);
                    self.tally.failure(failure.class);
                    last_failure = Some(failure);
                }
                Ok(Event::Item(item)) => self.item(item)?,
                Ok(Event::Done(_)) => return Ok(()),
                // It was printed when its item came.
                Err(ClientError::Failed(failure)) if last_failure.as_ref() == Some(&failure) => {
                    return Err(Stop::Items(failure.class));
                }
                Err(error) => return Err(Failure::from(error).into()),
            }
        }
    }

    fn item(&mut self, item: Item) -> Result<(), Stop> {
        match item {
            Item::Path { path, narinfo, .. } => self.sink.start(&parse(&path)?, &narinfo)?,
            Item::Fetched { path, root, nar_hash, source, bytes } => {
                let out = self.sink.place(&parse(&path)?);
                let line = Line { path, root, nar_hash, source, bytes, out };
                match (tokio::task::block_in_place(|| self.sink.finish())?, &self.sink) {
                    (Some(tree), _) => self.placing.add(line, tree),
                    (None, Sink::Nix(_)) => {
                        self.count();
                        self.lines.push(line);
                    }
                    (None, _) => self.placed(vec![(line, Ok(()))])?,
                }
            }
            other => return Err(out_of_turn(&other).into()),
        }
        Ok(())
    }

    /// Counts a path that is where it belongs.
    fn count(&mut self) {
        if !self.only_one {
            self.tally.success();
        }
    }

    /// Tells of those that are in their places.
    fn placed(&mut self, placed: Placed) -> Result<(), Stop> {
        let mut outcome = Ok(());
        for (line, named) in placed {
            match named {
                Ok(()) => {
                    self.count();
                    self.app.printer.item(&line)?;
                }
                Err(error) => outcome = outcome.and_then(|()| Err(unpacking(&error).into())),
            }
        }
        outcome
    }

    /// Waits until all that is complete is in its place.
    async fn place_all(&mut self) -> Result<(), Stop> {
        while !self.placing.is_idle() {
            let placed = self.placing.next().await;
            self.placed(placed)?;
        }
        Ok(())
    }
}
