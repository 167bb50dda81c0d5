//! Blocks: a CID and bytes that are known to match it.
//!
//! Invariant: a [`Block`] that exists has been hashed. There is no way to make one from bytes and a
//! CID without [`Block::verify`] (foreign bytes), or having the CID computed here ([`Unhashed`]).
//!
//! Accepted hashes: sha2-256 with a 32-byte digest, and identity up to [`MAX_IDENTITY`] bytes. All
//! else is refused before anything waits for it. Blocks are matched and stored by [`Digest`], because
//! a peer may answer a CIDv1 want with a CIDv0 block of the same bytes and the reverse.

mod sha256;

use bytes::Bytes;
use cid::{CidGeneric, Version};
use multihash::Multihash;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// A content identifier. It has room for a digest of [`MAX_IDENTITY`] bytes, which every implementation
/// must accept; the `cid` crate's own `Cid` ends at 64.
pub type Cid = CidGeneric<MAX_IDENTITY>;

/// Largest block in bytes that travels over bitswap (IPFS bitswap spec).
pub const MAX_BLOCK: usize = 2 << 20;
/// Longest CID in bytes that is accepted from anywhere (boxo's default).
pub const MAX_CID: usize = 168;
/// Longest identity digest in bytes (IPFS UnixFS spec).
pub const MAX_IDENTITY: usize = 128;

/// Multicodec of raw leaves.
pub const RAW: u64 = 0x55;
/// Multicodec of dag-pb nodes.
pub const DAG_PB: u64 = 0x70;
/// Multihash code of sha2-256.
pub const SHA2_256: u64 = 0x12;
/// Multihash code of identity.
pub const IDENTITY: u64 = 0x00;

/// The sha2-256 digest of a block's bytes: the key under which blocks are stored and matched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest in a sha2-256 CID; `None` for an identity CID, whose bytes are in the CID itself.
    ///
    /// # Errors
    /// As [`check_cid`].
    pub fn of_cid(cid: &Cid) -> Result<Option<Self>, CidError> {
        check_cid(cid)?;
        Ok(<[u8; 32]>::try_from(cid.hash().digest()).ok().filter(|_| cid.hash().code() == SHA2_256).map(Self))
    }

    /// The multihash of this digest.
    #[must_use]
    pub fn multihash(&self) -> Multihash<MAX_IDENTITY> {
        Multihash::wrap(SHA2_256, &self.0).expect("32 bytes fit in 128")
    }

    /// A CIDv1 with the `raw` codec.
    #[must_use]
    pub fn raw_cid(&self) -> Cid {
        Cid::new_v1(RAW, self.multihash())
    }

    /// A CIDv0: dag-pb, written `Qm…`.
    #[must_use]
    pub fn v0_cid(&self) -> Cid {
        Cid::new_v0(self.multihash()).expect("sha2-256 of 32 bytes is a CIDv0")
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Why a CID is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CidError {
    /// The text or the bytes are not a CID.
    #[error("not a CID: {0}")]
    Malformed(String),
    /// A hash function that is not on the allow-list (sha2-256, identity).
    #[error("hash function 0x{0:x} is not accepted (only sha2-256 and identity are)")]
    HashFunction(u64),
    /// A digest of the wrong length.
    #[error("a digest of {0} bytes is not accepted")]
    DigestLength(usize),
    /// More than [`MAX_CID`] bytes.
    #[error("CID of {0} bytes is longer than {MAX_CID}")]
    TooLong(usize),
}

/// Why bytes did not become a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The CID itself is refused.
    #[error(transparent)]
    Cid(#[from] CidError),
    /// More than [`MAX_BLOCK`] bytes.
    #[error("block over 2 MiB: {0} bytes")]
    TooLarge(usize),
    /// The bytes hash to something else.
    #[error("bytes do not match {0}")]
    Mismatch(Cid),
}

/// Checks a CID against the allow-list of hashes and the length limits.
///
/// # Errors
/// [`CidError`] naming the limit that was crossed.
pub fn check_cid(cid: &Cid) -> Result<(), CidError> {
    let digest = cid.hash().digest();
    match cid.hash().code() {
        SHA2_256 if digest.len() == 32 => {}
        IDENTITY if digest.len() <= MAX_IDENTITY => {}
        SHA2_256 | IDENTITY => return Err(CidError::DigestLength(digest.len())),
        other => return Err(CidError::HashFunction(other)),
    }
    let length = cid.encoded_len();
    if length > MAX_CID { Err(CidError::TooLong(length)) } else { Ok(()) }
}

/// A CID and the bytes that match it.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    cid: Cid,
    bytes: Bytes,
}

impl Block {
    /// Takes foreign `bytes` as the block `cid` after hashing them.
    ///
    /// # Errors
    /// [`BlockError`] when the CID is refused, the block is too large, or the bytes do not match.
    pub fn verify(cid: Cid, bytes: Bytes) -> Result<Self, BlockError> {
        let digest = Digest::of_cid(&cid)?;
        if bytes.len() > MAX_BLOCK {
            return Err(BlockError::TooLarge(bytes.len()));
        }
        let fits = match digest {
            Some(digest) => Digest::of(&bytes) == digest,
            None => cid.hash().digest() == bytes,
        };
        if fits { Ok(Self { cid, bytes }) } else { Err(BlockError::Mismatch(cid)) }
    }

    /// A block of `codec` and CIDv1, whose CID is computed here.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`].
    pub fn v1(codec: u64, bytes: Bytes) -> Result<Self, BlockError> {
        Unhashed::v1(codec, bytes).map(Unhashed::hash)
    }

