//! How much of a DAG is asked for: `dag-scope` and `entity-bytes` of the IPFS trustless gateway spec.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// How much of the DAG below a block is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only the block.
    Block,
    /// What the block is by itself: of a file all blocks with bytes of the range, of a directory its shards.
    Entity(EntityBytes),
    /// Everything below it.
    All,
}

/// A range of a file's bytes, written `from:to`. Both are included, both may be negative and count from the end then,
/// and `*` stands for the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntityBytes {
    from: i64,
    to: Option<i64>,
}

impl EntityBytes {
    /// The whole file.
    pub const ALL: Self = Self { from: 0, to: None };

    /// The bytes from `from` on; from the last byte that can be named when there are more before it.
    #[must_use]
    pub fn starting(from: u64) -> Self {
        Self { from: i64::try_from(from).unwrap_or(i64::MAX), to: None }
    }

    /// The bytes of a file of `size` that are meant.
    #[must_use]
    pub fn of(&self, size: u64) -> Range<u64> {
        let before = |offset: i64, end: u64| match u64::try_from(offset) {
            Ok(offset) => offset,
            Err(_) => end.saturating_sub(offset.unsigned_abs()),
        };
        let end = self.to.map_or(size, |to| match to {
            0.. => before(to, size).saturating_add(1).min(size),
            _ => before(to, size.saturating_add(1)),
        });
        before(self.from, size).min(end)..end
    }
}

/// The text is not a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a range of bytes such as 0:1023, 512:* or -1024:*")]
pub struct NotEntityBytes;

impl FromStr for EntityBytes {
    type Err = NotEntityBytes;

    fn from_str(text: &str) -> Result<Self, NotEntityBytes> {
        let number = |text: &str| {
            let plain = text.strip_prefix('-').unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<i64>().ok().filter(|_| plain).ok_or(NotEntityBytes)
        };
        let (from, to) = text.split_once(':').ok_or(NotEntityBytes)?;
        let from = number(from)?;
        let to = if to == "*" { None } else { Some(number(to)?) };
        // Whatever the size, there is nothing between them.
        let crossed = to.is_some_and(|to| (from < 0) == (to < 0) && from > to);
        if crossed { Err(NotEntityBytes) } else { Ok(Self { from, to }) }
    }
}

impl fmt::Display for EntityBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            Some(to) => write!(f, "{}:{to}", self.from),
            None => write!(f, "{}:*", self.from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_specification() {
        for (text, range) in [
            ("0:*", 0..1026),
            ("0:0", 0..1),
            ("512:1023", 512..1024),
            ("512:-256", 512..771),
            ("-5:*", 1021..1026),
            ("-9999:*", 0..1026),
            ("-9999:-3", 0..1024),
            ("-1:-1", 1025..1026),
            ("1000:9999", 1000..1026),
            ("5000:*", 1026..1026),
            ("5000:6000", 1026..1026),
            ("900:-900", 127..127),
            ("0:-5000", 0..0),
            ("-9223372036854775808:9223372036854775807", 0..1026),
        ] {
            let bytes: EntityBytes = text.parse().unwrap();
            assert_eq!((bytes.of(1026), bytes.to_string()), (range, text.to_owned()));
        }
        assert_eq!(EntityBytes::ALL.of(u64::MAX), 0..u64::MAX);
        assert_eq!(EntityBytes::starting(7).to_string(), "7:*");
        assert_eq!("-1:-1".parse::<EntityBytes>().unwrap().of(0), 0..0);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            ":",
            "5",
            "5:",
            ":5",
            "*:5",
            "-:",
            "+1:2",
            "1:+2",
            " 1:2",
            "1:2:3",
            "--1:2",
            "a:b",
            "5:2",
            "-1:-5",
            "9999999999999999999999:*",
            "0:18446744073709551616",
        ] {
            assert_eq!(text.parse::<EntityBytes>(), Err(NotEntityBytes), "{text}");
        }
    }
}
