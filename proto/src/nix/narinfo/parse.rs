//! The strict reading of a narinfo's text into its fields.

use super::{
    Compression, MAX_NAR_SIZE, MAX_NARINFO, MAX_SIGNATURES, MAX_URL, NarInfo, NarInfoError, PathInfo, Reason, Root,
};
use crate::block;
use crate::nix::store_path::{StorePath, StorePathHash};
use std::collections::BTreeMap;

/// The fields that are read and may be there once each.
const SCALARS: [&str; 12] = [
    "StorePath",
    "URL",
    "Compression",
    "FileHash",
    "FileSize",
    "NarHash",
    "NarSize",
    "References",
    "Deriver",
    "CA",
    "IPFSHash",
    "IPFSSig",
];

/// What Nix's oldest caches wrote for a path without a known deriver.
const UNKNOWN_DERIVER: &str = "unknown-deriver";

pub(super) fn parse(asked: Option<&StorePathHash>, text: &[u8]) -> Result<NarInfo, NarInfoError> {
    let text = check_text(text)?;
    let lines = Lines::read(text)?;
    let path = lines.required("StorePath", |value| {
        let path = StorePath::parse(value)?;
        if asked.is_none_or(|asked| path.hash_part() == *asked) { Ok(path) } else { Err(Reason::OtherPath(path)) }
    })?;
    let url =
        lines.required("URL", |value| if is_plain_url(value) { Ok(value.to_owned()) } else { Err(Reason::Url) })?;
    let compression = lines.optional("Compression", compression)?.unwrap_or(Compression::Bzip2);
    let file_hash = lines.optional("FileHash", |value| Ok(value.parse()?))?;
    let file_size = lines.optional("FileSize", size)?;
    let nar_hash = lines.required("NarHash", |value| Ok(value.parse()?))?;
    let nar_size = lines.required("NarSize", |value| match size(value)? {
        0 => Err(Reason::Zero),
        size => Ok(size),
    })?;
    let references = lines.optional("References", references)?.unwrap_or_default();
    let deriver = lines.optional("Deriver", deriver)?.flatten();
    let ca = lines.optional("CA", |value| Ok(value.to_owned()))?.filter(|ca| !ca.is_empty());
    let signature = lines.optional("IPFSSig", |value| Ok(value.parse().ok()))?.flatten();
    let root = lines.optional("IPFSHash", |value| Root::new(block::parse_cid(value)?, signature))?;
    let signatures = lines.signatures.iter().filter_map(|value| value.parse().ok()).collect();
    let info = PathInfo { path, nar_hash, nar_size, references, deriver, signatures, ca };
    Ok(NarInfo { text: text.to_owned(), url, compression, file_hash, file_size, info, root })
}

/// The text as a whole: its length, its encoding, its end.
fn check_text(bytes: &[u8]) -> Result<&str, NarInfoError> {
    let refuse = |before: &[u8], reason| {
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        Err(NarInfoError { line, field: "text", reason })
    };
    if bytes.len() > MAX_NARINFO {
        return refuse(&[], Reason::TooLong(bytes.len()));
    }
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return refuse(&bytes[..error.valid_up_to()], Reason::NotUtf8),
    };
    if text.ends_with('\n') { Ok(text) } else { refuse(bytes, Reason::NoFinalNewline) }
}

/// The lines of a narinfo by key.
struct Lines<'a> {
    /// Line number and value of every known field that may be there once.
    scalars: BTreeMap<&'static str, (usize, &'a str)>,
    signatures: Vec<&'a str>,
    count: usize,
}

impl<'a> Lines<'a> {
    fn read(text: &'a str) -> Result<Self, NarInfoError> {
        let mut lines = Self { scalars: BTreeMap::new(), signatures: Vec::new(), count: 0 };
        for line in text.split_terminator('\n') {
            lines.count += 1;
            let refuse = |field, reason| Err(NarInfoError { line: lines.count, field, reason });
            let Some((key, value)) = split(line) else {
                return refuse("line", Reason::NotAField);
            };
            let field = SCALARS.into_iter().chain(["Sig"]).find(|&field| field == key);
            if value.contains(['\0', '\r']) {
                return refuse(field.unwrap_or("line"), Reason::ControlCharacter);
            }
            match field {
                Some("Sig") if lines.signatures.len() == MAX_SIGNATURES => {
                    return refuse("Sig", Reason::TooManySignatures);
                }
                Some("Sig") => lines.signatures.push(value),
                Some(field) if lines.scalars.insert(field, (lines.count, value)).is_some() => {
                    return refuse(field, Reason::Duplicate);
                }
                _ => {}
            }
        }
        Ok(lines)
    }

    fn optional<T>(
        &self,
        field: &'static str,
        read: impl FnOnce(&'a str) -> Result<T, Reason>,
    ) -> Result<Option<T>, NarInfoError> {
        let Some(&(line, value)) = self.scalars.get(field) else {
            return Ok(None);
        };
        read(value).map(Some).map_err(|reason| NarInfoError { line, field, reason })
    }

    fn required<T>(
        &self,
        field: &'static str,
        read: impl FnOnce(&'a str) -> Result<T, Reason>,
    ) -> Result<T, NarInfoError> {
        let missing = NarInfoError { line: self.count + 1, field, reason: Reason::Missing };
        self.optional(field, read)?.ok_or(missing)
    }
}

/// Splits `Key: value`.
fn split(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_key = !key.is_empty() && key.chars().all(plain);
    value.strip_prefix(' ').filter(|_| is_key).map(|value| (key, value))
}

fn compression(value: &str) -> Result<Compression, Reason> {
    match value {
        "none" => Ok(Compression::None),
        "xz" => Ok(Compression::Xz),
        "zstd" => Ok(Compression::Zstd),
        "bzip2" | "" => Ok(Compression::Bzip2),
        _ => Err(Reason::Compression),
    }
}

fn size(value: &str) -> Result<u64, Reason> {
    // `parse` alone would take a plus sign.
    let digits = !value.is_empty() && value.bytes().all(|c| c.is_ascii_digit());
    let size = value.parse().ok().filter(|_| digits).ok_or(Reason::Number)?;
    if size > MAX_NAR_SIZE { Err(Reason::TooLarge(size)) } else { Ok(size) }
}

fn references(value: &str) -> Result<Vec<StorePath>, Reason> {
    let names = value.split(' ').filter(|name| !name.is_empty());
    let mut paths = names.map(|name| Ok(StorePath::from_base_name(name)?)).collect::<Result<Vec<_>, Reason>>()?;
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

fn deriver(value: &str) -> Result<Option<StorePath>, Reason> {
    if value.is_empty() || value == UNKNOWN_DERIVER { Ok(None) } else { Ok(Some(StorePath::from_base_name(value)?)) }
}

/// Whether `url` can only lead below the cache it came from: segments of a small alphabet, none of them empty, `.` or
/// `..`, and at most a query (`nar/HASH.nar?hash=…` of harmonia). No scheme, host, escape or fragment fits in this.
fn is_plain_url(url: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._+=~".contains(c);
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(plain);
    url.len() <= MAX_URL && path.split('/').all(is_segment) && query.chars().all(|c| plain(c) || c == '&')
}
