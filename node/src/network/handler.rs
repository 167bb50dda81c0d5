//! One connection's bitswap streams.
//!
//! Inbound: up to [`MAX_INBOUND`] streams at once, for Kubo opens one per message. Each reads frames,
//! and decodes them (which hashes every block) away from the swarm task. What has been read but not
//! yet taken by the behaviour is bounded by [`RECEIVE_BUDGET`] bytes a connection: a stream that finds
//! it spent stops reading, and the muxer's window stops the peer.
//!
//! Outbound: one stream, opened with the first message and kept while there is something to say; messages
//! leave in order. The first goes together with the name of the protocol, so that whether the peer speaks it
//! is known only later. A peer may close an idle stream, and what we write before we hear of it is lost, so
//! a stream that was silent for [`STALE`] is not used again. A message that fails is tried on a fresh stream
//! once. Every message ends in [`FromHandler::Sent`], or the last word is [`FromHandler::Failed`] or
//! [`FromHandler::Unsupported`].

use super::frame::{self, FrameError, Intake};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, SelectAll};
use futures::{AsyncRead as _, FutureExt as _, StreamExt as _};
use libp2p::core::upgrade::{NegotiationError, ReadyUpgrade};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol};
use libp2p::{Stream, StreamProtocol};
use nipfs_proto::bitswap::message::{MAX_MESSAGE, Message, MessageError, PROTOCOL, Received};
use nipfs_proto::block::Block;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// The only protocol spoken: Kubo since 0.5 and Helia know it.
pub(super) const BITSWAP: StreamProtocol = StreamProtocol::new(PROTOCOL);
/// Inbound streams at once; more are refused, the connection lives on.
const MAX_INBOUND: usize = 128;
/// Bytes of messages read and not yet taken. Holds a message of the largest size.
const RECEIVE_BUDGET: usize = MAX_MESSAGE;
/// How long a message may take to come in, from its first byte to its last.
const FRAME_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a write may make no progress at all.
const WRITE_STALL: Duration = Duration::from_secs(30);
/// A connection on which no message came or went for so long may be closed.
const IDLE: Duration = Duration::from_secs(60);

/// An outbound stream that carried nothing for so long is replaced by a new one. Helia resets it after 10 s.
const STALE: Duration = Duration::from_secs(5);

/// A block below this part of its frame gets memory of its own.
const SMALL_PART: usize = 8;
/// How often a message that is coming in is reported before it is complete.
const PROGRESS: Duration = Duration::from_millis(250);

/// Messages of one lane leave in order; those of the first overtake those of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// What we want: small, and the peer waits for it to go on sending.
    Wants,
    /// What the peer wants.
    Blocks,
}

impl Lane {
    pub(super) const ALL: [Self; 2] = [Self::Wants, Self::Blocks];
}

/// What the behaviour tells a connection.
#[derive(Debug)]
pub(super) enum ToHandler {
    /// Send this.
    Send(Lane, Arc<Message>),
    /// Keep the connection however idle it is, or no longer.
    Keep(bool),
}

/// What a connection tells the behaviour.
#[derive(Debug)]
pub(super) enum FromHandler {
    /// A message has arrived.
    Arrived(Arrived),
    /// `bytes` more of messages that are not complete have arrived.
    Progress { bytes: usize },
    /// The oldest message of the lane has left; `bytes` on the wire.
    Sent { lane: Lane, bytes: usize },
    /// No message can be sent on this connection any more.
    Failed(io::Error),
    /// The peer does not speak [`BITSWAP`].
    Unsupported,
    /// An inbound stream ended otherwise than between two messages.
    Broke(StreamError),
}

/// How an inbound stream ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("bad frame")]
    Frame(#[from] FrameError),
    #[error("bad message")]
    Message(#[from] MessageError),
}

impl StreamError {
    /// The peer did what nobody may do, rather than that the line failed.
    pub(super) fn is_breach(&self) -> bool {
        !matches!(self, Self::Frame(FrameError::Cut(_) | FrameError::Slow(_)))
    }

    /// Nothing good will come over this connection any more.
    pub(super) fn is_stall(&self) -> bool {
        matches!(self, Self::Frame(FrameError::Slow(_)))
    }
}

/// A decoded message. Holds its part of the connection's budget until it is dropped.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) message: Received,
    /// Bytes on the wire.
    pub(super) bytes: usize,
    pub(super) _budget: OwnedSemaphorePermit,
}

