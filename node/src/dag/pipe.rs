//! From a task to a thread: what comes over a connection, for an import that waits for the disk.

use bytes::Bytes;
use std::io::Read;
use tokio::sync::mpsc;

/// Carries bytes from a task to a thread that reads: at most a few chunks wait.
pub(crate) fn pipe() -> (mpsc::Sender<std::io::Result<Bytes>>, impl Read + Send) {
    let (sender, receiver) = mpsc::channel(8);
    (sender, PipeReader { receiver, rest: Bytes::new() })
}

struct PipeReader {
    receiver: mpsc::Receiver<std::io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}
