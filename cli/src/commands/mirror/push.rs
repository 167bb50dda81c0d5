//! `nipfs mirror push`: the mirror fetches from us what one ssh connection tells it.
//!
//! We run the user's `ssh` (or `$NIPFS_SSH`) once, with our terminal, so that it may ask for a
//! password. The mirror gets our addresses and the narinfos on its standard input and answers with
//! JSON lines; the NARs themselves travel over bitswap.

use super::{Push, show};
use crate::args::MirrorPush;
use crate::commands::{App, cache, out_of_turn};
use crate::outcome::{Stop, Tally};
use nipfs_node::control::protocol::{Class, Done, Failure, Item, Request};
use nipfs_proto::nix::narinfo::NarInfo;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Longest line in bytes that the mirror may send.
const MAX_LINE: u64 = 1 << 20;

/// Runs the verb.
pub(crate) async fn run(app: &App<'_>, args: &MirrorPush) -> Result<(), Stop> {
    let peers = addresses(app).await?;
    let mut tally = Tally::default();
    let (mut waiting, narinfos) = collect(app, &app.settings.cache.value, &mut tally)?;
    if !narinfos.is_empty() {
        let mut child = ssh(args)?;
        let input = child.stdin.take();
        let push = serde_json::to_vec(&Push { peers, narinfos }).map_err(|error| Stop::writing(&error.into()))?;
        let writing = tokio::spawn(async move {
            // The mirror's answer, or its silence, tells what went wrong.
            if let Some(mut input) = input {
                let _ = input.write_all(&push).await;
            }
        });
        let ended = answers(app, &mut child, &mut waiting, &mut tally).await;
        writing.abort();
        let Ended { status, explained } = ended?;
        if !waiting.is_empty() {
            let failure = silent(args, waiting.len(), status);
            if !explained {
                return Err(failure.into());
            }
            app.printer.failure(&failure);
        }
    }
    tally.outcome()
}

/// Where the mirror can reach us.
async fn addresses(app: &App<'_>) -> Result<Vec<String>, Failure> {
    let done = app.ask(Request::Hello).await?;
    match done {
        Done::Hello { serving: true, addresses, .. } if !addresses.is_empty() => Ok(addresses),
        Done::Hello { .. } => {
            let state = app.settings.state.value.display();
            let failure = Failure::new(Class::Usage, format!("no node serves, so the mirror could not fetch: {state}"));
            Err(failure.hint("run: nipfs serve"))
        }
        other => Err(out_of_turn(&other)),
    }
}

/// The store paths to be answered for, and the narinfos to send. One that cannot be sent has failed.
fn collect(app: &App<'_>, directory: &Path, tally: &mut Tally) -> Result<(BTreeSet<String>, Vec<String>), Stop> {
    let (mut paths, mut narinfos) = (BTreeSet::new(), Vec::new());
    for file in cache::narinfos(directory)? {
        match read(&file) {
            Ok(narinfo) => {
                paths.insert(narinfo.store_path().to_absolute_path());
                narinfos.push(narinfo.text().to_owned());
            }
            Err(failure) => {
                app.printer.failure(&failure);
                tally.failure(failure.class);
            }
        }
    }
    Ok((paths, narinfos))
}

fn read(file: &Path) -> Result<NarInfo, Failure> {
    let narinfo = cache::read_narinfo(file)?;
    if narinfo.root().is_none() {
        let failure = Failure::new(Class::Failed, format!("narinfo without an IPFSHash: {}", file.display()));
        let directory = file.parent().unwrap_or_else(|| Path::new(".")).display();
        return Err(failure.hint(format!("run: nipfs publish {directory}")));
    }
    Ok(narinfo)
}

fn ssh(args: &MirrorPush) -> Result<Child, Failure> {
    if args.ssh.starts_with('-') {
        return Err(Failure::new(Class::Usage, format!("not a host: {}", args.ssh)));
    }
    let ssh = std::env::var("NIPFS_SSH").ok().filter(|ssh| !ssh.trim().is_empty()).unwrap_or_else(|| "ssh".to_owned());
    let mut words = ssh.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("ssh"));
    command.args(words).arg(&args.ssh).arg(&args.remote_command).args(["mirror", "receive"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command.spawn().map_err(|error| Failure::new(Class::Usage, format!("cannot run: {ssh}")).because(&error))
}

/// How the mirror ended.
struct Ended {
    status: ExitStatus,
    /// Whether it named failures of what we did not send under that name: they tell why it was silent.
    explained: bool,
}

/// Shows what the mirror answers until it ends. What it answered for no longer waits.
async fn answers(
    app: &App<'_>,
    child: &mut Child,
    waiting: &mut BTreeSet<String>,
    tally: &mut Tally,
) -> Result<Ended, Stop> {
    let mut explained = false;
    let failed = |error: &std::io::Error| Failure::new(Class::Failed, "ssh failed").because(error);
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            let length = (&mut output).take(MAX_LINE).read_until(b'\n', &mut line).await;
            if length.map_err(|error| failed(&error))? == 0 {
                break;
            }
            let Ok(item) = serde_json::from_slice::<Item>(&line) else {
                // A login script that greets, or a nipfs that does not understand us.
                app.printer.warning(format!("the mirror says: {}", String::from_utf8_lossy(&line).trim_end()));
                continue;
            };
            match &item {
                Item::Mirrored { path, .. } | Item::Failed { path, .. } if waiting.remove(path) => {
                    show(app, item, tally)?;
                }
                Item::Failed { path, failure } => {
                    app.item_failed(path, failure);
                    tally.failure(failure.class);
                    explained = true;
                }
                _ => {}
            }
        }
    }
    Ok(Ended { status: child.wait().await.map_err(|error| failed(&error))?, explained })
}

fn silent(args: &MirrorPush, paths: usize, status: ExitStatus) -> Failure {
    let failure = Failure::new(Class::Failed, format!("the mirror did not answer for {paths} paths: {}", args.ssh))
        .because(&std::io::Error::other(format!("ssh ended with {status}")));
    match status.code() {
        Some(127) => failure.hint("nipfs is not in the mirror's PATH: name it with --remote-command"),
        _ => failure.hint(format!("run: ssh {} {} status", args.ssh, args.remote_command)),
    }
}
