//! What leaves over one connection: a stream for wants, and up to [`BLOCK_STREAMS`] for blocks.
//!
//! Wants leave in order and never wait behind a block. Blocks are told apart by their CIDs, so their messages need no
//! order; several streams carry them because a stream begins with a window of 256 KiB, which takes round trips to grow.
//!
//! A stream is opened with its first message and kept while there is something to say. That message goes together
//! with the name of the protocol, so that whether the peer speaks it is known only later. A peer may close an idle
//! stream, and what we write before we hear of it is lost, so a stream that was silent for [`STALE`] is not used
//! again. A message that fails is tried on a fresh stream once.

use super::Lane;
use crate::network::frame;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{AsyncRead as _, FutureExt as _};
use libp2p::Stream;
use libp2p::core::upgrade::NegotiationError;
use nipfs_proto::bitswap::message::Message;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Streams for blocks, opened as they are needed.
const BLOCK_STREAMS: usize = 4;
/// How long a write may make no progress at all.
const WRITE_STALL: Duration = Duration::from_secs(30);
/// A stream that carried nothing for so long is replaced by a new one. Helia resets it after 10 s.
const STALE: Duration = Duration::from_secs(5);

/// What the connection has to do next.
pub(super) enum Step {
    /// Open a stream, and call [`Outbound::opened`] with it.
    Open,
    /// Say that this message has left; bytes on the wire.
    Sent(Lane, Arc<Message>, usize),
    /// Say that nothing can be sent any more.
    Failed(io::Error),
    /// Say that the peer does not speak the protocol.
    Unsupported,
}

/// The outbound side of a connection.
pub(super) struct Outbound {
    lines: [Line; 1 + BLOCK_STREAMS],
    /// Bounded by the behaviour, which knows what is here.
    queues: [VecDeque<Arc<Message>>; 2],
    dead: bool,
}

/// A stream, or the place for one.
struct Line {
    lane: Lane,
    state: State,
    /// What is being written or waits for the stream to open.
    current: Option<Outgoing>,
}

enum State {
    Closed,
    Opening,
    /// Since when.
    Idle(Stream, Instant),
    Writing(BoxFuture<'static, io::Result<Stream>>),
}

struct Outgoing {
    message: Arc<Message>,
    /// One after the other.
    pieces: Vec<Bytes>,
    /// A stream failed with it.
    failed: bool,
}

impl Outbound {
    pub(super) fn new() -> Self {
        let line = |lane| Line { lane, state: State::Closed, current: None };
        let lines = std::array::from_fn(|index| line(if index == 0 { Lane::Wants } else { Lane::Blocks }));
        Self { lines, queues: Default::default(), dead: false }
    }

    /// Takes a message, unless nothing can be sent any more.
    pub(super) fn push(&mut self, lane: Lane, message: Arc<Message>) {
        if !self.dead {
            self.queues[lane as usize].push_back(message);
        }
    }

    /// A stream that was asked for.
    pub(super) fn opened(&mut self, stream: Stream) {
        if let Some(line) = self.lines.iter_mut().find(|line| matches!(line.state, State::Opening)) {
            line.state = State::Idle(stream, Instant::now());
        }
    }

    /// Sends nothing from now on.
    pub(super) fn end(&mut self) {
        *self = Self { dead: true, ..Self::new() };
    }

    /// Moves all streams as far as they go.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Step> {
        let queues = &mut self.queues;
        let step = self.lines.iter_mut().find_map(|line| line.poll(&mut queues[line.lane as usize], cx));
        if matches!(step, Some(Step::Failed(_) | Step::Unsupported)) {
            self.end();
        }
        step
    }
}

impl Line {
    fn poll(&mut self, queue: &mut VecDeque<Arc<Message>>, cx: &mut Context<'_>) -> Option<Step> {
        loop {
            if self.current.is_none() {
                self.current = queue.pop_front().map(Outgoing::new);
            }
            self.state = match (std::mem::replace(&mut self.state, State::Closed), &mut self.current) {
                (State::Closed, Some(_)) => {
                    self.state = State::Opening;
                    return Some(Step::Open);
                }
                (State::Idle(_, since), Some(_)) if since.elapsed() >= STALE => State::Closed,
                (State::Idle(mut stream, _), Some(outgoing)) => {
                    let pieces = outgoing.pieces.clone();
                    let write = async move { frame::write(&mut stream, &pieces, WRITE_STALL).await.map(|()| stream) };
                    State::Writing(write.boxed())
                }
                (State::Idle(mut stream, since), None) => match Pin::new(&mut stream).poll_read(cx, &mut []) {
                    Poll::Ready(Err(error)) if is_refusal(&error) => return Some(Step::Unsupported),
                    Poll::Ready(Err(_)) => State::Closed,
                    Poll::Ready(Ok(_)) | Poll::Pending => {
                        self.state = State::Idle(stream, since);
                        return None;
                    }
                },
                (State::Writing(mut write), Some(outgoing)) => match write.poll_unpin(cx) {
                    Poll::Pending => {
                        self.state = State::Writing(write);
                        return None;
                    }
                    Poll::Ready(Ok(stream)) => {
                        self.state = State::Idle(stream, Instant::now());
                        let Outgoing { message, pieces, .. } = self.current.take()?;
                        return Some(Step::Sent(self.lane, message, pieces.iter().map(Bytes::len).sum()));
                    }
                    Poll::Ready(Err(error)) if outgoing.failed => return Some(Step::Failed(error)),
                    Poll::Ready(Err(_)) => {
                        outgoing.failed = true;
                        State::Closed
                    }
                },
                (waits, _) => {
                    self.state = waits;
                    return None;
                }
            };
        }
    }
}

impl Outgoing {
    fn new(message: Arc<Message>) -> Self {
        let pieces = message.encode_pieces();
        Self { message, pieces, failed: false }
    }
}

/// The peer does not speak the protocol that was proposed with the first message.
fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<NegotiationError>())
}
