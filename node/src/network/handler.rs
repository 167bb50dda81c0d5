//! One connection's bitswap streams.
//!
//! Inbound: up to [`MAX_INBOUND`] streams at once, for Kubo opens one per message. Each reads frames; they
//! are decoded, which hashes every block, while the connection reads on. What has been read but not
//! yet taken by the behaviour is bounded by [`RECEIVE_BUDGET`] bytes a connection: a stream that finds
//! it spent stops reading, and the muxer's window stops the peer.
//!
//! Outbound: see [`outbound`]. Every message ends in [`FromHandler::Sent`], or the last word is
//! [`FromHandler::Failed`] or [`FromHandler::Unsupported`].

mod outbound;

use super::frame::{self, FrameError, Intake};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{BoxStream, SelectAll};
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol};
use libp2p::{Stream, StreamProtocol};
use nipfs_proto::bitswap::message::{MAX_MESSAGE, Message, MessageError, PROTOCOL, Received};
use nipfs_proto::block::Block;
use outbound::{Outbound, Step};
use std::future::pending;
use std::io;
use std::panic;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

/// The only protocol spoken: Kubo since 0.5 and Helia know it.
pub(super) const BITSWAP: StreamProtocol = StreamProtocol::new(PROTOCOL);
/// Inbound streams at once; more are refused, the connection lives on.
const MAX_INBOUND: usize = 128;
/// Bytes of messages read and not yet taken. Holds a message of the largest size.
const RECEIVE_BUDGET: usize = MAX_MESSAGE;
/// How long a message may take to come in, from its first byte to its last.
const FRAME_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection on which no message came or went for so long may be closed.
const IDLE: Duration = Duration::from_secs(60);

/// Hashing a message of so many bytes takes longer than handing it to another thread.
const LONG: usize = 64 << 10;
/// A block below this part of its frame gets memory of its own.
const SMALL_PART: usize = 3;
/// How often a message that is coming in is reported before it is complete.
const PROGRESS: Duration = Duration::from_millis(250);

/// Which streams a message leaves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// What we want: small, and the peer waits for it to go on sending. In order.
    Wants,
    /// What the peer wants. In no order.
    Blocks,
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
    /// A message has left; `bytes` on the wire.
    Sent { lane: Lane, message: Arc<Message>, bytes: usize },
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
    /// Its stream brought none before it.
    pub(super) first: bool,
    pub(super) _budget: OwnedSemaphorePermit,
}

/// The streams of one connection.
pub(super) struct Handler {
    inbound: SelectAll<BoxStream<'static, Result<Arrived, StreamError>>>,
    intake: Arc<Intake>,
    reported: Instant,
    outbound: Outbound,
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
            outbound: Outbound::new(),
            keep,
            last_used: Instant::now(),
            report: None,
        }
    }

    fn end_sending(&mut self, report: FromHandler) {
        self.outbound.end();
        self.report = Some(report);
    }

    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Option<Event> {
        let report = match self.outbound.poll(cx)? {
            Step::Open => {
                let protocol = SubstreamProtocol::new(ReadyUpgrade::new(BITSWAP), ());
                return Some(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
            Step::Sent(lane, message, bytes) => {
                self.last_used = Instant::now();
                FromHandler::Sent { lane, message, bytes }
            }
            Step::Failed(error) => FromHandler::Failed(error),
            Step::Unsupported => FromHandler::Unsupported,
        };
        Some(ConnectionHandlerEvent::NotifyBehaviour(report))
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
            ToHandler::Send(lane, message) => self.outbound.push(lane, message),
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
                self.outbound.opened(stream);
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

/// The messages of an inbound stream, until it ends or breaks the protocol.
fn messages(stream: Stream, intake: Arc<Intake>) -> BoxStream<'static, Result<Arrived, StreamError>> {
    futures::stream::try_unfold((stream, intake, true), async |(mut stream, intake, first)| {
        let Some(frame) = frame::read(&mut stream, &intake).await? else {
            return Ok(None);
        };
        let bytes = frame.bytes.len();
        let message = decode(frame.bytes).await?;
        Ok(Some((Arrived { message, bytes, first, _budget: frame.budget }, (stream, intake, false))))
    })
    .boxed()
}

/// Decodes a message; a long one in a task of its own, so that the connection goes on reading its other streams.
async fn decode(frame: Bytes) -> Result<Received, MessageError> {
    let length = frame.len();
    let decode = move || {
        let mut message = Received::decode(frame)?;
        detach_small(&mut message.blocks, length);
        Ok(message)
    };
    if length < LONG {
        return decode();
    }
    match AbortOnDropHandle::new(tokio::spawn(async { decode() })).await {
        Ok(decoded) => decoded,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => pending().await,
        },
    }
}

/// Copies out the blocks that are a small part of their frame: else one that somebody keeps would hold
/// the whole frame in memory, and a peer could pad frames for that.
fn detach_small(blocks: &mut [Block], frame: usize) {
    for block in blocks.iter_mut().filter(|block| block.bytes().len() < frame / SMALL_PART) {
        *block = block.detached();
    }
}
