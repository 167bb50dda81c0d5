//! A file node is the sum of its parts, and a walk from it gives no more bytes than it has. A name in a directory leads
//! somewhere or nowhere.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nipfs_proto::block::Block;
use nipfs_proto::dag::unixfs::{Entity, FileNode};
use nipfs_proto::dag::walk::FileWalk;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (start, end, bytes) = input;
    let bytes = Bytes::copy_from_slice(bytes);
    let Ok(root) = Block::v0(bytes.clone()) else { return };
    if let Ok(Entity::Directory(directory)) = Entity::decode(root.cid(), &bytes) {
        let _ = directory.look_up("name", start.into());
    }
    let Ok(node) = FileNode::decode(root.cid(), &bytes) else { return };
    let children: u64 = node.children.iter().map(|(_, size)| size).sum();
    assert_eq!(node.data.len() as u64 + children, node.size);

    let mut walk = FileWalk::new(*root.cid(), start.into()..end.into()).expect("a CIDv0");
    // An error here is about a child in an identity CID, or about the shape.
    if walk.feed(&root).is_err() {
        return;
    }
    let read: u64 = std::iter::from_fn(|| walk.next_bytes()).map(|bytes| bytes.len() as u64).sum();
    assert!(read <= node.size.min(end.saturating_sub(start).into()));
    assert_eq!(walk.is_done(), walk.upcoming(u64::MAX).next().is_none());
});
