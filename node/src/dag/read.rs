//! Reading a UnixFS file in order: root → bytes, from the store first, then from peers (those that are
//! known, then those that can be found), then from gateways.
//!
//! Every block is checked against its CID before a byte of it comes out, and against the size its
//! parent gave it. At most a window of bytes is in flight or waiting, so memory does not grow with the
//! file. Blocks that came from outside are put into the store under the reader's lease: a reader that
//! is killed loses none of them. If the lease shows them, peers that wait for one are told.
//!
//! Blocks ahead of the reader are asked for in read order; but when there is a choice of peers, in an
//! order of the reader's own out of many more ([`scatter`]).

mod cars;
mod scatter;
mod window;

use crate::network::{Multiaddr, PeerId, Session, WantError};
use crate::store::{Lease, Store, StoreError};
use crate::upstream::{Car, Gateway, Router};
use bytes::Bytes;
use cars::Cars;
use futures::future::{BoxFuture, Shared, join_all};
use futures::stream::{FuturesUnordered, Stream, StreamExt, once, select, try_unfold};
use futures::{FutureExt, pin_mut};
use nipfs_proto::Cid;
use nipfs_proto::block::{Block, DAG_PB, Digest};
use nipfs_proto::dag::walk::{FileWalk, WalkError};
use scatter::Scatter;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use window::Window;

/// Bytes asked for ahead of the reader when only the store is asked: enough to keep the threads busy, and hundreds of
/// readers fit in memory. For the network see [`window`].
const NEAR_WINDOW: u64 = 1 << 20;

/// Threads that read blocks at once: enough to keep a disk busy. The allocator keeps memory for each.
static READING: Semaphore = Semaphore::const_new(4);

/// Where blocks come from, in the order they are asked.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The own store.
    pub store: Store,
    /// Keeps blocks that come from outside; `None` leaves them out of the store.
    pub lease: Option<Arc<Lease>>,
    /// Peers.
    pub session: Option<Arc<Session>>,
    /// Asked who else may have a DAG, when no peer of the session has it.
    pub routers: Arc<[Router]>,
    /// Roots of indexes of what is looked for: whoever has one is asked then, too.
    pub indexes: Option<Indexes>,
    /// Trustless gateways, asked for what no peer has: for the rest of a file at once where that pays.
    pub gateways: Arc<[Gateway]>,
}

/// Roots of indexes, once caches have named them.
pub type Indexes = Shared<BoxFuture<'static, Arc<[Cid]>>>;

impl Sources {
    /// Only the store.
    #[must_use]
    pub fn local(store: Store) -> Self {
        Self { store, lease: None, session: None, routers: Arc::new([]), indexes: None, gateways: Arc::new([]) }
    }

    fn is_near(&self) -> bool {
        self.session.is_none() && self.gateways.is_empty()
    }
}

/// Where the bytes of a NAR came from, in plain bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceBytes {
    /// Blocks that this store held already.
    pub local: u64,
    /// Blocks received from peers.
    pub bitswap: u64,
    /// Blocks received from gateways.
    pub gateway: u64,
    /// NAR bytes received over HTTP.
    pub http: u64,
}

/// Plain bytes by source, counted while reading. Shared between readers.
#[derive(Debug, Default)]
pub struct Counters {
    /// Blocks that the store held.
    pub local: AtomicU64,
    /// Blocks from peers.
    pub bitswap: AtomicU64,
    /// Blocks from gateways.
    pub gateway: AtomicU64,
    /// NAR bytes over HTTP (counted by the jobs).
    pub http: AtomicU64,
}

impl Counters {
    /// The figures now.
    #[must_use]
    pub fn snapshot(&self) -> SourceBytes {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SourceBytes {
            local: of(&self.local),
            bitswap: of(&self.bitswap),
            gateway: of(&self.gateway),
            http: of(&self.http),
        }
    }
}

/// One block of the DAG `root`, from the first source that has it.
///
/// # Errors
/// As reading.
pub async fn block(sources: &Sources, root: Cid, cid: Cid) -> Result<Block, ReadError> {
    let counters = Arc::new(Counters::default());
    match obtain(sources, &counters, root, cid).await? {
        Some((block, _)) => Ok(block),
        None => from_gateways(sources, &counters, root, cid).await,
    }
}

