use super::client::{Client, Limits};
use super::fake::{Fake, Reply, answer, head};
use super::*;
use futures::TryStreamExt as _;
use nipfs_proto::block::{Digest, MAX_BLOCK};
use nipfs_proto::nix::NarHash;
use std::error::Error as _;
use std::time::Instant;

const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
const LONG: Duration = Duration::from_secs(10);

fn hash() -> StorePathHash {
    HASH.parse().unwrap()
}

/// Like a real one, but not as patient.
fn upstream(base: &str) -> Upstream {
    let limits = Limits {
        connect: Duration::from_secs(5),
        patience: Duration::from_millis(300),
        pause: Duration::from_millis(5),
    };
    Upstream { client: Arc::new(Client::with_limits(base, limits).unwrap()) }
}

#[test]
fn only_plain_http_addresses_are_bases() {
    let good = [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
        ("https://cache.example.org/a/b", "https://cache.example.org/a/b/"),
        ("https://cache.example.org/a/?priority=10#x", "https://cache.example.org/a/"),
        ("HTTP://Cache.Example.ORG:80/", "http://cache.example.org/"),
        ("http://[::1]:5000", "http://[::1]:5000/"),
    ];
    for (text, base) in good {
        assert_eq!(Upstream::new(text).unwrap().to_string(), base);
    }
    for text in ["", "cache.example.org", "file:///etc", "ftp://x/", "http://", "http://u:p@x/", "http://u@x/"] {
        let error = Upstream::new(text).unwrap_err();
        assert!(matches!(error, UpstreamError::Address { .. }), "{text}: {error}");
    }
}

#[test]
fn nothing_leaves_the_base() {
    let client = Client::new("http://127.0.0.1:1/cache").unwrap();
    for (reference, url) in [
        ("nar/a.nar.xz", "http://127.0.0.1:1/cache/nar/a.nar.xz"),
        ("nar/a.nar?hash=b", "http://127.0.0.1:1/cache/nar/a.nar?hash=b"),
        ("nar/../nar/a.nar", "http://127.0.0.1:1/cache/nar/a.nar"),
    ] {
        assert_eq!(client.resolve(reference).unwrap().as_str(), url);
    }
    let outside = [
        "",
        ".",
        "..",
        "../a",
        "nar/../../a",
        "%2e%2e/a",
        "nar/%2e%2e/.%2E/a",
        "/a",
        "/cache2/a",
        "//evil.example/a",
        "\\\\evil.example\\a",
        "/\\evil.example/a",
        "http://evil.example/a",
        "http:/a",
        "http:a/../../b",
        "https://127.0.0.1:1/cache/a",
        "http://127.0.0.1:2/cache/a",
        "http://u@127.0.0.1:1/cache/a",
        "file:///etc/passwd",
        "file:a",
        "http://169.254.169.254/latest",
        "a#b",
        "a b",
        "a\r\nHost: x",
        "a\tb",
        "\u{fe}",
    ];
    for reference in outside {
        let resolved = client.resolve(reference);
        assert!(matches!(resolved, Err(UpstreamError::Outside { .. })), "{reference:?}: {resolved:?}");
    }
}

#[tokio::test]
async fn redirects_stay_at_home() {
    let trap = Fake::serving(b"trapped").await;
    let there = [
        format!("http://{}/x", trap.address),
        format!("//{}/x", trap.address),
        "http://169.254.169.254/latest".to_owned(),
        "file:///etc/passwd".to_owned(),
        "https://127.0.0.1/".to_owned(),
        "http://localhost/".to_owned(),
    ];
    for target in there {
        let location = format!("Location: {target}\r\n");
        let fake = Fake::start(move |_, _| answer("302 Found", &location, b"")).await;
        let error = upstream(&fake.url()).narinfo(&hash(), LONG).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::Request { .. } | UpstreamError::Status { status: 302, .. }),
            "{error:?}"
        );
        assert_eq!(fake.requests(), 1, "{target}: a refused redirect is not tried again");
    }
    assert_eq!(trap.requests(), 0);
}

#[tokio::test]
async fn redirects_within_the_cache_are_followed_three_times() {
    for (hops, reached) in [(1, true), (3, true), (4, false)] {
        let fake = Fake::start(move |_, number| match number {
            number if number < hops => answer("301 Moved", &format!("Location: /hop{number}\r\n"), b""),
            _ => answer("200 OK", "", b"here"),
        });
        let fake = fake.await;
        let narinfo = upstream(&fake.url()).narinfo(&hash(), LONG).await;
        assert_eq!(narinfo.ok(), reached.then(|| Some("here".to_owned())), "{hops} hops");
    }
}

