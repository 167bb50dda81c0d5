//! Clients that are slow, wrong or malicious.

use super::*;
use std::path::PathBuf;
use std::time::Instant;
use tokio::time::timeout;

/// Short enough for a test to wait for.
fn impatient() -> Limits {
    let short = Duration::from_millis(400);
    Limits { connections: 16, grace: short / 20, head: short, stall: short, drain: Duration::from_secs(5) }
}

/// The statuses that the words of a vector allow.
fn allowed(expect: &str, status: u16) -> bool {
    let numbers = expect.split(|c: char| !c.is_ascii_digit()).filter(|digits| digits.len() == 3);
    let named = numbers.map(|digits| digits.parse::<u16>().unwrap()).any(|number| number == status);
    named || (expect.contains("4xx") && (400..500).contains(&status))
}

#[tokio::test]
async fn raw_requests() {
    let Some(folder) = std::env::var_os("NIPFS_VECTORS").map(PathBuf::from) else {
        println!("skipped: NIPFS_VECTORS is not set");
        return;
    };
    let vectors = std::fs::read(folder.join("http/raw.json")).unwrap();
    let vectors: serde_json::Value = serde_json::from_slice(&vectors).unwrap();
    let server = Server::with(With { limits: impatient(), ..With::default() }).await;
    let content = Content::new(1, 200_000, None);
    server.add(&content, Audience::World);
    let requests = vectors["requests"].as_array().unwrap();
    assert!(requests.len() > 20);
    for request in requests {
        let (name, expect) = (request["name"].as_str().unwrap(), request["expect"].as_str().unwrap());
        let raw = request["raw"].as_str().unwrap();
        let raw = raw.replace("{NAR}", &content.nar_path()).replace("{ADMIN_ON_PUBLIC_PORT}", "/admin/gc");
        let latin1: Vec<u8> = raw.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        let answer = server.raw(&latin1).await;
        let first_line = String::from_utf8_lossy(&answer[..answer.len().min(16)]).into_owned();
        let status = first_line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        match status {
            Some(status) => assert!(allowed(expect, status), "{name}: {status}, but expected {expect}"),
            None => assert!(
                answer.is_empty() && (expect.contains("close") || expect.contains("400")),
                "{name}: {first_line}"
            ),
        }
        if name.starts_with("Range") {
            assert!(answer.len() < content.nar.len() + 1000, "{name}");
        } else {
            let text = String::from_utf8_lossy(&answer);
            assert_eq!(text.matches("HTTP/1.").count(), 1, "{name}: {text}");
            assert!(!text.contains("root:") && !text.contains("/src/") && !text.contains("panicked"), "{name}: {text}");
        }
        let next = timeout(Duration::from_secs(1), server.get("/nix-cache-info")).await;
        assert_eq!(next.expect("the next request is answered").status, 200, "after {name}");
    }
}

#[tokio::test]
async fn heads_without_end_are_refused() {
    let server = Server::start().await;
    let long_line = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100 << 10));
    let long_header = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(100 << 10));
    for head in [long_line, long_header] {
        let answer = server.raw(head.as_bytes()).await;
        // The server may close while we still send: then the answer is lost to the reset.
        let status = (!answer.is_empty()).then(|| Answer::parse(&answer).status);
        assert!(matches!(status, None | Some(414 | 431)), "{status:?}");
        assert_eq!(server.get("/health").await.status, 200);
    }
}

#[tokio::test]
async fn only_get_and_head() {
    let server = Server::start().await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"] {
        for path in ["/nix-cache-info", "/a.narinfo", "/nar/a.nar", "/ipfs/bafkqaaa?format=raw", "/nowhere"] {
            let path = if method == "CONNECT" { "127.0.0.1:22" } else { path };
            let answer = server.ask(method, path, "Origin: http://evil.example\r\n").await;
            assert!((400..500).contains(&answer.status), "{method} {path}: {}", answer.status);
            assert_eq!(answer.header("access-control-allow-origin"), "");
            if method != "CONNECT" {
                assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"), "{method} {path}");
            }
        }
    }
    let proxied = server.get("http://169.254.169.254/nix-cache-info").await;
    assert_eq!(proxied.status, 421);
}

#[tokio::test]
async fn a_request_has_to_come_in_time() {
    let server = Server::with(With { limits: impatient(), ..With::default() }).await;
    for beginning in ["", "G", "GET / HTTP/1.1\r\nHost"] {
        let started = Instant::now();
        server.raw(beginning.as_bytes()).await;
        assert!(started.elapsed() < impatient().head * 5, "{beginning}");
    }
    // A byte now and then does not help.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let started = Instant::now();
    while stream.write_all(b"G").await.is_ok() && started.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(started.elapsed() < impatient().head * 5);
}

#[tokio::test]
async fn silent_connections_make_room() {
    let limits = Limits { connections: 16, head: Duration::from_secs(60), ..impatient() };
    let server = Server::with(With { limits, ..With::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(timeout(Duration::from_secs(5), server.get("/health")).await.unwrap().status, 200);
    }
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_left() {
    let server = Server::with(With { limits: impatient(), ..With::default() }).await;
    let content = Content::new(1, 24 << 20, None);
    server.add(&content, Audience::World);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", content.nar_path());
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(impatient().stall * 4).await;
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the server still waits");
    assert!(rest.len() < content.nar.len(), "all of {} bytes fit into socket buffers", rest.len());
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn stopping_finishes_what_was_asked() {
    let server = Server::with(With { limits: impatient(), ..With::default() }).await;
    let content = Content::new(1, 24 << 20, None);
    server.add(&content, Audience::World);
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", content.nar_path());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1000];
    stream.read_exact(&mut answer).await.unwrap();
    server.stop.cancel();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = Answer::parse(&answer);
    assert!(answer.whole && answer.body == content.nar);
    timeout(Duration::from_secs(5), server.ended).await.unwrap().unwrap();
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let limits = Limits { drain: Duration::from_millis(300), stall: Duration::from_secs(60), ..impatient() };
    let server = Server::with(With { limits, ..With::default() }).await;
    let content = Content::new(1, 24 << 20, None);
    server.add(&content, Audience::World);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", content.nar_path());
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 1000]).await.unwrap();
    server.stop.cancel();
    timeout(Duration::from_secs(5), server.ended).await.unwrap().unwrap();
}
