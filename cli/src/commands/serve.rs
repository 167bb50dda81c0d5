//! `nipfs serve`: the node as a service, until a signal.

use super::{cache, key, publish};
use crate::config::{Settings, nix_state};
use crate::outcome::Stop;
use crate::printer::Printer;
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_node::http::Uploads;
use nipfs_node::serve::{Ready, Serve, serve};
use nipfs_node::upstream::{Gateway, Router, Upstream};
use nipfs_proto::nix::store_path::StorePath;
use serde::Serialize;
use std::error::Error;
use std::fmt;
use std::str::FromStr;

/// The line that tells whoever started us that they may begin.
#[derive(Debug, Serialize)]
struct Line {
    ready: bool,
    http: String,
    peer: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ready http={} peer={}", self.http, self.peer)
    }
}

/// Runs the verb. It listens for signals itself: a signal is how it ends well.
pub(crate) async fn run(settings: &Settings, printer: &Printer) -> Result<(), Stop> {
    let directory = settings.cache.value.clone();
    let informed = move |info: &str| {
        cache::renew_info(&directory)?;
        cache::write(&directory.join("nipfs-info"), info.as_bytes())
    };
    let ready = |ready: &Ready| {
        let peer = ready.peers.first().cloned().unwrap_or_default();
        match printer.item(&Line { ready: true, http: ready.http.clone(), peer }) {
            Err(Stop::Failed(failure)) => Err(failure),
            // A supervisor that does not read is no reason to stop serving.
            _ => Ok(()),
        }
    };
    let directory = settings.cache.value.clone();
    let dropped = move |paths: &[StorePath]| {
        for path in paths {
            if let Err(failure) = cache::retract(&directory, &path.to_absolute_path()) {
                tracing::warn!("{failure}");
            }
        }
    };
    Ok(serve(service(settings)?, informed, ready, dropped).await?)
}

/// What the settings say of a node that a verb opens for itself. It finds peers as the profile says; nobody finds it, for
/// it listens nowhere.
///
/// # Errors
/// Class `Usage`, naming the address that is none.
pub(crate) fn node(settings: &Settings) -> Result<nipfs_node::Settings, Failure> {
    let routers = settings.routers.value.iter().map(|url| Router::new(url));
    Ok(nipfs_node::Settings {
        state: settings.state.value.clone(),
        profile: settings.profile.value,
        routers: routers.collect::<Result<Vec<_>, _>>()?.into(),
        bootstrap: parse("multiaddr", &settings.bootstrap.value)?,
        nix_state: nix_state(),
        share_signed_by: settings.share_signed_by.value.clone(),
        ..nipfs_node::Settings::default()
    })
}

/// What the settings say of the service.
///
/// # Errors
/// Class `Usage`, naming the address or key that is none.
pub(crate) fn service(settings: &Settings) -> Result<Serve, Failure> {
    let node = nipfs_node::Settings {
        listen: parse("multiaddr", &settings.listen.value)?,
        peers: parse("multiaddr", &settings.peers.value)?,
        ..node(settings)?
    };
    Ok(Serve {
        node,
        http: settings.http.value,
        upstreams: settings.upstreams.value.iter().map(|url| Upstream::new(url)).collect::<Result<_, _>>()?,
        gateways: settings.gateways.value.iter().map(|url| Gateway::new(url)).collect::<Result<_, _>>()?,
        trusted_keys: parse("public key", &settings.trusted_public_keys.value)?,
        uploads: uploads(settings)?,
        max_size: settings.max_size.value,
    })
}

/// What lets clients upload, if they may.
fn uploads(settings: &Settings) -> Result<Option<Uploads>, Failure> {
    if !settings.enable_upload.value {
        return Ok(None);
    }
    let Some(file) = &settings.upload_token_file.value else {
        let failure = Failure::new(Class::Usage, "uploads need a token: --enable-upload without --upload-token-file");
        return Err(
            failure.hint("run: (umask 077; head -c 32 /dev/urandom | base64 > FILE), and add --upload-token-file FILE")
        );
    };
    Ok(Some(Uploads::new(key::load_token(file)?, publish::profile(settings)?)))
}

fn parse<T: FromStr<Err: Error + 'static>, C: FromIterator<T>>(what: &str, texts: &[String]) -> Result<C, Failure> {
    let parse = |text: &String| {
        let refused = |error: T::Err| Failure::new(Class::Usage, format!("not a {what}: {text}")).because(&error);
        text.parse().map_err(refused)
    };
    texts.iter().map(parse).collect()
}
