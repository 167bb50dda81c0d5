//! A thread that writes into the store for callers that must not wait: one for blocks, one for commits.
//!
//! The log takes one record at a time and waits for the disk, so one thread is hardly slower than many; and it takes the
//! memory of one: the index and the allocator keep garbage for each thread. It starts with the first work and ends with its handle,
//! which work that still waits may keep. What waits for it is bounded by its callers, who wait for each.

use super::lock;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;
use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread, once there is one.
#[derive(Debug)]
pub(crate) struct Writer {
    name: &'static str,
    to_thread: Mutex<Option<mpsc::Sender<Work>>>,
}

impl Writer {
    /// The thread will have this name.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, to_thread: Mutex::new(None) }
    }

    /// Has the thread do `work`. The answer fails if it panics, or no thread can be started.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        // Whoever asked may have gone.
        let work: Work = Box::new(move || drop(reply.send(work())));
        let mut to_thread = lock(&self.to_thread);
        if to_thread.is_none() {
            *to_thread = start(self.name);
        }
        if let Some(to_thread) = &*to_thread {
            // The thread outlives its sender.
            let _ = to_thread.send(work);
        }
        answer
    }
}

fn start(name: &str) -> Option<mpsc::Sender<Work>> {
    let (to_thread, waiting) = mpsc::channel::<Work>();
    let write = move || {
        for work in waiting {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("writing into the store panicked");
            }
        }
    };
    match thread::Builder::new().name(name.to_owned()).spawn(write) {
        Ok(_) => Some(to_thread),
        Err(error) => {
            tracing::error!(%error, "cannot start a thread that writes into the store");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_fails_its_own_work_and_no_other() {
        let writer = Writer::new("writer");
        let broken = writer.run(|| panic!("the disk is on fire"));
        let sound = writer.run(|| thread::current().id());
        assert!(broken.blocking_recv().is_err());
        assert_ne!(sound.blocking_recv().unwrap(), thread::current().id());
    }
}
