//! Looking for peers that may have a DAG, after those that a session knows had their chance.
//!
//! Every search ends: at [`PATIENCE`], or when nobody is left to wait for. Whoever it connects joins the session, also
//! after the first, whose coming is the answer. What a search finds is a hint: a peer that has nothing costs a dial.
//!
//! A node that has just started knows nobody yet, neither nearby nor in the tables. So while it is [`YOUNG`], a search
//! that no table was asked for does not end for want of peers; who comes to be known while it is open is asked too.

use super::{Reply, Task};
use crate::network::allowance::{Allowance, FOUND, few};
use crate::scope::Scope;
use libp2p::kad::QueryId;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use nipfs_proto::Cid;
use nipfs_proto::bitswap::client::SessionId;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long a search goes on.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a node may take to hear of the first peers: mDNS asks after half a second, and again after one more.
const YOUNG: Duration = Duration::from_secs(3);
/// Searches at once; another finds nobody.
const MAX_SEARCHES: usize = 32;
/// Peers that one search may bring.
const MAX_FOUND: usize = 8;

/// The searches under way, the oldest first.
#[derive(Debug)]
pub(super) struct Searches {
    open: Vec<Search>,
    next_id: u64,
    allowance: Allowance,
    /// Until when the node is young.
    young: Instant,
}

#[derive(Debug)]
struct Search {
    id: u64,
    session: SessionId,
    /// What to ask for; `None` when somebody else asks.
    root: Option<Cid>,
    /// Taken when the first peer joins.
    reply: Option<Reply<bool>>,
    found: HashSet<PeerId>,
    dials: HashMap<PeerId, ConnectionId>,
    /// What the DHTs are being asked.
    queries: HashSet<(Scope, QueryId)>,
    /// The DHTs that were.
    asked: Vec<Scope>,
    deadline: Instant,
}

impl Search {
    fn answer(&mut self, found: bool) {
        if let Some(reply) = self.reply.take() {
            // Who asked may have gone.
            _ = reply.send(found);
        }
    }
}

impl Searches {
    /// For a node that starts now, and may hear of peers that nobody names to it if it `finds` them.
    pub(super) fn new(finds: bool, now: Instant) -> Self {
        let young = if finds { now + YOUNG } else { now };
        Self { open: Vec::new(), next_id: 0, allowance: Allowance::new(FOUND), young }
    }

    /// When a search may be over for the time alone.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let oldest = self.open.first()?.deadline;
        Some(if now < self.young { oldest.min(self.young) } else { oldest })
    }

    /// The searches that take whoever comes to be known.
    fn asking(&self) -> Vec<(u64, Cid)> {
        self.open.iter().filter_map(|search| Some((search.id, search.root?))).collect()
    }

    /// Ends the searches that wait for nobody, have waited long enough, or are not waited for. The queries that are needless then.
    fn sweep(&mut self, now: Instant) -> Vec<(Scope, QueryId)> {
        let mut needless = Vec::new();
        self.open.retain_mut(|search| {
            if search.found.len() >= MAX_FOUND {
                needless.extend(search.queries.drain());
            }
            let is_early = search.root.is_some() && search.asked.is_empty() && now < self.young;
            let has_hope = is_early || !(search.dials.is_empty() && search.queries.is_empty());
            // Who asked may have found it elsewhere.
            let is_wanted = search.reply.as_ref().is_none_or(|reply| !reply.is_closed());
            let waits = is_wanted && has_hope && now < search.deadline;
            if !waits {
                search.answer(false);
                needless.extend(search.queries.drain());
            }
            waits
        });
        needless
    }
}

impl Task {
    /// Looks for peers who may have a root, for a session: nearby, and where the DHTs say. The answer says whether somebody
    /// new can be asked.
    pub(super) fn search(&mut self, session: SessionId, root: &Cid, reply: Reply<bool>) {
        self.begin(session, Some(*root), reply);
        self.ask_known();
    }

    /// The same with peers that somebody else has found.
    pub(super) fn meet(&mut self, session: SessionId, peers: Vec<(PeerId, Vec<Multiaddr>)>, reply: Reply<bool>) {
        if let Some(id) = self.begin(session, None, reply) {
            for (peer, addrs) in peers {
                self.found(id, peer, addrs);
            }
        }
        self.sweep_searches();
    }

