//! The bytes of a pack segment: one segment header, then records.
//!
//! ```text
//! segment   magic 8 · version u32 · number u32 · salt 16 · zero 28 · crc u32              = 64 bytes
//! record    magic u32 · kind u8 · flags u8 · zero u16 · offset u32 · durable u32 ·
//!           stored u32 · plain u32 · digest 32 · payload crc u32 · header crc u32          = 64 bytes
//!           payload (stored bytes) · zeros up to a multiple of 8
//! ```
//!
//! Numbers are little-endian; checksums are CRC-32C. `offset` is the record's own place in its segment and
//! the header checksum starts with the store's random salt, so that bytes of a payload cannot pose as a
//! record when a scan has to look for the next one behind damage. `durable` says up to where the segment
//! was known to be on disk when the record was written: a bad record before that point is damage, one
//! behind it may be the torn end of an interrupted write.
//!
//! GC erases whole records, many at once where they lie side by side. A scan takes zeros between two records for
//! such a hole. A payload is never all zeros, so that a hole that lacks its first bytes is known as one, too.
//!
//! `flags`: 1, the payload is one zstd frame; 2, the bytes of the block, read as dag-pb, are a node without links;
//! 8, the payload says where on this machine the bytes lie (see `part`).

use super::Location;
use nipfs_proto::block::{Digest, MAX_BLOCK};

/// Bytes of a segment header.
pub(super) const SEGMENT_HEADER: usize = 64;
/// Bytes of a record header.
pub(super) const RECORD_HEADER: usize = 64;
/// Records start at multiples of this.
pub(super) const ALIGN: usize = 8;
/// Largest payload of a batch record in bytes.
pub(super) const MAX_BATCH: usize = 16 << 20;
/// Version of the pack format.
const VERSION: u32 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"nipfspak";
const RECORD_MAGIC: &[u8; 4] = b"nREC";
const FLAG_ZSTD: u8 = 1;
const FLAG_LEAF: u8 = 2;
const FLAG_OUTSIDE: u8 = 8;

/// Random bytes of one store that every header checksum starts with.
pub(super) type Salt = [u8; 16];

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The bytes of one block.
    Block,
    /// A list of changes that happen together.
    Batch,
}

/// How the payload of a block's record gives the bytes of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// It is the bytes.
    Plain,
    /// It is one zstd frame around them.
    Zstd,
    /// It says which part of which tree on this machine they are made of: a [`Part`](super::part::Part).
    Outside,
}

impl Form {
    /// The form as flags of a header or an index row, in the bits of [`Self::MASK`].
    pub(super) fn flags(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Zstd => FLAG_ZSTD,
            Self::Outside => FLAG_OUTSIDE,
        }
    }

    /// `None` for flags that exclude each other.
    pub(super) fn of_flags(flags: u8) -> Option<Self> {
        match flags & Self::MASK {
            0 => Some(Self::Plain),
            FLAG_ZSTD => Some(Self::Zstd),
            FLAG_OUTSIDE => Some(Self::Outside),
            _ => None,
        }
    }

    const MASK: u8 = FLAG_ZSTD | FLAG_OUTSIDE;
}

/// What a header says about its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) kind: Kind,
    pub(super) form: Form,
    /// The plain bytes, read as dag-pb, are a node without links, so that a walk need not read them.
    pub(super) leaf: bool,
    /// Bytes of what the payload gives.
    pub(super) plain: u32,
    /// Digest of the plain bytes.
    pub(super) digest: Digest,
}

/// A record's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) content: Content,
    /// Byte offset of this record in its segment.
    pub(super) offset: u32,
    /// The segment was known to be durable up to here when this record was written.
    pub(super) durable: u32,
    /// Bytes of the payload.
    pub(super) stored: u32,
    pub(super) payload_crc: u32,
}

