//! What decodes as dag-pb decodes the same after encoding, and encoding is stable.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nipfs_proto::dag::codec::Node;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(mut node) = Node::decode(&Bytes::copy_from_slice(bytes)) {
        let encoded = Bytes::from(node.encode());
        node.links.sort_by_key(|link| link.name.clone().unwrap_or_default());
        assert_eq!(Node::decode(&encoded).as_ref(), Ok(&node));
        assert_eq!(node.encode(), encoded);
    }
});