#[tokio::test]
async fn absence_is_not_an_error() {
    for status in ["404 Not Found", "403 Forbidden", "410 Gone"] {
        let fake = Fake::start(move |_, _| answer(status, "", b"<html>")).await;
        assert_eq!(upstream(&fake.url()).narinfo(&hash(), LONG).await.unwrap(), None, "{status}");
        assert_eq!(fake.requests(), 1);
    }
}

#[tokio::test]
async fn the_request_names_the_path_below_the_base() {
    let fake = Fake::start(|head, _| answer("200 OK", "", head.as_bytes())).await;
    let head = upstream(&format!("{}/some/cache", fake.url())).narinfo(&hash(), LONG).await.unwrap().unwrap();
    assert!(head.starts_with(&format!("GET /some/cache/{HASH}.narinfo HTTP/1.1\r\n")), "{head}");
    assert!(!head.to_ascii_lowercase().contains("accept-encoding"), "{head}");
}

#[tokio::test]
async fn accidents_are_tried_three_times() {
    type Accident = fn() -> Reply;
    let accidents: [Accident; 5] = [
        || answer("500 Internal Server Error", "", b""),
        || answer("503 Service Unavailable", "Retry-After: 3600\r\n", b""),
        || Reply::Bytes(Vec::new()),
        || Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort".to_vec()),
        || Reply::Bytes(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
    ];
    for (case, accident) in accidents.into_iter().enumerate() {
        let away = Fake::start(move |_, _| accident()).await;
        let error = upstream(&away.url()).narinfo(&hash(), LONG).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Request { .. } | UpstreamError::Status { .. }), "{case}: {error:?}");
        assert!(error.to_string().contains(&away.url()), "{error}");
        assert_eq!(away.requests(), 3, "{case}");

        let back = Fake::start(move |_, number| if number < 2 { accident() } else { answer("200 OK", "", b"back") });
        let back = back.await;
        let narinfo = upstream(&back.url()).narinfo(&hash(), LONG).await;
        assert_eq!(narinfo.unwrap().as_deref(), Some("back"), "{case}");
    }
}

#[tokio::test]
async fn lies_are_not_tried_again() {
    type Lie = fn() -> Reply;
    let lies: [(Lie, &str); 5] = [
        (|| answer("200 OK", "Content-Encoding: gzip\r\n", b"\x1f\x8b"), "unasked Content-Encoding \"gzip\""),
        (|| Reply::Endless(head("200 OK"), vec![b'x'; 4096]), "is longer than 1048576 bytes"),
        (|| answer("200 OK", "", b"\xff\xfe"), "is not UTF-8"),
        (|| answer("400 Bad Request", "", b""), "answered 400"),
        (|| answer("206 Partial Content", "Content-Range: bytes 1-2/3\r\n", b"ab"), "answered 206"),
    ];
    for (lie, text) in lies {
        let fake = Fake::start(move |_, _| lie()).await;
        let error = upstream(&fake.url()).narinfo(&hash(), LONG).await.unwrap_err();
        assert!(error.to_string().ends_with(text), "{error}");
        assert_eq!(fake.requests(), 1, "{text}");
    }
}

#[tokio::test]
async fn every_wait_for_a_small_answer_ends() {
    let silences: [fn() -> Reply; 4] = [
        || Reply::Hang(Vec::new()),
        || Reply::Hang(b"HTTP/1.1 200 OK\r\n".to_vec()),
        || Reply::Hang(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec()),
        || Reply::Drip(head("200 OK"), Duration::from_millis(20)),
    ];
    for silence in silences {
        let fake = Fake::start(move |_, _| silence()).await;
        let (started, within) = (Instant::now(), Duration::from_millis(200));
        let error = upstream(&fake.url()).narinfo(&hash(), within).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Deadline { .. }), "{error:?}");
        assert!(started.elapsed() < within * 5);
    }
}

#[tokio::test]
async fn a_closed_port_is_an_error_with_its_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = upstream(&url).narinfo(&hash(), LONG).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot get {url}/{HASH}.narinfo"));
    assert!(error.source().is_some());
}

#[tokio::test]
async fn a_gateway_delivers_the_block_or_nothing() {
    let bytes = b"a block";
    let cid = Digest::of(bytes).raw_cid();
    let block = async |reply: fn() -> Reply| {
        let fake = Fake::start(move |_, _| reply()).await;
        Gateway::new(&fake.url()).unwrap().block(&cid).await
    };
    assert_eq!(block(|| answer("200 OK", "", b"a block")).await.unwrap().unwrap().bytes(), &bytes[..]);
    assert_eq!(block(|| answer("404 Not Found", "", b"")).await.unwrap(), None);
    let wrong = block(|| answer("200 OK", "", b"another")).await;
    assert!(matches!(wrong, Err(UpstreamError::Block { .. })), "{wrong:?}");
    let large = block(|| answer("200 OK", "", &vec![0; MAX_BLOCK + 1])).await;
    assert!(matches!(large, Err(UpstreamError::TooLong { .. })), "{large:?}");
    let fake = Fake::start(|head, _| answer("200 OK", "", head.as_bytes())).await;
    let _ = Gateway::new(&format!("{}/g", fake.url())).unwrap().block(&cid).await;
    assert_eq!(fake.requests(), 1);
}

