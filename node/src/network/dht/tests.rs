use super::*;

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
        // As if a query had brought them, past `add_node`.
        dht.kademlia.add_address(&peer, addr.parse().unwrap());
    }
    let id = ConnectionId::new_unchecked(1);
    let dialled = dht.handle_pending_outbound_connection(id, Some(peer), &[], Endpoint::Dialer).unwrap();
    assert_eq!(dialled.len(), 1, "{dialled:?}");
    assert!(dialled[0].to_string().starts_with(public), "{dialled:?}");
}
