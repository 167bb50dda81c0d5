//! Narinfos: the signed record of a store path in a binary cache, `Key: value` lines.
//!
//! The text is kept as it came, and edits touch whole lines, so that what a cache served is written byte for byte:
//! unknown fields, their order, and a value's notation survive. The typed fields beside it are read once, strictly.
//!
//! Nix's reader takes a value from two bytes after the colon and lets the last of two equal keys win; what it would
//! misread is an error here: a missing space, CR, NUL, a missing final newline, a second equal key.
//!
//! nipfs adds two lines of its own, always last: `IPFSHash: CID` (as the seed of 2016) and `IPFSSig: KEY:BASE64` over
//! [`ipfs_fingerprint`], because `Sig` does not cover the CID. Nix ignores both.

mod parse;
#[cfg(test)]
mod tests;

use super::nar_hash::{NarHash, NarHashError};
use super::signature::Signature;
use super::store_path::{StorePath, StorePathError, StorePathHash};
use crate::Cid;
use crate::block::{self, CidError};

/// Longest narinfo in bytes. Real ones reach about 200 KiB.
pub const MAX_NARINFO: usize = 1 << 20;
/// Largest `NarSize` and `FileSize` in bytes: 1 TiB.
pub const MAX_NAR_SIZE: u64 = 1 << 40;
/// Longest `URL` in bytes.
pub const MAX_URL: usize = 1 << 10;
/// Most `Sig` lines in one narinfo: each may cost a verification.
pub const MAX_SIGNATURES: usize = 64;

/// How the file behind `URL` is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A bare NAR.
    None,
    /// xz.
    Xz,
    /// zstd.
    Zstd,
    /// bzip2, which is also meant when the field is missing or empty.
    Bzip2,
}

/// The IPFS root of a NAR: dag-pb or raw, sha2-256, with the signature that binds it to the NAR, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    cid: Cid,
    signature: Option<Signature>,
}

impl Root {
    /// A root, with the signature over its [`ipfs_fingerprint`].
    ///
    /// # Errors
    /// [`Reason::Cid`] or [`Reason::RootCodec`] for a CID that is not dag-pb or raw with sha2-256.
    pub fn new(cid: Cid, signature: Option<Signature>) -> Result<Self, Reason> {
        block::check_cid(&cid)?;
        if cid.hash().code() != block::SHA2_256 {
            return Err(CidError::HashFunction(cid.hash().code()).into());
        }
        match cid.codec() {
            block::DAG_PB | block::RAW => Ok(Self { cid, signature }),
            other => Err(Reason::RootCodec(other)),
        }
    }

    /// The CID.
    #[must_use]
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// What the `IPFSSig` line holds; `None` when there is none or it is malformed.
    #[must_use]
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }
}