impl Header {
    pub(super) fn encode(&self, salt: &Salt) -> [u8; RECORD_HEADER] {
        let mut out = [0; RECORD_HEADER];
        out[..4].copy_from_slice(RECORD_MAGIC);
        let Content { kind, form, leaf, plain, digest } = self.content;
        out[4] = match kind {
            Kind::Block => 1,
            Kind::Batch => 2,
        };
        out[5] = form.flags() | if leaf { FLAG_LEAF } else { 0 };
        out[8..12].copy_from_slice(&self.offset.to_le_bytes());
        out[12..16].copy_from_slice(&self.durable.to_le_bytes());
        out[16..20].copy_from_slice(&self.stored.to_le_bytes());
        out[20..24].copy_from_slice(&plain.to_le_bytes());
        out[24..56].copy_from_slice(&digest.0);
        out[56..60].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = salted_crc(salt, &out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header in `bytes`, if it is one, belongs to this store and lies at `offset`.
    pub(super) fn decode(bytes: &[u8; RECORD_HEADER], offset: u64, salt: &Salt) -> Option<Self> {
        if &bytes[..4] != RECORD_MAGIC || salted_crc(salt, &bytes[..60]) != word(bytes, 60) {
            return None;
        }
        let (kind, limit) = match bytes[4] {
            1 => (Kind::Block, MAX_BLOCK),
            2 => (Kind::Batch, MAX_BATCH),
            _ => return None,
        };
        let content = Content {
            kind,
            form: Form::of_flags(bytes[5])?,
            leaf: bytes[5] & FLAG_LEAF != 0,
            plain: word(bytes, 20),
            digest: Digest(bytes[24..56].try_into().ok()?),
        };
        let header = Self {
            content,
            offset: word(bytes, 8),
            durable: word(bytes, 12),
            stored: word(bytes, 16),
            payload_crc: word(bytes, 56),
        };
        // A frame around bytes that do not compress is a little longer than they are.
        let limit = u32::try_from(limit).ok()?;
        let fits = content.plain <= limit && header.stored <= limit + 1024;
        (fits && u64::from(header.offset) == offset).then_some(header)
    }

    /// Where the record lies, if it is in this segment.
    pub(super) fn location(&self, segment: u32) -> Location {
        Location { segment, offset: self.offset, stored: self.stored, form: self.content.form }
    }

    /// Offset of the payload in the segment.
    pub(super) fn payload(&self) -> u64 {
        u64::from(self.offset) + RECORD_HEADER as u64
    }

    /// Offset of the next record in the segment.
    pub(super) fn end(&self) -> u64 {
        end(self.offset, self.stored)
    }
}

/// Where the record at `offset` with a payload of `stored` bytes ends.
pub(super) fn end(offset: u32, stored: u32) -> u64 {
    (u64::from(offset) + RECORD_HEADER as u64 + u64::from(stored)).next_multiple_of(ALIGN as u64)
}

/// The header of segment `number`.
pub(super) fn segment_header(number: u32, salt: &Salt) -> [u8; SEGMENT_HEADER] {
    let mut out = [0; SEGMENT_HEADER];
    out[..8].copy_from_slice(SEGMENT_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&number.to_le_bytes());
    out[16..32].copy_from_slice(salt);
    let crc = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The number and the salt in the header of a segment; `None` when it is damaged.
pub(super) fn read_segment_header(bytes: &[u8; SEGMENT_HEADER]) -> Option<(u32, Salt)> {
    let good =
        &bytes[..8] == SEGMENT_MAGIC && crc32c::crc32c(&bytes[..60]) == word(bytes, 60) && word(bytes, 8) == VERSION;
    Some((word(bytes, 12), bytes[16..32].try_into().ok()?)).filter(|_| good)
}

fn salted_crc(salt: &Salt, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(salt), bytes)
}

fn word(bytes: &[u8; 64], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let content = Content { kind: Kind::Block, form: Form::Zstd, leaf: true, plain: 20, digest: Digest::of(b"x") };
        Header { content, offset: 128, durable: 64, stored: 9, payload_crc: 7 }
    }

    #[test]
    fn a_header_survives_the_round_trip_and_ends_aligned() {
        let salt = [3; 16];
        for form in [Form::Plain, Form::Zstd, Form::Outside] {
            for leaf in [false, true] {
                let header = Header { content: Content { form, leaf, ..header().content }, ..header() };
                assert_eq!(Header::decode(&header.encode(&salt), 128, &salt), Some(header));
            }
        }
        assert_eq!(Form::of_flags(FLAG_ZSTD | FLAG_OUTSIDE), None);
        assert_eq!(header().end(), 208);
    }

    #[test]
    fn any_flipped_bit_wrong_place_or_foreign_salt_is_refused() {
        let salt = [3; 16];
        let good = header().encode(&salt);
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad, 128, &salt), None, "bit {bit}");
        }
        assert_eq!(Header::decode(&good, 192, &salt), None);
        assert_eq!(Header::decode(&good, 128, &[4; 16]), None);
    }

    #[test]
    fn lengths_over_the_limits_are_refused() {
        let salt = [0; 16];
        let huge = Header { stored: u32::MAX, ..header() };
        assert_eq!(Header::decode(&huge.encode(&salt), 128, &salt), None);
    }

    #[test]
    fn a_segment_header_tells_number_and_salt_unless_it_is_damaged() {
        let good = segment_header(7, &[9; 16]);
        assert_eq!(read_segment_header(&good), Some((7, [9; 16])));
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_segment_header(&bad), None, "bit {bit}");
        }
    }
}
