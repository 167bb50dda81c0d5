//! Store paths: `/nix/store/<32 base-32 characters>-<name>`.
//!
//! The rules are those of Nix (`checkName` in its `libstore/path.cc`), and the only store directory is
//! [`STORE_DIR`]: paths of other stores are refused. Content addresses follow "Store path
//! calculation" in the Nix manual, for sha2-256 alone.

use super::base32;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// The store directory, without a slash at the end.
pub const STORE_DIR: &str = "/nix/store";
/// Longest name in bytes, without the hash part and its dash (Nix: 211).
pub const MAX_NAME: usize = 211;

/// Characters of the hash part: 20 bytes in base 32.
const HASH_LEN: usize = 32;

/// Why a text is not a store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StorePathError {
    /// Another store directory, a path below a store path, or no path at all.
    #[error("'{0}' is not in {STORE_DIR}")]
    NotInStore(String),
    /// The hash part is missing, too short, not base 32 or not followed by a dash.
    #[error("'{0}' does not begin with a hash of {HASH_LEN} base-32 characters and a dash")]
    Hash(String),
    /// The name is empty, too long, has an illegal character, or begins with `.` or `..` and a dash or nothing.
    #[error("'{0}' is not the name of a store path")]
    Name(String),
}

/// The hash part of a store path: 32 base-32 characters, the key of a narinfo.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePathHash([u8; HASH_LEN]);

impl StorePathHash {
    /// The hash part of the 20 bytes that Nix compresses a fingerprint to.
    fn of_bytes(bytes: [u8; 20]) -> Self {
        let mut characters = [0; HASH_LEN];
        characters.copy_from_slice(base32::encode(&bytes).as_bytes());
        Self(characters)
    }

    /// The 32 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("base-32 characters are ASCII")
    }
}

impl FromStr for StorePathHash {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, StorePathError> {
        let characters = <[u8; HASH_LEN]>::try_from(text.as_bytes()).ok();
        characters
            .filter(|characters| characters.iter().all(|&character| base32::is_digit(character)))
            .map(Self)
            .ok_or_else(|| StorePathError::Hash(text.to_owned()))
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A store path. Ordered by base name, as Nix orders references. Displayed with the store directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    hash: StorePathHash,
    name: String,
}

impl StorePath {
    /// Reads a full path, `/nix/store/<hash>-<name>`; nothing below it, no slash at the end.
    ///
    /// # Errors
    /// [`StorePathError`] naming what was given.
    pub fn parse(path: &str) -> Result<Self, StorePathError> {
        let base_name = path.strip_prefix(STORE_DIR).and_then(|rest| rest.strip_prefix('/'));
        let base_name = base_name.filter(|base_name| !base_name.contains('/'));
        Self::from_base_name(base_name.ok_or_else(|| StorePathError::NotInStore(path.to_owned()))?)
    }

    /// Reads a base name, `<hash>-<name>`, as narinfos list references.
    ///
    /// # Errors
    /// [`StorePathError`] naming what was given.
    pub fn from_base_name(base_name: &str) -> Result<Self, StorePathError> {
        let bad_hash = || StorePathError::Hash(base_name.to_owned());
        let (hash, rest) = base_name.split_at_checked(HASH_LEN).ok_or_else(bad_hash)?;
        let name = rest.strip_prefix('-').ok_or_else(bad_hash)?;
        Self::new(hash.parse().map_err(|_| bad_hash())?, name)
    }

    fn new(hash: StorePathHash, name: &str) -> Result<Self, StorePathError> {
        if is_name(name) {
            Ok(Self { hash, name: name.to_owned() })
        } else {
            Err(StorePathError::Name(name.to_owned()))
        }
    }

    /// The hash part.
    #[must_use]
    pub fn hash_part(&self) -> StorePathHash {
        self.hash
    }

    /// The name, without the hash part.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `<hash>-<name>`.
    #[must_use]
    pub fn base_name(&self) -> String {
        format!("{}-{}", self.hash, self.name)
    }

    /// `/nix/store/<hash>-<name>`.
    #[must_use]
    pub fn to_absolute_path(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE_DIR}/{}-{}", self.hash, self.name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorePath({self})")
    }
}

