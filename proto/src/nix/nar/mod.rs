//! NAR, the archive format of Nix: one tree of directories, files and symlinks, with exactly one encoding.
//!
//! Every string is its length as 64-bit little endian, its bytes, and zeroes up to a multiple of 8:
//!
//! ```text
//! nar   = "nix-archive-1" node
//! node  = "(" "type" ( "regular" [ "executable" "" ] "contents" CONTENTS
//!                    | "symlink" "target" TARGET
//!                    | "directory" { "entry" "(" "name" NAME "node" node ")" } ) ")"
//! ```
//!
//! [`Reader`] takes bytes as they come and gives [`Event`]s, [`Writer`] takes the same events and gives
//! bytes: writing what was read yields the same bytes. The reader accepts what Nix 2.36 accepts and no
//! more, and its bounds are Nix's. It also refuses bytes after the end, which `nix-store --restore` lets
//! pass, because a NarHash covers them. Names differing in case alone, and names that look like Nix's
//! case hack, are legal.

mod reader;
mod writer;

pub use reader::{NarError, Reader, Reason};
pub use writer::Writer;

/// Longest file name in bytes.
pub const MAX_NAME: usize = 255;
/// Longest symlink target in bytes.
pub const MAX_TARGET: usize = 4095;
/// Most nodes on the way from the root, itself counted, to a leaf: a file lies in at most 63 directories.
pub const MAX_DEPTH: usize = 64;

const MAGIC: &[u8] = b"nix-archive-1";

/// A piece of a tree, in the order of the archive. The name of the root is empty; no other name is.
///
/// A directory's entries come between its [`Event::Directory`] and its [`Event::DirectoryEnd`], sorted
/// by the bytes of their names, each name once. A file's [`Event::File`] is followed by as many
/// [`Event::Contents`] as it pleases, of `size` bytes together, and by [`Event::FileEnd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A directory begins.
    Directory {
        /// Its name in the directory around it: not UTF-8 in general, no slash, no NUL, not `.` or `..`.
        name: &'a [u8],
    },
    /// The innermost open directory ends.
    DirectoryEnd,
    /// A regular file begins.
    File {
        /// Its name, as a directory's.
        name: &'a [u8],
        /// Whether its owner may execute it.
        executable: bool,
        /// Bytes of its contents. As announced: a hostile archive may announce what never comes.
        size: u64,
    },
    /// The next bytes of the open file, at least one.
    Contents(&'a [u8]),
    /// The open file ends: all its bytes were there.
    FileEnd,
    /// A symlink.
    Symlink {
        /// Its name, as a directory's.
        name: &'a [u8],
        /// Where it points: 1 to [`MAX_TARGET`] bytes, no NUL, otherwise anything.
        target: &'a [u8],
    },
}

/// Zero bytes after a string or a file of `length` bytes.
const fn padding(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}

#[cfg(test)]
mod tests;
