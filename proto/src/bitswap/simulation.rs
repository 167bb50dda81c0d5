//! Machines with client and server that talk over links in virtual time.
//!
//! A [`World`] holds the machines, and the events that are still to come. Time jumps from event to
//! event, so that minutes pass in milliseconds; nothing is random but what a seed decides, and a failure
//! names it. Messages travel encoded. The machines' invariants are checked all the time.

use super::client::{self, Client, SessionId};
use super::message::{Message, Presence, Received, Want, WantKind};
use super::server::{self, HAVE_REPLACED_BY_BLOCK, LoadId, Loaded, MAX_WANTS, Outcome, Server};
use crate::Cid;
use crate::block::{Block, Digest};
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::{Duration, Instant};

mod runs;
mod swarm;

/// Events between two looks at the machines' invariants, which cost more than the events.
const CHECK_EVERY: u64 = 7;

/// How a machine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conduct {
    Honest,
    /// Sends nothing after this time.
    Silent(Duration),
    /// Says `HAVE` to everything and `DONT_HAVE` when it shall deliver.
    Liar,
    /// Sends other bytes than were asked for.
    Forger,
    /// Begins to answer and sends a byte a second of it.
    Trickle,
}

/// One direction between two machines.
#[derive(Debug, Clone, Copy)]
struct Link {
    latency: Duration,
    /// Bytes a second.
    rate: u64,
    /// When the last byte of what was sent so far has left: of messages with blocks, and of others.
    free: Duration,
    free_of_small: Duration,
}

impl Link {
    fn new(latency_ms: u64, rate: u64) -> Self {
        Self { latency: Duration::from_millis(latency_ms), rate, free: Duration::ZERO, free_of_small: Duration::ZERO }
    }

    fn transfer(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.rate as f64)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive {
        from: usize,
        to: usize,
        frame: Vec<u8>,
    },
    Progress {
        from: usize,
        to: usize,
        bytes: usize,
    },
    Written {
        from: usize,
        to: usize,
        bytes: usize,
    },
    Load {
        at: usize,
        id: LoadId,
        wants: Vec<(Cid, WantKind)>,
        budget: usize,
    },
    Tick {
        at: usize,
    },
    Disconnect {
        one: usize,
        other: usize,
    },
    Connect {
        one: usize,
        other: usize,
    },
    /// The stream on which `at` hears from `peer` breaks: what is on its way there is lost.
    Break {
        at: usize,
        peer: usize,
    },
    Close {
        at: usize,
        session: SessionId,
    },
    /// Nothing leaves on this link for a while.
    Pause {
        from: usize,
        to: usize,
        time: Duration,
    },
}

struct Machine {
    client: Client<usize>,
    server: Server<usize>,
    store: HashMap<Digest, Bytes>,
    conduct: Conduct,
    /// Open wants of this machine.
    wanted: BTreeSet<(SessionId, Cid)>,
    /// What it will want: one more for each block that comes.
    later: VecDeque<(SessionId, Cid)>,
    delivered: BTreeMap<(SessionId, Cid), usize>,
    missing: BTreeSet<(SessionId, Cid)>,
    stalls: Vec<usize>,
    /// Bytes of messages sent, and how many.
    bytes_out: usize,
    messages_out: usize,
    next_tick: Option<Duration>,
}

struct World {
    base: Instant,
    clock: Duration,
    machines: Vec<Machine>,
    links: HashMap<(usize, usize), Link>,
    /// What some machines send goes over one line, whoever gets it.
    uplinks: HashMap<usize, Link>,
    /// Pairs that lost their connection at some time.
    cut: BTreeSet<(usize, usize)>,
    /// By time, then in the order in which they were put in.
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    next_event: u64,
}

impl World {
    fn new(conducts: &[Conduct]) -> Self {
        let machine = |conduct: &Conduct| Machine {
            client: Client::new(),
            server: Server::new(),
            store: HashMap::new(),
            conduct: *conduct,
            wanted: BTreeSet::new(),
            later: VecDeque::new(),
            delivered: BTreeMap::new(),
            missing: BTreeSet::new(),
            stalls: Vec::new(),
            bytes_out: 0,
            messages_out: 0,
            next_tick: None,
        };
        Self {
            base: Instant::now(),
            clock: Duration::ZERO,
            machines: conducts.iter().map(machine).collect(),
            links: HashMap::new(),
            uplinks: HashMap::new(),
            cut: BTreeSet::new(),
            events: BinaryHeap::new(),
            next_event: 0,
        }
    }

