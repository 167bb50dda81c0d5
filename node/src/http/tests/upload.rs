//! What `nix copy --to http://…` sends, and what others might.

use super::*;
use crate::http::upload::{Limits as Uploading, Token};
use async_compression::tokio::write::{XzEncoder, ZstdEncoder};
use base64::Engine as _;
use std::time::Instant;

const TOKEN: &str = "Authorization: Bearer s3cret\r\n";

fn key() -> SecretKey {
    SecretKey::from_seed("farm-1", &[7; 32]).unwrap()
}

/// A server that takes uploads with these limits and trusts [`key`].
async fn taking(limits: Uploading) -> Server {
    let uploads = Uploads::with_limits(Token::new("s3cret"), PROFILE, limits);
    let trusted = [key().public_key()].into_iter().collect();
    Server::with(With { trusted, uploads: Some(uploads), ..With::default() }).await
}

async fn start() -> Server {
    taking(Uploading::default()).await
}

impl Server {
    async fn put(&self, path: &str, headers: &str, body: &[u8]) -> Answer {
        let head = format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        Answer::parse(&self.raw(&[head.as_bytes(), body].concat()).await)
    }

    async fn upload(&self, path: &str, body: &[u8]) -> Answer {
        self.put(path, &format!("{TOKEN}Connection: close\r\n"), body).await
    }

    /// As Nix describes `content`: without our lines.
    async fn upload_info(&self, content: &Content) -> Answer {
        self.upload(&content.info_path(), content.narinfo.plain().text().as_bytes()).await
    }

    async fn upload_all(&self, content: &Content) {
        assert_eq!(self.upload(&content.nar_path(), &content.nar).await.status, 201);
        let answer = self.upload_info(content).await;
        assert_eq!((answer.status, answer.text()), (201, ""));
    }
}

#[tokio::test]
async fn an_uploaded_path_is_published_with_its_root_and_its_signatures_as_they_came() {
    let server = start().await;
    let content = Content::new(1, 3 << 20, Some(&key()));
    assert_eq!(server.ask("HEAD", &content.nar_path(), TOKEN).await.status, 404);
    assert_eq!(server.upload(&content.nar_path(), &content.nar).await.status, 201);
    // It waits: uploaders need not send it again, and others do not see it.
    assert_eq!(server.ask("HEAD", &content.nar_path(), TOKEN).await.status, 200);
    assert_eq!(server.ask("HEAD", &content.nar_path(), "").await.status, 404);
    assert_eq!(server.get(&content.nar_path()).await.status, 404);

    assert_eq!(server.upload_info(&content).await.status, 201);
    let served = server.get_from_afar(&content.info_path()).await;
    let expected = format!("{}IPFSHash: {}\n", content.narinfo.plain().text(), content.root());
    assert_eq!((served.status, served.text()), (200, expected.as_str()));
    assert!(server.get_from_afar(&content.nar_path()).await.body == content.nar);
    let record = server.node.store().path(&content.narinfo.store_path().hash_part()).unwrap().unwrap();
    assert!(record.published && record.pinned);
    // Again: nothing changes.
    server.upload_all(&content).await;
    assert_eq!(server.get_from_afar(&content.info_path()).await.text(), expected);
}

#[tokio::test]
async fn a_nar_that_is_here_already_need_not_be_sent() {
    let server = start().await;
    let content = Content::new(1, 50_000, Some(&key()));
    server.add(&content, Audience::Loopback);
    assert_eq!(server.ask("HEAD", &content.nar_path(), TOKEN).await.status, 200);
    assert_eq!(server.get_from_afar(&content.info_path()).await.status, 404);
    assert_eq!(server.upload_info(&content).await.status, 201);
    assert_eq!(server.get_from_afar(&content.info_path()).await.status, 200);
}