/// Why a read ended early. Bytes that came out before were right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No source has the block.
    #[error("nobody has block {cid} of {root}")]
    Missing {
        /// The file's root.
        root: Cid,
        /// The block.
        cid: Cid,
    },
    /// The store failed.
    #[error("cannot read {root} from the store")]
    Store {
        /// The file's root.
        root: Cid,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// The blocks do not make a file.
    #[error("{root} is not a readable file")]
    Dag {
        /// The file's root.
        root: Cid,
        /// The cause.
        #[source]
        source: WalkError,
    },
    /// The node is shutting down.
    #[error("stopped while reading {root}")]
    Stopped {
        /// The file's root.
        root: Cid,
    },
}

/// What became of something that was asked for.
enum Arrived {
    /// A block, and how long it took if it came from a peer.
    Block(Block, Option<Duration>),
    /// Neither the store nor a peer has the block.
    Nowhere(Cid),
    /// The next block of a CAR.
    Brought(Box<Car>, Block),
    /// Nothing more comes from the CAR.
    CarOver,
    Failed(ReadError),
}

struct Reader {
    root: Cid,
    walk: FileWalk,
    sources: Sources,
    counters: Arc<Counters>,
    /// What is on its way, and the bytes of the file in it and below, at most those of a block.
    asked: HashMap<Cid, u64>,
    /// The order in which blocks are asked for, when there is a choice of peers.
    scatter: Option<Scatter>,
    arriving: FuturesUnordered<BoxFuture<'static, Arrived>>,
    cars: Cars,
    /// Why nothing more is asked for. What came before it in the file is still handed out.
    failed: Option<ReadError>,
    /// When something may have to come over the network.
    window: Option<Window>,
}

