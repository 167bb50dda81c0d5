//! Vector sets for tests, read in place from the directory that `NIPFS_VECTORS` names.

use crate::block::{Block, Cid};
use crate::dag::car::{CarError, Reader};
use std::collections::HashMap;
use std::path::PathBuf;

/// The bytes of the vector file `name`; `None`, and a line saying so, when `NIPFS_VECTORS` is not set.
///
/// # Panics
/// When it is set and the file cannot be read: a set that is there must be whole.
pub(crate) fn bytes(name: &str) -> Option<Vec<u8>> {
    let Some(root) = std::env::var_os("NIPFS_VECTORS") else {
        println!("skipped: NIPFS_VECTORS is not set");
        return None;
    };
    let path = PathBuf::from(root).join(name);
    Some(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// The vector file `name` as JSON; `None` as in [`bytes`].
pub(crate) fn json(name: &str) -> Option<serde_json::Value> {
    bytes(name).map(|bytes| serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// The first root and the blocks of the CAR `name`; `None` as in [`bytes`]. Some sets hold a section that the reader
/// refuses; what comes before is enough.
pub(crate) fn car(name: &str) -> Option<(Cid, HashMap<Cid, Block>)> {
    let bytes = bytes(name)?;
    let (mut reader, mut blocks) = (Reader::new(), HashMap::new());
    let _ = reader.push(&bytes, &mut |block| {
        blocks.insert(*block.cid(), block);
        Ok::<(), CarError>(())
    });
    Some((reader.roots().expect("a header")[0], blocks))
}

/// The bytes that `hex` writes.
pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
        .collect()
}
