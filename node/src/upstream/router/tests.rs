//! Answers of routers, honest and not.

use super::*;
use crate::upstream::fake::{Fake, Reply, answer, head};
use nipfs_proto::block::{Block, RAW};
use serde_json::json;
use std::time::Instant;

fn root() -> Cid {
    *Block::v1(RAW, b"root".as_slice().into()).unwrap().cid()
}

async fn asked(body: String) -> Result<Vec<Provider>, UpstreamError> {
    let fake = Fake::start(move |_, _| answer("200 OK", "", body.as_bytes())).await;
    Router::new(&fake.url()).unwrap().providers(&root()).await
}

#[tokio::test]
async fn providers_are_read_from_an_object_and_from_lines() {
    let (one, two) = (PeerId::random(), PeerId::random());
    let records = [
        json!({"Schema": "peer", "ID": one.to_string(), "Addrs": ["/ip4/127.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/4001"],
               "Protocols": ["transport-bitswap", "transport-graphsync-filecoinv1"], "New": {"field": 1}}),
        json!({"Schema": "bitswap", "Protocol": "transport-bitswap", "ID": two.to_string(),
               "Addrs": [format!("/ip6/2606:4700::1/tcp/4001/p2p/{two}")]}),
    ];
    let wanted = [
        Provider {
            peer: one,
            addrs: vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap(), "/ip4/8.8.8.8/tcp/4001".parse().unwrap()],
        },
        Provider { peer: two, addrs: vec![format!("/ip6/2606:4700::1/tcp/4001/p2p/{two}").parse().unwrap()] },
    ];
    assert_eq!(asked(json!({"Providers": records}).to_string()).await.unwrap(), wanted);
    assert_eq!(asked(format!("{}\n{}\n", records[0], records[1])).await.unwrap(), wanted);
    for nobody in ["{\"Providers\":null}", "{\"Providers\":[]}", ""] {
        assert_eq!(asked(nobody.to_owned()).await.unwrap(), []);
    }
}

#[tokio::test]
async fn the_root_is_asked_for_below_the_base() {
    let fake = Fake::start(|head, _| {
        let line = format!("GET /some/routing/v1/providers/{} HTTP/1.1\r\n", root());
        if head.starts_with(&line) { answer("404 Not Found", "", b"") } else { answer("500 No", "", head.as_bytes()) }
    });
    let router = Router::new(&format!("{}/some", fake.await.url())).unwrap();
    assert_eq!(router.providers(&root()).await.unwrap(), []);
}

#[tokio::test]
async fn what_cannot_be_used_is_passed_over() {
    let (peer, other) = (PeerId::random(), PeerId::random());
    let good = "/ip4/8.8.8.8/tcp/4001";
    let useless = [
        json!({"Schema": "peer", "ID": "me", "Addrs": [good]}),
        json!({"Schema": "peer", "ID": peer.to_string()}),
        json!({"Schema": "peer", "ID": peer.to_string(), "Addrs": null}),
        json!({"Schema": "peer", "ID": peer.to_string(), "Addrs": ["nonsense", "/dns4/victim.example.org/tcp/1", "/ip4/0.0.0.0/tcp/1"]}),
        json!({"Schema": "peer", "ID": peer.to_string(), "Addrs": [format!("{good}/p2p/{other}")]}),
        json!({"Schema": "peer", "ID": peer.to_string(), "Addrs": [good], "Protocols": ["transport-ipfs-gateway-http"]}),
        json!({"Schema": "unheard-of", "ID": peer.to_string(), "Addrs": [good]}),
        json!({"ID": peer.to_string(), "Addrs": [good]}),
        json!({"Schema": 1, "ID": 2, "Addrs": 3}),
        json!(null),
        json!([[[]]]),
    ];
    assert_eq!(asked(json!({"Providers": useless}).to_string()).await.unwrap(), []);
    let flood = json!({"Schema": "peer", "ID": peer.to_string(), "Addrs": vec![good; 100]});
    let taken = asked(json!({"Providers": vec![flood; 100]}).to_string()).await.unwrap();
    assert_eq!((taken.len(), taken[0].addrs.len()), (MAX_PROVIDERS, MAX_ADDRS));
}

#[test]
fn a_router_of_the_world_knows_nothing_of_our_network() {
    let local = ["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.1/tcp/80", "/ip6/::1/tcp/1"];
    let record = json!({"Schema": "peer", "ID": PeerId::random().to_string(), "Addrs": local});
    assert_eq!(provider(record.clone(), &[Scope::World]), None);
    assert_eq!(provider(record, &Scope::ALL).unwrap().addrs.len(), 3);
    for (base, is_local) in [
        ("https://router.example.org", false),
        ("http://8.8.8.8", false),
        ("http://10.0.0.1", true),
        ("http://[::1]:1", true),
    ] {
        assert_eq!(Client::new(base).unwrap().is_local(), is_local, "{base}");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_that_names_the_router() {
    for body in ["<html>", "[1, 2]", "{\"Providers\":", "{\"Providers\":7}", "\"x\"", &"[".repeat(100_000)] {
        let error = asked(body.to_owned()).await.unwrap_err();
        assert!(matches!(&error, UpstreamError::Providers { url, .. } if url.contains("/routing/v1/")), "{error}");
    }
    let endless = Fake::start(|_, _| Reply::Endless(head("200 OK"), b"{\"Providers\":[]}".to_vec())).await;
    let error = Router::new(&endless.url()).unwrap().providers(&root()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::TooLong { .. }), "{error}");
}

#[tokio::test]
async fn a_router_that_is_silent_or_drips_is_not_waited_for() {
    let silent = Fake::start(|_, _| Reply::Hang(Vec::new())).await;
    let drips = Fake::start(|_, _| Reply::Drip(head("200 OK"), Duration::from_millis(50))).await;
    let begun = Instant::now();
    let (silent, drips) = (Router::new(&silent.url()).unwrap(), Router::new(&drips.url()).unwrap());
    let (root, again) = (root(), root());
    let (one, two) = tokio::join!(silent.providers(&root), drips.providers(&again));
    assert!(matches!(one.unwrap_err(), UpstreamError::Deadline { .. }));
    assert!(matches!(two.unwrap_err(), UpstreamError::Deadline { .. }));
    assert!(begun.elapsed() < DEADLINE + Duration::from_secs(3));
}
