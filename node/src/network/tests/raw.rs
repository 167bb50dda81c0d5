//! A peer under the test's control: it is given the streams of one protocol, bitswap for the most part, as they are,
//! and speaks on them what the test likes.

use super::LONG;
use crate::network::{Keypair, Network};
use futures::stream::{BoxStream, SelectAll};
use futures::{AsyncWriteExt as _, StreamExt as _};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, SubstreamProtocol, SwarmEvent, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use nipfs_proto::bitswap::message::{Message, PROTOCOL, Received};
use std::collections::VecDeque;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

type Upgrade = ReadyUpgrade<StreamProtocol>;

/// Opens a stream at each command; hands out all streams, with whether we opened it.
struct Streams {
    protocol: StreamProtocol,
    open: usize,
    got: VecDeque<(bool, Stream)>,
}

impl ConnectionHandler for Streams {
    type FromBehaviour = ();
    type ToBehaviour = (bool, Stream);
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn on_behaviour_event(&mut self, (): ()) {
        self.open += 1;
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Upgrade, Upgrade>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.got.push_back((false, protocol));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => {
                self.got.push_back((true, protocol));
            }
            _ => {}
        }
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Upgrade, (), Self::ToBehaviour>> {
        if let Some(got) = self.got.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(got));
        }
        if self.open > 0 {
            self.open -= 1;
            let protocol = self.listen_protocol();
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }
}

struct Behaviour {
    protocol: StreamProtocol,
    actions: VecDeque<ToSwarm<(bool, Stream), ()>>,
}

impl Behaviour {
    fn handler(&self) -> Streams {
        Streams { protocol: self.protocol.clone(), open: 0, got: VecDeque::new() }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Streams;
    type ToSwarm = (bool, Stream);

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Streams, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Streams, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        self.actions.push_back(ToSwarm::GenerateEvent(event));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// The peer. Its connection closes when it is dropped.
pub(super) struct RawPeer {
    pub(super) peer: PeerId,
    open: mpsc::Sender<()>,
    opened: mpsc::Receiver<Stream>,
    /// Streams that the node opened.
    accepted: mpsc::Receiver<Stream>,
    /// What the node says on those that were accepted by [`RawPeer::answer`].
    answers: SelectAll<BoxStream<'static, Received>>,
    task: JoinHandle<()>,
}

impl RawPeer {
    /// Connects to `node`, and waits until it knows.
    pub(super) async fn connect(node: &Network) -> Self {
        Self::speaking(StreamProtocol::new(PROTOCOL), node).await
    }

    /// The same with another protocol than bitswap.
    pub(super) async fn speaking(protocol: StreamProtocol, node: &Network) -> Self {
        let peer = Self::dial(protocol, node).await;
        while !node.peers().await.unwrap().iter().any(|known| known.peer == peer.peer) {
            tokio::task::yield_now().await;
        }
        peer
    }

    async fn dial(protocol: StreamProtocol, node: &Network) -> Self {
        let mut swarm = SwarmBuilder::with_existing_identity(Keypair::generate_ed25519())
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| Behaviour { protocol, actions: VecDeque::new() })
            .unwrap()
            .build();
        let (peer, target) = (*swarm.local_peer_id(), node.peer_id());
        swarm.dial(node.listeners().remove(0)).unwrap();
        while !swarm.is_connected(&target) {
            if let SwarmEvent::OutgoingConnectionError { error, .. } = swarm.select_next_some().await {
                panic!("{error}");
            }
        }
        let (open, mut commands) = mpsc::channel(1);
        let (opened_out, opened) = mpsc::channel(1024);
        let (accepted_out, accepted) = mpsc::channel(1024);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(()) = commands.recv() => swarm.behaviour_mut().actions.push_back(ToSwarm::NotifyHandler {
                        peer_id: target,
                        handler: NotifyHandler::Any,
                        event: (),
                    }),
                    event = swarm.select_next_some() => if let SwarmEvent::Behaviour((ours, stream)) = event {
                        let streams = if ours { &opened_out } else { &accepted_out };
                        streams.try_send(stream).unwrap();
                    }
                }
            }
        });
        Self { peer, open, opened, accepted, answers: SelectAll::new(), task }
    }

    /// Opens a stream to the node.
    pub(super) async fn open(&mut self) -> Stream {
        self.open.send(()).await.unwrap();
        timeout(LONG, self.opened.recv()).await.unwrap().unwrap()
    }

    /// Sends these bytes on a stream of their own, which is closed after them.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let mut stream = self.open().await;
        stream.write_all(bytes).await.unwrap();
        stream.close().await.unwrap();
    }

    pub(super) async fn send_message(&mut self, message: &Message) {
        self.send(&message.encode_frame()).await;
    }

    /// The next stream that the node opens.
    pub(super) async fn accept(&mut self) -> Stream {
        timeout(LONG, self.accepted.recv()).await.unwrap().unwrap()
    }

    /// The next message that the node sends, on whichever stream.
    pub(super) async fn answer(&mut self) -> Received {
        let next = async {
            loop {
                tokio::select! {
                    Some(stream) = self.accepted.recv() => self.answers.push(messages(stream)),
                    Some(message) = self.answers.next() => return message,
                    else => panic!("the connection is gone"),
                }
            }
        };
        timeout(LONG, next).await.unwrap()
    }
}

/// What comes over a stream of the node's, until it ends.
fn messages(stream: Stream) -> BoxStream<'static, Received> {
    let intake = crate::network::frame::Intake::new(4 << 20, LONG);
    futures::stream::unfold((stream, intake), async |(mut stream, intake)| {
        let frame = crate::network::frame::read(&mut stream, &intake).await.ok()??;
        Some((Received::decode(frame.bytes).unwrap(), (stream, intake)))
    })
    .boxed()
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the next message from a stream of the node's.
pub(super) async fn receive(stream: &mut Stream) -> Received {
    let intake = crate::network::frame::Intake::new(4 << 20, LONG);
    let frame = timeout(LONG, crate::network::frame::read(stream, &intake)).await.unwrap().unwrap().unwrap();
    Received::decode(frame.bytes).unwrap()
}
