//! The bitswap message, `/ipfs/bitswap/1.2.0`.
//!
//! [`Message`] is what we send, [`Received`] is what a peer sent, checked: every block in it has been
//! hashed, every CID is one that may travel. What a peer may not send is dropped and counted in
//! [`Dropped`], one entry at a time; only broken protobuf fails the whole message, because then the
//! rest of the stream has no meaning.
//!
//! Decoding copies no block and allocates nothing from a length field: blocks are slices of the frame,
//! and each list ends at [`MAX_ENTRIES`]. A block keeps its whole frame in memory while it lives.
//!
//! After the bitswap specification (ipfs/specs, bitswap-protocol.md). A payload carries the CID's
//! prefix, not the CID, so the receiver computes the hash and learns the CID from it: a block of wrong
//! bytes arrives as a block that nobody asked for.

use super::wire::{self, Value};
use crate::Cid;
use crate::block::{Block, DAG_PB, SHA2_256, Unhashed, read_cid};
use bytes::{Bytes, BytesMut};
use cid::Version;
use prost::Message as _;
use prost::encoding::encode_varint;
use unsigned_varint::{decode, encode};

/// The protocol name on a stream.
pub const PROTOCOL: &str = "/ipfs/bitswap/1.2.0";
/// Longest message in bytes, without its length prefix, that is sent or accepted (as Kubo and Helia).
pub const MAX_MESSAGE: usize = 4 << 20;
/// Bytes after which a message we make is closed. One block always fits, however long it is.
pub const TARGET_MESSAGE: usize = 1 << 20;
/// Most wants, blocks or presences that are taken from one message; what comes after them is dropped.
pub const MAX_ENTRIES: usize = 16_384;

/// Why a message is refused. The stream that brought it cannot be read further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// More than [`MAX_MESSAGE`] bytes.
    #[error("bitswap message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// A field ends after the message does.
    #[error("bitswap message ends inside a field")]
    Truncated,
    /// Not protobuf, or not this protobuf.
    #[error("bitswap message is not valid protobuf")]
    Protobuf(#[from] prost::DecodeError),
}

/// What a want asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WantKind {
    /// Whether the peer has the block: `want-have`.
    Have,
    /// The block: `want-block`.
    Block,
}

/// One entry of a wantlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The block that is wanted.
    pub cid: Cid,
    /// Higher is served first; may be negative.
    pub priority: i32,
    /// What is asked for.
    pub kind: WantKind,
    /// Takes an earlier want of the same CID back.
    pub cancel: bool,
    /// Asks for `DONT_HAVE` instead of silence when the block is absent.
    pub send_dont_have: bool,
}

/// `HAVE` or `DONT_HAVE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// The block in question.
    pub cid: Cid,
    /// Whether the sender has it.
    pub have: bool,
}

/// Bytes to send under a CID's prefix. Not a [`Block`]: the sender's store vouches for them, and the
/// receiver hashes them in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The CID as it was asked for.
    pub cid: Cid,
    /// The block's bytes.
    pub bytes: Bytes,
}

/// A message to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Changes to the wantlist that the receiver keeps for us.
    pub wants: Vec<Want>,
    /// The wants replace that list instead of changing it.
    pub full: bool,
    /// Blocks.
    pub payloads: Vec<Payload>,
    /// Answers about blocks that are not in this message.
    pub presences: Vec<Presence>,
    /// Bytes of blocks that wait here to be sent to the receiver.
    pub pending_bytes: i32,
}

impl Message {
    /// Nothing to say: such a message need not be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wants.is_empty() && !self.full && self.payloads.is_empty() && self.presences.is_empty()
    }

    /// The length in bytes of [`Self::encode`]'s result.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.to_wire().encoded_len()
    }

    /// The protobuf bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.to_wire().encode_to_vec()
    }

    /// The bytes as they travel on a stream: an unsigned-varint length, then the message.
    #[must_use]
    pub fn encode_frame(&self) -> Vec<u8> {
        self.encode_pieces().concat()
    }

    /// The same in pieces that follow each other; the bytes of blocks are not copied.
    #[must_use]
    pub fn encode_pieces(&self) -> Vec<Bytes> {
        let mut rest = self.to_wire();
        let mut around = BytesMut::new();
        encode_varint(rest.encoded_len() as u64, &mut around);
        let wantlist = wire::Message { wantlist: rest.wantlist.take(), ..wire::Message::default() };
        around.extend_from_slice(&wantlist.encode_to_vec());
        let mut pieces = Vec::with_capacity(1 + 2 * rest.payload.len());
        for block in std::mem::take(&mut rest.payload) {
            block.encode_beside(&mut around);
            pieces.extend([around.split().freeze(), block.data]);
        }
        around.extend_from_slice(&rest.encode_to_vec());
        pieces.push(around.freeze());
        pieces
    }

    fn to_wire(&self) -> wire::Message {
        let entries = self.wants.iter().map(|want| wire::Entry {
            cid: want.cid.to_bytes().into(),
            priority: want.priority,
            cancel: want.cancel,
            want_type: if want.kind == WantKind::Have { wire::WANT_HAVE } else { 0 },
            send_dont_have: want.send_dont_have,
        });
        let wantlist = wire::Wantlist { entries: entries.collect(), full: self.full };
        let payload = self.payloads.iter().map(|p| wire::Block { prefix: prefix(&p.cid), data: p.bytes.clone() });
        let presences = self.presences.iter().map(|presence| wire::Presence {
            cid: presence.cid.to_bytes().into(),
            kind: if presence.have { 0 } else { wire::DONT_HAVE },
        });
        wire::Message {
            wantlist: (self.full || !self.wants.is_empty()).then_some(wantlist),
            payload: payload.collect(),
            presences: presences.collect(),
            pending_bytes: self.pending_bytes,
        }
    }
}

