//! The node's end of a control connection, and the socket it listens on.

use super::address::{SocketAddress, socket_address};
use super::frame::{DATA_PIECE, End, Frame, FrameError, Input, Output};
use super::protocol::{Class, Done, Failure, Keep, Request};
use crate::Node;
use crate::cache::{CacheError, Staged};
use crate::dag::pipe::pipe;
use crate::dag::read::{Counters, Sources, read};
use crate::jobs::{self, Event, Events};
use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt, StreamExt, pin_mut};
use nipfs_proto::dag::Profile;
use nipfs_proto::nix::NarHash;
use nipfs_proto::nix::narinfo::NarInfo;
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// How long to wait after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// NARs that one connection may have staged and not committed: many more than a client commits at once.
const STAGED: usize = 1024;

/// The listening socket. Only our own user and root get in.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    address: SocketAddress,
}

impl Door {
    /// Makes `STATE/control.sock`, mode 0600.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(node: &Node) -> std::io::Result<Self> {
        let address = socket_address(node.state())?;
        // The store's lock says that no other node uses this directory: a socket here is a dead one's.
        match std::fs::remove_file(address.path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(address.path())?;
        std::fs::set_permissions(address.path(), std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, address })
    }

    /// Accepts connections until `stop`, and ends those that are open then.
    pub async fn serve(self, node: Node, stop: CancellationToken) {
        let us = rustix::process::geteuid().as_raw();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let tasks = TaskTracker::new();
        while let Some((stream, place)) = self.accept(&places, &stop).await {
            if !stream.peer_cred().is_ok_and(|peer| peer.uid() == us || peer.uid() == 0) {
                continue;
            }
            let (node, stop) = (node.clone(), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = converse(node, End::over(stream)) => {}
                }
                drop(place);
            });
        }
        tasks.close();
        tasks.wait().await;
        let _ = std::fs::remove_file(self.address.path());
    }

    /// The next connection and its place among [`CONNECTIONS`]; `None` when it is time to stop.
    async fn accept(
        &self,
        places: &Arc<Semaphore>,
        stop: &CancellationToken,
    ) -> Option<(UnixStream, OwnedSemaphorePermit)> {
        loop {
            let next = async {
                let place = places.clone().acquire_owned().await.ok()?;
                Some((self.listener.accept().await, place))
            };
            let (accepted, place) = tokio::select! {
                () = stop.cancelled() => return None,
                next = next => next?,
            };
            match accepted {
                Ok((stream, _)) => return Some((stream, place)),
                Err(error) => {
                    // Out of file descriptors, most likely: waiting is all that helps.
                    tracing::warn!("control socket: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Answers the requests of one connection, in order, until it ends.
pub async fn converse(node: Node, end: End) {
    let (staged, committed) = (HashMap::new(), Vec::new());
    let mut connection = Connection { node, input: end.input, output: end.output, staged, committed };
    if let Err(error) = connection.run().await {
        tracing::debug!("control connection: {error}");
    }
}

struct Connection {
    node: Node,
    input: Input,
    output: Output,
    /// What the client has staged, or knows to be here, by NarHash, until it is committed.
    staged: HashMap<NarHash, Arc<Staged>>,
    /// What was committed last: GC leaves it alone while the client writes the narinfos.
    committed: Vec<Arc<Staged>>,
}

impl Connection {
    async fn run(&mut self) -> Result<(), FrameError> {
        while let Some(frame) = self.input.next().await {
            let Frame::Request(request) = frame? else {
                let failure = Failure::new(Class::Usage, "a request was expected");
                return self.output.send(Frame::Failed(failure)).await;
            };
            self.committed.clear();
            let answer = match request {
                Request::Stage { profile } => match self.stage(&profile).await? {
                    Some(answer) => answer,
                    None => continue,
                },
                Request::StageOutside { path, profile } => self.stage_outside(path, &profile).await?,
                Request::Known { nar_hash, profile } => self.known(&nar_hash, &profile).await,
                Request::Commit { narinfos, keep } => Ok(self.commit(&narinfos, keep).await),
                request => {
                    let (events, receiver) = Events::channel();
                    let node = self.node.clone();
                    self.job(receiver, async move { run(&node, request, &events).await }.boxed()).await?
                }
            };
            self.output.send(answer.map_or_else(Frame::Failed, Frame::Done)).await?;
        }
        Ok(())
    }

    /// Imports the data frames that follow. A failed import is answered at once: a client that listens while it sends
    /// need not send the rest. `None` when the answer has been given.
    async fn stage(&mut self, profile: &str) -> Result<Option<Result<Done, Failure>>, FrameError> {
        let (feed, input) = pipe();
        let cache = self.node.cache().clone();
        let profile = parse_profile(profile);
        let import = profile.map(|profile| tokio::task::spawn_blocking(move || cache.stage(input, profile)));
        let complete = loop {
            match self.input.next().await.transpose()? {
                Some(Frame::Data(bytes)) => {
                    if feed.send(Ok(bytes)).await.is_err() {
                        break false;
                    }
                }
                Some(Frame::End) => break true,
                // It gave up, or has gone.
                _ => {
                    let _ = feed.send(Err(std::io::ErrorKind::UnexpectedEof.into())).await;
                    drop(feed);
                    if let Ok(import) = import {
                        // Nothing of it is left when the client hears so.
                        let _ = import.await;
                    }
                    return Ok(Some(Err(Failure::new(Class::Interrupted, "the client left in mid-NAR"))));
                }
            }
        };
        drop(feed);
        let answer = match import {
            Err(failure) => Err(failure),
            Ok(import) => match import.await {
                Ok(Ok(staged)) => self.keep(staged),
                Ok(Err(error)) => Err(error.into()),
                Err(error) => Err(Failure::from_error(Class::Failed, &error)),
            },
        };
        if complete {
            return Ok(Some(answer));
        }
        self.output.send(answer.map_or_else(Frame::Failed, Frame::Done)).await?;
        // To close now would take the answer away from a client that is still sending.
        while let Some(frame) = self.input.next().await {
            match frame? {
                Frame::Data(_) => {}
                Frame::Request(_) => return Ok(Some(Err(Failure::new(Class::Usage, "the NAR before was not ended")))),
                _ => break,
            }
        }
        Ok(None)
    }

    /// The root of a NAR that is here, which stays until it is committed or the connection ends.
    async fn known(&mut self, nar_hash: &str, profile: &str) -> Result<Done, Failure> {
        let (nar_hash, profile) = (parse_nar_hash(nar_hash)?, parse_profile(profile)?);
        let Some((root, nar_size)) = self.node.cache().root(&nar_hash, Some(profile))? else {
            return Ok(Done::Known { root: None });
        };
        let lease = Arc::new(self.node.store().lease());
        // Blocks may have been left to a mirror: then the NAR must be staged again.
        if !self.node.protect(root, &lease).await? {
            return Ok(Done::Known { root: None });
        }
        self.keep(Staged::by_reading(lease, root, Some(profile), nar_hash, nar_size))?;
        Ok(Done::Known { root: Some(root.to_string()) })
    }

    fn keep(&mut self, staged: Staged) -> Result<Done, Failure> {
        if self.staged.len() >= STAGED {
            let text = format!("more than {STAGED} NARs staged and not committed");
            return Err(Failure::new(Class::Usage, text));
        }
        let done = Done::Staged {
            root: staged.root.to_string(),
            nar_hash: staged.nar_hash.to_string(),
            nar_size: staged.nar_size,
            new_bytes: staged.new_bytes,
        };
        self.staged.insert(staged.nar_hash, Arc::new(staged));
        Ok(done)
    }

    async fn stage_outside(&mut self, path: String, profile: &str) -> Result<Result<Done, Failure>, FrameError> {
        let profile = match parse_profile(profile) {
            Ok(profile) => profile,
            Err(failure) => return Ok(Err(failure)),
        };
        let (events, receiver) = Events::channel();
        let node = self.node.clone();
        let staged = async move { jobs::keep::stage(&node, &path, profile, &events).await };
        let staged = self.job(receiver, staged.boxed()).await?;
        Ok(staged.and_then(|staged| self.keep(staged)))
    }

    async fn commit(&mut self, texts: &[String], keep: Keep) -> Done {
        let mut failures = vec![None; texts.len()];
        let (mut paths, mut places, mut roots) = (Vec::new(), Vec::new(), Vec::new());
        for (place, text) in texts.iter().enumerate() {
            match NarInfo::parse_unasked(text.as_bytes()) {
                Ok(narinfo) => {
                    roots.push(narinfo.root().map(|root| *root.cid()));
                    // Several may have the same NAR.
                    let staged = self.staged.get(&narinfo.nar_hash()).cloned();
                    paths.push((narinfo, staged));
                    places.push(place);
                }
                Err(error) => failures[place] = Some(Failure::from_error(Class::Refused, &error)),
            }
        }
        self.committed = paths.iter().filter_map(|(narinfo, _)| self.staged.remove(&narinfo.nar_hash())).collect();
        let committed = jobs::keep::commit(&self.node, paths, keep).await;
        let published = roots.into_iter().zip(&committed).filter(|(_, committed)| committed.is_ok());
        self.node.stored(published.filter_map(|(root, _)| root)).await;
        for (place, committed) in places.into_iter().zip(committed) {
            failures[place] = committed.err();
        }
        Done::Committed { failures }
    }

    /// Runs a job and passes its events on. A client that leaves cancels it.
    async fn job<T>(
        &mut self,
        mut receiver: mpsc::Receiver<Event>,
        mut job: BoxFuture<'_, Result<T, Failure>>,
    ) -> Result<Result<T, Failure>, FrameError> {
        let mut result = None;
        loop {
            tokio::select! {
                event = receiver.recv() => match event {
                    Some(event) => send_event(&mut self.output, event).await?,
                    None => break,
                },
                done = &mut job, if result.is_none() => {
                    result = Some(done);
                    // What the job emitted still waits: drain it, then answer.
                    receiver.close();
                }
                frame = self.input.next() => {
                    let gone = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
                    return Err(frame.and_then(Result::err).unwrap_or_else(|| gone.into()));
                }
            }
        }
        Ok(result.unwrap_or_else(|| Err(Failure::new(Class::Failed, "the job ended without a result"))))
    }
}

async fn send_event(output: &mut Output, event: Event) -> Result<(), FrameError> {
    match event {
        Event::Report(report) => output.send(Frame::Report(report)).await,
        Event::Item(item) => output.send(Frame::Item(item)).await,
        Event::Restart => output.send(Frame::Restart).await,
        Event::Data(mut bytes) => {
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(DATA_PIECE));
                output.send(Frame::Data(piece)).await?;
            }
            Ok(())
        }
    }
}

/// The one place where a verb meets its job.
async fn run(node: &Node, request: Request, events: &Events) -> Result<Done, Failure> {
    match request {
        Request::Hello => Ok(node.hello()),
        Request::Status => Ok(Done::Status(node.status().await?)),
        Request::Fetch(fetch) => jobs::fetch::fetch(node, fetch, events).await,
        Request::Nar { nar_hash } => nar(node, &nar_hash, events).await,
        Request::MirrorPull { url, trusted_keys, peers, store_paths } => {
            jobs::mirror::pull(node, (url, store_paths), &trusted_keys, &peers, events).await
        }
        Request::MirrorReceive { peers, narinfos, trusted_keys } => {
            jobs::mirror::receive(node, &peers, narinfos, &trusted_keys, events).await
        }
        Request::PinList { check } => jobs::pins::list(node, check, events).await,
        Request::PinAdd { target, peers } => jobs::pins::add(node, &target, &peers, events).await,
        Request::PinRemove { target } => jobs::pins::remove(node, &target).await,
        Request::Gc { dry_run, max_size, require_mirror } => {
            jobs::collect::collect(node, dry_run, max_size, require_mirror.as_deref(), events).await
        }
        Request::Verify { deep, repair, peers } => jobs::verify::verify(node, deep, repair, &peers, events).await,
        Request::Known { .. } | Request::Stage { .. } | Request::StageOutside { .. } | Request::Commit { .. } => {
            Err(Failure::new(Class::Usage, "not a job"))
        }
    }
}

async fn nar(node: &Node, nar_hash: &str, events: &Events) -> Result<Done, Failure> {
    let nar_hash = parse_nar_hash(nar_hash)?;
    let nowhere = || Failure::from(CacheError::NoNar { path: "NAR".to_owned(), nar_hash });
    let (root, size) = node.cache().root(&nar_hash, None)?.ok_or_else(nowhere)?;
    let bytes = read(Sources::local(node.store().clone()), Arc::new(Counters::default()), root, 0..size);
    pin_mut!(bytes);
    while let Some(chunk) = bytes.next().await {
        events.data(chunk?).await?;
    }
    Ok(Done::Ok)
}

fn parse_profile(name: &str) -> Result<Profile, Failure> {
    name.parse().map_err(|error| Failure::from_error(Class::Usage, &error))
}

fn parse_nar_hash(text: &str) -> Result<NarHash, Failure> {
    text.parse().map_err(|error| Failure::new(Class::Usage, format!("{text}: not a NarHash")).because(&error))
}
