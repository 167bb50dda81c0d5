//! Keys and signatures as Nix writes them.
//!
//! A key or signature is one line `NAME:BASE64`: 32 bytes for a public key, 64 for a signature, 64 for a secret
//! key (seed, then public half). The algorithm is ed25519; the name before the colon selects the key.
//!
//! Verification is strict (RFC 8032 with canonical encodings, no small-order points), so that a signature has one
//! form, and a public key under which anything verifies is refused when it is read.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use std::{fmt, str::FromStr};
use zeroize::Zeroizing;

/// Longest name of a key, in bytes.
pub const MAX_KEY_NAME: usize = 128;

/// Why a key or a signature is refused. Never contains secret bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no colon.
    #[error("not of the form NAME:BASE64")]
    NoName,
    /// The name is empty, over [`MAX_KEY_NAME`], or has a character other than visible ASCII without `:` and `/`.
    #[error("key name {0:?} is not 1 to {MAX_KEY_NAME} visible ASCII characters without colon and slash")]
    Name(String),
    /// What follows the name is not padded base64.
    #[error("{0}: what follows the name is not base64")]
    Base64(String),
    /// The wrong number of bytes.
    #[error("{name}: {found} bytes, but it takes {expected}")]
    Length {
        /// Name of the key.
        name: String,
        /// Bytes that this kind of key or signature has.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The second half of a secret key is not the public key of the first.
    #[error("{0}: the public half does not belong to the secret half")]
    Halves(String),
    /// The bytes are not a point of the curve, or one of small order, under which anyone can sign.
    #[error("{0}: not a usable ed25519 public key")]
    Weak(String),
}

/// Checks the name of a key: 1 to [`MAX_KEY_NAME`] visible ASCII characters, no `:`, no `/`.
///
/// # Errors
/// [`KeyError::Name`].
pub fn check_key_name(name: &str) -> Result<(), KeyError> {
    let fits = |c: char| c.is_ascii_graphic() && c != ':' && c != '/';
    if (1..=MAX_KEY_NAME).contains(&name.len()) && name.chars().all(fits) {
        Ok(())
    } else {
        Err(KeyError::Name(name.to_owned()))
    }
}

/// Splits `NAME:BASE64` and decodes exactly `N` bytes.
fn decode<const N: usize>(text: &str) -> Result<(&str, Zeroizing<[u8; N]>), KeyError> {
    let (name, encoded) = text.split_once(':').ok_or(KeyError::NoName)?;
    check_key_name(name)?;
    let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| KeyError::Base64(name.to_owned()))?);
    match <[u8; N]>::try_from(bytes.as_slice()) {
        Ok(bytes) => Ok((name, Zeroizing::new(bytes))),
        Err(_) => Err(KeyError::Length { name: name.to_owned(), expected: N, found: bytes.len() }),
    }
}

/// A named signature: `Sig` and `IPFSSig` lines hold one each.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    key: String,
    bytes: [u8; 64],
}

impl Signature {
    /// Name of the key that is said to have signed.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (key, bytes) = decode::<64>(text)?;
        Ok(Self { key: key.to_owned(), bytes: *bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, STANDARD.encode(self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

/// A secret key. Its bytes are wiped when it is dropped, and `Debug` shows only the name.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

impl SecretKey {
    /// The key of 32 random bytes that the caller drew.
    ///
    /// # Errors
    /// [`KeyError::Name`].
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, KeyError> {
        check_key_name(name)?;
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(seed) })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs `message` (a fingerprint).
    #[must_use]
    pub fn sign(&self, message: &str) -> Signature {
        Signature { key: self.name.clone(), bytes: self.key.sign(message.as_bytes()).to_bytes() }
    }

    /// The content of a key file: `NAME:BASE64`, without a newline, as Nix writes it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(self.key.to_keypair_bytes());
        let encoded = Zeroizing::new(STANDARD.encode(*bytes));
        Zeroizing::new([&self.name, ":", &encoded].concat())
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = decode::<64>(text)?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| KeyError::Halves(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), key })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({}, redacted)", self.name)
    }
}

