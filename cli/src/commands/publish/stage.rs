//! Sending a NAR to the node. It is read on a thread of its own, a few pieces ahead of the connection.

use super::Publisher;
use crate::outcome::Stop;
use nipfs_node::control::client::{ClientError, Event};
use nipfs_node::control::protocol::{Class, Done, Failure, Request};
use nipfs_node::nix::dump::{DumpError, Pieces, dump};
use nipfs_proto::block::{Cid, parse_cid};
use nipfs_proto::nix::NarHash;
use std::io;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Pieces that are read ahead.
const AHEAD: usize = 4;

/// Where a NAR comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A tree that is dumped.
    Tree(PathBuf),
    /// A file that is a NAR.
    File(PathBuf),
}

impl Source {
    fn read(&self, out: &mut Pieces) -> Result<(), Failure> {
        match self {
            Self::Tree(path) => dump(path, out).map_err(|error| unreadable(&error)),
            Self::File(path) => {
                let copied = std::fs::File::open(path).and_then(|mut file| io::copy(&mut file, out));
                let failed =
                    |error| Failure::new(Class::Failed, format!("cannot read: {}", path.display())).because(&error);
                copied.map(drop).map_err(failed)
            }
        }
    }
}

fn unreadable(error: &DumpError) -> Failure {
    let class = match error {
        DumpError::Unsupported(_) | DumpError::Depth(_) | DumpError::Name(_) => Class::Usage,
        _ => Class::Failed,
    };
    Failure::from_error(class, error)
}

/// A NAR in the node's store, held for this connection until it is committed.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Root of its DAG.
    pub(crate) root: Cid,
    /// Its hash, as the node computed it.
    pub(crate) nar_hash: NarHash,
    /// Its bytes.
    pub(crate) nar_size: u64,
    /// Plain bytes of blocks that the node did not hold before.
    pub(crate) new_bytes: u64,
}

impl Publisher<'_> {
    /// Sends a NAR; `name` and `total` (0: not known) are for the progress bar.
    ///
    /// # Errors
    /// When it cannot be read or the node does not take it. What is staged already stays.
    pub(super) async fn stage(&mut self, name: &str, source: Source, total: u64) -> Result<Staged, Stop> {
        let sent = self.send(name, source, total).await;
        self.app.printer.clear();
        staged(sent?)
    }

    /// Lets the node read a valid store path, whose bytes stay where they are.
    ///
    /// # Errors
    /// When the node does not take it.
    pub(super) async fn stage_outside(&mut self, path: &str) -> Result<Staged, Stop> {
        let (printer, profile) = (self.app.printer, self.profile.to_string());
        let mut exchange =
            self.client().await?.request(Request::StageOutside { path: path.to_owned(), profile }).await?;
        let done = loop {
            match exchange.next().await? {
                Event::Report(report) => printer.report(&report),
                Event::Done(done) => break done,
                event => return Err(crate::commands::out_of_turn(&event).into()),
            }
        };
        printer.clear();
        staged(done)
    }

    async fn send(&mut self, name: &str, source: Source, total: u64) -> Result<Done, Stop> {
        let (printer, profile) = (self.app.printer, self.profile.to_string());
        let mut exchange = self.client().await?.request(Request::Stage { profile }).await?;
        let (pieces, mut waiting) = mpsc::channel(AHEAD);
        let reading = tokio::task::spawn_blocking(move || source.read(&mut Pieces(pieces)));
        let mut done = 0;
        while let Some(piece) = waiting.recv().await {
            done += piece.len() as u64;
            if let Err(error) = exchange.send_data(piece).await {
                if matches!(error, ClientError::Failed(_)) {
                    exchange.end_data().await?;
                }
                return Err(error.into());
            }
            printer.progress(name, done, total, "reading");
        }
        let read = reading.await.unwrap_or_else(|error| Err(Failure::from_error(Class::Failed, &error)));
        if let Err(failure) = read {
            exchange.give_up(failure.clone()).await?;
            return Err(failure.into());
        }
        exchange.end_data().await?;
        Ok(exchange.done().await?)
    }
}

fn staged(done: Done) -> Result<Staged, Stop> {
    let Done::Staged { root, nar_hash, nar_size, new_bytes } = done else {
        return Err(crate::commands::out_of_turn(&done).into());
    };
    let unreadable = |error| Failure::new(Class::Failed, format!("not a NarHash: {nar_hash}")).because(&error);
    let nar_hash = nar_hash.parse().map_err(unreadable)?;
    Ok(Staged { root: parse_root(&root)?, nar_hash, nar_size, new_bytes })
}

/// Reads a CID that the node sent.
pub(crate) fn parse_root(text: &str) -> Result<Cid, Failure> {
    parse_cid(text).map_err(|error| Failure::new(Class::Failed, format!("not a CID: {text}")).because(&error))
}
