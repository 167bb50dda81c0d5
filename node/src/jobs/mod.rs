//! The jobs: one straight function for each verb that needs the node. A job takes its request, emits
//! [`Event`]s while it runs, and ends with a [`Done`](crate::control::protocol::Done) or a
//! [`Failure`].
//!
//! Dropping a job's future cancels it: wants are withdrawn, leases end, nothing partial is committed.

pub mod collect;
pub mod fetch;
pub mod keep;
pub mod mirror;
pub(crate) mod narinfos;
pub mod obtain;
pub mod pins;
mod places;
pub mod verify;

use crate::control::protocol::{Class, Failure, Item, Report};
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What a job emits while it runs.
#[derive(Debug)]
pub enum Event {
    /// Progress; may be dropped.
    Report(Report),
    /// One result.
    Item(Item),
    /// NAR bytes of the path named last.
    Data(Bytes),
    /// The data sent for this path so far was wrong; it starts again.
    Restart,
}

/// How many events wait for a slow listener; data events are at most 2 MiB each.
const WAITING: usize = 4;
/// How often progress is told: each time wakes the listener.
const PROGRESS: Duration = Duration::from_millis(50);

/// Where a job's events go.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    /// When progress was told last.
    told: Arc<Mutex<Option<Instant>>>,
}

impl Events {
    /// A bounded channel of events.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender, told: Arc::default() }, receiver)
    }

    /// Emits a result.
    ///
    /// # Errors
    /// A [`Failure`] of class `Interrupted` when nobody listens any more.
    pub async fn item(&self, item: Item) -> Result<(), Failure> {
        self.send(Event::Item(item)).await
    }

    /// Emits bytes of the current path.
    ///
    /// # Errors
    /// As [`Events::item`].
    pub async fn data(&self, bytes: Bytes) -> Result<(), Failure> {
        self.send(Event::Data(bytes)).await
    }

    /// Takes the current path's bytes back.
    ///
    /// # Errors
    /// As [`Events::item`].
    pub async fn restart(&self) -> Result<(), Failure> {
        self.send(Event::Restart).await
    }

    /// Emits a line for a person.
    ///
    /// # Errors
    /// As [`Events::item`].
    pub async fn note(&self, text: impl Into<String>) -> Result<(), Failure> {
        let text = text.into();
        tracing::info!(target: "nipfs_node::jobs", "{text}");
        self.send(Event::Report(Report::Note { text })).await
    }

    /// Emits progress, unless it was told just now or the listener is behind.
    pub fn progress(&self, report: impl FnOnce() -> Report) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= PROGRESS) {
            *told = Some(Instant::now());
            let _ = self.sender.try_send(Event::Report(report()));
        }
    }

    async fn send(&self, event: Event) -> Result<(), Failure> {
        self.sender.send(event).await.map_err(|_| Failure::new(Class::Interrupted, "interrupted: the client is gone"))
    }
}

#[cfg(test)]
mod tests;
