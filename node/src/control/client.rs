//! The client's end of a control connection.
//!
//! A [`Client`] asks one thing at a time: [`Client::request`] sends a request and borrows the client
//! until its [`Exchange`] has ended. What was staged on a connection lives as long as the client.

use crate::control::address::socket_address;
use crate::control::frame::{End, Frame, FrameError};
use crate::control::protocol::{Class, Done, Failure, Item, Report, Request};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use std::io;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The socket is there but cannot be used.
    #[error("cannot connect to the control socket of {}", state.display())]
    Connect {
        /// The state directory.
        state: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The node ended the connection in the middle of a request.
    #[error("the node ended the connection before it answered")]
    Closed,
    /// The node sent what does not belong here.
    #[error("the node sent a frame out of turn: {0}")]
    OutOfTurn(String),
    /// The node refused or failed.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The connection failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Failed(failure) => failure,
            error => Self::from_error(Class::Failed, &error),
        }
    }
}

/// What the node says while it works on a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Progress.
    Report(Report),
    /// One result among several.
    Item(Item),
    /// Bytes of the current path's NAR.
    Data(Bytes),
    /// All data of the current path is taken back.
    Restart,
    /// The request ended well. Nothing follows.
    Done(Done),
}

/// A connection to a node.
pub struct Client(End);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the `serve` that owns `state`. `None` when none runs: there is no socket, or a dead
    /// process left it behind.
    ///
    /// # Errors
    /// [`ClientError::Connect`], as when the socket belongs to another user.
    pub async fn connect(state: &Path) -> Result<Option<Self>, ClientError> {
        let connected = match socket_address(state) {
            Ok(address) => UnixStream::connect(address.path()).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => Ok(Some(Self::over(End::over(stream)))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(source) => Err(ClientError::Connect { state: state.to_owned(), source }),
        }
    }

    /// Speaks with a node at the other end.
    #[must_use]
    pub fn over(end: End) -> Self {
        Self(end)
    }

    /// Asks. The exchange that comes back must be read to its end before the next request.
    ///
    /// # Errors
    /// [`ClientError::Frame`] when the connection fails or the request is longer than a frame.
    pub async fn request(&mut self, request: Request) -> Result<Exchange<'_>, ClientError> {
        self.0.output.send(Frame::Request(request)).await?;
        Ok(Exchange { client: self, early: None })
    }

    /// Asks something that is answered by its end alone; reports and items on the way are dropped.
    ///
    /// # Errors
    /// As [`Exchange::next`].
    pub async fn call(&mut self, request: Request) -> Result<Done, ClientError> {
        self.request(request).await?.done().await
    }
}

/// A request under way.
#[derive(Debug)]
#[must_use = "the answer must be read before the next request"]
pub struct Exchange<'a> {
    client: &'a mut Client,
    /// What came while data was being sent: the end may overtake the flush of the last piece.
    early: Option<Event>,
}

impl Exchange<'_> {
    /// The next thing that the node says. Ends with [`Event::Done`] or an error. Safe to cancel.
    ///
    /// # Errors
    /// [`ClientError::Failed`] when the node refused, [`ClientError`] otherwise when the connection failed.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        match self.early.take() {
            Some(event) => Ok(event),
            None => event(self.client.0.input.next().await),
        }
    }

    /// Reads on until the end, dropping what comes before.
    ///
    /// # Errors
    /// As [`Exchange::next`].
    pub async fn done(mut self) -> Result<Done, ClientError> {
        loop {
            if let Event::Done(done) = self.next().await? {
                return Ok(done);
            }
        }
    }

    /// Sends bytes of the NAR that a [`Request::Stage`] announced, at most
    /// [`DATA_PIECE`](crate::control::frame::DATA_PIECE) at once.
    ///
    /// # Errors
    /// [`ClientError::Failed`] when the node gives up (no space): it waits for [`Self::end_data`], and says nothing more.
    pub async fn send_data(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.send(Frame::Data(bytes)).await
    }

    /// Says that the NAR is complete.
    ///
    /// # Errors
    /// [`ClientError::Frame`] when the connection fails.
    pub async fn end_data(&mut self) -> Result<(), ClientError> {
        // Whatever the node thinks of the data, it reads on to here.
        Ok(self.client.0.output.send(Frame::End).await?)
    }

    /// Says that the rest of the NAR will not come. What was staged on the connection before stays.
    ///
    /// # Errors
    /// [`ClientError`] when the connection fails.
    pub async fn give_up(self, failure: Failure) -> Result<(), ClientError> {
        self.client.0.output.send(Frame::Failed(failure)).await?;
        match self.done().await {
            Ok(done) => Err(ClientError::OutOfTurn(format!("{done:?}"))),
            Err(ClientError::Failed(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Listens while it sends: a node that failed may no longer read.
    async fn send(&mut self, frame: Frame) -> Result<(), ClientError> {
        let mut sending = self.client.0.output.send(frame);
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return Ok(sent?),
                frame = self.client.0.input.next() => match event(frame)? {
                    Event::Report(_) => {}
                    other if self.early.is_none() => self.early = Some(other),
                    other => return Err(ClientError::OutOfTurn(format!("{other:?}"))),
                },
            }
        }
    }
}

fn event(frame: Option<Result<Frame, FrameError>>) -> Result<Event, ClientError> {
    match frame.ok_or(ClientError::Closed)?? {
        Frame::Report(report) => Ok(Event::Report(report)),
        Frame::Item(item) => Ok(Event::Item(item)),
        Frame::Data(bytes) => Ok(Event::Data(bytes)),
        Frame::Restart => Ok(Event::Restart),
        Frame::Done(done) => Ok(Event::Done(done)),
        Frame::Failed(failure) => Err(ClientError::Failed(failure)),
        frame @ (Frame::Request(_) | Frame::End) => Err(ClientError::OutOfTurn(format!("{frame:?}"))),
    }
}

#[cfg(test)]
mod tests;
