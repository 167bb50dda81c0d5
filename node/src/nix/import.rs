//! Gives paths to the machine's Nix: a cache on loopback that only our own `nix copy` knows, for as long
//! as it runs.
//!
//! Nix checks hash and `Sig` itself, keeps `Sig` and `CA`, and works for users whom its daemon does not
//! trust. The cache lies under a random path, so that nobody else on the machine finds it; Nix's own
//! memory of caches is kept out of the user's, and no proxy stands between.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::stream;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::cache_info::CacheInfo;
use nipfs_proto::nix::narinfo::NarInfo;
use nipfs_proto::nix::store_path::StorePathHash;
use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Paths given to one `nix copy`: far below what a command line holds.
const AT_ONCE: usize = 500;

/// How much of what `nix` says is kept for the error, in bytes.
const MAX_SAYS: u64 = 64 << 10;

/// Starts reading a NAR: pieces of its bytes, or why it cannot be had.
pub type Nars = Arc<dyn Fn(NarHash) -> mpsc::Receiver<io::Result<Bytes>> + Send + Sync>;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The directory above `nix/store`; `None` for the machine's own store.
    pub store: Option<PathBuf>,
    /// Whether Nix shall insist on a signature that it trusts.
    pub check_sigs: bool,
    /// Keys that Nix shall trust besides its own, `name:base64`. It obeys only users whom it trusts.
    pub trusted_keys: Vec<String>,
}

/// Why Nix did not take the paths.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The cache could not be set up.
    #[error("cannot serve paths to nix")]
    Serve(#[source] io::Error),
    /// `nix` could not be run.
    #[error("cannot run `nix copy`")]
    Run(#[source] io::Error),
    /// Nix trusts none of the signatures.
    #[error("nix refused a signature: {0}")]
    Signature(String),
    /// `nix` failed for another reason.
    #[error("`nix copy` ended with {status}: {says}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        says: String,
    },
}

/// Lets Nix take all of `narinfos`, which are ours: [`NarInfo::new`], dependencies first.
///
/// # Errors
/// [`ImportError`]; paths before the one at fault are in the store.
pub async fn import(narinfos: &[NarInfo], nars: Nars, options: &ImportOptions) -> Result<(), ImportError> {
    let scratch = Scratch::new().map_err(ImportError::Serve)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(ImportError::Serve)?;
    let address = listener.local_addr().map_err(ImportError::Serve)?;
    let secret = format!("{:032x}", rand::random::<u128>());
    let router = Router::new().nest(&format!("/{secret}"), router(narinfos, nars));
    // Ends with this function, however that ends.
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, router).await });
    let url = format!("http://{address}/{secret}");
    for part in narinfos.chunks(AT_ONCE) {
        copy(&url, part, options, &scratch.0).await?;
    }
    Ok(())
}

async fn copy(url: &str, part: &[NarInfo], options: &ImportOptions, scratch: &Path) -> Result<(), ImportError> {
    let mut command = Command::new("nix");
    command.args(["--extra-experimental-features", "nix-command", "copy", "--no-recursive", "--from", url]);
    if let Some(store) = &options.store {
        command.arg("--to").arg(store);
    }
    if !options.check_sigs {
        command.arg("--no-check-sigs");
    }
    if !options.trusted_keys.is_empty() {
        command.args(["--option", "extra-trusted-public-keys", &options.trusted_keys.join(" ")]);
    }
    command.args(part.iter().map(|narinfo| narinfo.store_path().to_absolute_path()));
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(proxy).env_remove(proxy.to_ascii_uppercase());
    }
    command.env("XDG_CACHE_HOME", scratch).env("NIX_CACHE_HOME", scratch);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(ImportError::Run)?;
    let mut says = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr;
        (&mut stderr).take(MAX_SAYS).read_to_end(&mut says).await.map_err(ImportError::Run)?;
        tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await.map_err(ImportError::Run)?;
    }
    let status = child.wait().await.map_err(ImportError::Run)?;
    if status.success() {
        return Ok(());
    }
    let says = String::from_utf8_lossy(&says);
    let error = says.lines().filter_map(|line| line.split_once("error: ")).map(|(_, says)| says).next_back();
    let says = error.unwrap_or_else(|| says.trim_end()).to_owned();
    // 2.8: "lacks a valid signature", later: "lacks a signature by a trusted key".
    let untrusted = says.contains("lacks a valid signature") || says.contains("lacks a signature by a trusted key");
    Err(if untrusted { ImportError::Signature(says) } else { ImportError::Failed { status, says } })
}

