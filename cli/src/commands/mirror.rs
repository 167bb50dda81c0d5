//! `nipfs mirror`: hold and serve what somebody else published.

mod push;

use super::{App, out_of_turn, patiently};
use crate::args::{Mirror, MirrorPull};
use crate::config::Origin;
use crate::outcome::{Stop, Tally};
use crate::printer::Printer;
use nipfs_node::control::protocol::{Class, Failure, Item, Request, SourceBytes};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `mirror push` sends to `mirror receive`, as one JSON document.
#[derive(Debug, Serialize, Deserialize)]
struct Push {
    /// Where the pusher can be reached: multiaddrs that end in `/p2p/ID`.
    peers: Vec<String>,
    /// Whole narinfo texts.
    narinfos: Vec<String>,
}

/// Longest [`Push`] in bytes: about 500,000 paths.
const MAX_PUSH: u64 = 512 << 20;

/// Longest list of store paths in bytes.
const MAX_LIST: u64 = 64 << 20;
/// The same for one that comes over HTTP.
const MAX_DOWNLOAD: usize = 16 << 20;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many bytes of strings go into one request: well below a frame, with room for JSON's escapes.
const BATCH: usize = 1 << 20;

/// The state of one path on the mirror.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    path: String,
    root: Option<String>,
    nar_size: Option<u64>,
    /// `held`, `fetched`, `complete`, `incomplete` or `failed`.
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<SourceBytes>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.state)
    }
}

/// Runs the verb.
pub(crate) async fn run(app: &App<'_>, verb: Mirror) -> Result<(), Stop> {
    match verb {
        Mirror::Push(args) => push::run(app, &args).await,
        Mirror::Pull(args) => pull(app, args).await,
        Mirror::Status => status(app).await,
        Mirror::Receive(_) => receive(app).await,
    }
}

async fn pull(app: &App<'_>, args: MirrorPull) -> Result<(), Stop> {
    let request = |store_paths| Request::MirrorPull {
        url: args.url.clone(),
        trusted_keys: app.settings.trusted_public_keys.value.clone(),
        peers: app.settings.peers.value.clone(),
        store_paths,
    };
    let requests: Vec<_> = match &args.store_paths {
        None => vec![request(None)],
        Some(file) => batches(read_list(file.clone()).await?).map(|paths| request(Some(paths))).collect(),
    };
    let mut tally = Tally::default();
    for request in requests {
        app.items(request, |item| show(app, item, &mut tally)).await?;
    }
    tally.outcome()
}

async fn status(app: &App<'_>) -> Result<(), Stop> {
    let mut tally = Tally::default();
    app.items(Request::PinList { check: true }, |item| {
        let Item::Pin { target: path, root, nar_size, complete, .. } = item else {
            return Err(out_of_turn(&item).into());
        };
        let complete = complete == Some(true);
        if complete {
            tally.success()
        } else {
            tally.failure(Class::Damaged)
        }
        let state = if complete { "complete" } else { "incomplete" }.to_owned();
        app.printer.item(&Line { path, root: Some(root), nar_size: Some(nar_size), state, bytes: None })
    })
    .await?;
    tally.outcome()
}

/// The far end of `mirror push`: items go back as JSON lines, one by one.
async fn receive(app: &App<'_>) -> Result<(), Stop> {
    let text = patiently(|| read_all(std::io::stdin(), MAX_PUSH, "standard input")).await?;
    let push: Push = serde_json::from_str(&text).map_err(|error| {
        Failure::new(Class::Usage, "not what `nipfs mirror push` sends: standard input").because(&error)
    })?;
    let keys = &app.settings.trusted_public_keys;
    // The pusher came in over ssh: that is trust enough, unless the owner of this node says otherwise.
    let trusted_keys = if keys.origin == Origin::Default { Vec::new() } else { keys.value.clone() };
    let mut tally = Tally::default();
    for narinfos in batches(push.narinfos) {
        let request =
            Request::MirrorReceive { peers: push.peers.clone(), narinfos, trusted_keys: trusted_keys.clone() };
        app.items(request, |item| {
            match &item {
                Item::Failed { failure, .. } => tally.failure(failure.class),
                _ => tally.success(),
            }
            send(app.printer, &item)
        })
        .await?;
    }
    tally.outcome()
}

