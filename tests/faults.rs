//! Kills, rot, leaks: what a power cut, a bad disk or a careless file mode does.

use crate::common::{Machine, STUCK, describe, kill, make_tree, request};
use crate::sources::Liar;
use crate::walk::{fetch, fetched, publish_tree};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn packs(machine: &Machine) -> Vec<PathBuf> {
    let dir = machine.state().join("store/packs");
    fs::read_dir(dir).map(|files| files.map(|file| file.unwrap().path()).collect()).unwrap_or_default()
}

fn packed_bytes(machine: &Machine) -> u64 {
    packs(machine).iter().map(|pack| fs::metadata(pack).map_or(0, |meta| meta.len())).sum()
}

/// Waits until `done` says so.
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < STUCK, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_publisher_killed_in_the_middle_loses_nothing_it_acknowledged_and_serves_nothing_partial() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let (tree, published) = publish_tree(&a, "first", 60, 1 << 20);
    let big = a.dir().join("big");
    make_tree(&big, 61, 64 << 20);
    let before = packed_bytes(&a);
    let serving = a.serve(&[]);
    let mut command = a.command(&["publish", big.to_str().unwrap()]);
    let mut publishing = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait("a part of the publish", || packed_bytes(&a) > before + (8 << 20));
    serving.kill();
    assert!(!publishing.wait().unwrap().success(), "publish said it was done though its node was killed");

    let fastest = (0..3).map(|_| {
        let start = Instant::now();
        let serving = a.serve(&[]);
        let took = start.elapsed();
        serving.kill();
        took
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_secs(2), "restart took {fastest:?}");
    let serving = a.serve(&[]);
    let pins = a.run(&["pin", "ls"]).ok().stdout;
    assert_eq!(pins.lines().count(), 1, "only what was acknowledged: {pins}");
    let path = published["path"].as_str().unwrap();
    fetch(&c, path, &serving.http, &key, &["--peer", &serving.peer]).ok();
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
    a.run(&["verify", "--deep"]).ok();
    a.run(&["publish", big.to_str().unwrap()]).ok();
    a.run(&["verify", "--deep"]).ok();
}

/// Passes a TCP connection on at a pace of its own, and counts what goes to the client.
struct Paced {
    port: u16,
    to_client: Arc<AtomicU64>,
}

impl Paced {
    /// In front of a multiaddr like `/ip4/127.0.0.1/tcp/PORT/p2p/ID`.
    fn before(peer: &str) -> Self {
        let port: u16 = peer.split('/').nth(4).unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let paced = Self { port: listener.local_addr().unwrap().port(), to_client: Arc::default() };
        let count = paced.to_client.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(std::net::Shutdown::Both);
                });
                let count = count.clone();
                std::thread::spawn(move || pace(server, client, &count));
            }
        });
        paced
    }

    fn peer(&self, peer: &str) -> String {
        let id = peer.rsplit('/').next().unwrap();
        format!("/ip4/127.0.0.1/tcp/{}/p2p/{id}", self.port)
    }

    fn to_client(&self) -> u64 {
        self.to_client.load(Ordering::Relaxed)
    }
}

