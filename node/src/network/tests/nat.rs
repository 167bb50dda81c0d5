//! Two nodes, one of which can be reached through a relay only.

use super::*;
use futures::StreamExt as _;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{SwarmBuilder, identify, noise, relay, tcp, yamux};

#[derive(NetworkBehaviour)]
struct Relay {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
}

/// A relay on loopback, and its address.
async fn relay() -> Multiaddr {
    let mut swarm = SwarmBuilder::with_existing_identity(Keypair::generate_ed25519())
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| Relay {
            relay: relay::Behaviour::new(key.public().to_peer_id(), relay::Config::default()),
            identify: identify::Behaviour::new(identify::Config::new("ipfs/0.1.0".to_owned(), key.public())),
        })
        .unwrap()
        .build();
    let peer = *swarm.local_peer_id();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    swarm.add_external_address(address.clone());
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    address.with_p2p(peer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_node_is_reached_through_a_relay_and_a_private_one_listens_at_none() {
    let [block] = blocks(1, 5000).try_into().unwrap();
    let circuit = relay().await.with(libp2p::multiaddr::Protocol::P2pCircuit);
    let listening = |profile| Config { listen: vec![circuit.clone()], profile, ..Config::default() };
    let source = Shelf::of(std::slice::from_ref(&block)).source();
    let hidden = Network::start(listening(Profile::Public), Keypair::generate_ed25519(), source).await.unwrap();
    let [address] = hidden.listeners().try_into().unwrap();
    assert!(address.to_string().ends_with(&format!("/p2p-circuit/p2p/{}", hidden.peer_id())), "{address}");

    let config = Config { profile: Profile::Public, ..config() };
    let seeker = Network::start(config, Keypair::generate_ed25519(), BlockSource::empty()).await.unwrap();
    seeker.connect(address).await.unwrap();
    let want = seeker.session(vec![hidden.peer_id()]).want(*block.cid());
    assert_eq!(timeout(LONG, want).await.unwrap().unwrap(), (block, hidden.peer_id()));

    let private = Network::start(listening(Profile::Private), Keypair::generate_ed25519(), BlockSource::empty()).await;
    assert!(matches!(private, Err(NetworkError::Listen { .. })), "{private:?}");
}
