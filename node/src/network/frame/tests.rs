use super::buffer::FIRST_READ;
use super::*;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use std::pin::Pin;
use std::task::{Context, Poll};

/// A stream of these bytes, chunk by chunk, that then ends.
fn ends(chunks: &[&[u8]]) -> impl AsyncRead + Unpin + use<> {
    let chunks: Vec<_> = chunks.iter().map(|chunk| io::Result::Ok(chunk.to_vec())).collect();
    stream::iter(chunks).into_async_read()
}

/// A stream of these bytes that then is silent.
fn stalls(chunks: &[&[u8]]) -> impl AsyncRead + Unpin + use<> {
    let chunks: Vec<_> = chunks.iter().map(|chunk| io::Result::Ok(chunk.to_vec())).collect();
    stream::iter(chunks).chain(stream::pending()).into_async_read()
}

const SHORT: Duration = Duration::from_millis(30);

fn intake() -> Intake {
    Intake::new(MAX_MESSAGE, SHORT)
}

fn framed(length: usize) -> Vec<u8> {
    let mut buffer = unsigned_varint::encode::usize_buffer();
    let mut frame = unsigned_varint::encode::usize(length, &mut buffer).to_vec();
    frame.extend((0..length).map(|at| at.to_le_bytes()[0]));
    frame
}

#[tokio::test]
async fn frames_follow_each_other_until_the_stream_ends() {
    for length in [0, 1, 127, 128, FIRST_READ - 1, FIRST_READ, FIRST_READ + 1, 300_000, MAX_MESSAGE] {
        let frame = framed(length);
        let (left, right) = frame.split_at(frame.len() / 3);
        let mut stream = ends(&[left, right, &framed(3)]);
        let intake = Intake::new(MAX_MESSAGE, Duration::from_secs(60));
        let read_back = read(&mut stream, &intake).await.unwrap().unwrap();
        assert_eq!(read_back.bytes, frame[frame.len() - length..], "{length}");
        assert_eq!(intake.take_progress(), 0);
        drop(read_back);
        assert_eq!(read(&mut stream, &intake).await.unwrap().unwrap().bytes, [0u8, 1, 2][..]);
        assert!(read(&mut stream, &intake).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn what_is_not_a_frame_is_an_error() {
    let too_long = framed(MAX_MESSAGE + 1);
    type Check = fn(&FrameError) -> bool;
    let cases: [(&[u8], Check); 6] = [
        (&too_long[..4], |error| matches!(error, FrameError::TooLong(length) if *length == MAX_MESSAGE + 1)),
        (&[0xff; 5], |error| matches!(error, FrameError::Prefix)),
        (&[0x80, 0x00], |error| matches!(error, FrameError::Prefix)),
        (b"GET / HTTP/1.1\r\n\r\n", |error| matches!(error, FrameError::Cut(_))),
        (&[0x80], |error| matches!(error, FrameError::Cut(_))),
        (&[5, 1, 2, 3, 4], |error| matches!(error, FrameError::Cut(_))),
    ];
    for (bytes, expected) in cases {
        let error = read(&mut ends(&[bytes]), &intake()).await.unwrap_err();
        assert!(expected(&error), "{bytes:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_frame_has_a_deadline_and_the_pause_before_it_has_none() {
    let mut stream = stalls(&[&framed(100)[..50]]);
    let intake = intake();
    assert!(matches!(read(&mut stream, &intake).await, Err(FrameError::Slow(SHORT))));
    assert_eq!(intake.take_progress(), 49);
    let mut silent = stalls(&[]);
    assert!(timeout(5 * SHORT, read(&mut silent, &intake)).await.is_err());
}

#[tokio::test]
async fn streams_of_one_connection_share_its_budget() {
    let intake = Intake::new(10, Duration::from_secs(60));
    let first = read(&mut ends(&[&framed(8)]), &intake).await.unwrap().unwrap();
    let mut other = ends(&[&framed(8)]);
    let mut second = std::pin::pin!(read(&mut other, &intake));
    assert!(timeout(SHORT, &mut second).await.is_err(), "no room for both");
    drop(first);
    assert_eq!(second.await.unwrap().unwrap().bytes.len(), 8);
}

/// Takes `left` bytes, then none.
struct Full {
    left: usize,
    taken: Vec<u8>,
}

impl AsyncWrite for Full {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let take = bytes.len().min(self.left).min(7);
        if take == 0 {
            return Poll::Pending;
        }
        self.left -= take;
        self.taken.extend_from_slice(&bytes[..take]);
        Poll::Ready(Ok(take))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_peer_that_takes_no_bytes_fails_the_write() {
    let frame = framed(100);
    let pieces = [Bytes::copy_from_slice(&frame[..40]), Bytes::copy_from_slice(&frame[40..])];
    let mut open = Full { left: 1000, taken: Vec::new() };
    write(&mut open, &pieces, SHORT).await.unwrap();
    assert_eq!(open.taken, frame);

    let mut full = Full { left: 20, taken: Vec::new() };
    assert_eq!(write(&mut full, &pieces, SHORT).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}