/// The bytes of `range` of the file `root`, in order.
pub fn read(
    sources: Sources,
    counters: Arc<Counters>,
    root: Cid,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, ReadError>> + Send {
    let (asked, arriving, failed) = (HashMap::new(), FuturesUnordered::new(), None);
    let has_choice = sources.lease.is_some() && sources.session.as_ref().is_some_and(|session| session.has_choice());
    let scatter = has_choice.then(Scatter::default);
    let window = (!sources.is_near()).then(Window::open);
    // A file of one block is best asked for as that.
    let cars = Cars::new(if root.codec() == DAG_PB { &sources.gateways } else { &[] });
    let reader = FileWalk::new(root, range)
        .map(|walk| Reader { root, walk, sources, counters, asked, scatter, arriving, cars, failed, window })
        .map_err(|source| ReadError::Dag { root, source });
    try_unfold(Some(reader), |reader| async move {
        let Some(reader) = reader else { return Ok(None) };
        let mut reader = reader?;
        Ok(reader.next().await?.map(|bytes| (bytes, Some(Ok(reader)))))
    })
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            self.ask();
            // Starts what was just asked for, and takes what came while the reader was busy.
            let mut took = false;
            while let Some(Some(arrived)) = self.arriving.next().now_or_never() {
                self.take(arrived);
                took = true;
            }
            if let Some(bytes) = self.walk.next_bytes() {
                self.cars.read();
                return Ok(Some(bytes));
            }
            if self.walk.is_done() {
                return Ok(None);
            }
            match self.arriving.next().await {
                Some(arrived) => self.take(arrived),
                // What came names what to ask for next.
                None if took && self.failed.is_none() => {}
                // What the reader waits for is not what the CAR has brought.
                None if self.cars.is_open() && self.failed.is_none() => self.end_car(),
                None => {
                    let missing = ReadError::Missing { root: self.root, cid: self.root };
                    return Err(self.failed.take().unwrap_or(missing));
                }
            }
        }
    }

    fn ask(&mut self) {
        self.unpark();
        if self.failed.is_some() {
            return;
        }
        let window = self.window.as_ref().map_or(NEAR_WINDOW, Window::bytes);
        let chosen = match &self.scatter {
            Some(scatter) => scatter.choose(&self.walk, &self.asked, window),
            None => self.walk.upcoming(window).collect(),
        };
        for (cid, size) in chosen {
            if let Entry::Vacant(asked) = self.asked.entry(cid) {
                asked.insert(size);
                let (sources, counters) = (self.sources.clone(), self.counters.clone());
                self.arriving.push(Box::pin(arrive(sources, counters, self.root, cid)));
            }
        }
        if let Some(car) = self.cars.resume(window) {
            self.arriving.push(Box::pin(cars::pull(car, self.sources.clone(), self.root)));
        }
    }

    /// Gets what came before its turn, which is near now, out of the store. It was counted when it came.
    fn unpark(&mut self) {
        let Some(scatter) = &mut self.scatter else { return };
        for (cid, size) in scatter.unpark(&self.walk) {
            self.asked.insert(cid, size);
            let (sources, root) = (self.sources.clone(), self.root);
            self.arriving.push(Box::pin(arrive(sources, Arc::default(), root, cid)));
        }
    }

    fn take(&mut self, arrived: Arrived) {
        match arrived {
            Arrived::Block(block, waited) => {
                if let (Some(window), Some(waited)) = (&mut self.window, waited) {
                    window.came(block.bytes().len() as u64, waited, Instant::now());
                }
                let size = self.asked.remove(block.cid());
                self.feed(&block, size);
            }
            Arrived::Nowhere(cid) => self.ask_gateways(cid),
            Arrived::Brought(car, block) => {
                let size = block.bytes().len() as u64;
                let asked = self.asked.remove(block.cid());
                let wanted = self.feed(&block, asked);
                if wanted {
                    self.counters.gateway.fetch_add(size, Ordering::Relaxed);
                }
                if !self.cars.brought(car, block.cid(), size, wanted) {
                    self.end_car();
                }
            }
            Arrived::CarOver => self.end_car(),
            Arrived::Failed(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Takes a block that was `asked` for as a part of so many bytes, if it was. Whether it was wanted.
    fn feed(&mut self, block: &Block, asked: Option<u64>) -> bool {
        if self.scatter.as_mut().is_some_and(|scatter| scatter.park(&self.walk, block, asked)) {
            return true;
        }
        let fed = self.walk.feed(block).map_err(|source| ReadError::Dag { root: self.root, source });
        fed.unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            false
        })
    }

    /// Asks the gateways for `cid`, which is to be had nowhere else: as a part of the file, or by itself.
    fn ask_gateways(&mut self, cid: Cid) {
        let Some(offset) = self.walk.offset_of(&cid) else {
            // It came by a CAR in the meantime.
            self.asked.remove(&cid);
            return;
        };
        let (sources, counters, root) = (self.sources.clone(), self.counters.clone(), self.root);
        if !self.cars.awaits(cid, offset) {
            let raw = async move {
                let block = from_gateways(&sources, &counters, root, cid).await;
                block.map_or_else(Arrived::Failed, |block| Arrived::Block(block, None))
            };
            self.arriving.push(Box::pin(raw));
        } else if let Some(gateway) = self.cars.next_gateway(offset) {
            self.arriving.push(Box::pin(cars::open(gateway, sources, root, offset)));
        }
    }

    /// Gets what the CAR did not bring elsewhere: by the next gateway's from the first of it on, or one by one.
    fn end_car(&mut self) {
        let mut left: Vec<(Option<u64>, Cid)> =
            self.cars.close().into_iter().map(|cid| (self.walk.offset_of(&cid), cid)).collect();
        left.sort_unstable();
        for (_, cid) in left {
            self.ask_gateways(cid);
        }
    }
}

async fn arrive(sources: Sources, counters: Arc<Counters>, root: Cid, cid: Cid) -> Arrived {
    match obtain(&sources, &counters, root, cid).await {
        Ok(Some((block, waited))) => Arrived::Block(block, waited),
        Ok(None) => Arrived::Nowhere(cid),
        Err(error) => Arrived::Failed(error),
    }
}

/// One block, from the store or else from a peer, and how long that took; `None` when neither has it.
async fn obtain(
    sources: &Sources,
    counters: &Counters,
    root: Cid,
    cid: Cid,
) -> Result<Option<(Block, Option<Duration>)>, ReadError> {
    if let Some(block) = from_store(sources, root, cid).await? {
        counters.local.fetch_add(block.bytes().len() as u64, Ordering::Relaxed);
        return Ok(Some((block, None)));
    }
    let Some(session) = &sources.session else { return Ok(None) };
    let mut asked = Instant::now();
    let mut answer = session.want(cid).await;
    if is_missing(&answer)
        && let Some(later) = Box::pin(ask_more(sources, session, root, cid)).await
    {
        (answer, asked) = later;
    }
    let waited = asked.elapsed();
    match answer {
        Ok((block, _)) => {
            counters.bitswap.fetch_add(block.bytes().len() as u64, Ordering::Relaxed);
            Ok(Some((keep(sources, root, block).await?, Some(waited))))
        }
        Err(WantError::Missing(_)) => Ok(None),
        Err(_) => Err(ReadError::Stopped { root }),
    }
}

