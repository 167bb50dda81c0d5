//! Connections that must get somewhere: what is written must be taken, and a body must come.

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::stream::{Stream, TryStreamExt as _, try_unfold};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

/// Bytes that the client must take, or send, in each period of waiting for it.
pub(super) const FLOOR: usize = 16 << 10;

/// What a client sends; an error `TimedOut` once we have waited `patience` for [`FLOOR`] bytes of it. Time that the
/// reader takes does not count.
pub(super) fn floored(body: Body, patience: Duration) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let next = move |(mut body, mut left, mut came): (BodyDataStream, Duration, usize)| async move {
        let asked = Instant::now();
        let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "the client does not send");
        let piece = timeout(left, body.try_next()).await.map_err(slow)?.map_err(io::Error::other)?;
        left = left.saturating_sub(asked.elapsed());
        came += piece.as_ref().map_or(0, Bytes::len);
        if came >= FLOOR {
            (left, came) = (patience, 0);
        }
        Ok(piece.map(|piece| (piece, (body, left, came))))
    };
    try_unfold((body.into_data_stream(), patience, 0), next)
}

/// A connection on which a write fails with `TimedOut` once it has waited `patience` for the client to take [`FLOOR`]
/// bytes. Time in which there is nothing to write does not count.
#[derive(Debug)]
pub(super) struct Stalling<S> {
    stream: S,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Of the patience, for the bytes below the floor.
    left: Duration,
    taken: usize,
}

impl<S> Stalling<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, waiting: None, left: patience, taken: 0 }
    }

    /// Books the outcome of a write.
    fn book(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            if let Some(waiting) = self.waiting.take() {
                self.left = waiting.deadline().saturating_duration_since(Instant::now());
            }
            self.taken += bytes;
            if self.taken >= FLOOR {
                (self.left, self.taken) = (self.patience, 0);
            }
        }
        if written.is_ready() {
            return written;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(self.left)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.book(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.book(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_sleeps_is_left() {
        let (near, _far) = duplex(1024);
        let mut near = Stalling::new(near, PATIENCE);
        let started = Instant::now();
        let error = near.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), PATIENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_of_a_byte_a_second_is_left() {
        let (near, mut far) = duplex(1024);
        let mut near = Stalling::new(near, PATIENCE);
        let reader = tokio::spawn(async move {
            while far.read_u8().await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
        let started = Instant::now();
        let error = near.write_all(&[0; 1 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() <= PATIENCE + Duration::from_secs(1), "{:?}", started.elapsed());
        drop(near);
        reader.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_at_the_floor_and_an_idle_writer_are_not() {
        let (near, mut far) = duplex(1024);
        let mut near = Stalling::new(near, PATIENCE);
        let reader = tokio::spawn(async move {
            let (mut buffer, mut read) = ([0; 1024], 0);
            while let Ok(bytes @ 1..) = far.read(&mut buffer).await {
                read += bytes;
                sleep(Duration::from_secs(1)).await;
            }
            read
        });
        near.write_all(&[0; 1 << 18]).await.unwrap();
        sleep(PATIENCE * 10).await;
        near.write_all(&[0; 1 << 12]).await.unwrap();
        drop(near);
        assert_eq!(reader.await.unwrap(), (1 << 18) + (1 << 12));
    }
}
