//! Frames on a control connection, both ways.
//!
//! A frame is the length of its body (u32, big endian, at most [`MAX_FRAME`]), a kind (one byte) and
//! the body. [`Codec`] reads and writes them over any byte stream. The read buffer grows with the
//! bytes that arrive, never with the length that a peer announces; reading is safe to cancel. Within one
//! process frames pass as they are ([`pair`]).

use crate::control::protocol::{Done, Failure, Item, MAX_FRAME, Report, Request};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::channel::mpsc;
use futures::stream::BoxStream;
use futures::{Sink, SinkExt as _, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Decoder, Encoder, FramedRead, FramedWrite};

/// Length and kind.
const HEADER: usize = 5;

/// How many bytes of a NAR a sender puts into one [`Frame::Data`].
pub const DATA_PIECE: usize = 256 << 10;

/// Frames that wait between the two ends of a [`pair`], each way.
const WAITING: usize = 4;

/// Frames that come in.
pub type Input = BoxStream<'static, Result<Frame, FrameError>>;
/// Frames that go out.
pub type Output = Pin<Box<dyn Sink<Frame, Error = FrameError> + Send>>;

/// One end of a conversation.
#[expect(missing_debug_implementations, reason = "boxed streams say nothing")]
pub struct End {
    /// From the other end; nothing more comes when that has gone.
    pub input: Input,
    /// To the other end; fails when that has gone.
    pub output: Output,
}

impl End {
    /// At a byte stream.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (input, output) = tokio::io::split(stream);
        Self { input: FramedRead::new(input, Codec).boxed(), output: Box::pin(FramedWrite::new(output, Codec)) }
    }
}

/// Two ends in this process.
#[must_use]
pub fn pair() -> (End, End) {
    let ((to_far, from_near), (to_near, from_far)) = (mpsc::channel(WAITING), mpsc::channel(WAITING));
    let end = |input: mpsc::Receiver<Frame>, output: mpsc::Sender<Frame>| End {
        input: input.map(Ok).boxed(),
        output: Box::pin(output.sink_map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe).into())),
    };
    (end(from_far, to_far), end(from_near, to_near))
}

/// One frame. [`crate::control::protocol`] says who sends which, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client: what it asks.
    Request(Request),
    /// Either side: bytes of a NAR.
    Data(Bytes),
    /// Client: the data of `stage` is complete.
    End,
    /// Node: progress.
    Report(Report),
    /// Node: one result among several.
    Item(Item),
    /// Node: all data sent for the current path is taken back.
    Restart,
    /// Node: the request ended well.
    Done(Done),
    /// Node: the request failed. Client: the rest of the data of `stage` will not come.
    Failed(Failure),
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The body would be longer than [`MAX_FRAME`].
    #[error("{kind} frame of {length} bytes is longer than {MAX_FRAME}")]
    TooLong {
        /// Name of the frame's kind.
        kind: &'static str,
        /// Bytes of its body.
        length: usize,
    },
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The body does not say what its kind should.
    #[error("{kind} frame is malformed")]
    Body {
        /// Name of the frame's kind.
        kind: &'static str,
        /// What is wrong with the JSON.
        source: serde_json::Error,
    },
    /// A body where none belongs.
    #[error("{0} frame has a body")]
    Surplus(&'static str),
    /// The stream ended inside a frame.
    #[error("connection ended inside a {kind} frame, after {have} of {want} bytes")]
    Cut {
        /// Name of the frame's kind.
        kind: &'static str,
        /// Bytes of the frame that came.
        have: usize,
        /// Bytes of the whole frame.
        want: usize,
    },
    /// The stream failed.
    #[error("control connection failed")]
    Io(#[from] io::Error),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request = 1,
    Data = 2,
    End = 3,
    Report = 4,
    Item = 5,
    Restart = 6,
    Done = 7,
    Failed = 8,
}

impl Kind {
    const ALL: [Self; 8] =
        [Self::Request, Self::Data, Self::End, Self::Report, Self::Item, Self::Restart, Self::Done, Self::Failed];

    fn of(byte: u8) -> Result<Self, FrameError> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte).ok_or(FrameError::Kind(byte))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Data => "data",
            Self::End => "end",
            Self::Report => "report",
            Self::Item => "item",
            Self::Restart => "restart",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// Reads and writes frames: the codec of a `tokio_util` `FramedRead` or `FramedWrite`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Codec;

impl Codec {
    fn header(input: &[u8]) -> Result<Option<(Kind, usize)>, FrameError> {
        let Some((&[a, b, c, d, kind], _)) = input.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let kind = Kind::of(kind)?;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(FrameError::TooLong { kind: kind.name(), length });
        }
        Ok(Some((kind, length)))
    }
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some((kind, length)) = Self::header(input)? else {
            return Ok(None);
        };
        if input.len() < HEADER + length {
            return Ok(None);
        }
        input.advance(HEADER);
        let body = input.split_to(length).freeze();
        Ok(Some(match kind {
            Kind::Request => Frame::Request(parse(kind, &body)?),
            Kind::Data => Frame::Data(body),
            Kind::End => empty(kind, &body, Frame::End)?,
            Kind::Report => Frame::Report(parse(kind, &body)?),
            Kind::Item => Frame::Item(parse(kind, &body)?),
            Kind::Restart => empty(kind, &body, Frame::Restart)?,
            Kind::Done => Frame::Done(parse(kind, &body)?),
            Kind::Failed => Frame::Failed(parse(kind, &body)?),
        }))
    }

    fn decode_eof(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some(frame) = self.decode(input)? {
            return Ok(Some(frame));
        }
        let have = input.len();
        match Self::header(input)? {
            None if have == 0 => Ok(None),
            None => Err(FrameError::Cut { kind: "new", have, want: HEADER }),
            Some((kind, length)) => Err(FrameError::Cut { kind: kind.name(), have, want: HEADER + length }),
        }
    }
}

