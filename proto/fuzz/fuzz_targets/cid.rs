//! CIDs that parse, from text or bytes, are written back as they mean.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nipfs_proto::block::{check_cid, parse_cid, read_cid};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(cid) = read_cid(bytes) {
        assert_eq!(cid.to_bytes(), bytes);
        assert_eq!(parse_cid(&cid.to_string()), Ok(cid));
    }
    if let Some(cid) = std::str::from_utf8(bytes).ok().and_then(|text| parse_cid(text).ok()) {
        assert_eq!(check_cid(&cid), Ok(()));
        assert_eq!(read_cid(&cid.to_bytes()), Ok(cid));
    }
});
