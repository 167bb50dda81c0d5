use super::*;
use crate::upstream::fake::{Fake, Reply, answer};

const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

fn hash() -> StorePathHash {
    HASH.parse().unwrap()
}

fn nar_hash() -> NarHash {
    NarHash([1; 32])
}

fn narinfo(url: &str) -> String {
    format!(
        "StorePath: /nix/store/{HASH}-a\nURL: {url}\nCompression: xz\nFileHash: {}\nFileSize: 7\nNarHash: {}\n\
         NarSize: 10\nReferences: \nSig: k:{}\nX-Unknown: kept\n",
        NarHash([2; 32]),
        nar_hash(),
        "A".repeat(86) + "=="
    )
}

async fn having(url: &'static str) -> Fake {
    Fake::start(move |_, _| answer("200 OK", "", narinfo(url).as_bytes())).await
}

async fn without() -> Fake {
    Fake::start(|_, _| answer("404 Not Found", "", b"")).await
}

async fn silent() -> Fake {
    Fake::start(|_, _| Reply::Hang(Vec::new())).await
}

/// The caches with a deadline that a test can wait for.
fn passing(caches: &[&Fake]) -> Passing {
    let upstreams = caches.iter().map(|cache| Upstream::new(&cache.url()).unwrap());
    Passing::with_deadline(upstreams.collect(), Duration::from_millis(300))
}

impl Passing {
    /// As if what is remembered had been so for `age`.
    fn grow_older(&self, age: Duration) {
        for (_, at) in lock(&self.memory).answers.values_mut() {
            *at = at.checked_sub(age).unwrap();
        }
        for cache in &self.caches {
            lock(&cache.away_until).take_if(|until| until.saturating_duration_since(Instant::now()) < age);
        }
    }
}

#[tokio::test]
async fn the_url_becomes_ours_and_the_rest_stays() {
    let cache = having("nar/x.nar.xz").await;
    let passed = passing(&[&cache]).narinfo(&hash()).await.unwrap();
    let hash = nar_hash();
    let expected = format!(
        "StorePath: /nix/store/{HASH}-a\nURL: nar/{}.nar?hash={HASH}\nCompression: none\nFileHash: {hash}\n\
         FileSize: 10\nNarHash: {hash}\nNarSize: 10\nReferences: \nSig: k:{}\nX-Unknown: kept\n",
        hash.to_base32(),
        "A".repeat(86) + "=="
    );
    assert_eq!(passed.text, expected);
    let read = NarInfo::parse(&self::hash(), passed.text.as_bytes()).unwrap();
    assert_eq!(read.fingerprint(), passed.narinfo.fingerprint());
    assert_eq!(passed.narinfo.url(), "nar/x.nar.xz");
}

#[tokio::test]
async fn any_cache_that_has_it_wins_over_those_that_do_not_answer() {
    let (away, empty, cache) = (silent().await, without().await, having("nar/a.nar").await);
    let passing = passing(&[&away, &empty, &cache]);
    let started = Instant::now();
    assert!(passing.narinfo(&hash()).await.is_some());
    assert!(started.elapsed() < Duration::from_millis(300), "the silent one was waited for");
}

#[tokio::test]
async fn an_answer_is_remembered_and_a_failure_is_not() {
    let cache = having("nar/a.nar").await;
    let passing_good = passing(&[&cache]);
    for _ in 0..3 {
        assert!(passing_good.narinfo(&hash()).await.is_some());
    }
    assert_eq!(cache.requests(), 1);

    let empty = without().await;
    let passing_empty = passing(&[&empty]);
    for _ in 0..3 {
        assert!(passing_empty.narinfo(&hash()).await.is_none());
    }
    assert_eq!(empty.requests(), 1);
    passing_empty.grow_older(ABSENT_FOR);
    assert!(passing_empty.narinfo(&hash()).await.is_none());
    assert_eq!(empty.requests(), 2);

    let recovering = Fake::start(|_, number| match number {
        0 => Reply::Hang(Vec::new()),
        _ => answer("200 OK", "", narinfo("nar/a.nar").as_bytes()),
    });
    let passing = passing(&[&recovering.await]);
    assert!(passing.narinfo(&hash()).await.is_none());
    passing.grow_older(AWAY_FOR);
    assert!(passing.narinfo(&hash()).await.is_some());
}