/// A public key that is a usable point: weak ones are refused when read.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PublicKey {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` is this key's, by name and by value, over `message`.
    #[must_use]
    pub fn verifies(&self, message: &str, signature: &Signature) -> bool {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        signature.key == self.name && self.key.verify_strict(message.as_bytes(), &bytes).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = decode::<32>(text)?;
        let usable = VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak());
        let key = usable.ok_or_else(|| KeyError::Weak(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors;

    /// The key pair that go-nix publishes for tests, and what it signs.
    const SECRET: &str =
        "test1:jbX9NxZp8WB/coK8k7yLf0gNYmBbIbCrOFwgJgI7OV+0sASf4R5oFQlioSlN3bJ56uvshzr7S9Z75pcv+9hSkQ==";
    const PUBLIC: &str = "test1:tLAEn+EeaBUJYqEpTd2yeerr7Ic6+0vWe+aXL/vYUpE=";
    const FINGERPRINT: &str = "1;/nix/store/syd87l2rxw8cbsxmxl853h0r6pdwhwjr-curl-7.82.0-bin;\
        sha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0;196040;\
        /nix/store/0jqd0rlxzra1rs38rdxl43yh6rxchgc6-curl-7.82.0,\
        /nix/store/6w8g7njm4mck5dmjxws0z1xnrxvl81xa-glibc-2.34-115,\
        /nix/store/j5jxw3iy7bbz4a57fh9g2xm2gxmyal8h-zlib-1.2.12,\
        /nix/store/yxvjs9drzsphm9pcf42a4byzj1kb9m7k-openssl-1.1.1n";
    const SIGNATURE: &str =
        "test1:519iiVLx/c4Rdt5DNt6Y2Jm6hcWE9+XY69ygiWSZCNGVcmOcyL64uVAJ3cV8vaTusIZdbTnYo9Y7vDNeTmmMBQ==";

    #[test]
    fn known_key_signs_and_verifies() {
        let secret: SecretKey = SECRET.parse().unwrap();
        let public: PublicKey = PUBLIC.parse().unwrap();
        let signature = secret.sign(FINGERPRINT);
        assert_eq!(signature.to_string(), SIGNATURE);
        assert_eq!(SIGNATURE.parse(), Ok(signature.clone()));
        assert_eq!(secret.public_key(), public);
        assert_eq!((secret.to_text().as_str(), public.to_string().as_str()), (SECRET, PUBLIC));
        assert!(public.verifies(FINGERPRINT, &signature));
        assert!(!public.verifies(&FINGERPRINT.replace("196040", "196041"), &signature));
        let renamed: PublicKey = PUBLIC.replace("test1", "test2").parse().unwrap();
        assert!(!renamed.verifies(FINGERPRINT, &signature));
    }

    #[test]
    fn seed_makes_a_key() {
        let key = SecretKey::from_seed("farm-1", &[7; 32]).unwrap();
        assert!(key.public_key().verifies("x", &key.sign("x")));
        assert_eq!(key.to_text().parse::<SecretKey>().unwrap().public_key(), key.public_key());
        assert_eq!(SecretKey::from_seed("a b", &[7; 32]).unwrap_err(), KeyError::Name("a b".to_owned()));
    }

    #[test]
    fn debug_hides_the_secret() {
        let secret: SecretKey = SECRET.parse().unwrap();
        assert_eq!(format!("{secret:?}"), "SecretKey(test1, redacted)");
    }

    #[test]
    fn second_form_of_a_signature_is_refused() {
        // S + L verifies under the bare equation; only S < L is canonical.
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut signature: Signature = SIGNATURE.parse().unwrap();
        let mut carry = 0;
        for (byte, add) in signature.bytes[32..].iter_mut().zip(L) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            [*byte, _] = sum.to_le_bytes();
            carry = sum >> 8;
        }
        let public: PublicKey = PUBLIC.parse().unwrap();
        assert!(!public.verifies(FINGERPRINT, &signature));
    }

    #[test]
    fn bad_keys_are_refused() {
        let name = || "test1".to_owned();
        let length = |expected, found| KeyError::Length { name: name(), expected, found };
        let public = [
            (PUBLIC.replace("test1:", ""), KeyError::NoName),
            (PUBLIC.replace("test1", ""), KeyError::Name(String::new())),
            (PUBLIC.replace("test1", "a/b"), KeyError::Name("a/b".to_owned())),
            (PUBLIC.replace('=', ""), KeyError::Base64(name())),
            (format!("{PUBLIC}\n"), KeyError::Base64(name())),
            (SECRET.to_owned(), length(32, 64)),
            ("test1:".to_owned(), length(32, 0)),
            ("test1:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(), KeyError::Weak(name())),
            ("test1:AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(), KeyError::Weak(name())),
        ];
        for (text, error) in public {
            assert_eq!(text.parse::<PublicKey>(), Err(error), "{text}");
        }
        let secret = [
            (PUBLIC.to_owned(), length(64, 32)),
            (SECRET.replace("hSkQ", "hSkA"), KeyError::Halves(name())),
            (SECRET.replace("jbX9", "jbX8"), KeyError::Halves(name())),
        ];
        for (text, error) in secret {
            assert_eq!(text.parse::<SecretKey>().unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn vector_signatures() {
        let Some(vectors) = vectors::json("sig/cases.json") else { return };
        for case in vectors["signing"].as_array().unwrap() {
            let key: SecretKey = case["secret_key"].as_str().unwrap().parse().unwrap();
            assert_eq!(key.sign(case["fingerprint"].as_str().unwrap()).to_string(), case["sig"].as_str().unwrap());
        }
        for case in vectors["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let key = case["public_key"].as_str().unwrap().parse::<PublicKey>();
            let signature = case["sig"].as_str().unwrap().parse::<Signature>();
            let refused_at_load = name.starts_with("bad public key") || name.starts_with("small-order");
            assert_eq!(key.is_err(), refused_at_load, "{name}: {key:?}");
            let accepted = match (key, signature) {
                (Ok(key), Ok(signature)) => key.verifies(case["fingerprint"].as_str().unwrap(), &signature),
                _ => false,
            };
            assert_eq!(accepted, case["expect"] == "accept", "{name}");
        }
    }
}
