//! The header of a CAR: the little dag-cbor that it needs, and no more.

use super::CarError;
use crate::block::{Cid, read_cid};

const UNSIGNED: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
/// The tag of a CID in dag-cbor.
const CID_TAG: u64 = 42;

/// The header with these roots, without its length.
pub(super) fn encode(roots: &[Cid]) -> Vec<u8> {
    let mut out = Vec::new();
    put_head(&mut out, MAP, 2);
    put_head(&mut out, TEXT, 5);
    out.extend_from_slice(b"roots");
    put_head(&mut out, ARRAY, roots.len() as u64);
    for root in roots {
        let bytes = root.to_bytes();
        put_head(&mut out, TAG, CID_TAG);
        put_head(&mut out, BYTES, bytes.len() as u64 + 1);
        // The prefix is multibase's for binary.
        out.push(0);
        out.extend_from_slice(&bytes);
    }
    put_head(&mut out, TEXT, 7);
    out.extend_from_slice(b"version");
    put_head(&mut out, UNSIGNED, 1);
    out
}

/// The roots in the header `bytes`.
///
/// # Errors
/// [`CarError`] with offset 0, where every header begins.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Cid>, CarError> {
    let mut cbor = Cbor(bytes);
    let (mut roots, mut version) = (None, None);
    for _ in 0..cbor.head(MAP)? {
        let length = cbor.head(TEXT)?;
        match cbor.take(length)? {
            b"roots" if roots.is_none() => roots = Some(cbor.cids()?),
            b"version" if version.is_none() => version = Some(cbor.head(UNSIGNED)?),
            _ => return Err(broken("unknown key, or one twice, in the header")),
        }
    }
    match (version, roots) {
        (Some(1), Some(roots)) if cbor.0.is_empty() => Ok(roots),
        (Some(1), Some(_)) => Err(broken("bytes after the header")),
        (Some(1), None) => Err(broken("header without roots")),
        (Some(other), _) => Err(CarError::Version(other)),
        (None, _) => Err(broken("header without a version")),
    }
}

fn broken(why: &'static str) -> CarError {
    CarError::Malformed { offset: 0, why }
}

struct Cbor<'a>(&'a [u8]);

impl<'a> Cbor<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], CarError> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len());
        let (taken, rest) = self.0.split_at(length.ok_or_else(|| broken("header ends early"))?);
        self.0 = rest;
        Ok(taken)
    }

    /// The number in the head of an item, which must be of type `major`.
    fn head(&mut self, major: u8) -> Result<u64, CarError> {
        let first = self.take(1)?[0];
        if first >> 5 != major {
            return Err(broken("unexpected type in the header"));
        }
        let length = match first & 0x1f {
            small @ 0..24 => return Ok(u64::from(small)),
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => return Err(broken("number of unknown form in the header")),
        };
        Ok(self.take(length)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn cids(&mut self) -> Result<Vec<Cid>, CarError> {
        let mut cids = Vec::new();
        for _ in 0..self.head(ARRAY)? {
            if self.head(TAG)? != CID_TAG {
                return Err(broken("root that is not a CID"));
            }
            let length = self.head(BYTES)?;
            let [0, cid @ ..] = self.take(length)? else { return Err(broken("root that is not a CID")) };
            cids.push(read_cid(cid).map_err(|source| CarError::Cid { offset: 0, source })?);
        }
        Ok(cids)
    }
}

fn put_head(out: &mut Vec<u8>, major: u8, value: u64) {
    let bytes = value.to_be_bytes();
    let (form, from) = match value {
        0..24 => (bytes[7], 8),
        24..0x100 => (24, 7),
        0x100..0x1_0000 => (25, 6),
        0x1_0000..0x1_0000_0000 => (26, 4),
        _ => (27, 0),
    };
    out.push(major << 5 | form);
    out.extend_from_slice(&bytes[from..]);
}
