//! The server on loopback, asked byte for byte.

mod cache;
mod conformance;
mod dags;
mod gateway;
mod hostile;
mod passing;
mod upload;

use super::accept::{self, Limits};
use super::{Site, Uploads, router};
use crate::cache::{Audience, Claim};
use crate::node::{Node, Settings};
use crate::store::Keep;
use crate::upstream::{Gateway, Upstream};
use nipfs_proto::Cid;
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::base32;
use nipfs_proto::nix::nar::{Event, Writer};
use nipfs_proto::nix::narinfo::{NarInfo, PathInfo, Root};
use nipfs_proto::nix::signature::SecretKey;
use nipfs_proto::nix::store_path::StorePath;
use nipfs_proto::nix::trust::{TrustedKeys, TrustedNarInfo};
use nipfs_proto::nix::{NarHash, narinfo};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PROFILE: Profile = Profile::UnixfsV1_2025;

/// A running server.
struct Server {
    address: SocketAddr,
    node: Node,
    stop: CancellationToken,
    ended: JoinHandle<()>,
    _state: TempDir,
}

/// What a server is started with.
#[derive(Default)]
struct With {
    limits: Limits,
    upstreams: Vec<String>,
    gateways: Vec<String>,
    trusted: TrustedKeys,
    uploads: Option<Uploads>,
}

impl Server {
    async fn start() -> Self {
        Self::with(With::default()).await
    }

    async fn with(with: With) -> Self {
        let state = tempfile::tempdir().unwrap();
        let node = Node::open(Settings { state: state.path().to_owned(), ..Settings::default() }).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstreams = with.upstreams.iter().map(|url| Upstream::new(url).unwrap()).collect();
        let gateways = with.gateways.iter().map(|url| Gateway::new(url).unwrap()).collect();
        let site = Site::new(node.clone(), upstreams, gateways, with.trusted, with.uploads);
        let stop = CancellationToken::new();
        let ended = tokio::spawn(accept::serve(listener, router(site), with.limits, stop.clone()));
        Self { address, node, stop, ended, _state: state }
    }

    /// Commits a path with this content for `audience`.
    fn add(&self, content: &Content, audience: Audience) {
        let staged = self.node.cache().stage(&content.nar[..], PROFILE).unwrap();
        assert_eq!(staged.root, content.root());
        let trusted = TrustedNarInfo::own(content.narinfo.clone());
        let claim = match audience {
            Audience::World => Claim::Own(&content.narinfo, Keep::Copy),
            Audience::Loopback => Claim::Fetched(&trusted),
        };
        self.node.cache().commit(claim, Some(&staged), audience).unwrap();
    }

    /// Sends `bytes` and reads until the server closes.
    async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may refuse, and close, before it has read all.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
        let _ = read.await.expect("the server neither answers nor closes");
        answer
    }

    /// A request from this machine, with more header lines that each end in CRLF.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        self.ask_as(&self.address.to_string(), method, path, headers).await
    }

    async fn ask_as(&self, host: &str, method: &str, path: &str, headers: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
        Answer::parse(&self.raw(request.as_bytes()).await)
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    /// A request as of somebody else: the name in it is not loopback's.
    async fn get_from_afar(&self, path: &str) -> Answer {
        self.ask_as("cache.example.org", "GET", path, "").await
    }
}

/// An answer, taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    /// Chunks put together; `whole` says whether all of it came.
    body: Vec<u8>,
    whole: bool,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer has a head");
        let head = str::from_utf8(&bytes[..end]).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let field = |line: &str| line.split_once(": ").map(|(key, value)| (key.to_lowercase(), value.to_owned()));
        let headers: HashMap<_, _> = head.lines().skip(1).filter_map(field).collect();
        let sent = &bytes[end + 4..];
        let length = headers.get("content-length").map(|length| length.parse::<usize>().unwrap());
        let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
        let (body, whole) =
            if chunked { unchunk(sent) } else { (sent.to_vec(), length.is_none_or(|l| l == sent.len())) };
        Self { status, headers, body, whole }
    }

    fn header(&self, key: &str) -> &str {
        self.headers.get(key).map_or("", String::as_str)
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

fn unchunk(mut sent: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = sent.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(str::from_utf8(&sent[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return (body, true);
        }
        let Some(chunk) = sent.get(end + 2..end + 2 + length) else { break };
        body.extend_from_slice(chunk);
        sent = &sent[end + 2 + length + 2..];
    }
    (body, false)
}

/// A store path and its NAR.
struct Content {
    narinfo: NarInfo,
    nar: Vec<u8>,
}

impl Content {
    /// A file of `size` bytes that differ from those of every other `number`; its root is bound by `key`.
    fn new(number: u8, size: usize, key: Option<&SecretKey>) -> Self {
        let mut state = u32::from(number) + 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let contents: Vec<u8> = std::iter::repeat_with(&mut next).take(size).collect();
        let (mut writer, mut nar) = (Writer::new(), Vec::new());
        let file = Event::File { name: b"", executable: false, size: size as u64 };
        for event in [file, Event::Contents(&contents), Event::FileEnd] {
            writer.write(&event, &mut nar);
        }
        let info = PathInfo {
            path: StorePath::from_base_name(&format!("{}-path-{number}", base32::encode(&[number; 20]))).unwrap(),
            nar_hash: NarHash::of(&nar),
            nar_size: nar.len() as u64,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        let root = root_of(&nar);
        let fingerprint = narinfo::ipfs_fingerprint(info.nar_hash, info.nar_size, &root, PROFILE.name());
        let signature = key.map(|key| key.sign(&fingerprint));
        let mut narinfo = NarInfo::new(&info).unwrap().with_ipfs(Root::new(root, signature).unwrap());
        if let Some(key) = key {
            narinfo.add_sig(key.sign(&narinfo.fingerprint()));
        }
        Self { narinfo, nar }
    }

    fn root(&self) -> Cid {
        *self.narinfo.root().unwrap().cid()
    }

    /// The path of its narinfo.
    fn info_path(&self) -> String {
        format!("/{}.narinfo", self.narinfo.store_path().hash_part())
    }

    /// The path of its NAR.
    fn nar_path(&self) -> String {
        format!("/nar/{}.nar", self.narinfo.nar_hash().to_base32())
    }
}

fn root_of(nar: &[u8]) -> Cid {
    let mut builder = nipfs_proto::dag::build::Builder::new(PROFILE);
    let mut drop = |_| Ok::<_, std::convert::Infallible>(());
    builder.write(nar, &mut drop).unwrap();
    builder.finish(&mut drop).unwrap().cid
}