#[tokio::test]
async fn compressed_nars_are_served_plain() {
    let server = start().await;
    let (xz, zstd) = (Content::new(1, 300_000, Some(&key())), Content::new(2, 300_000, Some(&key())));
    let (mut a, mut b) = (XzEncoder::new(Vec::new()), ZstdEncoder::new(Vec::new()));
    a.write_all(&xz.nar).await.unwrap();
    a.shutdown().await.unwrap();
    b.write_all(&zstd.nar).await.unwrap();
    b.shutdown().await.unwrap();
    for (content, suffix, bytes) in [(&xz, "xz", a.into_inner()), (&zstd, "zst", b.into_inner())] {
        let file = format!("nar/{}.nar.{suffix}", NarHash::of(&bytes).to_base32());
        assert_eq!(server.upload(&format!("/{file}"), &bytes[..bytes.len() - 9]).await.status, 400);
        assert_eq!(server.upload(&format!("/{file}"), &bytes).await.status, 201);
        let plain = content.narinfo.plain();
        let text = plain.text().replace(&content.nar_path()[1..], &file);
        let text =
            text.replace("Compression: none", if suffix == "xz" { "Compression: xz" } else { "Compression: zstd" });
        assert_eq!(server.upload(&content.info_path(), text.as_bytes()).await.status, 201);
        let served = server.get(&content.info_path()).await;
        assert_eq!(served.text(), format!("{}IPFSHash: {}\n", plain.text(), content.root()));
        assert!(server.get(&content.nar_path()).await.body == content.nar);
    }
    let bomb = server.upload(&format!("/nar/{}.nar.br", xz.narinfo.nar_hash().to_base32()), b"x").await;
    assert_eq!((bomb.status, bomb.text().contains(".zst")), (405, true));
}

#[tokio::test]
async fn without_the_token_nothing_is_taken() {
    let server = start().await;
    let content = Content::new(1, 300_000, Some(&key()));
    let basic = |pair: &str| {
        let pair = base64::engine::general_purpose::STANDARD.encode(pair);
        format!("Authorization: Basic {pair}\r\nConnection: close\r\n")
    };
    for headers in ["", "Authorization: Bearer wrong\r\n", &basic("nipfs:wrong"), &basic("s3cret:")] {
        for path in [content.nar_path(), content.info_path(), "/nix-cache-info".to_owned(), "/x/y".to_owned()] {
            let answer = server.put(&path, headers, &content.nar).await;
            assert_eq!(answer.status, 401, "{path} {headers}");
            assert!(answer.header("www-authenticate").starts_with("Basic ") && answer.text().contains("netrc"));
            assert!(!answer.text().contains("s3cret"));
        }
    }
    assert_eq!(server.put(&content.nar_path(), &basic("anybody:s3cret"), &content.nar).await.status, 201);
    // To read, nobody needs it.
    assert_eq!(server.get("/nix-cache-info").await.status, 200);
}

#[tokio::test]
async fn uploads_are_off_unless_asked_for() {
    let server = Server::start().await;
    let content = Content::new(1, 3 << 20, Some(&key()));
    let answer = server.put(&content.nar_path(), TOKEN, &content.nar).await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"));
    assert!(answer.text().contains("--enable-upload"), "{}", answer.text());
}

#[tokio::test]
async fn only_what_a_trusted_key_signed_is_published() {
    let server = start().await;
    let stranger = SecretKey::from_seed("stranger-1", &[8; 32]).unwrap();
    for (number, key, says) in [(1, None, "it is not signed"), (2, Some(&stranger), "stranger-1")] {
        let content = Content::new(number, 5000, key);
        assert_eq!(server.upload(&content.nar_path(), &content.nar).await.status, 201);
        let answer = server.upload_info(&content).await;
        assert_eq!(answer.status, 403);
        assert!(answer.text().contains(says) && answer.text().contains("--trusted-public-key"), "{}", answer.text());
        assert_eq!(server.get(&content.info_path()).await.status, 404);
    }
}

#[tokio::test]
async fn a_narinfo_needs_its_nar() {
    let server = start().await;
    let (content, other) = (Content::new(1, 5000, Some(&key())), Content::new(2, 5000, Some(&key())));
    server.upload(&other.nar_path(), &other.nar).await;
    let answer = server.upload_info(&content).await;
    assert_eq!(answer.status, 409);
    assert!(answer.text().contains(&content.narinfo.nar_hash().to_string()), "{}", answer.text());
    // The bytes decide, not the name under which they come.
    let answer = server.upload(&content.nar_path(), &other.nar).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains(&other.narinfo.nar_hash().to_string()), "{}", answer.text());
    assert_eq!(server.upload_info(&content).await.status, 409);
    // A signed NarSize that is not the NAR's.
    let mut lying =
        NarInfo::parse_unasked(other.narinfo.plain().text().replace("\nNarSize: ", "\nNarSize: 1").as_bytes()).unwrap();
    lying.add_sig(key().sign(&lying.fingerprint()));
    let answer = server.upload(&other.info_path(), lying.text().as_bytes()).await;
    assert_eq!((answer.status, answer.text().contains("NarSize")), (409, true));
    assert_eq!(server.get(&other.info_path()).await.status, 404);
}

