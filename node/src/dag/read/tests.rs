//! Reading a file from gateways: by CAR while that pays, by block when not, and never by what was not asked for.

use super::*;
use crate::upstream::fake::{Fake, Reply, answer};
use futures::TryStreamExt as _;
use nipfs_proto::dag::Profile;
use nipfs_proto::dag::build::Builder;
use nipfs_proto::dag::car;
use nipfs_proto::dag::walk::{EntityBytes, Scope, Selection};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Mutex;
use tempfile::TempDir;

const SIZE: usize = 12 << 20;
const CAR_TYPE: &str = "Content-Type: application/vnd.ipld.car; version=1; order=dfs; dups=n\r\n";

/// A file of [`SIZE`] bytes: twelve leaves.
struct File {
    root: Cid,
    bytes: Vec<u8>,
    blocks: HashMap<Cid, Block>,
}

impl File {
    fn new() -> Arc<Self> {
        let bytes: Vec<u8> = (0..SIZE as u64 / 8).flat_map(u64::to_le_bytes).collect();
        let mut blocks = HashMap::new();
        let mut keep = |block: Block| {
            blocks.insert(*block.cid(), block);
            Ok::<_, Infallible>(())
        };
        let mut builder = Builder::new(Profile::UnixfsV1_2025);
        builder.write(&bytes, &mut keep).unwrap();
        let root = builder.finish(&mut keep).unwrap().cid;
        Arc::new(Self { root, bytes, blocks })
    }

    /// The leaves in order.
    fn leaves(&self) -> Vec<Block> {
        self.select("0:*").into_iter().skip(1).collect()
    }

    fn select(&self, range: &str) -> Vec<Block> {
        let range: EntityBytes = range.parse().unwrap();
        let mut walk = Selection::new(self.root, Scope::Entity(range), false).unwrap();
        let mut blocks = Vec::new();
        while let Some(next) = walk.next_block().unwrap() {
            walk.feed(&self.blocks[&next.cid]).unwrap();
            blocks.push(self.blocks[&next.cid].clone());
        }
        blocks
    }

    /// What an honest gateway answers.
    fn answer(&self, request: &str) -> Reply {
        if request.contains("format=car") {
            let range =
                request.split("entity-bytes=").nth(1).map_or("0:*", |rest| rest.split(['&', ' ']).next().unwrap());
            return answer("200 OK", CAR_TYPE, &car_of(self.root, &self.select(range)));
        }
        let cid = request.split(['/', '?']).nth(2).unwrap().parse::<Cid>().unwrap();
        answer("200 OK", "", self.blocks[&cid].bytes())
    }
}

fn car_of(root: Cid, blocks: &[Block]) -> Vec<u8> {
    let sections = blocks.iter().map(|block| [&car::section_head(block), &block.bytes()[..]].concat());
    [vec![car::header(&[root])], sections.collect()].concat().concat()
}

/// A gateway, and the requests that it got.
struct Asked {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Asked {
    async fn start(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        let fake = Fake::start(move |head, _| {
            log.lock().unwrap().push(head.lines().next().unwrap().to_owned());
            reply(head)
        });
        Self { url: fake.await.url(), requests }
    }

