//! Dumps a tree of the file system as a NAR, byte for byte as `nix-store --dump` does.
//!
//! Symlinks are never followed below the given path, and every node is opened relative to its directory, so
//! a tree that is moved meanwhile stays one tree. Memory: the names of the open directories (at most 64)
//! and 512 KiB. A tree with something that no NAR can hold is refused, and what was written so far is useless.

use bytes::Bytes;
use nipfs_proto::nix::nar::{Event, MAX_DEPTH, MAX_NAME, Writer};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Bytes that are read and written at once.
const PIECE: usize = 256 << 10;

/// Why a tree was not dumped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The file system refused.
    #[error("cannot read: {}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A socket, a FIFO or a device.
    #[error("not a file, directory or symlink: {}", .0.display())]
    Unsupported(PathBuf),
    /// The file became longer or shorter, or something else, while it was read.
    #[error("changed while it was read: {}", .0.display())]
    Changed(PathBuf),
    /// More nested directories than a NAR may have.
    #[error("nested deeper than {MAX_DEPTH}: {}", .0.display())]
    Depth(PathBuf),
    /// A name longer than a NAR may have.
    #[error("name longer than {MAX_NAME} bytes: {}", .0.display())]
    Name(PathBuf),
    /// Whoever takes the NAR refused it.
    #[error("cannot write the NAR")]
    Write(#[source] io::Error),
}

/// Writes the NAR of the tree, file or symlink at `path` to `out`.
///
/// # Errors
/// [`DumpError`], naming the path in the tree.
pub fn dump(path: &Path, out: impl Write) -> Result<(), DumpError> {
    let root = CString::new(path.as_os_str().as_bytes());
    let root = root.map_err(|source| DumpError::Read { path: path.to_owned(), source: source.into() })?;
    let (writer, frame, piece) = (Writer::new(), Vec::new(), vec![0; PIECE]);
    let mut dump = Dump { path, open: Vec::new(), writer, frame, piece, out: BufWriter::with_capacity(PIECE, out) };
    dump.node(&root)?;
    while let Some(directory) = dump.open.last_mut() {
        match directory.left.pop() {
            Some(name) => dump.node(&name)?,
            None => {
                dump.open.pop();
                dump.event(&Event::DirectoryEnd)?;
            }
        }
    }
    dump.out.flush().map_err(DumpError::Write)
}

struct Dump<'a, W: Write> {
    /// Of the root.
    path: &'a Path,
    open: Vec<OpenDirectory>,
    writer: Writer,
    frame: Vec<u8>,
    piece: Vec<u8>,
    out: BufWriter<W>,
}

struct OpenDirectory {
    name: CString,
    fd: OwnedFd,
    /// Names of the entries that are still to come, the next one last.
    left: Vec<CString>,
}

impl<W: Write> Dump<'_, W> {
    /// Dumps the node `file` of the innermost directory, or the root. A directory is only opened.
    fn node(&mut self, file: &CStr) -> Result<(), DumpError> {
        let name = if self.open.is_empty() { &[] } else { file.to_bytes() };
        if self.open.len() >= MAX_DEPTH {
            return Err(DumpError::Depth(self.path_of(file)));
        }
        if name.len() > MAX_NAME {
            return Err(DumpError::Name(self.path_of(file)));
        }
        let stat = rustix::fs::statat(self.directory(), file, AtFlags::SYMLINK_NOFOLLOW);
        match FileType::from_raw_mode(stat.map_err(|error| self.unreadable(file, error))?.st_mode) {
            FileType::RegularFile => self.file(file, name),
            FileType::Directory => {
                let fd = self.open_node(file, OFlags::DIRECTORY)?;
                let mut left = entry_names(fd.as_fd()).map_err(|error| self.unreadable(file, error))?;
                left.sort_unstable_by(|a, b| b.cmp(a));
                self.open.push(OpenDirectory { name: file.to_owned(), fd, left });
                self.event(&Event::Directory { name })
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(self.directory(), file, Vec::new());
                let target = target.map_err(|error| self.unreadable(file, error))?;
                self.event(&Event::Symlink { name, target: target.to_bytes() })
            }
            _ => Err(DumpError::Unsupported(self.path_of(file))),
        }
    }

    fn file(&mut self, file: &CStr, name: &[u8]) -> Result<(), DumpError> {
        // Should a FIFO have taken the file's place by now, opening it must not wait for a writer.
        let fd = self.open_node(file, OFlags::NONBLOCK)?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| self.unreadable(file, error))?;
        let size = u64::try_from(stat.st_size).ok().filter(|_| FileType::from_raw_mode(stat.st_mode).is_file());
        let size = size.ok_or_else(|| DumpError::Changed(self.path_of(file)))?;
        let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
        self.event(&Event::File { name, executable, size })?;
        let mut contents = File::from(fd);
        let mut left = size;
        loop {
            // One byte more than is left, to see that the file ends where it should.
            let want = usize::try_from(left.saturating_add(1)).map_or(PIECE, |want| want.min(PIECE));
            let length = match contents.read(&mut self.piece[..want]) {
                Ok(0) if left == 0 => break,
                Ok(length) if length == 0 || length as u64 > left => {
                    return Err(DumpError::Changed(self.path_of(file)));
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(DumpError::Read { path: self.path_of(file), source }),
            };
            self.out.write_all(&self.piece[..length]).map_err(DumpError::Write)?;
            left -= length as u64;
        }
        self.event(&Event::FileEnd)
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), DumpError> {
        self.frame.clear();
        self.writer.write(event, &mut self.frame);
        self.out.write_all(&self.frame).map_err(DumpError::Write)
    }

    fn open_node(&self, file: &CStr, flags: OFlags) -> Result<OwnedFd, DumpError> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.directory(), file, flags, Mode::empty()).map_err(|error| self.unreadable(file, error))
    }

    fn directory(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(CWD, |directory| directory.fd.as_fd())
    }

    fn unreadable(&self, file: &CStr, error: rustix::io::Errno) -> DumpError {
        DumpError::Read { path: self.path_of(file), source: error.into() }
    }

    fn path_of(&self, file: &CStr) -> PathBuf {
        let below_root = self.open.iter().map(|directory| directory.name.as_c_str()).chain([file]).skip(1);
        let below_root = below_root.map(|name| OsStr::from_bytes(name.to_bytes()));
        let mut path = self.path.to_owned();
        path.extend(below_root);
        path
    }
}

/// Takes a NAR on a thread of its own and hands it on in pieces of at most 256 KiB. When nobody takes them any more,
/// writing fails.
#[derive(Debug)]
pub struct Pieces(pub mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let sent = self.0.blocking_send(Bytes::copy_from_slice(piece));
        sent.map(|()| piece.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The names in a directory but `.` and `..`, in no order.
pub(super) fn entry_names(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
pub(super) mod tests;