    fn now(&self) -> Instant {
        self.base + self.clock
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((time, self.next_event, event)));
    }

    fn connect(&mut self, one: usize, other: usize, link: Link) {
        let free = self.clock;
        for (from, to) in [(one, other), (other, one)] {
            self.links.insert((from, to), Link { free, ..link });
            self.machines[from].client.connected(to);
            self.machines[from].server.connected(to);
        }
        self.settle(one);
        self.settle(other);
    }

    fn disconnect(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            if self.links.remove(&(from, to)).is_some() {
                self.cut.insert((from, to));
                self.machines[from].client.disconnected(to);
                self.machines[from].server.disconnected(to);
                self.settle(from);
            }
        }
    }

    fn put(&mut self, at: usize, block: &Block) {
        self.machines[at].store.insert(block.digest().unwrap(), block.bytes().clone());
        self.machines[at].server.stored(&[*block.cid()]);
    }

    fn want(&mut self, at: usize, session: SessionId, cids: impl IntoIterator<Item = Cid>) {
        for cid in cids {
            self.machines[at].wanted.insert((session, cid));
            self.machines[at].client.want(session, cid);
        }
        self.settle(at);
    }

    fn close(&mut self, at: usize, session: SessionId) {
        self.machines[at].wanted.retain(|(of, _)| *of != session);
        self.machines[at].client.close(session);
        self.settle(at);
    }

    fn cancel(&mut self, at: usize, session: SessionId, cid: Cid) {
        self.machines[at].wanted.remove(&(session, cid));
        self.machines[at].client.cancel(session, &cid);
        self.settle(at);
    }

    /// Runs until nothing is wanted any more, or until `limit`. True when nothing is.
    fn run(&mut self, limit: Duration) -> bool {
        while self.machines.iter().any(|machine| !machine.wanted.is_empty()) {
            if !self.step(limit) {
                return false;
            }
        }
        true
    }

    /// Takes the next event that comes before `limit`.
    fn step(&mut self, limit: Duration) -> bool {
        let Some(Reverse((time, _, event))) = self.events.pop() else { return false };
        if time > limit {
            return false;
        }
        self.clock = time;
        let at = self.happen(event);
        for machine in at {
            self.settle(machine);
        }
        true
    }

    /// Lets an event happen; the machines that it touches.
    fn happen(&mut self, event: Event) -> Vec<usize> {
        let now = self.now();
        match event {
            Event::Arrive { from, to, frame } if self.links.contains_key(&(from, to)) => {
                let received = Received::decode(frame.into()).expect("a machine's message");
                self.receive(from, to, received);
                vec![to]
            }
            Event::Progress { from, to, bytes } if self.links.contains_key(&(from, to)) => {
                self.machines[to].client.progress(from, bytes, now);
                if self.machines[from].conduct == Conduct::Trickle {
                    self.at(self.clock + Duration::from_secs(1), Event::Progress { from, to, bytes });
                }
                vec![to]
            }
            Event::Arrive { .. } | Event::Progress { .. } => vec![],
            Event::Written { from, to, bytes } => {
                self.machines[from].server.sent(to, bytes);
                vec![from]
            }
            Event::Load { at, id, wants, budget } => {
                let loaded = self.machines[at].load(&wants, budget);
                self.machines[at].server.loaded(id, loaded);
                vec![at]
            }
            Event::Tick { at } => {
                self.machines[at].next_tick = None;
                self.machines[at].client.tick(now);
                vec![at]
            }
            Event::Disconnect { one, other } => {
                self.disconnect(one, other);
                vec![]
            }
            Event::Connect { one, other } => {
                self.connect(one, other, Link::new(10, 10_000_000));
                vec![]
            }
            Event::Break { at, peer } => {
                self.events.retain(|Reverse((_, _, event))| {
                    let (Event::Arrive { from, to, .. } | Event::Progress { from, to, .. }) = event else {
                        return true;
                    };
                    (*from, *to) != (peer, at)
                });
                self.machines[at].client.stream_broke(peer, now);
                vec![at]
            }
            Event::Pause { from, to, time } => {
                let until = self.clock + time;
                self.links.entry((from, to)).and_modify(|link| link.free = link.free.max(until));
                vec![]
            }
            Event::Close { at, session } => {
                self.close(at, session);
                vec![]
            }
        }
    }

    fn receive(&mut self, from: usize, to: usize, received: Received) {
        let now = self.now();
        let machine = &mut self.machines[to];
        machine.client.received(from, received.blocks, &received.presences, &received.dropped, now);
        match machine.conduct {
            Conduct::Honest | Conduct::Silent(_) => machine.server.received(from, &received.wants, received.full),
            Conduct::Liar | Conduct::Forger => {
                let lies = received.wants.iter().filter(|want| !want.cancel);
                for message in lies.map(|want| lie(machine.conduct, want)).collect::<Vec<_>>() {
                    self.send(to, from, &message);
                }
            }
            Conduct::Trickle => {
                self.at(self.clock + Duration::from_secs(1), Event::Progress { from: to, to: from, bytes: 1 });
            }
        }
    }

    /// Lets a machine do all that it wants to do now, and sets its clock.
    fn settle(&mut self, at: usize) {
        let now = self.now();
        loop {
            if let Some(action) = self.machines[at].server.poll() {
                self.serve(at, action);
            } else if let Some(action) = self.machines[at].client.poll(now) {
                self.follow(at, action);
            } else {
                break;
            }
        }
        let machine = &mut self.machines[at];
        if self.next_event.is_multiple_of(CHECK_EVERY) {
            machine.client.check();
            for peer in self.links.keys().filter(|(from, _)| *from == at).map(|(_, to)| *to) {
                assert!(machine.server.wants(peer) <= MAX_WANTS);
            }
        }
        let wake = machine.client.next_wake().map(|wake| wake.saturating_duration_since(self.base).max(self.clock));
        if let Some(wake) = wake
            && machine.next_tick.is_none_or(|tick| wake < tick)
        {
            machine.next_tick = Some(wake);
            self.at(wake, Event::Tick { at });
        }
    }

    fn serve(&mut self, at: usize, action: server::Action<usize>) {
        match action {
            server::Action::Load(load) => {
                let server::Load { id, wants, budget, .. } = load;
                self.at(self.clock + Duration::from_micros(200), Event::Load { at, id, wants, budget });
            }
            server::Action::Send { peer, message } => self.send(at, peer, &message),
        }
    }

    fn follow(&mut self, at: usize, action: client::Action<usize>) {
        let machine = &mut self.machines[at];
        match action {
            client::Action::Send { peer, message } => {
                assert!(message.wants.len() <= MAX_WANTS);
                self.send(at, peer, &message);
            }
            client::Action::Deliver { session, peer, block } => {
                let want = (session, *block.cid());
                assert!(machine.wanted.remove(&want), "delivered without being wanted: {want:?}");
                assert_eq!(machine.delivered.insert(want, peer), None, "delivered twice: {want:?}");
                machine.store.insert(block.digest().unwrap(), block.bytes().clone());
                machine.server.stored(&[*block.cid()]);
                if let Some((session, cid)) = machine.later.pop_front() {
                    machine.wanted.insert((session, cid));
                    machine.client.want(session, cid);
                }
            }
            client::Action::Missing { session, cid } => {
                assert!(machine.wanted.remove(&(session, cid)), "missing without being wanted: {cid}");
                machine.missing.insert((session, cid));
            }
            client::Action::Stalled { peer } => machine.stalls.push(peer),
            client::Action::Disconnect { peer } => self.disconnect(at, peer),
        }
    }

    /// Puts a message on the link. Those without blocks overtake those with; else they keep their order.
    fn send(&mut self, from: usize, to: usize, message: &Message) {
        let Some(link) = self.links.get_mut(&(from, to)) else { return };
        let link = self.uplinks.get_mut(&from).unwrap_or(link);
        if matches!(self.machines[from].conduct, Conduct::Silent(since) if since <= self.clock) {
            return;
        }
        let frame = message.encode();
        let length = frame.len();
        let transfer = link.transfer(length);
        let free = if message.payloads.is_empty() { &mut link.free_of_small } else { &mut link.free };
        let end = (*free).max(self.clock) + transfer;
        let start = end - transfer;
        *free = end;
        let link = *link;
        self.machines[from].bytes_out += length;
        self.machines[from].messages_out += 1;
        for part in 1..length.div_ceil(64 << 10) {
            let time = start + link.transfer(part * (64 << 10)) + link.latency;
            self.at(time, Event::Progress { from, to, bytes: 64 << 10 });
        }
        self.at(end, Event::Written { from, to, bytes: length });
        self.at(end + link.latency, Event::Arrive { from, to, frame });
    }
}