    /// Answers all that it is asked of `file`.
    async fn honest(file: &Arc<File>) -> Self {
        let file = file.clone();
        Self::start(move |request| file.answer(request)).await
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn cars(&self) -> Vec<String> {
        self.requests().into_iter().filter(|line| line.contains("format=car")).collect()
    }

    fn blocks(&self) -> usize {
        self.requests().len() - self.cars().len()
    }
}

/// An empty store, and sources that are it and these gateways.
async fn sources(gateways: &[&Asked]) -> (TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let store = tokio::task::spawn_blocking(move || Store::open(&path)).await.unwrap().unwrap();
    let gateways = gateways.iter().map(|gateway| Gateway::new(&gateway.url).unwrap()).collect();
    let lease = Some(Arc::new(store.lease()));
    (folder, Sources { lease, gateways, ..Sources::local(store) })
}

async fn read_all(file: &File, sources: &Sources) -> Result<SourceBytes, ReadError> {
    let counters = Arc::new(Counters::default());
    let bytes: Vec<Bytes> = read(sources.clone(), counters.clone(), file.root, 0..SIZE as u64).try_collect().await?;
    assert!(bytes.concat() == file.bytes);
    Ok(counters.snapshot())
}

#[tokio::test]
async fn a_whole_file_is_one_request() {
    let file = File::new();
    let honest = Asked::honest(&file).await;
    let (_folder, sources) = sources(&[&honest]).await;
    let bytes = read_all(&file, &sources).await.unwrap();
    assert_eq!(
        honest.requests(),
        [format!("GET /ipfs/{}?format=car&dag-scope=entity&car-order=dfs&car-dups=n HTTP/1.1", file.root)]
    );
    assert_eq!(bytes.gateway, file.blocks.values().map(|block| block.bytes().len() as u64).sum::<u64>());
    for cid in file.blocks.keys() {
        assert!(sources.store.block(cid).unwrap().is_some(), "what came is kept");
    }
}

#[tokio::test]
async fn a_reader_that_keeps_nothing_asks_for_every_occurrence() {
    let file = File::new();
    let honest = Asked::start({
        let file = file.clone();
        move |request| match file.answer(request) {
            Reply::Bytes(bytes) if request.contains("dups=y") => {
                let at = bytes.windows(6).position(|window| window == b"dups=n").unwrap();
                Reply::Bytes([&bytes[..at], b"dups=y", &bytes[at + 6..]].concat())
            }
            other => other,
        }
    })
    .await;
    let (_folder, sources) = sources(&[&honest]).await;
    let sources = Sources { lease: None, ..sources };
    read_all(&file, &sources).await.unwrap();
    assert_eq!((honest.cars().len(), honest.blocks()), (1, 0));
    assert!(honest.cars()[0].contains("car-dups=y"));
    assert!(sources.store.block(&file.root).unwrap().is_none());
}

#[tokio::test]
async fn a_file_that_is_held_in_part_is_asked_for_from_there_on() {
    let file = File::new();
    let honest = Asked::honest(&file).await;
    let (_folder, sources) = sources(&[&honest]).await;
    let lease = sources.lease.clone().unwrap();
    lease.put(&file.blocks[&file.root]).unwrap();
    for leaf in &file.leaves()[..9] {
        lease.put(leaf).unwrap();
    }
    read_all(&file, &sources).await.unwrap();
    let [car] = &honest.cars()[..] else { panic!("{:?}", honest.cars()) };
    // Three leaves are asked for in the store at the same time; the first answer decides.
    let from: usize = car.split("entity-bytes=").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
    assert!(from >= 9 << 20, "{car}");
    assert_eq!(honest.blocks(), (from - (9 << 20)) >> 20, "those before it come one by one");
}

#[tokio::test]
async fn a_car_of_what_is_held_already_is_left_for_blocks() {
    let file = File::new();
    let honest = Asked::honest(&file).await;
    let (_folder, sources) = sources(&[&honest]).await;
    let lease = sources.lease.clone().unwrap();
    // Every leaf but the first and the last.
    let leaves = file.leaves();
    lease.put(&file.blocks[&file.root]).unwrap();
    for leaf in &leaves[1..11] {
        lease.put(leaf).unwrap();
    }
    let bytes = read_all(&file, &sources).await.unwrap();
    assert_eq!(bytes.gateway, 2 << 20);
    assert!(honest.blocks() <= 1 && honest.cars().len() == 1, "{:?}", honest.requests());
}

#[tokio::test]
async fn a_gateway_without_cars_is_asked_for_blocks() {
    for refusal in ["406 Not Acceptable", "400 Bad Request", "404 Not Found", "501 Not Implemented"] {
        let file = File::new();
        let simple = Asked::start({
            let file = file.clone();
            move |request| match request.contains("format=car") {
                true => answer(refusal, "", b""),
                false => file.answer(request),
            }
        })
        .await;
        let (_folder, sources) = sources(&[&simple]).await;
        read_all(&file, &sources).await.unwrap();
        assert_eq!((simple.cars().len(), simple.blocks()), (1, 13), "{refusal}");
    }
}

#[tokio::test]
async fn a_car_that_breaks_off_is_gone_on_with_by_the_next_gateway() {
    let file = File::new();
    let broken = Asked::start({
        let file = file.clone();
        move |request| match file.answer(request) {
            Reply::Bytes(bytes) if request.contains("format=car") => Reply::Bytes(bytes[..5 << 20].to_vec()),
            whole => whole,
        }
    })
    .await;
    let honest = Asked::honest(&file).await;
    let (_folder, sources) = sources(&[&broken, &honest]).await;
    read_all(&file, &sources).await.unwrap();
    assert_eq!((broken.cars().len(), broken.blocks(), honest.blocks()), (1, 0, 0));
    let [car] = &honest.cars()[..] else { panic!("{:?}", honest.cars()) };
    assert!(car.contains(&format!("entity-bytes={}:*", 4 << 20)), "{car}");
}

/// A lying answer for every request for a CAR.
type Lie = fn(&File) -> Reply;

#[tokio::test]
async fn no_lie_comes_in_and_blocks_follow() {
    fn lie(file: &File, at: usize, block: Block) -> Reply {
        let mut blocks = file.select("0:*");
        blocks[at] = block;
        answer("200 OK", CAR_TYPE, &car_of(file.root, &blocks))
    }
    let stranger = || Block::v0(vec![0; 9].into()).unwrap();
    let lies: [(&str, Lie); 5] = [
        ("a block that nobody asked for", |file| lie(file, 3, Block::v0(vec![0; 9].into()).unwrap())),
        ("blocks in another order", |file| lie(file, 3, file.leaves()[5].clone())),
        ("bytes that are not the block's", |file| {
            let mut car = car_of(file.root, &file.select("0:*"));
            car[6 << 20] ^= 1;
            answer("200 OK", CAR_TYPE, &car)
        }),
        ("a page", |_| answer("200 OK", "Content-Type: text/html\r\n", b"<html>")),
        ("sections without end", |file| {
            let identity = [&[11, 1, 0x55, 0, 7][..], b"padding"].concat();
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{CAR_TYPE}\r\n");
            let begin = [head.as_bytes(), &car::header(&[file.root])].concat();
            Reply::Endless(begin, identity.repeat(4096))
        }),
    ];
    for (what, lie) in lies {
        let file = File::new();
        let liar = Asked::start({
            let file = file.clone();
            move |request| if request.contains("format=car") { lie(&file) } else { file.answer(request) }
        })
        .await;
        let (_folder, sources) = sources(&[&liar]).await;
        read_all(&file, &sources).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(liar.cars().len(), 1, "{what}");
        assert!(liar.blocks() > 0, "{what}");
        assert!(sources.store.block(stranger().cid()).unwrap().is_none(), "{what}");
    }
}
