//! Every step of the fall: bitswap, gateway, HTTP; and every lie on the way.

use crate::common::{Machine, describe, request};
use crate::walk::{fetch, fetched, publish_tree};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A peer that nobody can reach: nothing listens there.
const DEAD_PEER: &str = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

/// Rewrites a narinfo.
type Edit = Box<dyn Fn(&str) -> String + Send + Sync>;

/// Rewrites one answer of the cache behind a [`Liar`].
type Lie = dyn Fn(&str, Vec<u8>) -> Vec<u8> + Send + Sync;

/// A cache that passes on what another says, but for what `lie` changes, and names no peers. Remembers what it was asked.
pub(crate) struct Liar {
    pub(crate) http: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Liar {
    pub(crate) fn before(honest: &str, lie: impl Fn(&str, Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = format!("http://{}", listener.local_addr().unwrap());
        let honest = honest.strip_prefix("http://").unwrap().to_owned();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (lie, log): (Arc<Lie>, _) = (Arc::new(lie), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (honest, lie, log) = (honest.clone(), lie.clone(), log.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    loop {
                        let mut head = Vec::new();
                        loop {
                            let mut line = String::new();
                            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                                return;
                            }
                            if line == "\r\n" {
                                break;
                            }
                            head.push(line);
                        }
                        let path = head[0].split(' ').nth(1).unwrap().to_owned();
                        log.lock().unwrap().push(path.clone());
                        let answer = request(&honest, "GET", &path, "");
                        // Its peers are for the test to name.
                        let status = if path == "/nipfs-info" { 404 } else { answer.status };
                        let body = lie(&path, answer.body);
                        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
                        let sent = reader.get_mut().write_all(head.as_bytes());
                        if sent.and_then(|()| reader.get_mut().write_all(&body)).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { http, asked }
    }

    fn was_asked(&self, part: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|path| path.contains(part))
    }
}

/// Changes the narinfos that go by.
fn narinfos(change: impl Fn(&str) -> String + Send + Sync + 'static) -> impl Fn(&str, Vec<u8>) -> Vec<u8> {
    move |path, body| match path.ends_with(".narinfo") {
        true => change(std::str::from_utf8(&body).unwrap()).into_bytes(),
        false => body,
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn a_dead_peer_is_followed_by_the_gateway() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "gateway", 10, 2 << 20);
    let path = published["path"].as_str().unwrap();
    let liar = Liar::before(&at_a.http, |_, body| body);
    let said = fetch(&c, path, &liar.http, &key, &["--peer", DEAD_PEER, "--gateway", &at_a.http]).ok().one();
    assert_eq!(said["source"], "gateway", "{said}");
    assert!(!liar.was_asked("/nar/"), "the NAR was asked over HTTP though the gateway had it");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}

#[test]
fn a_dead_gateway_is_followed_by_http() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "http", 11, 2 << 20);
    let path = published["path"].as_str().unwrap();
    let liar = Liar::before(&at_a.http, |_, body| body);
    let more = ["--peer", DEAD_PEER, "--gateway", "http://127.0.0.1:9"];
    let said = fetch(&c, path, &liar.http, &key, &more).ok().one();
    assert_eq!(said["source"], "http", "{said}");
    assert_eq!(said["bytes"]["http"], published["narSize"], "{said}");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}

#[test]
fn an_ipfs_hash_of_other_content_is_followed_by_the_next_source() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "right", 12, 1 << 20);
    let (_, other) = publish_tree(&a, "wrong", 13, 1 << 20);
    let (right, wrong) = (published["root"].as_str().unwrap().to_owned(), other["root"].as_str().unwrap().to_owned());
    let path = published["path"].as_str().unwrap();
    let liar = Liar::before(&at_a.http, narinfos(move |text| text.replace(&right, &wrong)));
    let said = fetch(&c, path, &liar.http, &key, &["--peer", &at_a.peer]).ok();
    assert!(said.stderr.contains("IPFSHash") && said.stderr.contains(path), "{said:#?}");
    assert_eq!(said.one()["source"], "http");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}

#[test]
fn a_root_that_is_no_nar_is_followed_by_the_next_source() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "right", 17, 4 << 20);
    let path = published["path"].as_str().unwrap();
    // A leaf from the middle of the NAR: a file like any other, and A has it, but no NAR.
    let right = published["root"].as_str().unwrap().to_owned();
    let node = at_a.get(&format!("/ipfs/{right}?format=raw")).body;
    let links = node.windows(36).filter(|bytes| bytes.starts_with(&[0x0a, 0x22, 0x12, 0x20]));
    let digest = links.map(|bytes| &bytes[4..]).nth(3).unwrap();
    let wrong = nipfs_proto::block::Digest(digest.try_into().unwrap()).v0_cid().to_string();
    let liar = Liar::before(&at_a.http, narinfos(move |text| text.replace(&right, &wrong)));
    let said = fetch(&c, path, &liar.http, &key, &["--peer", &at_a.peer]).ok().one();
    assert_eq!(said["source"], "http", "{said}");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}