/// Why a field is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// More than [`MAX_NARINFO`] bytes in all.
    #[error("{0} bytes, more than {MAX_NARINFO}")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// NUL or CR, which no value has.
    #[error("has a NUL or a CR")]
    ControlCharacter,
    /// The last line does not end.
    #[error("does not end in a newline")]
    NoFinalNewline,
    /// Not `Key: value`.
    #[error("not `Key: value`")]
    NotAField,
    /// A field that must be there is not.
    #[error("missing")]
    Missing,
    /// A field that may be there once is there twice.
    #[error("there twice")]
    Duplicate,
    /// More than [`MAX_SIGNATURES`].
    #[error("more than {MAX_SIGNATURES}")]
    TooManySignatures,
    /// Not a store path.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    /// The record of another path than the one asked for.
    #[error("is about {0}, which was not asked for")]
    OtherPath(StorePath),
    /// Not a plain relative path inside the cache of at most [`MAX_URL`] bytes.
    #[error("not a plain relative path inside the cache")]
    Url,
    /// An unknown compression.
    #[error("unknown compression")]
    Compression,
    /// Not a hash.
    #[error(transparent)]
    Hash(#[from] NarHashError),
    /// Not decimal digits only, or over 2^64.
    #[error("not a decimal number")]
    Number,
    /// A `NarSize` of 0.
    #[error("zero")]
    Zero,
    /// A size over [`MAX_NAR_SIZE`].
    #[error("{0} bytes, more than {MAX_NAR_SIZE}")]
    TooLarge(u64),
    /// Not a CID that is accepted.
    #[error(transparent)]
    Cid(#[from] CidError),
    /// A root that is neither dag-pb nor raw.
    #[error("CID of codec 0x{0:x}, neither dag-pb nor raw")]
    RootCodec(u64),
}

/// A narinfo is refused: which field, on which line, why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("narinfo line {line}: {field}: {reason}")]
pub struct NarInfoError {
    /// The line, from 1. Of a missing field: the line after the last.
    pub line: usize,
    /// The field's key; `line` or `text` where no field is at fault.
    pub field: &'static str,
    /// Why.
    pub reason: Reason,
}

/// What Nix knows about a valid path: the part of a narinfo that does not depend on the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// Hash of its NAR.
    pub nar_hash: NarHash,
    /// Bytes of its NAR.
    pub nar_size: u64,
    /// The paths it refers to, itself included if it does.
    pub references: Vec<StorePath>,
    /// The derivation that built it.
    pub deriver: Option<StorePath>,
    /// The signatures that it carries.
    pub signatures: Vec<Signature>,
    /// The content address, as Nix writes it.
    pub ca: Option<String>,
}

/// One record: its exact text, and its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    text: String,
    url: String,
    compression: Compression,
    file_hash: Option<NarHash>,
    file_size: Option<u64>,
    info: PathInfo,
    root: Option<Root>,
}

impl NarInfo {
    /// Reads the record that was asked for as `ASKED.narinfo`.
    ///
    /// # Errors
    /// [`NarInfoError`] naming the first field at fault.
    pub fn parse(asked: &StorePathHash, text: &[u8]) -> Result<Self, NarInfoError> {
        parse::parse(Some(asked), text)
    }

    /// Reads a record that nobody asked for by its hash: it says itself which path it is about.
    ///
    /// # Errors
    /// [`NarInfoError`] naming the first field at fault.
    pub fn parse_unasked(text: &[u8]) -> Result<Self, NarInfoError> {
        parse::parse(None, text)
    }

    /// The record of a path that we serve, its fields in Nix's order: an uncompressed NAR at `nar/HASH.nar`.
    ///
    /// # Errors
    /// [`NarInfoError`] when the size is 0 or over [`MAX_NAR_SIZE`], when `ca` is not one line, or when there are more
    /// references or signatures than [`NarInfo::parse`] would take.
    pub fn new(info: &PathInfo) -> Result<Self, NarInfoError> {
        let mut references: Vec<String> = info.references.iter().map(StorePath::base_name).collect();
        references.sort_unstable();
        references.dedup();
        let (path, hash, size) = (info.path.to_absolute_path(), info.nar_hash, info.nar_size);
        let mut text = format!("StorePath: {path}\nURL: nar/{}.nar\nCompression: none\n", hash.to_base32());
        text += &format!("FileHash: {hash}\nFileSize: {size}\nNarHash: {hash}\nNarSize: {size}\n");
        text += &format!("References: {}\n", references.join(" "));
        if let Some(deriver) = &info.deriver {
            text += &format!("Deriver: {}\n", deriver.base_name());
        }
        for signature in &info.signatures {
            text += &format!("Sig: {signature}\n");
        }
        if let Some(ca) = &info.ca {
            if ca.contains(char::is_control) {
                let line = text.matches('\n').count() + 1;
                return Err(NarInfoError { line, field: "CA", reason: Reason::ControlCharacter });
            }
            text += &format!("CA: {ca}\n");
        }
        Self::parse(&info.path.hash_part(), text.as_bytes())
    }

    /// The exact text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the record says of the path itself: references sorted and each once, signatures those that are well-formed.
    #[must_use]
    pub fn path_info(&self) -> &PathInfo {
        &self.info
    }

    /// The store path that the record is about.
    #[must_use]
    pub fn store_path(&self) -> &StorePath {
        &self.info.path
    }

