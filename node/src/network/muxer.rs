//! The stream multiplexer, yamux, made to take the frames that js-libp2p sends, and to send its own together.
//!
//! A yamux frame of data may be as long as the window that its receiver has granted. js-libp2p makes
//! it as long, and our windows grow to many mebibytes with the line; rust-yamux closes the connection at
//! the first frame above 1 MiB. So [`Split`] stands before it and hands it a long frame as several short
//! ones, which mean the same.
//!
//! And rust-yamux flushes after each frame, of 16 KiB at most: each would be encrypted and handed to the kernel by itself, which
//! for a large transfer costs a twentieth of its time. So [`Split`] puts a flush off until the task that polls the
//! connection has nothing more to write.
//!
//! Spec: <https://github.com/libp2p/specs/blob/master/yamux/README.md>.

use futures::{AsyncRead, AsyncWrite, ready};
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::yamux;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Bytes of a frame's header: version, type, flags (2), stream (4), length (4).
const HEADER: usize = 12;
/// The type of a frame that is followed by as many bytes as its length says. Others have no body.
const DATA: u8 = 0;
/// Flags that end a stream: they belong to the last piece of a frame, all others to the first.
const ENDS: u16 = 0x4 | 0x8;
/// Bytes of data in a piece, less than rust-yamux takes: the most that it allocates at once.
const MAX_PIECE: u32 = 256 << 10;
/// Bytes whose flush is not put off: nearly a message of noise.
const ENOUGH: usize = 48 << 10;

/// yamux over a connection whose frames are [`Split`].
#[derive(Debug, Clone)]
pub(super) struct Yamux(yamux::Config);

impl Yamux {
    /// With at most `streams` on a connection, both directions together.
    pub(super) fn new(streams: u32) -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(streams as usize);
        Self(config)
    }
}

impl UpgradeInfo for Yamux {
    type Info = <yamux::Config as UpgradeInfo>::Info;
    type InfoIter = <yamux::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Yamux {
    type Output = yamux::Muxer<Split<C>>;
    type Error = io::Error;
    type Future = <yamux::Config as InboundConnectionUpgrade<Split<C>>>::Future;

    fn upgrade_inbound(self, connection: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_inbound(Split::new(connection), info)
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Yamux {
    type Output = yamux::Muxer<Split<C>>;
    type Error = io::Error;
    type Future = <yamux::Config as OutboundConnectionUpgrade<Split<C>>>::Future;

    fn upgrade_outbound(self, connection: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_outbound(Split::new(connection), info)
    }
}

/// A connection from which no data frame longer than [`MAX_PIECE`] is read, and to which frames are written together.
#[derive(Debug)]
pub(super) struct Split<C> {
    connection: C,
    /// The header of the piece at hand.
    header: [u8; HEADER],
    /// Bytes of the header that came from the connection, or were made for a piece.
    filled: usize,
    /// Bytes of the header that were read.
    read: usize,
    /// Bytes of the piece's body that are still to be read.
    body: u32,
    /// Bytes of the frame behind this piece, and the flags kept for the last one.
    rest: u32,
    ends: u16,
    /// Bytes that were written and not flushed.
    unflushed: usize,
    /// A flush of all of them was put off.
    put_off: bool,
}

impl<C> Split<C> {
    fn new(connection: C) -> Self {
        let (filled, read, body, rest, ends) = (0, 0, 0, 0, 0);
        Self { connection, header: [0; HEADER], filled, read, body, rest, ends, unflushed: 0, put_off: false }
    }

    /// The header has come.
    fn begin(&mut self) {
        let [_, kind, flags @ .., a, b, c, d] = self.header;
        if kind != DATA {
            return;
        }
        let length = u32::from_be_bytes([a, b, c, d]);
        if length > MAX_PIECE {
            let flags = u16::from_be_bytes([flags[0], flags[1]]);
            self.ends = flags & ENDS;
            self.set_piece(flags & !ENDS, MAX_PIECE);
            self.rest = length - MAX_PIECE;
        } else {
            self.body = length;
        }
    }

    /// The piece has been read to its end: to the next one, or the next frame.
    fn advance(&mut self) {
        self.read = 0;
        if self.rest == 0 {
            self.filled = 0;
            return;
        }
        let piece = self.rest.min(MAX_PIECE);
        self.rest -= piece;
        let flags = if self.rest == 0 { self.ends } else { 0 };
        self.set_piece(flags, piece);
    }

    fn set_piece(&mut self, flags: u16, length: u32) {
        self.header[2..4].copy_from_slice(&flags.to_be_bytes());
        self.header[8..].copy_from_slice(&length.to_be_bytes());
        self.body = length;
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Split<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.filled < HEADER {
            match ready!(Pin::new(&mut this.connection).poll_read(cx, &mut this.header[this.filled..]))? {
                0 if this.filled == 0 => return Poll::Ready(Ok(0)),
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                came => this.filled += came,
            }
            if this.filled == HEADER {
                this.begin();
            }
        }
        let read = if this.read < HEADER {
            let read = buf.len().min(HEADER - this.read);
            buf[..read].copy_from_slice(&this.header[this.read..][..read]);
            this.read += read;
            read
        } else {
            let most = buf.len().min(this.body as usize);
            let read = ready!(Pin::new(&mut this.connection).poll_read(cx, &mut buf[..most]))?;
            this.body -= u32::try_from(read).map_err(io::Error::other)?;
            read
        };
        if this.read == HEADER && this.body == 0 {
            this.advance();
        }
        Poll::Ready(Ok(read))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Split<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.connection).poll_write(cx, buf))?;
        self.unflushed += written;
        self.put_off = false;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if (1..ENOUGH).contains(&self.unflushed) && !self.put_off {
            // Whoever polls yamux has it flush, so this comes back, and is done then unless there is more.
            self.put_off = true;
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.connection).poll_flush(cx))?;
        self.unflushed = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