impl Machine {
    fn load(&self, wants: &[(Cid, WantKind)], budget: usize) -> Vec<Loaded> {
        let (mut loaded, mut total) = (Vec::new(), 0);
        for (cid, kind) in wants {
            let outcome = match self.store.get(&Digest::of_cid(cid).unwrap().unwrap()) {
                None => Outcome::Absent,
                Some(bytes) if *kind == WantKind::Have && bytes.len() > HAVE_REPLACED_BY_BLOCK => Outcome::Have,
                Some(bytes) => {
                    total += bytes.len();
                    if total > budget && total > bytes.len() {
                        break;
                    }
                    Outcome::Block(bytes.clone())
                }
            };
            loaded.push(Loaded { cid: *cid, outcome });
        }
        loaded
    }
}

/// Runs something for each seed, on all processors.
fn with_seeds(seeds: Range<u64>, run: impl Fn(u64) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let (seeds, run) = (seeds.clone(), &run);
            scope.spawn(move || seeds.skip(first).step_by(threads).for_each(run));
        }
    });
}

/// What a machine that is not honest answers.
fn lie(conduct: Conduct, want: &Want) -> Message {
    if conduct == Conduct::Forger {
        let block = Block::v1(crate::block::RAW, Bytes::from(want.cid.to_bytes())).unwrap();
        let payload = super::message::Payload { cid: *block.cid(), bytes: block.bytes().clone() };
        return Message { payloads: vec![payload], ..Message::default() };
    }
    let presence = Presence { cid: want.cid, have: want.kind == WantKind::Have };
    Message { presences: vec![presence], ..Message::default() }
}