    fn begin(&mut self, session: SessionId, root: Option<Cid>, reply: Reply<bool>) -> Option<u64> {
        if self.searches.open.len() >= MAX_SEARCHES {
            self.sweep_searches();
        }
        if self.searches.open.len() >= MAX_SEARCHES {
            // Who asked may have gone.
            _ = reply.send(false);
            return None;
        }
        let id = self.searches.next_id;
        self.searches.next_id += 1;
        self.searches.open.push(Search {
            id,
            session,
            root,
            reply: Some(reply),
            found: HashSet::new(),
            dials: HashMap::new(),
            queries: HashSet::new(),
            asked: Vec::new(),
            deadline: Instant::now() + PATIENCE,
        });
        Some(id)
    }

    /// Lets the open searches ask whoever is known by now, and was not asked before: nearby, and the DHTs.
    pub(super) fn ask_known(&mut self) {
        let nearby: Vec<_> = self.nearby.iter().map(|(peer, addrs)| (peer, addrs.to_vec())).collect();
        let peopled = self.peopled();
        for (id, root) in self.searches.asking() {
            for scope in &peopled {
                self.query(id, *scope, &root);
            }
            for (peer, addrs) in &nearby {
                self.found(id, *peer, addrs.clone());
            }
        }
        self.sweep_searches();
    }

    /// Asks a DHT for a search, once.
    fn query(&mut self, id: u64, scope: Scope, root: &Cid) {
        let unasked = |search: &Search| search.id == id && !search.asked.contains(&scope);
        let Some(at) = self.searches.open.iter().position(unasked) else { return };
        if let Some(query) = self.dht(scope).map(|dht| dht.find(root)) {
            let search = &mut self.searches.open[at];
            search.asked.push(scope);
            search.queries.insert((scope, query));
        }
    }

    /// A search has come upon a peer, which joins its session when it is connected.
    fn found(&mut self, id: u64, peer: PeerId, addrs: Vec<Multiaddr>) {
        let Searches { open, allowance, .. } = &mut self.searches;
        let Some(search) = open.iter_mut().find(|search| search.id == id) else { return };
        if peer == *self.swarm.local_peer_id() || search.found.len() >= MAX_FOUND || search.found.contains(&peer) {
            return;
        }
        if self.swarm.is_connected(&peer) {
            search.found.insert(peer);
            if self.wants.join(search.session, peer) {
                let session = search.session;
                search.answer(true);
                self.joined(session, peer);
            }
            return;
        }
        let addrs = few(addrs);
        if addrs.is_empty() || !allowance.take(addrs.len(), Instant::now()) {
            // Perhaps somebody names it again.
            return;
        }
        search.found.insert(peer);
        let options =
            DialOpts::peer_id(peer).addresses(addrs).condition(PeerCondition::Always).allocate_new_port().build();
        let dial = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => drop(search.dials.insert(peer, dial)),
            Err(error) => tracing::debug!(%peer, %error, "cannot dial a peer that was found"),
        }
    }

    /// A peer has connected: it joins the sessions whose searches wait for it.
    pub(super) fn join_searches(&mut self, peer: PeerId) {
        let mut sessions = Vec::new();
        for search in &mut self.searches.open {
            if search.dials.remove(&peer).is_some() {
                search.answer(true);
                sessions.push(search.session);
            }
        }
        for session in sessions {
            if self.wants.join(session, peer) {
                self.joined(session, peer);
            }
        }
        self.sweep_searches();
    }

    /// A dial has failed.
    pub(super) fn dial_of_search_failed(&mut self, connection: ConnectionId) {
        for search in &mut self.searches.open {
            search.dials.retain(|_, dial| *dial != connection);
        }
        self.sweep_searches();
    }

    /// A DHT names providers. They are dialled while the query goes on: it is the query that knows their addresses.
    pub(super) fn on_providers(&mut self, query: (Scope, QueryId), providers: HashSet<PeerId>) {
        let Some(search) = self.searches.open.iter().find(|search| search.queries.contains(&query)) else { return };
        let id = search.id;
        for peer in providers {
            let addrs = self.dht(query.0).map(|dht| dht.addrs_of(peer)).unwrap_or_default();
            self.found(id, peer, addrs);
        }
        self.sweep_searches();
    }

    /// A DHT has nothing more to say.
    pub(super) fn query_over(&mut self, query: (Scope, QueryId)) {
        for search in &mut self.searches.open {
            search.queries.remove(&query);
        }
        self.sweep_searches();
    }

    pub(super) fn sweep_searches(&mut self) {
        for (scope, query) in self.searches.sweep(Instant::now()) {
            if let Some(dht) = self.dht(scope) {
                dht.stop(query);
            }
        }
    }

    fn joined(&mut self, session: SessionId, peer: PeerId) {
        self.swarm.behaviour_mut().bitswap.add_peer(session, peer);
        self.known.session_opened(peer);
        self.keep_if_wanted(peer);
    }
}