#[tokio::test]
async fn a_cache_that_does_not_answer_is_left_out_for_a_while() {
    let away = silent().await;
    let passing = passing(&[&away]);
    let started = Instant::now();
    for _ in 0..50 {
        assert!(passing.narinfo(&hash()).await.is_none());
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(away.requests(), 1);
}

#[tokio::test]
async fn what_was_known_is_served_while_its_cache_is_away() {
    let cache = Fake::start(|_, number| match number {
        0 => answer("200 OK", "", narinfo("nar/a.nar").as_bytes()),
        1 => Reply::Hang(Vec::new()),
        _ => answer("404 Not Found", "", b""),
    });
    let passing = passing(&[&cache.await]);
    assert!(passing.narinfo(&hash()).await.is_some());
    passing.grow_older(FRESH_FOR);
    assert!(passing.narinfo(&hash()).await.is_some(), "stale");
    assert!(passing.nar(nar_hash(), None).await.is_some(), "stale");
    passing.grow_older(AWAY_FOR);
    assert!(passing.narinfo(&hash()).await.is_none(), "the cache is back and says that it is gone");
}

#[tokio::test]
async fn a_nar_is_found_by_its_hash_and_after_a_restart_by_its_path() {
    let cache = having("nar/a.nar").await;
    let passing_first = passing(&[&cache]);
    assert!(passing_first.nar(nar_hash(), None).await.is_none());
    passing_first.narinfo(&hash()).await.unwrap();
    assert!(passing_first.nar(nar_hash(), None).await.is_some());

    let restarted = passing(&[&cache]);
    assert!(restarted.nar(NarHash([3; 32]), Some(hash())).await.is_none(), "another NAR than that of the path");
    assert!(restarted.nar(nar_hash(), Some(hash())).await.is_some());
}

#[tokio::test]
async fn unreadable_narinfos_are_not_passed_on() {
    for url in ["../../etc/passwd", "http://127.0.0.1/x", "/x", "nar/%2e%2e/x", "file:///etc/passwd"] {
        let cache = having(url).await;
        assert!(passing(&[&cache]).narinfo(&hash()).await.is_none(), "{url}");
    }
    let page = Fake::serving(b"<html>not a cache</html>").await;
    assert!(passing(&[&page]).narinfo(&hash()).await.is_none());
}

#[test]
fn memory_is_bounded() {
    let mut memory = Memory::default();
    let upstream = Upstream::new("http://127.0.0.1:1").unwrap();
    for number in 0..3 * MAX_ANSWERS {
        let hash: StorePathHash = nipfs_proto::nix::base32::encode(&(number as u128).to_le_bytes())
            .get(..26)
            .map(|digits| format!("{digits}000000"))
            .unwrap()
            .parse()
            .unwrap();
        let narinfo = NarInfo::parse(&self::hash(), narinfo("nar/a.nar").as_bytes()).unwrap();
        let text = "x".repeat(if number % 64 == 0 { 64 << 10 } else { 0 });
        memory.put(hash, Some(Arc::new(Passed { upstream: upstream.clone(), narinfo, text })));
        memory.put(hash, None);
        assert!(memory.order.len() <= MAX_ANSWERS && memory.answers.len() <= MAX_ANSWERS);
        assert!(memory.nars.len() <= memory.answers.len() && memory.bytes <= MAX_BYTES);
    }
    let weights: usize = memory.answers.values().map(|(answer, _)| weight(answer)).sum();
    assert_eq!(weights, memory.bytes);
}
