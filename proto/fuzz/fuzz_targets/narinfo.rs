//! Narinfos: what parses keeps its text, and every edit leaves a text that parses to the edited fields.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nipfs_proto::nix::cache_info::CacheInfo;
use nipfs_proto::nix::narinfo::{NarInfo, Root};
use nipfs_proto::nix::signature::{PublicKey, Signature};
use nipfs_proto::nix::store_path::StorePathHash;

const SIGNATURE: &str =
    "test1:519iiVLx/c4Rdt5DNt6Y2Jm6hcWE9+XY69ygiWSZCNGVcmOcyL64uVAJ3cV8vaTusIZdbTnYo9Y7vDNeTmmMBQ==";
const ROOT: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";

/// The hash part of the first thing that looks like a store path.
fn asked_by(text: &[u8]) -> Option<StorePathHash> {
    let at = text.windows(11).position(|window| window == b"/nix/store/")? + 11;
    str::from_utf8(text.get(at..at + 32)?).ok()?.parse().ok()
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = str::from_utf8(bytes) {
        let (key, signature) = (text.parse::<PublicKey>(), text.parse::<Signature>());
        assert!(key.is_err() || key.is_ok_and(|key| key.to_string() == text));
        assert!(signature.is_err() || signature.is_ok_and(|signature| signature.to_string() == text));
    }
    let _ = CacheInfo::parse(bytes);
    let Some(asked) = asked_by(bytes) else { return };
    let Ok(mut info) = NarInfo::parse(&asked, bytes) else { return };
    assert_eq!(info.text().as_bytes(), bytes);
    let signature: Signature = SIGNATURE.parse().expect("a signature");
    let root = Root::new(ROOT.parse().expect("a CID"), Some(signature.clone())).expect("a root");
    assert_eq!(info.with_ipfs(root).plain(), info.plain());
    info.add_sig(signature);
    match NarInfo::parse(&asked, info.text().as_bytes()) {
        Ok(read) => assert_eq!(read.path_info().signatures.len(), info.path_info().signatures.len()),
        Err(error) => assert_eq!(error.field, "Sig", "only their number may be too much"),
    }
});