impl Encoder<Frame> for Codec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, output: &mut BytesMut) -> Result<(), FrameError> {
        match frame {
            Frame::Request(body) => put(Kind::Request, &json(Kind::Request, &body)?, output),
            Frame::Data(body) => put(Kind::Data, &body, output),
            Frame::End => put(Kind::End, &[], output),
            Frame::Report(body) => put(Kind::Report, &json(Kind::Report, &body)?, output),
            Frame::Item(body) => put(Kind::Item, &json(Kind::Item, &body)?, output),
            Frame::Restart => put(Kind::Restart, &[], output),
            Frame::Done(body) => put(Kind::Done, &json(Kind::Done, &body)?, output),
            Frame::Failed(body) => put(Kind::Failed, &json(Kind::Failed, &body)?, output),
        }
    }
}

fn put(kind: Kind, body: &[u8], output: &mut BytesMut) -> Result<(), FrameError> {
    let length = body.len();
    let Some(announced) = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME) else {
        return Err(FrameError::TooLong { kind: kind.name(), length });
    };
    output.reserve(HEADER + length);
    output.put_u32(announced);
    output.put_u8(kind as u8);
    output.put_slice(body);
    Ok(())
}

fn json(kind: Kind, body: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    serde_json::to_vec(body).map_err(|source| FrameError::Body { kind: kind.name(), source })
}

fn parse<T: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|source| FrameError::Body { kind: kind.name(), source })
}

fn empty(kind: Kind, body: &[u8], frame: Frame) -> Result<Frame, FrameError> {
    if body.is_empty() { Ok(frame) } else { Err(FrameError::Surplus(kind.name())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Class, SourceBytes};
    use proptest::prelude::*;

    fn samples() -> Vec<Frame> {
        vec![
            Frame::Request(Request::Stage { profile: "unixfs-v0-2015".to_owned() }),
            Frame::Data(Bytes::from_static(b"nix-archive-1")),
            Frame::Data(Bytes::new()),
            Frame::End,
            Frame::Report(Report::Note { text: "gateway is away".to_owned() }),
            Frame::Item(Item::Fetched {
                path: "/nix/store/x".to_owned(),
                root: None,
                nar_hash: "sha256:0".to_owned(),
                source: "http".to_owned(),
                bytes: SourceBytes { http: u64::MAX, ..SourceBytes::default() },
            }),
            Frame::Restart,
            Frame::Done(Done::Count { ok: 1, failed: 2 }),
            Frame::Failed(Failure { class: Class::NoSpace, message: "full".to_owned(), causes: vec![], hint: None }),
        ]
    }

    fn encode(frames: &[Frame]) -> BytesMut {
        let mut wire = BytesMut::new();
        for frame in frames {
            Codec.encode(frame.clone(), &mut wire).unwrap();
        }
        wire
    }

    #[test]
    fn frames_survive_any_split() {
        let wire = encode(&samples());
        for cut in 0..=wire.len() {
            let (head, tail) = wire.split_at(cut);
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for part in [head, tail] {
                buffer.extend_from_slice(part);
                while let Some(frame) = Codec.decode(&mut buffer).unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, samples(), "cut at {cut}");
            assert!(Codec.decode_eof(&mut buffer).unwrap().is_none());
        }
    }

    #[test]
    fn half_a_frame_is_named() {
        let wire = encode(&[Frame::Data(Bytes::from_static(b"0123456789"))]);
        for cut in 1..wire.len() {
            let error = Codec.decode_eof(&mut BytesMut::from(&wire[..cut])).unwrap_err();
            let kind = if cut < HEADER { "new" } else { "data" };
            assert!(matches!(error, FrameError::Cut { kind: k, have, .. } if k == kind && have == cut), "{error}");
        }
    }

    #[test]
    fn a_length_is_refused_before_the_body_comes() {
        let mut wire = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, Kind::Data as u8][..]);
        let capacity = wire.capacity();
        assert!(matches!(Codec.decode(&mut wire), Err(FrameError::TooLong { kind: "data", .. })));
        assert_eq!(wire.capacity(), capacity);
        let long = Frame::Data(Bytes::from(vec![0; MAX_FRAME + 1]));
        assert!(matches!(Codec.encode(long, &mut wire), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn strangers_are_refused() {
        for (wire, says) in [
            (&[0, 0, 0, 0, 9][..], "unknown frame kind 9"),
            (&[0, 0, 0, 1, Kind::End as u8, 0][..], "end frame has a body"),
            (&[0, 0, 0, 2, Kind::Done as u8, b'{', b'}'][..], "done frame is malformed"),
        ] {
            assert_eq!(Codec.decode(&mut BytesMut::from(wire)).unwrap_err().to_string(), says);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Codec.decode(&mut buffer) {}
            prop_assert!(buffer.len() <= bytes.len());
        }
    }
}
