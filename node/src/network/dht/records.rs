//! Provider records that other nodes left with us while we are a server of the DHT. Bounded in every direction, for
//! anybody may send them: keys, records a key, addresses a record, bytes an address.
//!
//! What this node itself provides is not here, and so never handed out twice or after its time: the announcer knows it.

use crate::scope::Scope;
use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::iter::{self, Empty};
use std::time::Instant;

/// Keys; when there are more, the expired ones go, or else the new one is refused.
const MAX_KEYS: usize = 4096;
/// Bytes of a key; a multihash of 64 bytes has 66.
const MAX_KEY: usize = 80;
/// Records of one key. The first stay: who comes later cannot push them out.
const MAX_PROVIDERS: usize = 8;
/// Addresses of one record.
const MAX_ADDRS: usize = 4;
/// Bytes of an address.
const MAX_ADDR: usize = 128;

/// The records.
#[derive(Debug)]
pub(in crate::network) struct Records {
    own: PeerId,
    scope: Scope,
    keys: HashMap<RecordKey, Vec<ProviderRecord>>,
}

impl Records {
    pub(super) fn new(own: PeerId, scope: Scope) -> Self {
        Self { own, scope, keys: HashMap::new() }
    }

    /// Takes a stranger's record, as far as it fits.
    pub(super) fn keep(&mut self, mut record: ProviderRecord, now: Instant) {
        record.addresses.retain(|addr| addr.len() <= MAX_ADDR && self.scope.contains(addr));
        record.addresses.truncate(MAX_ADDRS);
        record.addresses.shrink_to_fit();
        if record.addresses.is_empty() || record.key.as_ref().len() > MAX_KEY {
            return;
        }
        if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(&record.key) {
            self.keys.retain(|_, records| {
                records.retain(|record| !record.is_expired(now));
                !records.is_empty()
            });
            if self.keys.len() >= MAX_KEYS {
                return;
            }
        }
        let records = self.keys.entry(record.key.clone()).or_default();
        records.retain(|old| old.provider != record.provider && !old.is_expired(now));
        if records.len() < MAX_PROVIDERS {
            records.push(record);
        }
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        // Kademlia offers what this node is about to provide; others' records come through `keep`.
        if record.provider == self.own { Ok(()) } else { Err(Error::MaxProvidedKeys) }
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        self.keys.get(key).cloned().unwrap_or_default()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if let Entry::Occupied(mut records) = self.keys.entry(key.clone()) {
            records.get_mut().retain(|record| record.provider != *provider);
            if records.get().is_empty() {
                records.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(key: u64, addrs: &[&str], expires: Instant) -> ProviderRecord {
        let addresses = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
        let key = RecordKey::new(&key.to_be_bytes());
        ProviderRecord { key, provider: PeerId::random(), expires: Some(expires), addresses }
    }

    #[test]
    fn a_flood_of_records_fills_no_memory_and_pushes_nobody_out() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let mut records = Records::new(PeerId::random(), Scope::Lan);
        let first = record(0, &["/ip4/10.0.0.1/tcp/1"], later);
        records.keep(first.clone(), now);
        for _ in 0..100 {
            records.keep(record(0, &["/ip4/10.0.0.1/tcp/1"; 100], later), now);
        }
        let kept = records.providers(&first.key);
        assert_eq!((kept.len(), &kept[0]), (MAX_PROVIDERS, &first));
        assert!(kept.iter().all(|record| record.addresses.len() <= MAX_ADDRS));
        for key in 1..10_000 {
            records.keep(record(key, &["/ip4/10.0.0.1/tcp/1"], later), now);
        }
        assert_eq!(records.keys.len(), MAX_KEYS);
        assert_eq!(records.providers(&first.key)[0], first);
        // Their time comes.
        records.keep(record(10_000, &["/ip4/10.0.0.1/tcp/1"], later + Duration::from_secs(1)), later);
        assert_eq!(records.keys.len(), 1);
    }

    #[test]
    fn a_record_without_an_address_of_the_scope_is_not_kept() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        for (scope, wrong) in [(Scope::World, "/ip4/192.168.1.1/tcp/22"), (Scope::Lan, "/ip4/8.8.8.8/tcp/53")] {
            let mut records = Records::new(PeerId::random(), scope);
            records.keep(record(1, &[], later), now);
            records.keep(record(1, &[wrong, "/dns4/victim.example.org/tcp/1"], later), now);
            assert!(records.keys.is_empty());
        }
    }

    #[test]
    fn what_is_provided_here_takes_no_place() {
        let own = PeerId::random();
        let mut records = Records::new(own, Scope::Lan);
        let mine = ProviderRecord::new(RecordKey::new(b"key"), own, Vec::new());
        records.add_provider(mine.clone()).unwrap();
        assert_eq!(records.providers(&mine.key), []);
    }
}