#[test]
fn a_peer_that_runs_dry_below_a_wrong_root_is_followed_by_http_from_the_first_byte() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "right", 18, 4 << 20);
    let (_, other) = publish_tree(&a, "wrong", 19, 4 << 20);
    let (right, wrong) = (published["root"].as_str().unwrap().to_owned(), other["root"].as_str().unwrap().to_owned());
    let path = published["path"].as_str().unwrap();
    // B has the wrong one, but for a block in its middle.
    b.key();
    publish_tree(&b, "wrong", 19, 4 << 20);
    b.rot(3 << 20);
    let at_b = b.serve(&[]);
    let liar = Liar::before(&at_a.http, narinfos(move |text| text.replace(&right, &wrong)));
    let said = fetch(&c, path, &liar.http, &key, &["--peer", &at_b.peer]).ok().one();
    assert_eq!(said["source"], "http", "{said}");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}

#[test]
fn when_every_source_lies_nothing_is_left_behind() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (_, published) = publish_tree(&a, "right", 14, 1 << 20);
    let (_, other) = publish_tree(&a, "wrong", 15, 1 << 20);
    let (right, wrong) = (published["root"].as_str().unwrap().to_owned(), other["root"].as_str().unwrap().to_owned());
    let path = published["path"].as_str().unwrap();
    let change = narinfos(move |text| text.replace(&right, &wrong));
    let liar = Liar::before(&at_a.http, move |path, mut body| {
        if path.starts_with("/nar/") {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        change(path, body)
    });
    let said = fetch(&c, path, &liar.http, &key, &["--peer", &at_a.peer]).fails(3, &[path, "NarHash"]);
    assert!(said.stdout.is_empty(), "{said:#?}");
    assert!(is_empty(&c.dir().join("out")), "something unverified was left behind");
}

#[test]
fn a_narinfo_that_was_tampered_with_is_refused() {
    let a = Machine::new();
    let key = a.key();
    let at_a = a.serve(&[]);
    let (_, published) = publish_tree(&a, "signed", 16, 100_000);
    let path = published["path"].as_str().unwrap();
    let nar_hash = published["narHash"].as_str().unwrap().to_owned();
    let other_hash = format!("sha256:{}{}", if nar_hash.as_bytes()[7] == b'0' { '1' } else { '0' }, &nar_hash[8..]);
    let unsigned = |text: &str| -> String {
        text.lines().filter(|line| !line.starts_with("Sig:")).map(|line| format!("{line}\n")).collect()
    };
    // A content-addressed path proves itself; without its CA line only the signature speaks for it.
    let no_ca = |text: &str| -> String {
        text.lines().filter(|line| !line.starts_with("CA:")).map(|line| format!("{line}\n")).collect()
    };
    let hash_changed =
        move |text: &str| text.replace(&format!("NarHash: {nar_hash}"), &format!("NarHash: {other_hash}"));
    let lies: Vec<Edit> = vec![Box::new(hash_changed), Box::new(move |text| unsigned(&no_ca(text)))];
    for lie in lies {
        let c = Machine::new();
        let liar = Liar::before(&at_a.http, narinfos(move |text| lie(text)));
        fetch(&c, path, &liar.http, &key, &["--peer", &at_a.peer]).fails(3, &["no trusted signature", path]);
        assert!(is_empty(&c.dir().join("out")));
        assert!(!liar.was_asked("/nar/"), "a NAR was asked for on the word of a stranger");
    }
}

#[test]
fn a_path_that_nobody_has_is_not_found() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let path = "/nix/store/00000000000000000000000000000000-nowhere";
    fetch(&c, path, &at_a.http, &key, &["--peer", &at_a.peer]).fails(4, &["not found", &at_a.http]);
}

/// A delegated router that names one provider for every root. Its URL.
fn router_naming(peer: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (addr, id) = peer.rsplit_once("/p2p/").unwrap();
    let record = serde_json::json!({"Schema": "peer", "ID": id, "Addrs": [addr], "Protocols": ["transport-bitswap"]});
    let body = serde_json::json!({"Providers": [record]}).to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let asked = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>();
            let found = asked[0].starts_with("GET /routing/v1/providers/Qm");
            let status = if found { "200 OK" } else { "404 Not Found" };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    url
}

#[test]
fn a_router_names_the_peer_that_nobody_else_does() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "routed", 90, 3 << 20);
    let path = published["path"].as_str().unwrap();
    let silent = Liar::before(&at_a.http, |_, body| body);
    let config = c.dir().join("config/nipfs");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("config.toml"), format!("routers = [\"{}\"]\n", router_naming(&at_a.peer))).unwrap();
    let said = fetch(&c, path, &silent.http, &key, &[]).ok().one();
    assert_eq!((&said["source"], &said["bytes"]["http"]), (&"bitswap".into(), &0.into()), "{said}");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}