/// About 20 MB/s: slower than the reader, so that little waits in the kernel.
fn pace(mut server: TcpStream, mut client: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = server.read(&mut buffer) {
        if length == 0 || client.write_all(&buffer[..length]).is_err() {
            break;
        }
        count.fetch_add(length as u64, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(length as u64 / 20));
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_fetch_killed_in_the_middle_refetches_no_more_than_a_message() {
    let (a, c, control) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let serving = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "resume", 62, 24 << 20);
    let path = published["path"].as_str().unwrap();
    let paced = Paced::before(&serving.peer);
    let peer = paced.peer(&serving.peer);
    // A cache that does not name A's own address: all blocks shall come through the paced one.
    let cache = Liar::before(&serving.http, |_, body| body);
    fetch(&control, path, &cache.http, &key, &["--peer", &peer]).ok();
    let whole = paced.to_client();
    assert!(whole > 24 << 20);

    fs::create_dir_all(c.dir().join("out")).unwrap();
    let out = c.dir().join("out");
    let mut args = vec!["fetch", path, "--from", &cache.http, "--trusted-public-key", &key, "--peer", &peer, "--out"];
    args.push(out.to_str().unwrap());
    let mut fetching = c.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait("half of the fetch", || paced.to_client() > whole + whole / 2);
    kill(fetching.id(), "-KILL");
    assert!(!fetching.wait().unwrap().success());
    let left = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left.filter(|name| !name.starts_with(".nipfs-")).collect();
    assert!(left.is_empty(), "a killed fetch left {left:?}");

    let said = fetch(&c, path, &cache.http, &key, &["--peer", &peer]).ok().one();
    assert!(said["bytes"]["local"].as_u64().unwrap() > 8 << 20, "{said}");
    assert_eq!(said["bytes"]["http"], 0, "{said}");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
    let again = (paced.to_client() - whole).saturating_sub(whole);
    assert!(again <= (1 << 20) + (256 << 10), "{again} bytes came twice");
    let left = fs::read_dir(&out).unwrap().count();
    assert_eq!(left, 1, "what the killed fetch left is cleaned up by the next");
}

#[test]
fn a_flipped_bit_is_found_never_served_and_mended_from_a_mirror() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (_, published) = publish_tree(&a, "rot", 63, 4 << 20);
    let path = published["path"].as_str().unwrap();
    let at_b = b.serve(&[]);
    b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key]).ok();
    assert_eq!(at_a.stop(), 0);
    a.rot(2 << 20);

    let at_a = a.serve(&[]);
    let said = fetch(&c, path, &at_a.http, &key, &["--peer", &at_a.peer]);
    assert_ne!(said.code, 0, "{said:#?}");
    assert!(fs::read_dir(c.dir().join("out")).unwrap().next().is_none(), "damaged bytes were unpacked");
    let hash = published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let nar = at_a.get(&format!("/nar/{hash}.nar"));
    assert!((nar.body.len() as u64) < published["narSize"].as_u64().unwrap(), "a damaged NAR was served whole");
    a.run(&["verify", "--deep"]).fails(5, &["damaged"]);
    a.run(&["verify", "--deep", "--repair", "--peer", &at_b.peer]).ok();
    a.run(&["verify", "--deep"]).ok();
    fetch(&c, path, &at_a.http, &key, &["--peer", &at_a.peer]).ok();
}

#[test]
fn a_key_that_others_can_read_is_refused_and_no_key_is_ever_shown() {
    let a = Machine::new();
    a.key();
    let secret = fs::read_dir(a.state().join("keys")).unwrap().map(|entry| entry.unwrap().path());
    let secret =
        secret.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "secret")).unwrap();
    let text = fs::read_to_string(&secret).unwrap();
    let private = text.split(':').nth(1).unwrap();
    let tree = a.dir().join("tree");
    make_tree(&tree, 64, 1000);
    let said = a.run(&["-vvv", "publish", tree.to_str().unwrap()]).ok();
    assert!(!said.stderr.contains(private) && !said.stdout.contains(private), "the secret key was shown");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    make_tree(&a.dir().join("other"), 65, 1000);
    let said = a.run(&["publish", a.dir().join("other").to_str().unwrap()]);
    let said = said.fails(2, &["644", "chmod 600", secret.to_str().unwrap()]);
    assert!(!said.stderr.contains(private));
    a.run(&["config", "check"]).fails(2, &["chmod 600", secret.to_str().unwrap()]);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    a.run(&["config", "check"]).ok();
    let in_the_way = a.dir().join("file");
    fs::write(&in_the_way, "").unwrap();
    for state in [in_the_way.clone(), in_the_way.join("below")] {
        let state = state.to_str().unwrap();
        a.run(&["config", "check", "--state", state]).fails(2, &[state, "--state DIR"]);
    }
}

#[test]
fn a_store_that_is_in_use_says_so() {
    let a = Machine::new();
    a.key();
    let _serving = a.serve(&[]);
    let mut second = a.command(&["serve", "--http", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"]);
    let second = second.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    Machine::finish(second).fails(7, &["in use"]);
}

#[test]
fn gc_unpins_only_what_the_mirror_proves_and_answers_it_out_of_the_mirror() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, held) = publish_tree(&a, "held", 66, 3 << 20);
    let at_b = b.serve(&[]);
    b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key]).ok();
    let (_, lacking) = publish_tree(&a, "lacking", 67, 3 << 20);
    let said = a.run(&["gc", "--json", "--max-size", "0", "--require-mirror", &at_b.peer]).ok().one();
    assert_eq!(said["droppedPaths"].as_array().unwrap().len(), 1, "{said}");
    assert_eq!(said["droppedPaths"][0], held["path"], "{said}");
    assert_eq!(said["keptPaths"], 1, "{said}");
    let pins = a.run(&["pin", "ls"]).ok().stdout;
    assert!(pins.contains(lacking["path"].as_str().unwrap()) && pins.lines().count() == 1, "{pins}");

    let path = held["path"].as_str().unwrap();
    fetch(&c, path, &at_a.http, &key, &[]).ok();
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}

