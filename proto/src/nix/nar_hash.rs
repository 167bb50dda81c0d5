//! The hash of a NAR: sha256, in the notations that Nix reads and the one that it writes.

use super::base32;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// The sha256 of a whole NAR (or, as `FileHash`, of its compressed file).
///
/// `Display` is the form that is signed: `sha256:` and 52 characters of Nix's base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarHash(pub [u8; 32]);

/// Why a text is not a sha256 hash in one of Nix's notations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NarHashError {
    /// Neither `sha256:` nor `sha256-` comes first.
    #[error("not a sha256 hash (`sha256:…` or `sha256-…`)")]
    Algorithm,
    /// What follows is not 32 bytes in base32 (52 characters), hex (64) or base64 (44).
    #[error("not 32 bytes in Nix's base32, hex or base64")]
    Digest,
}

impl NarHash {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 52 characters of base32 without the `sha256:` before them, as in `nar/….nar`.
    #[must_use]
    pub fn to_base32(&self) -> String {
        base32::encode(&self.0)
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_base32())
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NarHash {
    type Err = NarHashError;

    /// Reads `sha256:` with base32, hex or base64 after it, told apart by their lengths, or `sha256-` with base64.
    fn from_str(text: &str) -> Result<Self, NarHashError> {
        let digest = if let Some(base64) = text.strip_prefix("sha256-") {
            from_base64(base64)
        } else {
            let digest = text.strip_prefix("sha256:").ok_or(NarHashError::Algorithm)?;
            match digest.len() {
                44 => from_base64(digest),
                52 => base32::decode(digest).ok(),
                64 => from_hex(digest),
                _ => None,
            }
        };
        digest.map(Self).ok_or(NarHashError::Digest)
    }
}

fn from_base64(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE32: &str = "sha256:1wsgz5cbawm6ifh59ccixw4n717wng5n6wp4sxyav0ad78lzvbb0";
    const HEX: &str = "sha256:60adfd293a4d81ad7cd7e47263cbb3fc846309ef91b154a08ba672b558f94ff3";
    const SRI: &str = "sha256-YK39KTpNga181+RyY8uz/IRjCe+RsVSgi6ZytVj5T/M=";

    #[test]
    fn all_notations_are_the_same_hash() {
        let hash: NarHash = BASE32.parse().unwrap();
        assert_eq!(HEX.parse(), Ok(hash));
        assert_eq!(HEX.to_uppercase().replace("SHA", "sha").parse(), Ok(hash));
        assert_eq!(SRI.parse(), Ok(hash));
        assert_eq!(SRI.replace('-', ":").parse(), Ok(hash));
        assert_eq!(hash.to_string(), BASE32);
    }

    #[test]
    fn everything_else_is_refused() {
        let cases = [
            ("", NarHashError::Algorithm),
            ("sha1:1ak1ymbmsfx7z8kh09jzkr3a4dvkrfjw", NarHashError::Algorithm),
            ("1wsgz5cbawm6ifh59ccixw4n717wng5n6wp4sxyav0ad78lzvbb0", NarHashError::Algorithm),
            ("sha256:", NarHashError::Digest),
            ("sha256-1wsgz5cbawm6ifh59ccixw4n717wng5n6wp4sxyav0ad78lzvbb0", NarHashError::Digest),
            ("sha256:ewsgz5cbawm6ifh59ccixw4n717wng5n6wp4sxyav0ad78lzvbb0", NarHashError::Digest),
            ("sha256:zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", NarHashError::Digest),
            ("sha256:+0adfd293a4d81ad7cd7e47263cbb3fc846309ef91b154a08ba672b558f94ff3", NarHashError::Digest),
            ("sha256-YK39KTpNga181+RyY8uz/IRjCe+RsVSgi6ZytVj5T/M", NarHashError::Digest),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<NarHash>(), Err(error), "{text}");
        }
    }
}
