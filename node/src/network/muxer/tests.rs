//! What a reader behind [`Split`] sees of frames of all sizes, and when what is written leaves.

use super::*;
use futures::AsyncReadExt as _;
use futures::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

const SYN: u16 = 0x1;
const FIN: u16 = 0x4;
const WINDOW_UPDATE: u8 = 1;

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u16,
    stream: u32,
    length: u32,
    body: Vec<u8>,
}

fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut bytes = vec![0, kind];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    if kind == DATA {
        bytes.extend((0..length).map(|at| (at % 251) as u8));
    }
    bytes
}

/// The frames in `bytes`, read `step` bytes at a time at most.
async fn split(bytes: Vec<u8>, step: usize) -> io::Result<Vec<Frame>> {
    let mut split = Split::new(Cursor::new(bytes));
    let (mut out, mut buf) = (Vec::new(), vec![0; step]);
    loop {
        match split.read(&mut buf).await? {
            0 => break,
            read => out.extend_from_slice(&buf[..read]),
        }
    }
    let (mut frames, mut rest) = (Vec::new(), &out[..]);
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER>() {
        let length = u32::from_be_bytes(header[8..].try_into().unwrap());
        let (body, behind) = behind.split_at(if header[1] == DATA { length as usize } else { 0 });
        frames.push(Frame {
            kind: header[1],
            flags: u16::from_be_bytes(header[2..4].try_into().unwrap()),
            stream: u32::from_be_bytes(header[4..8].try_into().unwrap()),
            length,
            body: body.to_vec(),
        });
        rest = behind;
    }
    assert_eq!(rest, [0; 0]);
    Ok(frames)
}

#[tokio::test]
async fn short_frames_pass_as_they_are() {
    let sent = [
        frame(DATA, SYN, 1, 0),
        frame(WINDOW_UPDATE, 0, 1, 16 << 20),
        frame(DATA, FIN, 7, MAX_PIECE),
        frame(2, 1, 0, u32::MAX),
    ];
    for step in [1, 5, HEADER, 1 << 20] {
        let frames = split(sent.concat(), step).await.unwrap();
        let seen: Vec<_> = frames.iter().map(|f| (f.kind, f.flags, f.stream, f.length)).collect();
        let lengths =
            [(DATA, SYN, 1, 0), (WINDOW_UPDATE, 0, 1, 16 << 20), (DATA, FIN, 7, MAX_PIECE), (2, 1, 0, u32::MAX)];
        assert_eq!(seen, lengths);
        assert_eq!(frames[2].body, frame(DATA, FIN, 7, MAX_PIECE)[HEADER..]);
    }
}

#[tokio::test]
async fn a_long_frame_comes_in_pieces_that_open_and_end_the_stream_once() {
    let length = 3 * MAX_PIECE + 17;
    let sent = [frame(DATA, SYN | FIN, 5, length), frame(DATA, 0, 3, 9)].concat();
    for step in [7, HEADER, 4 << 20] {
        let frames = split(sent.clone(), step).await.unwrap();
        let seen: Vec<_> = frames.iter().map(|f| (f.kind, f.flags, f.stream, f.length)).collect();
        let pieces = [
            (DATA, SYN, 5, MAX_PIECE),
            (DATA, 0, 5, MAX_PIECE),
            (DATA, 0, 5, MAX_PIECE),
            (DATA, FIN, 5, 17),
            (DATA, 0, 3, 9),
        ];
        assert_eq!(seen, pieces);
        let body: Vec<u8> = frames[..4].iter().flat_map(|frame| frame.body.clone()).collect();
        assert_eq!(body, frame(DATA, 0, 5, length)[HEADER..]);
    }
}

#[tokio::test]
async fn an_end_within_a_header_is_an_error() {
    let cut = frame(DATA, 0, 1, 3)[..HEADER - 1].to_vec();
    assert_eq!(split(cut, 64).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(split(Vec::new(), 64).await.unwrap(), []);
}

/// Notes how many bytes had been written at each flush.
#[derive(Default)]
struct Line {
    written: usize,
    flushed: Vec<usize>,
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = self.written;
        self.flushed.push(written);
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Counts how often its task is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes frames of `frame` bytes as yamux does, each followed by a flush; then polls as often as it is woken. The bytes that had
/// been written at each flush of the line.
fn flushed(frame: usize, count: usize) -> Vec<usize> {
    let woken = Arc::new(Woken::default());
    let waker = Arc::clone(&woken).into();
    let mut cx = Context::from_waker(&waker);
    let mut split = Split::new(Line::default());
    for _ in 0..count {
        let mut split = Pin::new(&mut split);
        assert!(matches!(split.as_mut().poll_write(&mut cx, &vec![0; frame]), Poll::Ready(Ok(all)) if all == frame));
        assert!(split.poll_flush(&mut cx).is_ready());
    }
    while woken.0.swap(0, Ordering::Relaxed) > 0 {
        assert!(Pin::new(&mut split).poll_flush(&mut cx).is_ready());
    }
    split.connection.flushed
}

#[test]
fn frames_that_follow_each_other_leave_together() {
    assert_eq!(flushed(16 << 10, 7), [48 << 10, 96 << 10, 112 << 10]);
    assert_eq!(flushed(ENOUGH, 2), [ENOUGH, 2 * ENOUGH]);
}

#[test]
fn a_frame_does_not_wait_for_another() {
    assert_eq!(flushed(1, 1), [1]);
    assert_eq!(flushed(100, 3), [300]);
}