fn router(narinfos: &[NarInfo], nars: Nars) -> Router {
    let cache = Arc::new(Loopback {
        narinfos: narinfos.iter().map(|narinfo| (narinfo.store_path().hash_part(), narinfo.clone())).collect(),
        sizes: narinfos.iter().map(|narinfo| (narinfo.nar_hash(), narinfo.nar_size())).collect(),
        nars,
    });
    Router::new()
        .route("/nix-cache-info", get(|| async { CacheInfo::OURS.to_text() }))
        .route("/{file}", get(narinfo))
        .route("/nar/{file}", get(nar))
        .with_state(cache)
}

/// What the cache holds.
struct Loopback {
    narinfos: HashMap<StorePathHash, NarInfo>,
    sizes: HashMap<NarHash, u64>,
    nars: Nars,
}

async fn narinfo(State(cache): State<Arc<Loopback>>, UrlPath(file): UrlPath<String>) -> Response {
    let hash = file.strip_suffix(".narinfo").and_then(|hash| hash.parse().ok());
    match hash.and_then(|hash: StorePathHash| cache.narinfos.get(&hash)) {
        Some(narinfo) => ([(header::CONTENT_TYPE, "text/x-nix-narinfo")], narinfo.text().to_owned()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Answers 404 until the first bytes are at hand: Nix tries a 5xx again for seconds.
async fn nar(State(cache): State<Arc<Loopback>>, method: Method, UrlPath(file): UrlPath<String>) -> Response {
    let hash = file.strip_suffix(".nar").and_then(|hash| format!("sha256:{hash}").parse().ok());
    let Some((hash, size)) = hash.and_then(|hash: NarHash| Some((hash, *cache.sizes.get(&hash)?))) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-nix-nar"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    if method == Method::HEAD {
        return headers.into_response();
    }
    let mut pieces = (cache.nars)(hash);
    let Some(Ok(first)) = pieces.recv().await else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let rest = stream::unfold((Some(Ok(first)), pieces), |(first, mut pieces)| async move {
        let piece = match first {
            Some(first) => Some(first),
            None => pieces.recv().await,
        };
        Some((piece?, (None, pieces)))
    });
    (headers, Body::from_stream(rest)).into_response()
}

/// A directory for Nix's caches, removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("nipfs-import-{:016x}", rand::random::<u64>()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nipfs_proto::nix::narinfo::PathInfo;
    use nipfs_proto::nix::store_path::StorePath;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;

    fn ours(digit: &str, nar: &[u8]) -> NarInfo {
        let path = StorePath::from_base_name(&format!("{}-x", digit.repeat(32))).unwrap();
        let (nar_hash, nar_size) = (NarHash::of(nar), nar.len() as u64);
        let (references, signatures) = (Vec::new(), Vec::new());
        NarInfo::new(&PathInfo { path, nar_hash, nar_size, references, deriver: None, signatures, ca: None }).unwrap()
    }

    /// Serves a NAR of two pieces, and one that cannot be had. Answers one request.
    async fn ask(method: &str, path: &str) -> String {
        let narinfos = [ours("0", b"firstrest"), ours("1", b"gone")];
        let nars: Nars = Arc::new(|hash| {
            let (pieces, waiting) = mpsc::channel(2);
            if hash == NarHash::of(b"firstrest") {
                pieces.try_send(Ok(Bytes::from_static(b"first"))).unwrap();
                pieces.try_send(Ok(Bytes::from_static(b"rest"))).unwrap();
            } else {
                pieces.try_send(Err(io::ErrorKind::NotFound.into())).unwrap();
            }
            waiting
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router(&narinfos, nars)).await });
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn nix_finds_what_it_needs() {
        assert!(ask("GET", "/nix-cache-info").await.contains("StoreDir: /nix/store"));
        let narinfo = ours("0", b"firstrest");
        let found = ask("GET", &format!("/{}.narinfo", narinfo.store_path().hash_part())).await;
        assert!(found.ends_with(narinfo.text()), "{found}");
        let nar = ask("GET", &format!("/{}", narinfo.url())).await;
        assert!(nar.contains("content-length: 9\r\n") && nar.ends_with("\r\n\r\nfirstrest"), "{nar}");
        let head = ask("HEAD", &format!("/{}", narinfo.url())).await;
        assert!(head.contains("content-length: 9\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_not_there() {
        let gone = format!("/{}", ours("1", b"gone").url());
        let stranger = format!("/{}", ours("2", b"stranger").url());
        let narinfo = format!("/{}.narinfo", "3".repeat(32));
        for path in [&gone, &stranger, &narinfo, "/nar/x.nar", "/x"] {
            let answer = ask("GET", path).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        }
    }
}
