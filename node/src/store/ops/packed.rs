//! Narinfos in rows of the index: frames of zstd with a dictionary of what is in each of them.

use super::super::lock;
use super::wire::Packed;
use bytes::Bytes;
use nipfs_proto::nix::narinfo::MAX_NARINFO;
use std::sync::{LazyLock, Mutex};
use zstd::bulk::{Compressor, Decompressor};

/// What every narinfo has. Rows are read with the dictionary that they were written with, so it stays as it is.
const DICTIONARY: &[u8] = b"StorePath: /nix/store/\nURL: nar/.nar\nCompression: none\nFileHash: sha256:\nFileSize: \n\
NarHash: sha256:\nNarSize: \nReferences: \nDeriver: .drv\nSig: cache.nixos.org-1:==\nCA: fixed:r:sha256:\n\
IPFSHash: Qm\nIPFSSig: ==\n";
/// The fastest level.
const LEVEL: i32 = 1;

static COMPRESSOR: LazyLock<Option<Mutex<Compressor<'static>>>> =
    LazyLock::new(|| Compressor::with_dictionary(LEVEL, DICTIONARY).ok().map(Mutex::new));
static DECOMPRESSOR: LazyLock<Option<Mutex<Decompressor<'static>>>> =
    LazyLock::new(|| Decompressor::with_dictionary(DICTIONARY).ok().map(Mutex::new));

/// The frame of a narinfo; `None` when it would not be smaller.
pub(super) fn pack(narinfo: &[u8]) -> Option<Packed> {
    let length = u32::try_from(narinfo.len()).ok().filter(|length| *length as usize <= MAX_NARINFO)?;
    let frame = lock(COMPRESSOR.as_ref()?).compress(narinfo).ok()?;
    (frame.len() < narinfo.len()).then(|| Packed { length, frame: frame.into(), ..Packed::default() })
}

/// The narinfo again; `None` when the frame is damaged.
pub(super) fn unpack(packed: &Packed) -> Option<Bytes> {
    let length = usize::try_from(packed.length).ok().filter(|length| *length <= MAX_NARINFO)?;
    let narinfo = lock(DECOMPRESSOR.as_ref()?).decompress(&packed.frame, length).ok()?;
    (narinfo.len() == length).then(|| narinfo.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARINFO: &[u8] = b"StorePath: /nix/store/01h9bm0rc67rqw81rb23yhyllk2vfj5n-file-0332\n\
URL: nar/17ql7vhixg0r9imsrwl3zdmg4062hky413yvlxav8mm7328i4pgy.nar\nCompression: none\n\
FileHash: sha256:17ql7vhixg0r9imsrwl3zdmg4062hky413yvlxav8mm7328i4pgy\nFileSize: 28040\n\
NarHash: sha256:17ql7vhixg0r9imsrwl3zdmg4062hky413yvlxav8mm7328i4pgy\nNarSize: 28040\nReferences: \n\
Sig: bench-1:7HVWmlRA7dxT3KIKHsajKV6KuL/lWMcqkSd8Dh6m0zgh3XW1sm+XSzY1HwT4/GTPAFe/dM9ID0yedsChY+jZBQ==\n\
CA: fixed:r:sha256:17ql7vhixg0r9imsrwl3zdmg4062hky413yvlxav8mm7328i4pgy\n\
IPFSHash: QmUTXjV2oLmufkm6cKY3kgiHqvmfKmkcRtjMuSsBXqXB6a\n\
IPFSSig: bench-1:81Gc3BgEvM924LlJTf0T88t//DHYN/FKDtbR2LF1JsQH9+3NjLLbDl2TJNP9C0Af54IZK/4wC/ZW4X5RhpgfBQ==\n";

    #[test]
    fn a_narinfo_is_packed_to_about_half_and_comes_back() {
        let packed = pack(NARINFO).unwrap();
        assert!(packed.frame.len() * 100 < NARINFO.len() * 60, "{} of {}", packed.frame.len(), NARINFO.len());
        assert_eq!(unpack(&packed).unwrap(), NARINFO);
        assert_eq!(pack(b"").map(|packed| packed.length), None);
    }

    #[test]
    fn a_damaged_frame_gives_nothing() {
        let packed = pack(NARINFO).unwrap();
        let longer = Packed { length: packed.length + 1, ..packed.clone() };
        let shorter = Packed { length: packed.length - 1, ..packed.clone() };
        let huge = Packed { length: u32::MAX, ..packed.clone() };
        let cut = Packed { frame: packed.frame.slice(..packed.frame.len() / 2), ..packed };
        for broken in [longer, shorter, huge, cut] {
            assert_eq!(unpack(&broken), None);
        }
    }
}