#[test]
fn what_was_only_fetched_is_not_for_strangers() {
    let (a, c, d) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (_, published) = publish_tree(&a, "private", 68, 1 << 20);
    let (path, root) = (published["path"].as_str().unwrap(), published["root"].as_str().unwrap());
    fetch(&c, path, &at_a.http, &key, &["--peer", &at_a.peer]).ok();
    let at_c = c.serve(&[]);
    d.run(&["pin", "add", root, "--peer", &at_c.peer]).fails(4, &[root]);
    assert_eq!(at_c.get(&format!("/ipfs/{root}?format=raw")).status, 404);
    d.run(&["pin", "add", root, "--peer", &at_a.peer]).ok();
}

#[test]
fn a_fetch_on_the_publisher_changes_nothing_of_what_it_publishes() {
    let a = Machine::new();
    let key = a.key();
    let at_a = a.serve(&[]);
    let (_, published) = publish_tree(&a, "mine", 80, 1 << 20);
    let path = published["path"].as_str().unwrap();
    let narinfo = format!("/{}.narinfo", &path["/nix/store/".len()..][..32]);
    let before = at_a.get(&narinfo).body;
    let plain = Liar::before(&at_a.http, |path, body| match path.ends_with(".narinfo") {
        true => {
            let text = String::from_utf8(body).unwrap();
            text.lines()
                .filter(|line| !line.starts_with("Sig") && !line.starts_with("IPFS"))
                .fold(String::new(), |text, line| text + line + "\n")
        }
        .into_bytes(),
        false => body,
    });
    fetch(&a, path, &plain.http, &key, &["--no-check-sigs"]).ok();
    assert_eq!(before, at_a.get(&narinfo).body);
}

#[test]
fn what_was_left_to_a_mirror_can_be_published_withdrawn_and_pinned_again() {
    let (a, b) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let (tree, published) = publish_tree(&a, "left", 81, 3 << 20);
    let path = published["path"].as_str().unwrap();
    let narinfo = format!("/{}.narinfo", &path["/nix/store/".len()..][..32]);
    let at_b = b.serve(&[]);
    let leave = || {
        b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key]).ok();
        a.run(&["gc", "--max-size", "0", "--require-mirror", &at_b.peer]).ok();
        assert!(a.run(&["pin", "ls"]).ok().stdout.is_empty());
        assert_eq!(at_a.get(&narinfo).status, 200);
    };
    leave();
    a.run(&["pin", "add", path]).ok();
    assert_eq!(a.run(&["pin", "ls"]).ok().stdout.lines().count(), 1);
    leave();
    let again = a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    assert!(again["newBytes"].as_u64().unwrap() > 3 << 20, "its blocks were gone: {again}");
    leave();
    a.run(&["pin", "rm", path]).ok();
    assert_eq!(at_a.get(&narinfo).status, 404);
    a.run(&["publish", tree.to_str().unwrap()]).ok();
    b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key]).ok();
    a.run(&["publish", "--chunker", "unixfs-v1-2025", tree.to_str().unwrap()]).ok();
    b.run(&["mirror", "pull", &at_a.http, "--trusted-public-key", &key]).ok();
    assert_eq!(at_a.get(&narinfo).body, at_b.get(&narinfo).body, "B follows a path that was cut anew");

    // Of its two DAGs the mirror proved the one that the narinfo names: that one is asked of it.
    leave();
    let hash = published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let nar = format!("/nar/{hash}.nar");
    assert_eq!(at_a.get(&nar).body.len() as u64, published["narSize"].as_u64().unwrap());
    // A fetch on A itself brings blocks here, for strangers too: the path is published.
    fetch(&a, path, &at_a.http, &key, &["--peer", &at_b.peer]).ok();
    let address = at_a.http.strip_prefix("http://").unwrap();
    let stranger = request(address, "GET", &nar, "X-Forwarded-For: 192.0.2.1\r\n");
    assert_eq!((stranger.status, stranger.body.len() as u64), (200, published["narSize"].as_u64().unwrap()));
    a.run(&["gc"]).ok();
    a.run(&["pin", "add", path]).ok();
    assert_eq!(at_b.stop(), 0);
    assert_eq!(at_a.get(&nar).body.len() as u64, published["narSize"].as_u64().unwrap());
}
