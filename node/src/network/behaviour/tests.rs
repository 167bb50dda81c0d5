use super::*;
use bytes::Bytes;
use futures::future::poll_fn;
use futures::poll;
use libp2p::core::ConnectedPoint;
use nipfs_proto::bitswap::message::{Dropped, Received, Want, WantKind};
use nipfs_proto::bitswap::server::Outcome;
use std::pin::pin;

/// A behaviour with one peer, as the swarm would drive it.
struct Fake {
    behaviour: Behaviour,
    peer: PeerId,
    endpoint: ConnectedPoint,
}

/// What goes to a connection: its number, the lane, the message.
type Sent = (usize, Lane, Arc<Message>);

impl Fake {
    fn new() -> Self {
        Self { behaviour: Behaviour::new(), peer: PeerId::random(), endpoint: endpoint("/ip4/127.0.0.1/tcp/1") }
    }

    fn establish(&mut self, connection: usize) {
        self.behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: self.peer,
            connection_id: ConnectionId::new_unchecked(connection),
            endpoint: &self.endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
    }

    fn close(&mut self, connection: usize) {
        self.behaviour.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id: self.peer,
            connection_id: ConnectionId::new_unchecked(connection),
            endpoint: &self.endpoint,
            cause: None,
            remaining_established: 0,
        }));
    }

    fn report(&mut self, connection: usize, event: FromHandler) {
        self.behaviour.on_connection_handler_event(self.peer, ConnectionId::new_unchecked(connection), event);
    }

    /// Waits until the behaviour asks for something that `is_it`.
    async fn wait_for(&mut self, is_it: impl Fn(&ToSwarm<Event, ToHandler>) -> bool) {
        let next = poll_fn(|cx| {
            loop {
                match self.behaviour.poll(cx) {
                    Poll::Ready(action) if !is_it(&action) => {}
                    other => return other,
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(60), next).await.unwrap();
    }

    /// What the behaviour asks for until it waits; loads are answered with `block`.
    async fn actions(&mut self, block: &Block) -> Vec<ToSwarm<Event, ToHandler>> {
        let mut actions = Vec::new();
        loop {
            let next = poll!(pin!(poll_fn(|cx| self.behaviour.poll(cx))));
            match next {
                Poll::Ready(ToSwarm::GenerateEvent(Event::Load(load))) => {
                    let outcome = Outcome::Block(block.bytes().clone());
                    self.behaviour.loaded(load.id, vec![Loaded { cid: load.wants[0].0, outcome }]);
                }
                Poll::Ready(action) => actions.push(action),
                Poll::Pending => return actions,
            }
        }
    }

    async fn sent(&mut self, block: &Block) -> Vec<Sent> {
        let sent = |action| match action {
            ToSwarm::NotifyHandler {
                handler: NotifyHandler::One(id), event: ToHandler::Send(lane, message), ..
            } => Some((id.to_string().parse().unwrap(), lane, message)),
            _ => None,
        };
        self.actions(block).await.into_iter().filter_map(sent).collect()
    }
}

fn endpoint(address: &str) -> ConnectedPoint {
    let address: Multiaddr = address.parse().unwrap();
    ConnectedPoint::Listener { local_addr: address.clone(), send_back_addr: address }
}

fn block() -> Block {
    Block::v1(nipfs_proto::block::RAW, Bytes::from_static(b"a block")).unwrap()
}

fn wants(cid: Cid) -> FromHandler {
    let want = Want { cid, priority: 1, kind: WantKind::Block, cancel: false, send_dont_have: true };
    arrived(Received { wants: vec![want], ..Received::default() })
}

fn arrived(message: Received) -> FromHandler {
    let budget = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
    FromHandler::Arrived(Arrived { message, bytes: 1, first: true, _budget: budget })
}

#[tokio::test]
async fn what_a_closing_connection_did_not_send_goes_over_another() {
    let (mut fake, block) = (Fake::new(), block());
    fake.establish(1);
    fake.establish(2);
    let session = SessionId(1);
    fake.behaviour.open(session, &[fake.peer]);
    fake.behaviour.want(session, *block.cid());
    fake.report(2, wants(*block.cid()));
    let first = fake.sent(&block).await;
    assert!(first.iter().all(|(connection, ..)| *connection == 1), "{first:?}");
    assert_eq!(first.len(), 2);

    fake.close(1);
    let again = fake.sent(&block).await;
    for (_, lane, message) in first {
        // Before the want is repeated, the peer is told to forget it.
        let resent = again.iter().rfind(|(connection, other, _)| *connection == 2 && *other == lane);
        let resent = resent.unwrap_or_else(|| panic!("{lane:?}: {again:?}"));
        assert_eq!((&resent.2.wants, &resent.2.payloads), (&message.wants, &message.payloads));
    }

    let (_, lane, message) = again.into_iter().rfind(|(_, lane, _)| *lane == Lane::Blocks).unwrap();
    fake.report(2, FromHandler::Sent { lane, message, bytes: 20 });
    fake.close(2);
    let missing = fake.actions(&block).await;
    assert!(matches!(missing[..], [ToSwarm::GenerateEvent(Event::Missing { .. })]), "{missing:?}");
    assert!(fake.behaviour.peers.is_empty());
}

#[tokio::test]
async fn a_peer_that_does_not_speak_bitswap_is_asked_nothing() {
    let (mut fake, block) = (Fake::new(), block());
    fake.establish(1);
    fake.behaviour.open(SessionId(1), &[]);
    fake.behaviour.want(SessionId(1), *block.cid());
    assert_eq!(fake.sent(&block).await.len(), 1);
    fake.report(1, FromHandler::Unsupported);
    let missing = fake.actions(&block).await;
    assert!(matches!(missing[..], [ToSwarm::GenerateEvent(Event::Missing { .. })]), "{missing:?}");
    fake.report(1, wants(*block.cid()));
    assert_eq!(fake.sent(&block).await, []);
}

#[tokio::test]
async fn what_cannot_be_sent_or_stalls_closes_its_connection() {
    let stall = StreamError::Frame(crate::network::frame::FrameError::Slow(Duration::ZERO));
    for event in [FromHandler::Failed(std::io::ErrorKind::TimedOut.into()), FromHandler::Broke(stall)] {
        let mut fake = Fake::new();
        fake.establish(1);
        fake.report(1, event);
        let actions = fake.actions(&block()).await;
        let one = CloseConnection::One(ConnectionId::new_unchecked(1));
        assert!(
            matches!(&actions[..], [ToSwarm::CloseConnection { connection, .. }] if format!("{connection:?}") == format!("{one:?}")),
            "{actions:?}"
        );
    }
}

#[tokio::test]
async fn an_honest_answer_is_delivered_with_its_sender() {
    let (mut fake, block) = (Fake::new(), block());
    fake.establish(1);
    fake.behaviour.open(SessionId(7), &[fake.peer]);
    fake.behaviour.want(SessionId(7), *block.cid());
    fake.actions(&block).await;
    fake.report(
        1,
        arrived(Received { blocks: vec![block.clone()], dropped: Dropped::default(), ..Received::default() }),
    );
    let delivered = fake.actions(&block).await;
    assert!(
        matches!(&delivered[..], [ToSwarm::GenerateEvent(Event::Deliver { session: SessionId(7), peer, block: got })]
            if *peer == fake.peer && *got == block),
        "{delivered:?}"
    );
}

#[tokio::test]
async fn a_peer_that_answers_a_part_over_quic_and_then_no_more_is_mute() {
    let (mut fake, block) = (Fake::new(), block());
    fake.endpoint = endpoint("/ip4/127.0.0.1/udp/1/quic-v1");
    fake.establish(1);
    fake.behaviour.open(SessionId(1), &[fake.peer]);
    let other = Block::v1(nipfs_proto::block::RAW, Bytes::from_static(b"another block")).unwrap();
    fake.behaviour.want(SessionId(1), *block.cid());
    fake.behaviour.want(SessionId(1), *other.cid());
    fake.actions(&block).await;
    fake.report(1, arrived(Received { blocks: vec![block], ..Received::default() }));
    fake.wait_for(|action| matches!(action, ToSwarm::GenerateEvent(Event::Mute { .. }))).await;
}

#[tokio::test]
async fn what_was_lost_with_a_quic_connection_is_asked_for_over_tcp_a_moment_later() {
    let (mut fake, block) = (Fake::new(), block());
    let tcp = std::mem::replace(&mut fake.endpoint, endpoint("/ip4/127.0.0.1/udp/1/quic-v1"));
    fake.establish(1);
    fake.behaviour.open(SessionId(1), &[fake.peer]);
    fake.behaviour.want(SessionId(1), *block.cid());
    assert_eq!(fake.sent(&block).await.len(), 1);
    fake.endpoint = tcp;
    fake.establish(2);
    let begun = Instant::now();
    fake.close(1);
    let asks = |event: &ToHandler| matches!(event, ToHandler::Send(Lane::Wants, message) if !message.wants.is_empty());
    fake.wait_for(|action| matches!(action, ToSwarm::NotifyHandler { event, .. } if asks(event))).await;
    assert!(begun.elapsed() >= quic::SETTLE, "{:?}", begun.elapsed());
}
