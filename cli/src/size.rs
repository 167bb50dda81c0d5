//! Numbers of bytes, as people write and read them.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Reads `123`, `10K`, `1.5G`…: K, M, G and T are powers of 1024, an `iB` or `B` after them is fine.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let shift = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" if unit.len() < 2 => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("unknown unit {unit}: use K, M, G or T")),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let number = |text: &str| text.parse::<u64>().map_err(|_| "not a number of bytes".to_owned());
    let tenths = number(fraction)?.checked_mul(1 << shift).ok_or("too many digits")?
        / 10_u64.checked_pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX)).ok_or("too many digits")?;
    let bytes = number(whole)?.checked_mul(1 << shift).and_then(|whole| whole.checked_add(tenths));
    bytes.ok_or_else(|| "too large".to_owned())
}

/// A size in a configuration file: a number, or a text as [`parse`] reads it.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a number of bytes, or a text as \"50G\"")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => parse(&text).map(Some).map_err(D::Error::custom),
    }
}

/// `1.5 MiB`
pub(crate) fn show(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("17", 17), ("17B", 17), ("1k", 1024), ("2KiB", 2048), ("1.5M", 1_572_864), ("20G", 20 << 30)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1X", "1iB", "1.M", "1.2.3", "99999999999T", "1e3", "0x10"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
