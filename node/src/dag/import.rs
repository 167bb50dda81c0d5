//! Importing: a stream of bytes → blocks and a root, with the SHA-256 of the whole.
//!
//! The whole is hashed on a second thread, because it is as much work as hashing the blocks and cannot
//! be split. Memory does not grow with the stream: a few pieces travel round between the two threads.

use nipfs_proto::block::Block;
use nipfs_proto::dag::Profile;
use nipfs_proto::dag::build::{Builder, Root};
use sha2::{Digest, Sha256};
use std::io::{self, Read};
use std::sync::mpsc::sync_channel;
use std::thread;

/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;
/// Pieces in memory.
const PIECES: usize = 4;

/// What a stream became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// The root of its blocks.
    pub root: Root,
    /// The SHA-256 of the whole; of a NAR, its NarHash.
    pub nar_hash: [u8; 32],
    /// Its length in bytes.
    pub size: u64,
}

/// Why an import ended early.
#[derive(Debug, thiserror::Error)]
pub enum ImportError<E: std::error::Error + 'static> {
    /// The stream failed.
    #[error("cannot read the stream")]
    Read(#[source] io::Error),
    /// A block was not taken.
    #[error(transparent)]
    Put(E),
    /// The second thread did not start.
    #[error("cannot start a thread for hashing")]
    Thread(#[source] io::Error),
}

/// Reads `input` to its end; `put` takes each block, children before parents. Blocks the calling thread.
///
/// # Errors
/// [`ImportError`]; the blocks that `put` had taken by then are of no use.
pub fn import<E: std::error::Error + 'static>(
    mut input: impl Read,
    profile: Profile,
    mut put: impl FnMut(Block) -> Result<(), E>,
) -> Result<Imported, ImportError<E>> {
    thread::scope(|scope| {
        let (full, to_hash) = sync_channel::<Vec<u8>>(PIECES);
        let (used, empty) = sync_channel(PIECES);
        for _ in 0..PIECES {
            used.send(Vec::with_capacity(PIECE)).expect("there is room for all pieces");
        }
        let whole = move || {
            let mut hash = Sha256::new();
            for piece in to_hash {
                hash.update(&piece);
                // Nobody takes the last pieces back.
                let _ = used.send(piece);
            }
            hash.finalize().into()
        };
        let whole = thread::Builder::new().name("nar-hash".to_owned()).spawn_scoped(scope, whole);
        let whole = whole.map_err(ImportError::Thread)?;

        let mut builder = Builder::new(profile);
        loop {
            let mut piece = empty.recv().expect("the hashing thread lives until `full` is dropped");
            piece.clear();
            let length = input.by_ref().take(PIECE as u64).read_to_end(&mut piece).map_err(ImportError::Read)?;
            if length == 0 {
                break;
            }
            builder.write(&piece, &mut put).map_err(ImportError::Put)?;
            full.send(piece).expect("the hashing thread lives until `full` is dropped");
        }
        drop(full);
        let root = builder.finish(&mut put).map_err(ImportError::Put)?;
        let nar_hash = whole.join().expect("hashing does not panic");
        Ok(Imported { root, nar_hash, size: root.size })
    })
}

#[cfg(test)]
mod tests;
