//! The thread that writes blocks for callers that must not wait.
//!
//! The log takes one block at a time, so one thread is as fast as many, and takes the memory of one. It starts with the
//! first block and ends with the store, which a block that still waits keeps open. What waits for it is bounded by its callers, who wait for each block.

use super::lock;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;
use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread, once there is one.
#[derive(Debug, Default)]
pub(super) struct Writer(Mutex<Option<mpsc::Sender<Work>>>);

impl Writer {
    /// Has the thread do `work`. The answer fails if it panics, or no thread can be started.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        // Whoever asked may have gone.
        let work: Work = Box::new(move || drop(reply.send(work())));
        let mut to_thread = lock(&self.0);
        if to_thread.is_none() {
            *to_thread = start();
        }
        if let Some(to_thread) = &*to_thread {
            // The thread outlives its sender.
            let _ = to_thread.send(work);
        }
        answer
    }
}

fn start() -> Option<mpsc::Sender<Work>> {
    let (to_thread, waiting) = mpsc::channel::<Work>();
    let write = move || {
        for work in waiting {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("writing a block panicked");
            }
        }
    };
    match thread::Builder::new().name("store-writer".to_owned()).spawn(write) {
        Ok(_) => Some(to_thread),
        Err(error) => {
            tracing::error!(%error, "cannot start the thread that writes blocks");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_fails_its_own_work_and_no_other() {
        let writer = Writer::default();
        let broken = writer.run(|| panic!("the disk is on fire"));
        let sound = writer.run(|| thread::current().id());
        assert!(broken.blocking_recv().is_err());
        assert_ne!(sound.blocking_recv().unwrap(), thread::current().id());
    }
}