enum Outbound {
    /// No stream; the next message opens one.
    Closed,
    Opening,
    /// Since when.
    Idle(Stream, Instant),
    Writing {
        lane: Lane,
        frame: Bytes,
        write: BoxFuture<'static, io::Result<Stream>>,
    },
    /// A message failed twice, or the peer does not speak bitswap.
    Dead,
}

/// The streams of one connection.
pub(super) struct Handler {
    inbound: SelectAll<BoxStream<'static, Result<Arrived, StreamError>>>,
    intake: Arc<Intake>,
    reported: Instant,
    outbound: Outbound,
    /// Bounded by the behaviour, which knows what is here.
    queues: [VecDeque<Arc<Message>>; 2],
    /// The frame that failed on the last stream and gets a second chance on the next.
    again: Option<(Lane, Bytes)>,
    keep: bool,
    last_used: Instant,
    /// What to tell the behaviour before all else.
    report: Option<FromHandler>,
}

impl Handler {
    pub(super) fn new(keep: bool) -> Self {
        Self {
            inbound: SelectAll::new(),
            intake: Arc::new(Intake::new(RECEIVE_BUDGET, FRAME_TIMEOUT)),
            reported: Instant::now(),
            outbound: Outbound::Closed,
            queues: Default::default(),
            again: None,
            keep,
            last_used: Instant::now(),
            report: None,
        }
    }

    fn end_sending(&mut self, report: FromHandler) {
        self.outbound = Outbound::Dead;
        self.queues = Default::default();
        self.again = None;
        self.report = Some(report);
    }

