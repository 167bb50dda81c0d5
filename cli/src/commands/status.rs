//! `nipfs id` and `nipfs status`: which node this is and what it holds.

use super::{App, out_of_turn};
use crate::outcome::Stop;
use crate::size;
use nipfs_node::control::protocol::{Announced, Done, Request, SourceBytes, Status};
use serde::Serialize;
use std::fmt;

/// What `id` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Id {
    peer_id: String,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.peer_id)
    }
}

/// Prints the peer id.
pub(crate) async fn id(app: &App<'_>) -> Result<(), Stop> {
    match app.ask(Request::Hello).await? {
        Done::Hello { peer_id, .. } => app.printer.item(&Id { peer_id }),
        other => Err(out_of_turn(&other).into()),
    }
}

/// What `status` prints.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Figures(Status);

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status {
            peer_id,
            addresses,
            http,
            peers,
            roots,
            blocks,
            stored_bytes,
            logical_bytes,
            bytes,
            serving,
            announced,
        } = &self.0;
        let SourceBytes { local, bitswap, gateway, http: by_http } = bytes;
        writeln!(f, "peer id    {peer_id}")?;
        for address in addresses {
            writeln!(f, "address    {address}")?;
        }
        writeln!(f, "serving    {}", if *serving { http.as_deref().unwrap_or("peers only") } else { "no" })?;
        writeln!(f, "peers      {}", peers.len())?;
        writeln!(f, "roots      {roots}")?;
        if let Some(Announced { roots, told, index, failure }) = announced {
            let index = index.as_ref().map(|index| format!("; index {index}")).unwrap_or_default();
            let failure = failure.as_ref().map(|failure| format!("; {failure}")).unwrap_or_default();
            writeln!(f, "announced  {told} of {roots}{index}{failure}")?;
        }
        let (stored, logical) = (size::show(*stored_bytes), size::show(*logical_bytes));
        writeln!(f, "blocks     {blocks} ({stored} on disk, {logical} plain)")?;
        let [local, bitswap, gateway, by_http] = [local, bitswap, gateway, by_http].map(|bytes| size::show(*bytes));
        write!(f, "moved      {local} local, {bitswap} bitswap, {gateway} gateway, {by_http} http")
    }
}

/// Prints the figures of the node.
pub(crate) async fn status(app: &App<'_>) -> Result<(), Stop> {
    match app.ask(Request::Status).await? {
        Done::Status(status) => app.printer.item(&Figures(status)),
        other => Err(out_of_turn(&other).into()),
    }
}