#[tokio::test]
async fn bodies_that_are_no_nar_or_narinfo_are_refused_and_the_client_hears_it() {
    let server = start().await;
    let content = Content::new(1, 5000, Some(&key()));
    let noise = Content::new(2, 24 << 20, None).nar[200..].to_vec();
    let too_long = format!("{}X: {}\n", content.narinfo.plain().text(), "x".repeat(1 << 20));
    let half = &content.nar[..content.nar.len() / 2];
    let text = content.narinfo.plain();
    for (path, body, status) in [
        (content.nar_path(), &noise[..], 400),
        (content.nar_path(), half, 400),
        (content.nar_path(), b"", 400),
        (content.info_path(), &noise[..], 413),
        (content.info_path(), too_long.as_bytes(), 413),
        (content.info_path(), &text.text().as_bytes()[..100], 400),
        ("/00000000000000000000000000000000.narinfo".to_owned(), text.text().as_bytes(), 400),
        ("/nar/x.nar".to_owned(), half, 405),
        ("/nar/../etc.nar".to_owned(), half, 405),
        ("/00000000000000000000000000000000.ls".to_owned(), half, 405),
        ("/log/x.drv".to_owned(), half, 405),
        ("/realisations/x.doi".to_owned(), half, 405),
        ("/nix-cache-info".to_owned(), half, 405),
        (format!("/plain{}", content.nar_path()), half, 405),
        (format!("/plain{}", content.info_path()), half, 405),
    ] {
        let answer = server.upload(&path, body).await;
        assert_eq!(answer.status, status, "{path} {} bytes: {}", body.len(), answer.text());
        assert!(!answer.text().is_empty(), "{path}");
    }
    let coded = format!("{TOKEN}Content-Encoding: xz\r\n");
    assert_eq!(server.put(&content.info_path(), &coded, text.text().as_bytes()).await.status, 415);
    server.upload_all(&content).await;
}

