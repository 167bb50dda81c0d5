//! Complete trees take their names together, while others come: each time has to wait for the disk.
//!
//! One thread at most waits for it. What is complete meanwhile is next; it is bounded by [`MOST`], for each holds files open.

use super::Line;
use nipfs_node::nix::unpack::{Complete, UnpackError, publish};
use std::future::pending;
use std::panic::resume_unwind;
use tokio::task::{JoinHandle, spawn_blocking};

/// Complete trees that wait for their turn.
const MOST: usize = 64;

/// Lines whose trees have their names, or why not.
pub(super) type Placed = Vec<(Line, Result<(), UnpackError>)>;

/// Trees on their way to their names.
#[derive(Debug, Default)]
pub(super) struct Placing {
    waiting: Vec<(Line, Complete)>,
    work: Option<JoinHandle<Placed>>,
}

impl Placing {
    /// Takes a tree, and the line that tells of it.
    pub(super) fn add(&mut self, line: Line, tree: Complete) {
        self.waiting.push((line, tree));
        self.start();
    }

    /// Whether no more should be added for now.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST
    }

    /// Whether all have their names.
    pub(super) fn is_idle(&self) -> bool {
        self.work.is_none()
    }

    /// The next ones that have their names, in the order in which they were added; never when there are none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Placed {
        let Some(work) = &mut self.work else { return pending().await };
        let placed = work.await;
        self.work = None;
        self.start();
        placed.unwrap_or_else(|ended| resume_unwind(ended.into_panic()))
    }

    fn start(&mut self) {
        if self.work.is_none() && !self.waiting.is_empty() {
            let (lines, trees): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().unzip();
            self.work = Some(spawn_blocking(|| lines.into_iter().zip(publish(trees)).collect()));
        }
    }
}