    fn has_work(&self) -> bool {
        self.again.is_some() || self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// The next frame to write; one that failed stays in `again` until it has left.
    fn next_frame(&mut self) -> Option<(Lane, Bytes)> {
        self.again.clone().or_else(|| {
            let next = Lane::ALL.into_iter().find_map(|lane| Some((lane, self.queues[lane as usize].pop_front()?)));
            next.map(|(lane, message)| (lane, message.encode_frame().into()))
        })
    }

    /// Moves the outbound side as far as it goes; the event that it asks for, if any.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Option<Event> {
        loop {
            self.outbound = match std::mem::replace(&mut self.outbound, Outbound::Closed) {
                Outbound::Closed if self.has_work() => {
                    self.outbound = Outbound::Opening;
                    let protocol = SubstreamProtocol::new(ReadyUpgrade::new(BITSWAP), ());
                    return Some(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
                }
                Outbound::Idle(_, since) if self.has_work() && since.elapsed() >= STALE => Outbound::Closed,
                Outbound::Idle(mut stream, _) if self.has_work() => {
                    let (lane, frame) = self.next_frame()?;
                    let bytes = frame.clone();
                    let write =
                        async move { frame::write(&mut stream, &bytes, WRITE_STALL).await.map(|()| stream) }.boxed();
                    Outbound::Writing { lane, frame, write }
                }
                Outbound::Writing { lane, frame, mut write } => match write.poll_unpin(cx) {
                    Poll::Pending => {
                        self.outbound = Outbound::Writing { lane, frame, write };
                        return None;
                    }
                    Poll::Ready(Ok(stream)) => {
                        self.last_used = Instant::now();
                        self.outbound = Outbound::Idle(stream, self.last_used);
                        self.again = None;
                        let sent = FromHandler::Sent { lane, bytes: frame.len() };
                        return Some(ConnectionHandlerEvent::NotifyBehaviour(sent));
                    }
                    Poll::Ready(Err(error)) if self.again.is_some() => {
                        self.end_sending(FromHandler::Failed(error));
                        return None;
                    }
                    Poll::Ready(Err(_)) => {
                        self.again = Some((lane, frame));
                        Outbound::Closed
                    }
                },
                Outbound::Idle(mut stream, since) => match Pin::new(&mut stream).poll_read(cx, &mut []) {
                    Poll::Ready(Err(error)) if is_refusal(&error) => {
                        self.end_sending(FromHandler::Unsupported);
                        return None;
                    }
                    Poll::Ready(Err(_)) => Outbound::Closed,
                    Poll::Ready(Ok(_)) | Poll::Pending => {
                        self.outbound = Outbound::Idle(stream, since);
                        return None;
                    }
                },
                waits => {
                    self.outbound = waits;
                    return None;
                }
            };
        }
    }

    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Option<FromHandler> {
        if let Poll::Ready(Some(arrived)) = self.inbound.poll_next_unpin(cx) {
            self.last_used = Instant::now();
            return Some(arrived.map_or_else(FromHandler::Broke, FromHandler::Arrived));
        }
        if self.reported.elapsed() < PROGRESS {
            return None;
        }
        let bytes = self.intake.take_progress();
        self.reported = Instant::now();
        (bytes > 0).then_some(FromHandler::Progress { bytes })
    }
}

type Event = ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, (), FromHandler>;

impl ConnectionHandler for Handler {
    type FromBehaviour = ToHandler;
    type ToBehaviour = FromHandler;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(BITSWAP), ())
    }

    // Read at every wake of the connection, and pings wake it.
    fn connection_keep_alive(&self) -> bool {
        self.keep || self.last_used.elapsed() < IDLE
    }

    fn on_behaviour_event(&mut self, event: ToHandler) {
        match event {
            ToHandler::Send(..) if matches!(self.outbound, Outbound::Dead) => {}
            ToHandler::Send(lane, message) => self.queues[lane as usize].push_back(message),
            ToHandler::Keep(keep) => self.keep = keep,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: mut stream, .. })
                if self.inbound.len() < MAX_INBOUND =>
            {
                // Streams stay open between messages: they say nothing about use.
                stream.ignore_for_keep_alive();
                self.inbound.push(messages(stream, Arc::clone(&self.intake)));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: mut stream, .. }) => {
                stream.ignore_for_keep_alive();
                self.outbound = Outbound::Idle(stream, Instant::now());
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => match error {
                StreamUpgradeError::NegotiationFailed => self.end_sending(FromHandler::Unsupported),
                StreamUpgradeError::Timeout => self.end_sending(FromHandler::Failed(io::ErrorKind::TimedOut.into())),
                StreamUpgradeError::Io(error) => self.end_sending(FromHandler::Failed(error)),
                StreamUpgradeError::Apply(never) => match never {},
            },
            _ => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(event) = self.poll_outbound(cx) {
            return Poll::Ready(event);
        }
        match self.report.take().or_else(|| self.poll_inbound(cx)) {
            Some(report) => Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report)),
            None => Poll::Pending,
        }
    }
}

/// The peer does not speak the protocol that was proposed with the first message.
fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<NegotiationError>())
}

/// The messages of an inbound stream, until it ends or breaks the protocol.
fn messages(stream: Stream, intake: Arc<Intake>) -> BoxStream<'static, Result<Arrived, StreamError>> {
    futures::stream::try_unfold((stream, intake), async |(mut stream, intake)| {
        let Some(frame) = frame::read(&mut stream, &intake).await? else {
            return Ok(None);
        };
        let bytes = frame.bytes.len();
        let mut message = Received::decode(frame.bytes)?;
        detach_small(&mut message.blocks, bytes);
        Ok(Some((Arrived { message, bytes, _budget: frame.budget }, (stream, intake))))
    })
    .boxed()
}

/// Copies out the blocks that are a small part of their frame: else one that somebody keeps would hold
/// the whole frame in memory, and a peer could pad frames for that.
fn detach_small(blocks: &mut [Block], frame: usize) {
    for block in blocks.iter_mut().filter(|block| block.bytes().len() < frame / SMALL_PART) {
        *block = block.detached();
    }
}