/// What was dropped from a message because it may not travel, or because there was too much of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Wants: bad or identity CIDs.
    pub wants: usize,
    /// Blocks: refused hash functions, wrong digest lengths, over [`MAX_BLOCK`](crate::block::MAX_BLOCK).
    pub blocks: usize,
    /// Bytes of these blocks.
    pub block_bytes: usize,
    /// Presences: bad CIDs.
    pub presences: usize,
}

/// A peer's message, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    /// Changes to the peer's wantlist.
    pub wants: Vec<Want>,
    /// The wants replace the peer's wantlist.
    pub full: bool,
    /// Blocks, hashed. Whether they were asked for is the client's to know.
    pub blocks: Vec<Block>,
    /// The peer's answers.
    pub presences: Vec<Presence>,
    /// What the peer should not have sent.
    pub dropped: Dropped,
}

impl Received {
    /// Reads a message and hashes the blocks in it. The work is linear in the length of `frame`, which
    /// is a message without its length prefix.
    ///
    /// # Errors
    /// [`MessageError`] for a message over [`MAX_MESSAGE`] or bytes that are not protobuf.
    pub fn decode(frame: Bytes) -> Result<Self, MessageError> {
        if frame.len() > MAX_MESSAGE {
            return Err(MessageError::TooLong(frame.len()));
        }
        let (mut received, mut blocks) = (Self::default(), Vec::new());
        wire::fields(frame, |tag, value| match (tag, value) {
            (wire::MESSAGE_WANTLIST, Value::Bytes(wantlist)) => received.take_wantlist(wantlist),
            (wire::MESSAGE_PAYLOAD, Value::Bytes(block)) => received.take_block(block, &mut blocks),
            (wire::MESSAGE_PRESENCE, Value::Bytes(presence)) => received.take_presence(presence),
            _ => Ok(()),
        })?;
        received.blocks = Unhashed::hash_all(blocks);
        Ok(received)
    }

    fn take_wantlist(&mut self, wantlist: Bytes) -> Result<(), MessageError> {
        wire::fields(wantlist, |tag, value| {
            match (tag, value) {
                (wire::WANTLIST_ENTRY, Value::Bytes(entry)) => self.take_want(&wire::Entry::decode(entry)?),
                (wire::WANTLIST_FULL, Value::Number(full)) => self.full = full != 0,
                _ => {}
            }
            Ok(())
        })
    }

    fn take_want(&mut self, entry: &wire::Entry) {
        // An identity CID carries its bytes: nobody needs to ask for it.
        let cid = read_cid(&entry.cid).ok().filter(|cid| cid.hash().code() == SHA2_256);
        let Some(cid) = cid.filter(|_| self.wants.len() < MAX_ENTRIES) else {
            self.dropped.wants += 1;
            return;
        };
        let kind = if entry.want_type == wire::WANT_HAVE { WantKind::Have } else { WantKind::Block };
        let wire::Entry { priority, cancel, send_dont_have, .. } = *entry;
        self.wants.push(Want { cid, priority, kind, cancel, send_dont_have });
    }

    fn take_block(&mut self, message: Bytes, blocks: &mut Vec<Unhashed>) -> Result<(), MessageError> {
        let wire::Block { prefix, data } = wire::Block::decode(message)?;
        let length = data.len();
        match read_block(&prefix, data).filter(|_| blocks.len() < MAX_ENTRIES) {
            Some(block) => blocks.push(block),
            None => {
                self.dropped.blocks += 1;
                self.dropped.block_bytes += length;
            }
        }
        Ok(())
    }

    fn take_presence(&mut self, message: Bytes) -> Result<(), MessageError> {
        let wire::Presence { cid, kind } = wire::Presence::decode(message)?;
        match read_cid(&cid).ok().filter(|_| self.presences.len() < MAX_ENTRIES) {
            Some(cid) => self.presences.push(Presence { cid, have: kind != wire::DONT_HAVE }),
            None => self.dropped.presences += 1,
        }
        Ok(())
    }
}

/// The prefix of a payload: version, codec, hash function, digest length. CIDv0 has version 0 here,
/// though its bytes have no version at all (boxo's `Prefix.Bytes`).
fn prefix(cid: &Cid) -> Bytes {
    let version = match cid.version() {
        Version::V0 => 0,
        Version::V1 => 1,
    };
    let digest_length = u64::from(cid.hash().size());
    let mut bytes = Vec::with_capacity(8);
    for number in [version, cid.codec(), cid.hash().code(), digest_length] {
        bytes.extend_from_slice(encode::u64(number, &mut encode::u64_buffer()));
    }
    bytes.into()
}

/// The block that `data` is under `prefix`. `None` unless the prefix says sha2-256 in full length, and when it is too large.
fn read_block(prefix: &[u8], data: Bytes) -> Option<Unhashed> {
    let (version, rest) = decode::u64(prefix).ok()?;
    let (codec, rest) = decode::u64(rest).ok()?;
    let (function, rest) = decode::u64(rest).ok()?;
    let (digest_length, rest) = decode::u64(rest).ok()?;
    if function != SHA2_256 || digest_length != 32 || !rest.is_empty() {
        return None;
    }
    match (version, codec) {
        (0, DAG_PB) => Unhashed::v0(data).ok(),
        (1, codec) => Unhashed::v1(codec, data).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
