//! A delegated router: somebody who looks for providers for us, over HTTP (IPFS's `/routing/v1`, IPIP-337; the answer is
//! a JSON object or, as IPIP-412 has it, a record a line).
//!
//! An answer is a list of hints, from somebody who may be wrong or worse: what cannot be read in it is passed over, and so
//! are addresses of the local network, unless the router itself is in it.

use super::UpstreamError;
use super::client::Client;
use crate::scope::Scope;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use nipfs_proto::Cid;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// How long an answer may take, retries included.
const DEADLINE: Duration = Duration::from_secs(8);
/// Longest answer in bytes: a hundred providers with a dozen addresses each.
const MAX_ANSWER: usize = 256 << 10;
/// Providers that are taken from one answer.
const MAX_PROVIDERS: usize = 16;
/// Addresses of one provider.
const MAX_ADDRS: usize = 8;
/// The protocol by which blocks can be had from a provider.
const BITSWAP: &str = "transport-bitswap";

/// Somebody who may have what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its identity.
    pub peer: PeerId,
    /// Where it may be reached; never empty.
    pub addrs: Vec<Multiaddr>,
}

/// A delegated router. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Router {
    client: Client,
}

/// What is read of a record. Others of its fields, and records of other schemas, mean nothing here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Record {
    schema: String,
    #[serde(rename = "ID")]
    id: String,
    addrs: Option<Vec<String>>,
    protocols: Option<Vec<String>>,
    /// Of the schema that is no longer used.
    protocol: Option<String>,
}

impl Router {
    /// The router at `base`, below which `routing/v1/` is.
    ///
    /// # Errors
    /// [`UpstreamError::Address`] and [`UpstreamError::Setup`].
    pub fn new(base: &str) -> Result<Self, UpstreamError> {
        Client::new(base).map(|client| Self { client })
    }

    /// Who has the DAG of a root and can be asked for it over bitswap; empty when the router knows nobody.
    ///
    /// # Errors
    /// [`UpstreamError::Providers`] for what is no list of providers; all others of a small resource, after at most 8
    /// seconds.
    pub async fn providers(&self, root: &Cid) -> Result<Vec<Provider>, UpstreamError> {
        let url = self.client.resolve(&format!("routing/v1/providers/{root}"))?;
        let accept = Some("application/json, application/x-ndjson;q=0.9");
        let Some(answer) = self.client.small(&url, accept, MAX_ANSWER, DEADLINE).await? else { return Ok(Vec::new()) };
        let records = records(&answer).map_err(|source| UpstreamError::Providers { url: url.to_string(), source })?;
        let scopes = if self.client.is_local() { &Scope::ALL[..] } else { &[Scope::World] };
        Ok(records.into_iter().filter_map(|record| provider(record, scopes)).take(MAX_PROVIDERS).collect())
    }
}

/// The records of either form of an answer.
fn records(answer: &[u8]) -> Result<Vec<Value>, serde_json::Error> {
    let mut records = Vec::new();
    for value in serde_json::Deserializer::from_slice(answer).into_iter::<Value>() {
        let mut value = value?;
        match value.get_mut("Providers").map(Value::take) {
            Some(Value::Array(listed)) => records.extend(listed),
            // Nobody.
            Some(Value::Null) => {}
            Some(_) => return Err(serde::de::Error::custom("Providers is not a list")),
            None if value.is_object() => records.push(value),
            None => return Err(serde::de::Error::custom("neither an object of Providers nor a record")),
        }
    }
    Ok(records)
}

fn provider(record: Value, scopes: &[Scope]) -> Option<Provider> {
    let Record { schema, id, addrs, protocols, protocol } = serde_json::from_value(record).ok()?;
    let spoken: Vec<String> = protocols.into_iter().flatten().chain(protocol).collect();
    // One that does not say what it speaks may be asked.
    let speaks = spoken.is_empty() || spoken.iter().any(|protocol| protocol == BITSWAP);
    if !speaks || !matches!(&*schema, "peer" | "bitswap") {
        return None;
    }
    let peer: PeerId = id.parse().ok()?;
    let addrs = addrs.into_iter().flatten().filter_map(|addr| addr.parse().ok());
    let addrs = addrs.filter(|addr| scopes.iter().any(|scope| scope.contains(addr)) && may_lead_to(addr, peer));
    let addrs: Vec<_> = addrs.take(MAX_ADDRS).collect();
    (!addrs.is_empty()).then_some(Provider { peer, addrs })
}

/// An address that names somebody else at its end is none of the peer's.
fn may_lead_to(addr: &Multiaddr, peer: PeerId) -> bool {
    match addr.iter().last() {
        Some(Protocol::P2p(named)) => named == peer,
        _ => true,
    }
}

impl fmt::Display for Router {
    /// The base URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}

#[cfg(test)]
mod tests;