fn send(printer: &Printer, item: &Item) -> Result<(), Stop> {
    let line = serde_json::to_string(item).map_err(|error| Stop::writing(&error.into()))?;
    printer.raw(format!("{line}\n").as_bytes())
}

/// Prints the state of one path, on whichever side it was mirrored.
fn show(app: &App<'_>, item: Item, tally: &mut Tally) -> Result<(), Stop> {
    match item {
        Item::Mirrored { path, root, nar_size, state, bytes } => {
            tally.success();
            app.printer.item(&Line { path, root: Some(root), nar_size: Some(nar_size), state, bytes: Some(bytes) })
        }
        Item::Failed { path, failure } => {
            app.item_failed(&path, &failure);
            tally.failure(failure.class);
            app.printer.item(&Line { path, root: None, nar_size: None, state: "failed".to_owned(), bytes: None })
        }
        other => Err(out_of_turn(&other).into()),
    }
}

/// Cuts a list so that each part fits in a request. An empty list has no parts.
fn batches(list: Vec<String>) -> impl Iterator<Item = Vec<String>> {
    let mut rest = list.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut batch = Vec::new();
        let mut size = 0;
        while let Some(text) = rest.next_if(|text| size == 0 || size + text.len() <= BATCH) {
            size += text.len().max(1);
            batch.push(text);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

async fn read_list(file: PathBuf) -> Result<Vec<String>, Failure> {
    let text = match file.to_str().filter(|name| name.starts_with("http://") || name.starts_with("https://")) {
        Some(url) => download(url).await?,
        None => read_file(file).await?,
    };
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

async fn download(url: &str) -> Result<String, Failure> {
    let text = nipfs_node::upstream::text(url, MAX_DOWNLOAD, PATIENCE).await?;
    text.ok_or_else(|| Failure::new(Class::NotFound, format!("not there: {url}")))
}

async fn read_file(file: PathBuf) -> Result<String, Failure> {
    patiently(move || {
        if file == Path::new("-") {
            return read_all(std::io::stdin(), MAX_LIST, "standard input");
        }
        let name = file.display().to_string();
        let unreadable =
            |error: std::io::Error| Failure::new(Class::Usage, format!("cannot read: {name}")).because(&error);
        read_all(std::fs::File::open(&file).map_err(unreadable)?, MAX_LIST, &name)
    })
    .await
}

fn read_all(input: impl Read, limit: u64, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = input.take(limit + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::new(Class::Usage, format!("cannot read: {name}")).because(&error))?;
    if text.len() as u64 > limit {
        return Err(Failure::new(Class::Usage, format!("longer than {limit} bytes: {name}")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fit_and_lose_nothing() {
        let list: Vec<String> = (0..50).map(|n| n.to_string().repeat(n * 2_000)).collect();
        let parts: Vec<_> = batches(list.clone()).collect();
        assert!(parts.len() > 1);
        for part in &parts {
            assert!(part.len() == 1 || part.iter().map(String::len).sum::<usize>() <= BATCH);
        }
        assert_eq!(parts.concat(), list);
        assert_eq!(batches(Vec::new()).count(), 0);
        assert_eq!(batches(vec!["x".repeat(3 * BATCH), String::new()]).count(), 2);
    }

    #[test]
    fn input_is_bounded() {
        assert_eq!(read_all(&b"abc"[..], 3, "x").unwrap(), "abc");
        assert_eq!(read_all(&b"abcd"[..], 3, "x").unwrap_err().class, Class::Usage);
    }
}
