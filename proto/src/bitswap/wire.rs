//! The protobuf types of `schema/bitswap.proto`, and the bounded way to read them.
//!
//! Writing goes through the derived types. Reading a whole derived `Message` would turn a hostile 4 MiB
//! frame of two-byte entries into a hundred megabytes of structs, so the two outer types are read field
//! by field with [`fields`], and only the leaf types are decoded as they come.

use super::message::MessageError;
use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

pub(super) const MESSAGE_WANTLIST: u32 = 1;
pub(super) const MESSAGE_PAYLOAD: u32 = 3;
pub(super) const MESSAGE_PRESENCE: u32 = 4;
const BLOCK_PREFIX: u32 = 1;
const BLOCK_DATA: u32 = 2;
pub(super) const WANTLIST_ENTRY: u32 = 1;
pub(super) const WANTLIST_FULL: u32 = 2;

/// `WantType::Have`.
pub(super) const WANT_HAVE: i32 = 1;
/// `BlockPresenceType::DontHave`.
pub(super) const DONT_HAVE: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Message {
    #[prost(message, optional, tag = "1")]
    pub(super) wantlist: Option<Wantlist>,
    #[prost(message, repeated, tag = "3")]
    pub(super) payload: Vec<Block>,
    #[prost(message, repeated, tag = "4")]
    pub(super) presences: Vec<Presence>,
    #[prost(int32, tag = "5")]
    pub(super) pending_bytes: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Wantlist {
    #[prost(message, repeated, tag = "1")]
    pub(super) entries: Vec<Entry>,
    #[prost(bool, tag = "2")]
    pub(super) full: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Entry {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) cid: Bytes,
    #[prost(int32, tag = "2")]
    pub(super) priority: i32,
    #[prost(bool, tag = "3")]
    pub(super) cancel: bool,
    #[prost(int32, tag = "4")]
    pub(super) want_type: i32,
    #[prost(bool, tag = "5")]
    pub(super) send_dont_have: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Block {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) prefix: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) data: Bytes,
}

impl Block {
    /// Writes all that stands before the bytes of this block in a message.
    pub(super) fn encode_beside(&self, before: &mut BytesMut) {
        encode_key(MESSAGE_PAYLOAD, WireType::LengthDelimited, before);
        encode_varint(self.encoded_len() as u64, before);
        encode_key(BLOCK_PREFIX, WireType::LengthDelimited, before);
        encode_varint(self.prefix.len() as u64, before);
        before.extend_from_slice(&self.prefix);
        if !self.data.is_empty() {
            encode_key(BLOCK_DATA, WireType::LengthDelimited, before);
            encode_varint(self.data.len() as u64, before);
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Presence {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) cid: Bytes,
    #[prost(int32, tag = "2")]
    pub(super) kind: i32,
}

/// The value of one field, as far as the two outer types need it.
pub(super) enum Value {
    Number(u64),
    Bytes(Bytes),
}

/// Calls `each` with the number and value of every field in `message`, in order. Values are slices of
/// `message`, not copies; fixed-width fields, which bitswap has none of, are skipped.
pub(super) fn fields(
    mut message: Bytes,
    mut each: impl FnMut(u32, Value) -> Result<(), MessageError>,
) -> Result<(), MessageError> {
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        match wire_type {
            WireType::Varint => each(tag, Value::Number(decode_varint(&mut message)?))?,
            WireType::LengthDelimited => {
                let length = decode_varint(&mut message)?;
                let length = usize::try_from(length).ok().filter(|length| *length <= message.remaining());
                each(tag, Value::Bytes(message.split_to(length.ok_or(MessageError::Truncated)?)))?;
            }
            _ => skip_field(wire_type, tag, &mut message, DecodeContext::default())?,
        }
    }
    Ok(())
}