#[tokio::test]
async fn a_cache_of_ours_tells_its_peers_and_paths() {
    let info = NipfsInfo::new(3, 4, vec!["/ip4/127.0.0.1/tcp/1/p2p/Q".to_owned()], Some("bafyindex".to_owned()));
    let text = info.to_text();
    let fake = Fake::start(move |head, _| match head.split(' ').nth(1).unwrap() {
        "/nipfs-info" => answer("200 OK", "", text.as_bytes()),
        "/nipfs-paths" => answer("200 OK", "", format!("{HASH}-a\n{HASH}-b\n\u{1b}[31m\n{HASH}-c\n").as_bytes()),
        "/nix-cache-info" => answer("200 OK", "", b"StoreDir: /nix/store\nPriority: 30\n"),
        _ => answer("404 Not Found", "", b""),
    });
    let upstream = upstream(&fake.await.url());
    assert_eq!(upstream.nipfs_info(LONG).await.unwrap(), Some(info));
    assert_eq!(upstream.cache_info(LONG).await.unwrap().unwrap().priority, Some(30));
    let mut paths = upstream.paths().await.unwrap().unwrap();
    assert_eq!(paths.try_next().await.unwrap().unwrap().name(), "a");
    assert_eq!(paths.try_next().await.unwrap().unwrap().name(), "b");
    let error = paths.try_next().await.unwrap_err().to_string();
    assert!(error.ends_with("\"\\u{1b}[31m\" is not a store path"), "{error}");
}

#[tokio::test]
async fn a_line_without_an_end_is_cut() {
    let fake = Fake::start(|_, _| Reply::Endless(head("200 OK"), vec![b'x'; 4096])).await;
    let mut paths = upstream(&fake.url()).paths().await.unwrap().unwrap();
    assert!(matches!(paths.try_next().await, Err(UpstreamError::TooLong { .. })));
}

/// NARs in all dresses.
mod nar {
    use super::*;
    use async_compression::tokio::write::{BzEncoder, XzEncoder, ZstdEncoder};
    use tokio::io::AsyncWriteExt as _;

