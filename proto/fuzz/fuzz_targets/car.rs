//! A CAR that is read is the same however it was cut, and can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nipfs_proto::Cid;
use nipfs_proto::block::Block;
use nipfs_proto::dag::car::{CarError, Reader, header, section_head};

fn read(bytes: &[u8], piece: usize) -> Result<(Vec<Cid>, Vec<Block>), CarError> {
    let (mut reader, mut blocks) = (Reader::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        reader.push(piece, &mut |block| {
            blocks.push(block);
            Ok::<(), CarError>(())
        })?;
    }
    reader.finish().map(|roots| (roots, blocks))
}

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes, usize::MAX);
    assert_eq!(whole, read(bytes, 3));
    if let Ok((roots, blocks)) = whole {
        let mut again = header(&roots);
        for block in &blocks {
            again.extend_from_slice(&section_head(block));
            again.extend_from_slice(block.bytes());
        }
        assert_eq!(read(&again, usize::MAX), Ok((roots, blocks)));
    }
});