    /// A dag-pb block with a CIDv0 (`Qm…`), whose CID is computed here.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`].
    pub fn v0(bytes: Bytes) -> Result<Self, BlockError> {
        Unhashed::v0(bytes).map(Unhashed::hash)
    }

    /// The block of an identity CID: its bytes are the CID's digest. `None` for a hashed CID.
    #[must_use]
    pub fn inline(cid: &Cid) -> Option<Self> {
        let inline = cid.hash().code() == IDENTITY && check_cid(cid).is_ok();
        inline.then(|| Self { cid: *cid, bytes: Bytes::copy_from_slice(cid.hash().digest()) })
    }

    /// The same bytes under another CID of the same multihash (another version or codec).
    ///
    /// # Errors
    /// [`BlockError::Mismatch`] when the multihashes differ.
    pub fn with_cid(self, cid: Cid) -> Result<Self, BlockError> {
        if cid.hash() == self.cid.hash() { Ok(Self { cid, ..self }) } else { Err(BlockError::Mismatch(cid)) }
    }

    /// The same block in memory of its own. Its bytes may be a small slice of a large buffer, which
    /// lives as long as the block does.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { cid: self.cid, bytes: Bytes::copy_from_slice(&self.bytes) }
    }

    /// The CID.
    #[must_use]
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The key in the store; `None` for identity blocks, which are never stored.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        Digest::of_cid(&self.cid).ok().flatten()
    }

    /// Takes the block apart.
    #[must_use]
    pub fn into_parts(self) -> (Cid, Bytes) {
        (self.cid, self.bytes)
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({}, {} bytes)", self.cid, self.bytes.len())
    }
}

/// The bytes of a block whose CID is still to be computed.
#[derive(Debug)]
pub struct Unhashed {
    version: Version,
    codec: u64,
    bytes: Bytes,
}

impl Unhashed {
    /// For a CIDv1 with `codec`.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`].
    pub fn v1(codec: u64, bytes: Bytes) -> Result<Self, BlockError> {
        Self::new(Version::V1, codec, bytes)
    }

    /// For a CIDv0, of dag-pb.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`].
    pub fn v0(bytes: Bytes) -> Result<Self, BlockError> {
        Self::new(Version::V0, DAG_PB, bytes)
    }

    fn new(version: Version, codec: u64, bytes: Bytes) -> Result<Self, BlockError> {
        if bytes.len() > MAX_BLOCK {
            return Err(BlockError::TooLarge(bytes.len()));
        }
        Ok(Self { version, codec, bytes })
    }

    /// The block.
    #[must_use]
    pub fn hash(self) -> Block {
        let digest = Digest::of(&self.bytes);
        self.with_digest(digest)
    }

    /// The blocks of all, in their order. Takes less time than one after the other.
    #[must_use]
    pub fn hash_all(all: Vec<Self>) -> Vec<Block> {
        let mut blocks = Vec::with_capacity(all.len());
        let mut all = all.into_iter();
        while let Some(first) = all.next() {
            let Some(second) = all.next() else {
                blocks.push(first.hash());
                break;
            };
            let [one, two] = sha256::of_two([&first.bytes, &second.bytes]).map(Digest);
            blocks.extend([first.with_digest(one), second.with_digest(two)]);
        }
        blocks
    }

    /// `digest` is that of the bytes.
    fn with_digest(self, digest: Digest) -> Block {
        let cid = match self.version {
            Version::V0 => digest.v0_cid(),
            Version::V1 => Cid::new_v1(self.codec, digest.multihash()),
        };
        Block { cid, bytes: self.bytes }
    }
}

/// Reads a CID from its text and checks it as [`check_cid`] does. No surrounding space, no path.
///
/// # Errors
/// [`CidError`].
pub fn parse_cid(text: &str) -> Result<Cid, CidError> {
    // Eight characters a byte is base2; anything longer is not worth decoding.
    if text.len() > 1 + 8 * MAX_CID {
        return Err(CidError::TooLong(text.len()));
    }
    // Leaves out multibase's identity (binary behind a NUL) and its emoji.
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CidError::Malformed("a character that is not in any base".to_owned()));
    }
    let bytes = if text.len() == 46 && text.starts_with("Qm") {
        cid::multibase::Base::Base58Btc.decode(text)
    } else {
        cid::multibase::decode(text).map(|(_, bytes)| bytes)
    };
    let bytes = bytes.map_err(|e| CidError::Malformed(e.to_string()))?;
    let cid = read_cid(&bytes)?;
    if cid.version() == Version::V0 && !text.starts_with("Qm") {
        return Err(CidError::Malformed("a CIDv0 has no multibase prefix".to_owned()));
    }
    Ok(cid)
}

/// Reads a CID from all of `bytes` and checks it as [`check_cid`] does. Numbers must be minimal.
///
/// # Errors
/// [`CidError`].
pub fn read_cid(bytes: &[u8]) -> Result<Cid, CidError> {
    if bytes.len() > MAX_CID {
        return Err(CidError::TooLong(bytes.len()));
    }
    let cid = Cid::try_from(bytes).map_err(|e| CidError::Malformed(e.to_string()))?;
    check_cid(&cid)?;
    // The cid crate ignores bytes after the end.
    if cid.to_bytes() != bytes {
        return Err(CidError::Malformed("bytes after the end, or a number that is not minimal".to_owned()));
    }
    Ok(cid)
}

#[cfg(test)]
mod tests;