    /// Not a NAR, but nobody here looks: 300 KB that do not repeat too soon.
    fn content() -> Vec<u8> {
        (0..75_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
    }

    async fn compressed(compression: &str, plain: &[u8]) -> Vec<u8> {
        macro_rules! with {
            ($encoder:ident) => {{
                let mut encoder = $encoder::new(Vec::new());
                encoder.write_all(plain).await.unwrap();
                encoder.shutdown().await.unwrap();
                encoder.into_inner()
            }};
        }
        match compression {
            "xz" => with!(XzEncoder),
            "zstd" => with!(ZstdEncoder),
            "bzip2" => with!(BzEncoder),
            _ => plain.to_vec(),
        }
    }

    fn narinfo(compression: &str, nar_size: u64) -> NarInfo {
        let nar_hash = NarHash([1; 32]);
        let text = format!(
            "StorePath: /nix/store/{HASH}-a\nURL: nar/a.nar\nCompression: {compression}\n\
             NarHash: {nar_hash}\nNarSize: {nar_size}\nReferences: \n"
        );
        NarInfo::parse(&hash(), text.as_bytes()).unwrap()
    }

    async fn read(fake: &Fake, narinfo: &NarInfo, offset: u64) -> Result<Vec<u8>, UpstreamError> {
        let stream = upstream(&fake.url()).nar(narinfo, offset).await?;
        stream.try_fold(Vec::new(), async |all, chunk| Ok([&all[..], &chunk].concat())).await
    }

    /// Answers range requests of the form `bytes=N-`.
    fn ranged(head: &str, body: &[u8]) -> Reply {
        let range = head.lines().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        match range {
            Some(from) => {
                let last = body.len() - 1;
                let range = format!("Content-Range: bytes {from}-{last}/{}\r\n", body.len());
                answer("206 Partial Content", &range, &body[from..])
            }
            None => answer("200 OK", "", body),
        }
    }

    #[tokio::test]
    async fn plain_bytes_come_out_of_every_compression_at_every_offset() {
        let plain = content();
        for compression in ["none", "xz", "zstd", "bzip2"] {
            let file = compressed(compression, &plain).await;
            let (with_ranges, without) = (file.clone(), file);
            let fakes = [
                Fake::start(move |head, _| ranged(head, &with_ranges)).await,
                Fake::start(move |_, _| answer("200 OK", "", &without)).await,
            ];
            for fake in &fakes {
                for offset in [0, 1, 65_537, plain.len() - 1] {
                    let narinfo = narinfo(compression, plain.len() as u64);
                    let bytes = read(fake, &narinfo, offset as u64).await.unwrap();
                    assert!(bytes == plain[offset..], "{compression} from {offset}");
                }
            }
        }
    }

    #[tokio::test]
    async fn the_length_is_exact() {
        let plain = content();
        for compression in ["none", "xz", "zstd", "bzip2"] {
            let file = compressed(compression, &plain).await;
            let fake = Fake::start(move |_, _| answer("200 OK", "", &file)).await;
            let longer = read(&fake, &narinfo(compression, plain.len() as u64 + 1), 0).await;
            assert!(matches!(longer, Err(UpstreamError::TooShort { missing: 1, .. })), "{compression}: {longer:?}");
            let shorter = read(&fake, &narinfo(compression, plain.len() as u64 - 1), 0).await;
            assert!(matches!(shorter, Err(UpstreamError::TooLong { .. })), "{compression}: {shorter:?}");
        }
    }

    #[tokio::test]
    async fn a_file_cut_short_or_damaged_is_an_error() {
        let plain = content();
        for compression in ["none", "xz", "zstd", "bzip2"] {
            let mut file = compressed(compression, &plain).await;
            let cut = file[..file.len() / 2].to_vec();
            let fake = Fake::start(move |_, _| answer("200 OK", "", &cut)).await;
            assert!(read(&fake, &narinfo(compression, plain.len() as u64), 0).await.is_err(), "{compression}");
            if compression != "none" {
                file[2] ^= 0xff;
                let fake = Fake::start(move |_, _| answer("200 OK", "", &file)).await;
                let damaged = read(&fake, &narinfo(compression, plain.len() as u64), 0).await;
                assert!(matches!(damaged, Err(UpstreamError::Decompress { .. })), "{compression}: {damaged:?}");
            }
        }
    }

    #[tokio::test]
    async fn bombs_burst_at_the_declared_size() {
        let zeros = compressed("zstd", &vec![0; 64 << 20]).await;
        assert!(zeros.len() < 64 << 10);
        let fake = Fake::start(move |_, _| answer("200 OK", "", &zeros)).await;
        let bomb = read(&fake, &narinfo("zstd", 1 << 20), 0).await;
        assert!(matches!(bomb, Err(UpstreamError::TooLong { limit: 0x10_0000, .. })), "{bomb:?}");

        // Skippable frames: input for ever, output never.
        let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &4096_u32.to_le_bytes(), &[0; 4096]].concat();
        let fake = Fake::start(move |_, _| Reply::Endless(head("200 OK"), skippable.clone())).await;
        let endless = read(&fake, &narinfo("zstd", 1 << 20), 0).await;
        assert!(
            matches!(endless, Err(UpstreamError::TooLong { .. } | UpstreamError::Decompress { .. })),
            "{endless:?}"
        );

        let fake = Fake::start(|_, _| Reply::Endless(head("200 OK"), vec![b'x'; 4096])).await;
        let endless = read(&fake, &narinfo("none", 1 << 20), 0).await;
        assert!(matches!(endless, Err(UpstreamError::TooLong { .. })), "{endless:?}");
    }

    #[tokio::test]
    async fn a_server_that_stalls_or_drips_is_left() {
        let stalls: [fn() -> Reply; 3] = [
            || Reply::Hang(Vec::new()),
            || Reply::Hang([head("200 OK"), vec![b'x'; 1000]].concat()),
            || Reply::Drip(head("200 OK"), Duration::from_millis(20)),
        ];
        for stall in stalls {
            let fake = Fake::start(move |_, _| stall()).await;
            let started = Instant::now();
            let error = read(&fake, &narinfo("none", 1 << 20), 0).await.unwrap_err();
            assert!(matches!(error, UpstreamError::Stalled { .. } | UpstreamError::Deadline { .. }), "{error:?}");
            assert!(started.elapsed() < Duration::from_secs(5));
        }
    }

    #[tokio::test]
    async fn another_range_or_status_than_asked_is_an_error() {
        let fake =
            Fake::start(|_, _| answer("206 Partial Content", "Content-Range: bytes 50-99/100\r\n", &[0; 50])).await;
        for offset in [0, 5, 51] {
            let error = read(&fake, &narinfo("none", 100), offset).await.unwrap_err();
            assert!(matches!(error, UpstreamError::Range { .. }), "{error:?}");
        }
        let fake = Fake::start(|_, _| answer("404 Not Found", "", b"")).await;
        let error = read(&fake, &narinfo("none", 100), 0).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Status { status: 404, .. }), "{error:?}");
    }
}
