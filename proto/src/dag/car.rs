//! CARv1: blocks in a file, behind a header that names the roots.
//!
//! Follows <https://ipld.io/specs/transport/car/carv1/>: sections of a varint length and that many bytes; the first
//! is the header, `{"roots": [CID…], "version": 1}` in dag-cbor, each other a CID and its block. CARv2 is
//! refused.
//!
//! The reader takes pieces of any length and keeps at most one section. A length is refused before
//! anything is kept for it, each block is hashed, and identity sections are read over.

use crate::block::{Block, BlockError, Cid, CidError, MAX_BLOCK, MAX_CID, read_cid};
use bytes::Bytes;
use std::collections::HashSet;
use unsigned_varint::{decode, encode};

mod header;

/// Longest header in bytes; room for a thousand roots.
pub const MAX_HEADER: usize = 64 << 10;

/// Why bytes are not a CAR that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarError {
    /// The format is broken.
    #[error("not a CAR: {why} at byte {offset}")]
    Malformed {
        /// Where the section begins, in bytes.
        offset: u64,
        /// The rule that is broken.
        why: &'static str,
    },
    /// A section or the header is longer than any can be.
    #[error("section of {length} bytes at byte {offset} is too long")]
    TooLong {
        /// Where the section begins, in bytes.
        offset: u64,
        /// Its length in bytes, as it says.
        length: u64,
    },
    /// Another version than 1.
    #[error("CAR version {0} is not supported (only 1 is)")]
    Version(u64),
    /// A CID is refused.
    #[error("a CID is refused at byte {offset}")]
    Cid {
        /// Where the section begins, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: CidError,
    },
    /// A block is refused; the cause names it.
    #[error("a block is refused at byte {offset}")]
    Block {
        /// Where the section begins, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: BlockError,
    },
    /// The CAR ends within a section.
    #[error("unexpected end of CAR at byte {0}")]
    Truncated(u64),
    /// A root is not among the blocks.
    #[error("root not found: {0}")]
    RootMissing(Cid),
}

/// The header of a CAR with these roots.
#[must_use]
pub fn header(roots: &[Cid]) -> Vec<u8> {
    let cbor = header::encode(roots);
    let mut out = encode::usize(cbor.len(), &mut encode::usize_buffer()).to_vec();
    out.extend_from_slice(&cbor);
    out
}

/// What precedes the bytes of `block` in a CAR. Identity blocks have no place in one.
#[must_use]
pub fn section_head(block: &Block) -> Vec<u8> {
    let cid = block.cid().to_bytes();
    let length = cid.len() + block.bytes().len();
    let mut out = encode::usize(length, &mut encode::usize_buffer()).to_vec();
    out.extend_from_slice(&cid);
    out
}

/// Reads a CAR in pieces.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a section, with its length.
    section: Vec<u8>,
    /// Where it begins in the CAR.
    offset: u64,
    roots: Option<Vec<Cid>>,
    /// Roots whose block did not come yet.
    missing: HashSet<Cid>,
}

impl Reader {
    /// At the beginning of a CAR.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The roots that the header names, once it has been read.
    #[must_use]
    pub fn roots(&self) -> Option<&[Cid]> {
        self.roots.as_deref()
    }

    /// Takes the next piece; `out` gets each block that is complete.
    ///
    /// # Errors
    /// [`CarError`], or what `out` returns. The reader is of no use afterwards.
    pub fn push<E: From<CarError>>(
        &mut self,
        mut piece: &[u8],
        out: &mut impl FnMut(Block) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let (head, whole) = self.lengths()?;
            let (now, later) = piece.split_at(piece.len().min(whole - self.section.len()));
            self.section.extend_from_slice(now);
            piece = later;
            if self.section.len() < whole {
                return Ok(());
            }
            if head == 0 {
                continue;
            }
            let section = Bytes::from(std::mem::take(&mut self.section));
            if let Some(block) = self.end_section(&section.slice(head..))? {
                out(block)?;
            }
            self.offset += whole as u64;
        }
    }

    /// Ends the CAR and returns its roots.
    ///
    /// # Errors
    /// [`CarError::Truncated`] and [`CarError::RootMissing`].
    pub fn finish(self) -> Result<Vec<Cid>, CarError> {
        let roots = self.roots.filter(|_| self.section.is_empty()).ok_or(CarError::Truncated(self.offset))?;
        match roots.iter().find(|root| self.missing.contains(root)) {
            Some(root) => Err(CarError::RootMissing(*root)),
            None => Ok(roots),
        }
    }

    /// Bytes of the section's length and of both together; 0 and one byte more than there are, while the
    /// length is not complete.
    fn lengths(&self) -> Result<(usize, usize), CarError> {
        let (length, rest) = match decode::u64(&self.section) {
            Ok(read) => read,
            Err(decode::Error::Insufficient) => return Ok((0, self.section.len() + 1)),
            Err(_) => return Err(self.broken("bad length of a section")),
        };
        let most = if self.roots.is_none() { MAX_HEADER } else { MAX_CID + MAX_BLOCK };
        let short = usize::try_from(length).ok().filter(|length| *length <= most);
        let body = short.ok_or(CarError::TooLong { offset: self.offset, length })?;
        let head = self.section.len() - rest.len();
        Ok((head, head + body))
    }

    fn end_section(&mut self, section: &Bytes) -> Result<Option<Block>, CarError> {
        let offset = self.offset;
        if self.roots.is_none() {
            let roots = header::parse(section)?;
            self.missing = roots.iter().filter(|root| Block::inline(root).is_none()).copied().collect();
            self.roots = Some(roots);
            return Ok(None);
        }
        let mut rest = &section[..];
        let length = match Cid::read_bytes(&mut rest) {
            Ok(_) => section.len() - rest.len(),
            Err(_) => return Err(self.broken("a section without a CID")),
        };
        let cid = read_cid(&section[..length]).map_err(|source| CarError::Cid { offset, source })?;
        let block = Block::verify(cid, section.slice(length..)).map_err(|source| CarError::Block { offset, source })?;
        self.missing.remove(&cid);
        Ok(Some(block).filter(|block| block.digest().is_some()))
    }

    fn broken(&self, why: &'static str) -> CarError {
        CarError::Malformed { offset: self.offset, why }
    }
}

#[cfg(test)]
mod tests;