#[tokio::test]
async fn a_body_that_is_cut_off_leaves_nothing_behind() {
    let server = start().await;
    let content = Content::new(1, 1 << 20, Some(&key()));
    let head = format!("PUT {} HTTP/1.1\r\nHost: x\r\n{TOKEN}", content.nar_path());
    for framing in ["Content-Length: 1049000", "Transfer-Encoding: chunked"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let chunk = if framing.starts_with('T') { "100000\r\n" } else { "" };
        stream.write_all(format!("{head}{framing}\r\n\r\n{chunk}").as_bytes()).await.unwrap();
        stream.write_all(&content.nar[..500_000]).await.unwrap();
        drop(stream);
    }
    assert_eq!(server.ask("HEAD", &content.nar_path(), TOKEN).await.status, 404);
    assert_eq!(server.upload_info(&content).await.status, 409);
    server.upload_all(&content).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let server = taking(Uploading { stall: Duration::from_millis(300), ..Uploading::default() }).await;
    let content = Content::new(1, 100_000, Some(&key()));
    for (path, begun) in [(content.nar_path(), &content.nar[..50_000]), (content.info_path(), b"StorePath: /")] {
        let head = format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n{TOKEN}\r\n");
        let asked = Instant::now();
        let answer = Answer::parse(&server.raw(&[head.as_bytes(), begun].concat()).await);
        assert_eq!(answer.status, 408);
        assert!(asked.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_client_that_waits_for_leave_is_given_it_or_told_why_not() {
    let server = start().await;
    let content = Content::new(1, 5000, Some(&key()));
    let length = content.nar.len();
    for (token, first) in [(TOKEN, "HTTP/1.1 100 Continue\r\n"), ("", "HTTP/1.1 401 Unauthorized\r\n")] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let path = content.nar_path();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n{token}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut line = vec![0; first.len()];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(str::from_utf8(&line).unwrap(), first);
        if token.is_empty() {
            continue;
        }
        stream.write_all(&content.nar).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains("HTTP/1.1 201 Created"), "{rest}");
    }
}

#[tokio::test]
async fn of_too_many_nars_that_wait_for_their_narinfos_the_oldest_goes() {
    let server = taking(Uploading { waiting: 2, ..Uploading::default() }).await;
    let contents: Vec<Content> = (1..4).map(|number| Content::new(number, 5000, Some(&key()))).collect();
    // The second NAR came again, so that the first is the oldest in any case.
    for content in [&contents[0], &contents[1], &contents[1], &contents[2]] {
        assert_eq!(server.upload(&content.nar_path(), &content.nar).await.status, 201);
    }
    assert_eq!(server.upload_info(&contents[0]).await.status, 409);
    assert_eq!(server.upload_info(&contents[1]).await.status, 201);
    assert_eq!(server.upload_info(&contents[2]).await.status, 201);
    server.upload_all(&contents[0]).await;
}

#[tokio::test]
async fn no_nar_waits_for_its_narinfo_for_ever() {
    let server = taking(Uploading { age: Duration::from_millis(200), ..Uploading::default() }).await;
    let content = Content::new(1, 5000, Some(&key()));
    assert_eq!(server.upload(&content.nar_path(), &content.nar).await.status, 201);
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.ask("HEAD", &content.nar_path(), TOKEN).await.status != 404 {
        assert!(Instant::now() < deadline, "it waits still");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.upload_info(&content).await.status, 409);
}

#[tokio::test]
async fn a_nar_without_end_is_cut_off() {
    let server = taking(Uploading { nar: 100_000, ..Uploading::default() }).await;
    let content = Content::new(1, 100_000, Some(&key()));
    assert_eq!(server.upload(&content.nar_path(), &content.nar).await.status, 413);
    // Also when little is sent: what counts is what comes out.
    let zeros = vec![0; 1 << 20];
    let mut encoder = ZstdEncoder::new(Vec::new());
    encoder.write_all(&content.nar[..112]).await.unwrap();
    encoder.write_all(&zeros).await.unwrap();
    encoder.shutdown().await.unwrap();
    let bytes = encoder.into_inner();
    assert!(bytes.len() < 5000);
    assert_eq!(server.upload(&format!("{}.zst", content.nar_path()), &bytes).await.status, 413);
}

#[tokio::test]
async fn an_upload_adds_signatures_to_what_is_published_and_changes_nothing_else() {
    let server = start().await;
    let ours = SecretKey::from_seed("ours-1", &[9; 32]).unwrap();
    let content = Content::new(1, 5000, Some(&ours));
    server.add(&content, Audience::World);
    let mut signed = content.narinfo.plain();
    signed.add_sig(key().sign(&signed.fingerprint()));
    let other_deriver =
        signed.text().replace("References: \n", "References: \nDeriver: 00000000000000000000000000000000-x.drv\n");
    assert_eq!(server.upload(&content.info_path(), other_deriver.as_bytes()).await.status, 201);
    let mut expected = content.narinfo.clone();
    expected.add_sig(key().sign(&expected.fingerprint()));
    assert_eq!(server.get(&content.info_path()).await.text(), expected.text());

    // Another NAR under the same path, however well it is signed.
    let mut other = Content::new(2, 5000, None);
    let text = other
        .narinfo
        .plain()
        .text()
        .replace(&other.narinfo.store_path().to_absolute_path(), &content.narinfo.store_path().to_absolute_path());
    other.narinfo = NarInfo::parse_unasked(text.as_bytes()).unwrap();
    other.narinfo.add_sig(key().sign(&other.narinfo.fingerprint()));
    assert_eq!(server.upload(&other.nar_path(), &other.nar).await.status, 201);
    assert_eq!(server.upload_info(&other).await.status, 409);
    assert_eq!(server.get(&content.info_path()).await.text(), expected.text());
}

#[tokio::test]
async fn what_is_acknowledged_is_there_after_a_crash() {
    let state = tempfile::tempdir().unwrap();
    let settings = Settings { state: state.path().to_owned(), ..Settings::default() };
    let content = Content::new(1, 1 << 20, Some(&key()));
    let server = start().await;
    server.upload_all(&content).await;
    // The packs as they are on disk at this moment; the index is made from them.
    let packs = state.path().join("store/packs");
    std::fs::create_dir_all(&packs).unwrap();
    let from = server.node.state().join("store");
    std::fs::copy(from.join("format"), state.path().join("store/format")).unwrap();
    for entry in std::fs::read_dir(from.join("packs")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), packs.join(entry.file_name())).unwrap();
    }
    let node = Node::open(settings).await.unwrap();
    let record = node.cache().lookup(&content.narinfo.store_path().hash_part(), Audience::World).unwrap().unwrap();
    assert!(record.pinned && node.is_complete(content.root()).await.unwrap());
}