/// Whether `name` may follow the hash part and its dash.
fn is_name(name: &str) -> bool {
    let legal = |character: u8| character.is_ascii_alphanumeric() || b"+-._?=".contains(&character);
    let first_component = name.split('-').next();
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(legal) && !matches!(first_component, Some("." | ".."))
}

/// What the `CA:` field of a narinfo says: the store path follows from these bytes and not from a derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentAddress {
    /// `text:sha256:…`: the sha2-256 of a plain file that Nix wrote itself (derivations, `builtins.toFile`).
    Text([u8; 32]),
    /// `fixed:sha256:…`: the sha2-256 of a plain file.
    Flat([u8; 32]),
    /// `fixed:r:sha256:…`: the sha2-256 of a NAR. With a reference to itself, of the NAR in which its own hash part is zeroed.
    Recursive([u8; 32]),
}

impl ContentAddress {
    /// Reads a `CA:` field; `None` for methods and hashes other than the three above.
    #[must_use]
    pub fn parse(field: &str) -> Option<Self> {
        let (method, hash) = field.rsplit_once(':')?;
        let hash = base32::decode(hash).ok()?;
        match method {
            "text:sha256" => Some(Self::Text(hash)),
            "fixed:sha256" => Some(Self::Flat(hash)),
            "fixed:r:sha256" => Some(Self::Recursive(hash)),
            _ => None,
        }
    }

    /// The store path of this content, with `references` to other paths and perhaps to itself.
    /// `None` for a bad name, and for references where the method allows none.
    ///
    /// It says nothing about bytes that somebody sends: their hash must be compared as well, see [`Self::proves`].
    #[must_use]
    pub fn store_path(&self, name: &str, references: &[StorePath], to_itself: bool) -> Option<StorePath> {
        let none = references.is_empty() && !to_itself;
        match self {
            Self::Text(hash) if !to_itself => fingerprinted(&with_references("text", references, false), *hash, name),
            Self::Flat(hash) if none => {
                let outer = Sha256::digest(format!("fixed:out:sha256:{}:", hex(hash)));
                fingerprinted("output:out", outer.into(), name)
            }
            Self::Recursive(hash) => fingerprinted(&with_references("source", references, to_itself), *hash, name),
            Self::Text(_) | Self::Flat(_) => None,
        }
    }

    /// Whether `path` and a NAR of `nar_hash` follow from this address: then no signature is needed.
    ///
    /// Only [`Self::Recursive`] without a reference to itself is the hash of a NAR, so only that can be proven by a
    /// NarHash. `references` may contain `path` itself.
    #[must_use]
    pub fn proves(&self, path: &StorePath, references: &[StorePath], nar_hash: &[u8; 32]) -> bool {
        let same_bytes = matches!(self, Self::Recursive(hash) if hash == nar_hash) && !references.contains(path);
        same_bytes && self.store_path(path.name(), references, false).as_ref() == Some(path)
    }
}

/// The path that `nix store add-path` and `nix-store --add` give to a NAR: recursive sha2-256, no references.
///
/// # Errors
/// [`StorePathError::Name`].
pub fn add_path(name: &str, nar_hash: &[u8; 32]) -> Result<StorePath, StorePathError> {
    let path = ContentAddress::Recursive(*nar_hash).store_path(name, &[], false);
    path.ok_or_else(|| StorePathError::Name(name.to_owned()))
}

fn with_references(method: &str, references: &[StorePath], to_itself: bool) -> String {
    let mut sorted: Vec<_> = references.iter().collect();
    sorted.sort();
    sorted.dedup();
    let mut kind = method.to_owned();
    for reference in sorted {
        kind.push(':');
        kind.push_str(&reference.to_absolute_path());
    }
    if to_itself {
        kind.push_str(":self");
    }
    kind
}

/// The path whose hash part is the fingerprint of `kind`, `hash` and `name`, folded to 20 bytes.
fn fingerprinted(kind: &str, hash: [u8; 32], name: &str) -> Option<StorePath> {
    let fingerprint = format!("{kind}:sha256:{}:{STORE_DIR}:{name}", hex(&hash));
    let mut folded = [0; 20];
    for (index, byte) in Sha256::digest(fingerprint).into_iter().enumerate() {
        folded[index % 20] ^= byte;
    }
    StorePath::new(StorePathHash::of_bytes(folded), name).ok()
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
