//! Frames on a bitswap stream: an unsigned varint length, then a message of that many bytes.
//!
//! A length is a claim: the bytes it announces are first taken from the connection's budget, and the
//! buffer grows only with bytes that arrive. Between frames a stream may be silent for as long as it
//! likes; within one it has the time that [`Intake`] gives it. Long frames lie in buffers that are used again.

mod buffer;

use buffer::Buffer;
use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use nipfs_proto::bitswap::message::MAX_MESSAGE;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Bytes of the longest length prefix: MAX_MESSAGE fits in 4 × 7 bits.
const MAX_PREFIX: usize = 4;

/// Why a stream of frames ended other than between two frames.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The length prefix is too long or not minimal.
    #[error("the length prefix is not a varint below {MAX_MESSAGE}")]
    Prefix,
    /// More than [`MAX_MESSAGE`] bytes announced.
    #[error("a message of {0} bytes was announced")]
    TooLong(usize),
    /// The stream ended, or failed, within a frame.
    #[error("the stream ended within a message")]
    Cut(#[source] io::Error),
    /// The frame was not complete in time.
    #[error("a message was not complete after {0:?}")]
    Slow(Duration),
}

/// A frame's bytes and the part of the budget that they hold until it is dropped.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    pub(super) budget: OwnedSemaphorePermit,
}

/// What the streams of one connection share: the bytes that they may hold together, and the count of
/// those that came in for frames that are not complete.
#[derive(Debug)]
pub(super) struct Intake {
    budget: Arc<Semaphore>,
    patience: Duration,
    progress: AtomicUsize,
}

impl Intake {
    /// `budget` in bytes; `patience` is how long a frame may take from its first byte to its last, waiting
    /// for the budget included.
    pub(super) fn new(budget: usize, patience: Duration) -> Self {
        Self { budget: Arc::new(Semaphore::new(budget)), patience, progress: AtomicUsize::new(0) }
    }

    /// The bytes that came in since the last call, or the last complete frame.
    pub(super) fn take_progress(&self) -> usize {
        self.progress.swap(0, Ordering::Relaxed)
    }
}

/// Reads the next frame; `None` at the end of the stream.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S, intake: &Intake) -> Result<Option<Frame>, FrameError> {
    let mut first = [0];
    match stream.read(&mut first).await {
        // A reset between two frames loses nothing.
        Ok(0) | Err(_) => return Ok(None),
        Ok(_) => {}
    }
    let [first] = first;
    let late = |_| FrameError::Slow(intake.patience);
    timeout(intake.patience, read_rest(stream, first, intake)).await.map_err(late)?.map(Some)
}

async fn read_rest<S: AsyncRead + Unpin>(stream: &mut S, first: u8, intake: &Intake) -> Result<Frame, FrameError> {
    let length = read_length(stream, first).await?;
    let permits = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    let closed = |_| FrameError::Cut(io::ErrorKind::BrokenPipe.into());
    let budget = Arc::clone(&intake.budget).acquire_many_owned(permits).await.map_err(closed)?;
    let mut buffer = Buffer::for_frame(length);
    let mut filled = 0;
    while filled < length {
        let room = buffer.room(filled, length);
        match stream.read(room).await.map_err(FrameError::Cut)? {
            0 => return Err(FrameError::Cut(io::ErrorKind::UnexpectedEof.into())),
            read => {
                filled += read;
                intake.progress.fetch_add(read, Ordering::Relaxed);
            }
        }
    }
    // The message speaks for itself.
    intake.take_progress();
    Ok(Frame { bytes: Bytes::from_owner(buffer).slice(..length), budget })
}

async fn read_length<S: AsyncRead + Unpin>(stream: &mut S, first: u8) -> Result<usize, FrameError> {
    let mut prefix = [0; MAX_PREFIX];
    prefix[0] = first;
    let mut last = 0;
    while prefix[last] & 0x80 != 0 {
        last += 1;
        let next = prefix.get_mut(last).ok_or(FrameError::Prefix)?;
        stream.read_exact(std::slice::from_mut(next)).await.map_err(FrameError::Cut)?;
    }
    let (length, _) = unsigned_varint::decode::usize(&prefix[..=last]).map_err(|_| FrameError::Prefix)?;
    if length > MAX_MESSAGE { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

/// Writes the pieces of a frame and flushes it. Fails when the stream takes no byte for as long as `stall`.
pub(super) async fn write<S: AsyncWrite + Unpin>(stream: &mut S, pieces: &[Bytes], stall: Duration) -> io::Result<()> {
    for piece in pieces {
        let mut rest = &piece[..];
        while !rest.is_empty() {
            match timeout(stall, stream.write(rest)).await?? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => rest = &rest[written..],
            }
        }
    }
    timeout(stall, stream.flush()).await?
}

#[cfg(test)]
mod tests;
