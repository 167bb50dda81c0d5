//! Nix's base 32: an alphabet without `e`, `o`, `u` and `t`, written from the last bits to the first.
//!
//! Decoding is strict, so a value has one text only: exact length, exact alphabet, no bits left over.

const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Why a text is not the base 32 of a value of the expected size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Base32Error {
    /// Not the number of characters that the expected size has.
    #[error("{found} characters of base 32 where {expected} are expected")]
    Length {
        /// Characters that the expected size has.
        expected: usize,
        /// Bytes of the text.
        found: usize,
    },
    /// A character outside the alphabet, at this index.
    #[error("illegal base-32 character at index {0}")]
    Character(usize),
    /// The first character has bits for which the value has no room.
    #[error("bits left over in the first base-32 character")]
    LeftoverBits,
}

/// Characters of the text of `bytes` bytes.
#[must_use]
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Writes `bytes` in base 32.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let digit = |index: usize| {
        let (at, shift) = (index * 5 / 8, index * 5 % 8);
        let low = u16::from(bytes[at]);
        let high = u16::from(bytes.get(at + 1).copied().unwrap_or(0));
        let five = ((high << 8 | low) >> shift) & 31;
        char::from(ALPHABET[usize::from(five)])
    };
    (0..encoded_len(bytes.len())).rev().map(digit).collect()
}

/// Whether `character` is one of the 32.
#[must_use]
pub fn is_digit(character: u8) -> bool {
    value(character).is_some()
}

/// Reads a value of `N` bytes.
///
/// # Errors
/// [`Base32Error`] unless `text` is exactly what [`encode`] writes for some `N` bytes.
pub fn decode<const N: usize>(text: &str) -> Result<[u8; N], Base32Error> {
    let expected = encoded_len(N);
    if text.len() != expected {
        return Err(Base32Error::Length { expected, found: text.len() });
    }
    let mut bytes = [0; N];
    for (index, character) in text.bytes().enumerate() {
        let five = u16::from(value(character).ok_or(Base32Error::Character(index))?);
        let bit = (expected - 1 - index) * 5;
        let [low, high] = (five << (bit % 8)).to_le_bytes();
        bytes[bit / 8] |= low;
        match bytes.get_mut(bit / 8 + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return Err(Base32Error::LeftoverBits),
            None => {}
        }
    }
    Ok(bytes)
}

fn value(character: u8) -> Option<u8> {
    let index = ALPHABET.iter().position(|&digit| digit == character)?;
    u8::try_from(index).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_texts() {
        // `nix-hash --to-base32 --type sha256` and `--type sha1`.
        let empty = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        let sha256: [u8; 32] = sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new()).into();
        assert_eq!(encode(&sha256), empty);
        assert_eq!(decode(empty), Ok(sha256));
        assert_eq!(encode(&[]), "");
        assert_eq!(encode(&[0x1f]), "0z");
        assert_eq!(encode(&[0xff]), "7z");
        assert_eq!(decode("7z"), Ok([0xff]));
    }

    #[test]
    fn refusals() {
        assert_eq!(decode::<1>("8z"), Err(Base32Error::LeftoverBits));
        assert_eq!(decode::<1>("zz"), Err(Base32Error::LeftoverBits));
        for character in ["e", "o", "u", "t", "A", "-", "\0"] {
            assert_eq!(decode::<1>(&format!("0{character}")), Err(Base32Error::Character(1)));
        }
        assert_eq!(decode::<1>("0"), Err(Base32Error::Length { expected: 2, found: 1 }));
        assert_eq!(decode::<1>("000"), Err(Base32Error::Length { expected: 2, found: 3 }));
        assert_eq!(decode::<1>("é"), Err(Base32Error::Character(0)));
        let sha256 = format!("2{}", "0".repeat(51));
        assert_eq!(decode::<32>(&sha256), Err(Base32Error::LeftoverBits));
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(bytes: [u8; 32], short: [u8; 20]) {
            prop_assert_eq!(decode(&encode(&bytes)), Ok(bytes));
            prop_assert_eq!(decode(&encode(&short)), Ok(short));
        }

        #[test]
        fn a_text_that_decodes_is_the_one_that_encode_writes(text in "[0-9a-z]{52}") {
            if let Ok(bytes) = decode::<32>(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
