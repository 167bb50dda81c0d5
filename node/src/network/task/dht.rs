//! The distributed hash tables: getting into them, saying what we provide, and hearing who provides what.

use super::{Reply, Task};
use crate::network::dht::Dht;
use crate::network::{ProvideError, dns, swarm};
use crate::scope::Scope;
use libp2p::kad::{self, GetProvidersOk, QueryId, QueryResult};
use libp2p::{Multiaddr, PeerId};
use nipfs_proto::Cid;
use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often the addresses of the first nodes are tried while the tables know nobody.
const ENTRY_PAUSE: Duration = Duration::from_secs(60);

/// The way into the tables: nodes that are there for it.
#[derive(Debug)]
pub(super) struct Entry {
    addrs: Vec<Multiaddr>,
    lookups: JoinSet<(PeerId, io::Result<Vec<Multiaddr>>)>,
    /// When to look whether the tables know anybody.
    at: Option<Instant>,
}

impl Entry {
    pub(super) fn new(addrs: Vec<Multiaddr>, now: Instant) -> Self {
        let at = (!addrs.is_empty()).then_some(now);
        Self { addrs, lookups: JoinSet::new(), at }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.at
    }

    /// The next node whose addresses were looked up. Never, when there is none. Cancel-safe.
    pub(super) async fn looked_up(&mut self) -> (PeerId, io::Result<Vec<Multiaddr>>) {
        loop {
            match self.lookups.join_next().await {
                Some(Ok(found)) => return found,
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    pub(super) async fn shutdown(&mut self) {
        self.lookups.shutdown().await;
    }
}

/// A root that is being announced.
#[derive(Debug)]
pub(super) struct Provide {
    queries: HashSet<(Scope, QueryId)>,
    /// Some node was told.
    told: bool,
    reply: Reply<Result<(), ProvideError>>,
}

impl Task {
    pub(super) fn dht(&mut self, scope: Scope) -> Option<&mut Dht> {
        let behaviour = self.swarm.behaviour_mut();
        match scope {
            Scope::Lan => behaviour.lan_dht.as_mut(),
            Scope::World => behaviour.world_dht.as_mut(),
        }
    }

    /// The tables that know somebody to ask.
    pub(super) fn peopled(&mut self) -> Vec<Scope> {
        Scope::ALL.into_iter().filter(|scope| self.dht(*scope).is_some_and(Dht::has_nodes)).collect()
    }

    pub(super) fn enter(&mut self, now: Instant) {
        if self.entry.at.is_none_or(|at| now < at) {
            return;
        }
        self.entry.at = Some(now + ENTRY_PAUSE);
        if !self.peopled().is_empty() || !self.entry.lookups.is_empty() {
            return;
        }
        for addr in &self.entry.addrs {
            let Some(peer) = swarm::peer_of(addr) else { continue };
            let addr = addr.clone();
            self.entry.lookups.spawn(async move { (peer, dns::resolve(&[addr]).await) });
        }
    }

    pub(super) fn on_entry(&mut self, peer: PeerId, found: io::Result<Vec<Multiaddr>>) {
        match found {
            Ok(addrs) => {
                let addrs = addrs.into_iter().filter(|addr| swarm::peer_of(addr) == Some(peer));
                let addrs: Vec<_> = addrs.collect();
                for scope in Scope::ALL {
                    if let Some(dht) = self.dht(scope) {
                        dht.enter(peer, &addrs);
                    }
                }
                self.ask_known();
            }
            Err(error) => tracing::info!(%peer, %error, "the DHT's first node is not found"),
        }
    }

    pub(super) fn provide(&mut self, root: Cid, reply: Reply<Result<(), ProvideError>>) {
        let peopled = self.peopled();
        let mut error = ProvideError::Unreachable;
        let mut queries = HashSet::new();
        for scope in Scope::ALL {
            let Some(dht) = self.dht(scope).filter(|dht| dht.has_address()) else { continue };
            error = ProvideError::Nobody;
            if peopled.contains(&scope) {
                queries.extend(dht.provide(&root).map(|query| (scope, query)));
            }
        }
        if queries.is_empty() {
            // Who asked may have gone.
            _ = reply.send(Err(error));
        } else {
            self.provides.push(Provide { queries, told: false, reply });
        }
    }

    pub(super) fn on_dht(&mut self, scope: Scope, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, stats, step } = event else { return };
        match result {
            QueryResult::StartProviding(outcome) => {
                // Nobody to tell is no failure to Kademlia.
                self.provided((scope, id), outcome.is_ok() && stats.num_successes() > 0);
            }
            QueryResult::GetProviders(outcome) => {
                if let Ok(GetProvidersOk::FoundProviders { providers, .. }) = outcome {
                    self.on_providers((scope, id), providers);
                }
                if step.last {
                    self.query_over((scope, id));
                }
            }
            _ => {}
        }
    }

    fn provided(&mut self, query: (Scope, QueryId), told: bool) {
        let Some(index) = self.provides.iter().position(|provide| provide.queries.contains(&query)) else { return };
        let provide = &mut self.provides[index];
        provide.told |= told;
        provide.queries.remove(&query);
        if provide.queries.is_empty() {
            let Provide { told, reply, .. } = self.provides.swap_remove(index);
            // Who asked may have gone.
            _ = reply.send(if told { Ok(()) } else { Err(ProvideError::Nobody) });
        }
    }
}
