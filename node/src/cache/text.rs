//! The text of a narinfo as it is recorded.

use super::CacheError;
use crate::store::NarRecord;
use nipfs_proto::nix::narinfo::{NarInfo, Root};

/// What is recorded of a narinfo. A root that is not `record`'s is refused; but what was only `fetched` loses the line:
/// it lies, or the chunking is unknown here, and the content is right.
pub(super) fn text_of(narinfo: &NarInfo, record: &NarRecord, fetched: bool) -> Result<String, CacheError> {
    match narinfo.root().filter(|claimed| !names(record, claimed)) {
        None => Ok(narinfo.text().to_owned()),
        Some(_) if fetched => Ok(narinfo.plain().text().to_owned()),
        Some(claimed) => Err(CacheError::Mismatch {
            path: narinfo.store_path().to_absolute_path(),
            field: "IPFSHash",
            claimed: claimed.cid().to_string(),
            actual: record.roots.first().map_or_else(String::new, |(_, root)| root.to_string()),
        }),
    }
}

pub(super) fn names(record: &NarRecord, claimed: &Root) -> bool {
    record.roots.iter().any(|(_, root)| root == claimed.cid())
}

/// The narinfo `text` with the signatures of another one of the same path: neither publishing a path again nor uploading
/// it makes it less trusted.
pub(super) fn with_signatures_of(other: &[u8], text: &str) -> String {
    let (other, now) = (NarInfo::parse_unasked(other), NarInfo::parse_unasked(text.as_bytes()));
    let (Ok(other), Ok(mut now)) = (other, now) else { return text.to_owned() };
    for signature in other.signatures() {
        now.add_sig(signature.clone());
    }
    // More than a narinfo may have would make it unreadable.
    if NarInfo::parse_unasked(now.text().as_bytes()).is_ok() { now.text().to_owned() } else { text.to_owned() }
}
