//! Byte ranges and freshness (RFC 9110 §13 and §14) for resources that never change under their name.

use axum::http::{HeaderMap, HeaderValue, header};
use std::ops::Range;

/// What part of a resource is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: 200.
    Whole,
    /// These bytes, at least one: 206.
    Some(Range<u64>),
    /// Bytes after its end: 416.
    Beyond,
}

/// The part of `size` bytes under the strong validator `etag` that `headers` ask for.
///
/// Only a single range of bytes is answered with a part; several ranges, another unit or nonsense get the whole, as
/// the RFC lets a server do. So does an `If-Range` that is not our validator.
pub(super) fn part(headers: &HeaderMap, etag: &str, size: u64) -> Part {
    let Some(range) = headers.get(header::RANGE).and_then(text) else { return Part::Whole };
    if headers.get(header::IF_RANGE).is_some_and(|validator| validator != etag) {
        return Part::Whole;
    }
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|spec| spec.trim().split_once('-')) else {
        return Part::Whole;
    };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..size.min(last.saturating_add(1)),
        (Some(first), None) if last.is_empty() => first..size,
        (None, Some(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        _ => return Part::Whole,
    };
    if range.is_empty() { Part::Beyond } else { Part::Some(range) }
}

/// Whether the client has what `etag` names already: 304.
pub(super) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(text).flat_map(|list| list.split(','));
    let weak = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    tags.map(weak).any(|tag| tag == "*" || tag == weak(etag))
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// Decimal digits only; a number over 2^64 is as good as 2^64.
fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(range: &str, if_range: Option<&str>) -> Part {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_str(range).unwrap());
        if let Some(validator) = if_range {
            headers.insert(header::IF_RANGE, HeaderValue::from_str(validator).unwrap());
        }
        part(&headers, "\"tag\"", 100)
    }

    #[test]
    fn ranges_of_100_bytes() {
        let cases = [
            ("bytes=0-0", Part::Some(0..1)),
            ("bytes=0-", Part::Some(0..100)),
            ("bytes=99-", Part::Some(99..100)),
            ("bytes=10-19", Part::Some(10..20)),
            ("bytes=10-1000", Part::Some(10..100)),
            ("bytes=0-18446744073709551615", Part::Some(0..100)),
            ("bytes=0-99999999999999999999", Part::Some(0..100)),
            ("bytes=-1", Part::Some(99..100)),
            ("bytes=-1000", Part::Some(0..100)),
            ("bytes= 5-6 ", Part::Some(5..7)),
            ("bytes=100-", Part::Beyond),
            ("bytes=100-200", Part::Beyond),
            ("bytes=99999999999999999999-", Part::Beyond),
            ("bytes=-0", Part::Beyond),
            ("bytes=20-10", Part::Whole),
            ("bytes=", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=,", Part::Whole),
            ("bytes=0-0,2-3", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=0x1-2", Part::Whole),
            ("bytes=--1", Part::Whole),
            ("items=0-1", Part::Whole),
            ("0-1", Part::Whole),
        ];
        for (range, part) in cases {
            assert_eq!(asked(range, None), part, "{range}");
        }
    }

    #[test]
    fn a_range_of_something_else_is_the_whole() {
        assert_eq!(asked("bytes=1-", Some("\"tag\"")), Part::Some(1..100));
        for other in ["\"other\"", "W/\"tag\"", "tag", "Wed, 21 Oct 2015 07:28:00 GMT", ""] {
            assert_eq!(asked("bytes=1-", Some(other)), Part::Whole, "{other}");
        }
    }

    #[test]
    fn known_tags() {
        let cases = [
            ("\"tag\"", true),
            ("W/\"tag\"", true),
            ("*", true),
            ("\"a\", \"tag\"", true),
            ("\"a\"", false),
            ("tag", false),
            ("", false),
        ];
        for (list, known) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_str(list).unwrap());
            assert_eq!(is_known(&headers, "\"tag\""), known, "{list}");
            assert_eq!(is_known(&headers, "W/\"tag\""), known, "{list}");
        }
        assert!(!is_known(&HeaderMap::new(), "\"tag\""));
    }

    proptest! {
        #[test]
        fn a_part_lies_within(range in "bytes=[0-9, -]{0,24}", size in 0u64..200) {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_str(&range).unwrap());
            if let Part::Some(part) = part(&headers, "", size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }
    }
}
