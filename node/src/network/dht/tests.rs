use super::*;
use crate::network::allowance::MAX_ADDRS;

#[test]
fn private_addresses_that_the_worlds_table_names_are_not_dialled() {
    let peer = PeerId::random();
    let mut dht = Dht::new(Scope::World, PeerId::random());
    let private = [
        "/ip4/192.168.1.1/tcp/22",
        "/ip4/127.0.0.1/tcp/5432",
        "/ip4/169.254.169.254/tcp/80",
        "/ip6/::1/tcp/22",
        "/ip6/fd00::1/tcp/22",
        "/dns4/localhost/tcp/80",
    ];
    let public = "/ip4/8.8.8.8/tcp/4001";
    for addr in private.into_iter().chain([public]) {
        // As if a query had brought them.
        dht.kademlia.add_address(&peer, addr.parse().unwrap());
    }
    let dialled = dht.addrs_of(peer);
    assert_eq!(dialled.len(), 1, "{dialled:?}");
    assert!(dialled[0].to_string().starts_with(public), "{dialled:?}");
}

#[test]
fn nodes_that_others_name_are_dialled_until_the_allowance_is_spent_and_those_of_the_user_ever_after() {
    let addr = |port: u16| -> Multiaddr { format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap() };
    let mut dht = Dht::new(Scope::Lan, PeerId::random());
    let (named, entry) = (PeerId::random(), PeerId::random());
    dht.enter(entry, &[addr(1)]);
    // What others say of the way in changes nothing.
    dht.kademlia.add_address(&entry, addr(2));
    for port in 100..200 {
        dht.kademlia.add_address(&named, addr(port));
    }
    let now = Instant::now();
    let dialled = (0..NODES.burst).filter(|_| dht.allowed(named, now).is_some()).count();
    assert_eq!(dialled, NODES.burst as usize / MAX_ADDRS);
    for _ in 0..NODES.burst {
        assert_eq!(dht.allowed(entry, now).unwrap(), [addr(1)]);
    }
}
