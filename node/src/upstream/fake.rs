//! A server for tests that answers byte for byte as it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What one request gets. The connection is closed after it.
pub(crate) enum Reply {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, then silence for as long as the client stays.
    Hang(Vec<u8>),
    /// The first bytes, then the second again and again.
    Endless(Vec<u8>, Vec<u8>),
    /// The first bytes, then one byte at a time with pauses.
    Drip(Vec<u8>, Duration),
}

/// A whole answer with a status line, a length and header lines (each ending in CRLF).
pub(crate) fn answer(status: &str, headers: &str, body: &[u8]) -> Reply {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    Reply::Bytes([head.as_bytes(), body].concat())
}

/// A status line and headers without a length.
pub(crate) fn head(status: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n").into_bytes()
}

/// Runs until the test's runtime ends.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Fake {
    /// Answers each request by its head (request line and headers) and its number, from 0.
    pub(crate) async fn start(reply: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let (counted, reply) = (requests.clone(), Arc::new(reply));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let reply = reply.clone();
                tokio::spawn(async move { converse(stream, |head| reply(head, number)).await });
            }
        });
        Self { address, requests }
    }

    /// One that gives everybody the same.
    pub(crate) async fn serving(body: &'static [u8]) -> Self {
        Self::start(|_, _| answer("200 OK", "", body)).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections came.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Errors are the client's leaving, which is its right.
async fn converse(mut stream: TcpStream, reply: impl Fn(&str) -> Reply) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    match reply(str::from_utf8(&head).unwrap()) {
        Reply::Bytes(bytes) => stream.write_all(&bytes).await.ok()?,
        Reply::Hang(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.read_u8().await.ok()?;
        }
        Reply::Endless(first, again) => {
            stream.write_all(&first).await.ok()?;
            loop {
                stream.write_all(&again).await.ok()?;
            }
        }
        Reply::Drip(first, pause) => {
            stream.write_all(&first).await.ok()?;
            loop {
                tokio::time::sleep(pause).await;
                stream.write_all(b"x").await.ok()?;
            }
        }
    }
    stream.shutdown().await.ok()
}