/// What a peer of the session says to a want.
type Answer = Result<(Block, PeerId), WantError>;

/// Looks for peers beyond those of the session, and asks them for a block: the last answer, and when they were asked. `None`
/// when nobody was found.
async fn ask_more(sources: &Sources, session: &Session, root: Cid, cid: Cid) -> Option<(Answer, Instant)> {
    let hints = |cid| providers(Arc::clone(&sources.routers), cid);
    let by_index = async {
        let indexes = match &sources.indexes {
            Some(indexes) => indexes.clone().await,
            None => Arc::new([]),
        };
        indexes.iter().map(|index| session.search_index(*index, hints(*index))).collect::<FuturesUnordered<_>>()
    };
    let searches = select(by_index.flatten_stream(), once(session.search(root, hints(root))));
    pin_mut!(searches);
    let mut brought = false;
    while let Some(found) = searches.next().await {
        if found {
            let asked = Instant::now();
            let answer = session.want(cid).await;
            if !is_missing(&answer) {
                return Some((answer, asked));
            }
            brought = true;
        }
    }
    // A search tells of the first who joined: others may have by now.
    let asked = Instant::now();
    if brought { Some((session.want(cid).await, asked)) } else { None }
}

/// One block, from the store.
async fn from_store(sources: &Sources, root: Cid, cid: Cid) -> Result<Option<Block>, ReadError> {
    let failed = |source| ReadError::Store { root, source };
    // Most blocks of a DAG that is fetched are not here, and to find that out no thread is needed.
    let digest = Digest::of_cid(&cid).ok().flatten();
    if digest.map_or(Ok(true), |digest| sources.store.may_have(&digest)).map_err(failed)? {
        let store = sources.store.clone();
        match blocking(root, move || store.block(&cid)).await? {
            // A damaged block is not served; another source may have it whole.
            Err(damaged @ StoreError::Damaged { .. }) => tracing::error!("{damaged}"),
            found => return found.map_err(failed),
        }
    }
    Ok(None)
}

/// One block, from the first gateway that has it.
async fn from_gateways(sources: &Sources, counters: &Counters, root: Cid, cid: Cid) -> Result<Block, ReadError> {
    for gateway in sources.gateways.iter() {
        match gateway.block(&cid).await {
            Ok(Some(block)) => {
                counters.gateway.fetch_add(block.bytes().len() as u64, Ordering::Relaxed);
                return keep(sources, root, block).await;
            }
            Ok(None) => {}
            Err(error) => tracing::info!("gateway: {error}"),
        }
    }
    Err(ReadError::Missing { root, cid })
}

/// Puts a block that came from outside into the store, and tells peers that wait for it if they may have it.
async fn keep(sources: &Sources, root: Cid, block: Block) -> Result<Block, ReadError> {
    let Some(lease) = sources.lease.clone() else { return Ok(block) };
    let put = lease.put_later(block.clone()).await.map_err(|_| ReadError::Stopped { root })?;
    put.map_err(|source| ReadError::Store { root, source })?;
    if let Some(session) = sources.session.as_ref().filter(|_| lease.shows()) {
        session.stored(*block.cid()).await;
    }
    Ok(block)
}

fn is_missing(answer: &Answer) -> bool {
    matches!(answer, Err(WantError::Missing(_)))
}

/// Whom the routers name as providers of a root.
async fn providers(routers: Arc<[Router]>, root: Cid) -> Vec<(PeerId, Vec<Multiaddr>)> {
    let asked = routers.iter().map(|router| async move {
        router.providers(&root).await.unwrap_or_else(|error| {
            tracing::info!("router: {error}");
            Vec::new()
        })
    });
    let found = join_all(asked).await.into_iter().flatten();
    found.map(|provider| (provider.peer, provider.addrs)).collect()
}

async fn blocking<T: Send + 'static>(root: Cid, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ReadError> {
    let _turn = READING.acquire().await;
    tokio::task::spawn_blocking(work).await.map_err(|_| ReadError::Stopped { root })
}

#[cfg(test)]
mod tests;