    /// Where the NAR is: a relative path without `..`, to be resolved under the cache's own URL. Not signed.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The compression of the file behind [`NarInfo::url`]. Not signed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Hash of the file behind [`NarInfo::url`]. Not signed.
    #[must_use]
    pub fn file_hash(&self) -> Option<NarHash> {
        self.file_hash
    }

    /// Bytes of the file behind [`NarInfo::url`], up to [`MAX_NAR_SIZE`]. Not signed.
    #[must_use]
    pub fn file_size(&self) -> Option<u64> {
        self.file_size
    }

    /// Hash of the NAR.
    #[must_use]
    pub fn nar_hash(&self) -> NarHash {
        self.info.nar_hash
    }

    /// Bytes of the NAR, from 1 to [`MAX_NAR_SIZE`].
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.info.nar_size
    }

    /// The references, sorted and each once.
    #[must_use]
    pub fn references(&self) -> &[StorePath] {
        &self.info.references
    }

    /// The derivation that built the path. Not signed.
    #[must_use]
    pub fn deriver(&self) -> Option<&StorePath> {
        self.info.deriver.as_ref()
    }

    /// The content address as written. Not signed: it counts only if it recomputes to the store path.
    #[must_use]
    pub fn ca(&self) -> Option<&str> {
        self.info.ca.as_deref()
    }

    /// The well-formed `Sig` lines.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.info.signatures
    }

    /// The IPFS root that the record names. `Sig` does not cover it.
    #[must_use]
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// What `Sig` signs: `1;PATH;NARHASH;NARSIZE;REFERENCES`, the references as full paths, sorted, with commas.
    ///
    /// Sorted as today's Nix does: a record of 2008 that was signed in another order verifies neither here nor there.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let references: Vec<String> = self.references().iter().map(StorePath::to_absolute_path).collect();
        let path = self.store_path().to_absolute_path();
        format!("1;{path};{};{};{}", self.nar_hash(), self.nar_size(), references.join(","))
    }

    /// Adds a `Sig` line where Nix has it: after the others, before `CA`. One that is there already is not repeated.
    pub fn add_sig(&mut self, signature: Signature) {
        if self.info.signatures.contains(&signature) {
            return;
        }
        let (mut end, mut after_sigs, mut before_ca) = (0, None, None);
        for line in self.text.split_inclusive('\n') {
            match key(line) {
                "Sig" => after_sigs = Some(end + line.len()),
                "CA" | "IPFSHash" | "IPFSSig" => before_ca = before_ca.or(Some(end)),
                _ => {}
            }
            end += line.len();
        }
        let at = after_sigs.or(before_ca).unwrap_or(end);
        self.text.insert_str(at, &format!("Sig: {signature}\n"));
        self.info.signatures.push(signature);
    }

    /// The same record naming `root`: our lines come last and replace the ones that were there.
    #[must_use]
    pub fn with_ipfs(&self, root: Root) -> Self {
        let mut info = self.plain();
        info.text += &format!("IPFSHash: {}\n", root.cid);
        if let Some(signature) = &root.signature {
            info.text += &format!("IPFSSig: {signature}\n");
        }
        info.root = Some(root);
        info
    }

    /// The same record without our lines, for readers that refuse unknown fields.
    #[must_use]
    pub fn plain(&self) -> Self {
        let foreign = |line: &&str| !matches!(key(line), "IPFSHash" | "IPFSSig");
        let text = self.text.split_inclusive('\n').filter(foreign).collect();
        Self { text, root: None, ..self.clone() }
    }
}

/// What `IPFSSig` signs: that the NAR of this hash and size, imported with `profile`, has the root `cid`.
#[must_use]
pub fn ipfs_fingerprint(nar_hash: NarHash, nar_size: u64, cid: &Cid, profile: &str) -> String {
    format!("nipfs-root-1;{nar_hash};{nar_size};{cid};{profile}")
}

fn key(line: &str) -> &str {
    line.split_once(':').map_or(line, |(key, _)| key)
}
