//! Unpacks a NAR that comes in pieces into a directory, a file or a symlink that did not exist before.
//!
//! - The tree grows beside the target under a fresh name, `.nipfs-<16 hex digits>`, and takes the target's name
//!   in one step when it is complete and on disk: after a power cut the target is whole or absent. Trees that are complete
//!   at the same time get theirs together ([`publish`]), for the disk is slow to say that it has them.
//! - An existing target is never replaced, and nothing is ever written through a symlink: every node is created
//!   exclusively, relative to the open directory around it (at most 64 of them, the bound of the reader).
//! - Modes and times are Nix's: files 0444 or 0555, directories 0555, everything modified at second 1. While it
//!   grows, only its owner can look inside.
//! - A tree without its name is removed when the [`Unpack`] or [`Complete`] is dropped, and by [`clean_leftovers`] after a crash.
//!
//! It does not know what the bytes should hash to: call [`Unpack::finish`] only after the NarHash matched.

mod leftovers;

pub use leftovers::clean_leftovers;

use leftovers::{PREFIX, remove_tree};
use nipfs_proto::nix::nar::{Event, NarError, Reader};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Fresh names that are tried before giving up; one is enough unless a cleaner strikes at that moment.
const ATTEMPTS: usize = 8;

/// Why a NAR was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The bytes are not a NAR, or not all of it.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// There is something at the target: it was not touched.
    #[error("already exists: {}", .0.display())]
    Exists(PathBuf),
    /// The target has no last component to be named by.
    #[error("not a path to unpack to: {}", .0.display())]
    Target(PathBuf),
    /// An earlier call failed: the tree is not whole.
    #[error("unpacking failed before: {}", .0.display())]
    Failed(PathBuf),
    /// The file system refused.
    #[error("cannot {action}: {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what, by the name it has in the end.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A tree that is being unpacked.
#[derive(Debug)]
pub struct Unpack {
    reader: Reader,
    tree: Tree,
    failed: bool,
}

impl Unpack {
    /// Prepares to unpack to `target`, whose parent directory must exist.
    ///
    /// # Errors
    /// [`UnpackError::Exists`] when there is something at `target`, even a dangling symlink; otherwise
    /// [`UnpackError::Io`] or [`UnpackError::Target`].
    pub fn new(target: &Path) -> Result<Self, UnpackError> {
        Ok(Self { reader: Reader::new(), tree: Tree::new(target)?, failed: false })
    }

    /// Takes the next bytes of the NAR, any number of them.
    ///
    /// # Errors
    /// [`UnpackError`], after which no other call succeeds.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        if self.failed {
            return Err(UnpackError::Failed(self.tree.target.clone()));
        }
        self.failed = true;
        while let Some(event) = self.reader.next_event(&mut bytes)? {
            self.tree.event(&event)?;
        }
        self.failed = false;
        Ok(())
    }

    /// The NAR is whole. The tree still has to be given its name by [`publish`].
    ///
    /// # Errors
    /// [`UnpackError`] when bytes are missing or a call failed before.
    pub fn finish(self) -> Result<Complete, UnpackError> {
        if self.failed {
            return Err(UnpackError::Failed(self.tree.target.clone()));
        }
        self.reader.finish()?;
        Ok(Complete(self.tree))
    }
}

/// A whole tree under its temporary name.
#[derive(Debug)]
pub struct Complete(Tree);

/// Makes trees durable that lie side by side, and gives each its name. Waits for the disk twice, however many they are.
///
/// # Errors
/// For each by itself: [`UnpackError`] when it cannot be made durable, or something has appeared at its target.
pub fn publish(trees: Vec<Complete>) -> Vec<Result<(), UnpackError>> {
    let Some(Complete(first)) = trees.first() else { return Vec::new() };
    let written = rustix::fs::syncfs(&first.parent);
    let parent = rustix::io::fcntl_dupfd_cloexec(&first.parent, 0);
    let named: Vec<_> = trees.into_iter().map(|Complete(tree)| tree.take_name(written)).collect();
    let synced = parent.and_then(rustix::fs::fsync);
    let durable =
        |path: PathBuf| synced.map_err(|error| UnpackError::Io { action: "write to disk", path, source: error.into() });
    named.into_iter().map(|named| named.and_then(durable)).collect()
}

#[derive(Debug)]
struct Tree {
    target: PathBuf,
    /// The target's last component.
    name: OsString,
    /// The directory of the target.
    parent: OwnedFd,
    /// The root's name for now, once it exists.
    temporary: Option<String>,
    /// The root, locked as long as it is open.
    lock: Option<OwnedFd>,
    open: Vec<OpenDirectory>,
    file: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenDirectory {
    name: OsString,
    fd: OwnedFd,
}

#[derive(Debug)]
struct OpenFile {
    name: OsString,
    file: File,
    executable: bool,
}

impl Tree {
    fn new(target: &Path) -> Result<Self, UnpackError> {
        let name = target.file_name().ok_or_else(|| UnpackError::Target(target.to_owned()))?;
        let directory =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed =
            |error: Errno| UnpackError::Io { action: "open", path: directory.to_owned(), source: error.into() };
        let parent = rustix::fs::openat(CWD, directory, flags, Mode::empty()).map_err(failed)?;
        let (target, name) = (target.to_owned(), name.to_owned());
        match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Err(UnpackError::Exists(target)),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(UnpackError::Io { action: "look at", path: target, source: error.into() }),
        }
        Ok(Self { target, name, parent, temporary: None, lock: None, open: Vec::new(), file: None })
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), UnpackError> {
        match *event {
            Event::Directory { name } => {
                let fd = self.create(name, "create the directory", create_directory)?;
                self.open.push(OpenDirectory { name: OsString::from_vec(name.to_owned()), fd });
                Ok(())
            }
            Event::DirectoryEnd => {
                let directory = self.open.pop().expect("the reader ends what it began");
                let closed = close(&directory.fd, 0o555);
                closed.map_err(|error| self.failed("close", directory.name.as_bytes(), error))
            }
            Event::File { name, executable, .. } => {
                let file = self.create(name, "create the file", create_file)?.into();
                self.file = Some(OpenFile { name: OsString::from_vec(name.to_owned()), file, executable });
                Ok(())
            }
            Event::Contents(bytes) => {
                let open = self.file.as_ref().expect("the reader begins a file before its contents");
                let written = (&open.file).write_all(bytes);
                written.map_err(|error| self.failed("write", open.name.as_bytes(), error))
            }
            Event::FileEnd => {
                let open = self.file.take().expect("the reader ends what it began");
                let closed = close(&open.file, if open.executable { 0o555 } else { 0o444 });
                closed.map_err(|error| self.failed("close", open.name.as_bytes(), error))
            }
            Event::Symlink { name, target } => self.symlink(name, target),
        }
    }

    fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        let temporary = name.is_empty().then(fresh_name);
        let file = temporary.as_ref().map_or(name, |temporary| temporary.as_bytes());
        let made = rustix::fs::symlinkat(target, self.directory(), file);
        made.map_err(|error| self.failed("create the symlink", name, error))?;
        let timed = rustix::fs::utimensat(self.directory(), file, &SECOND_1, AtFlags::SYMLINK_NOFOLLOW);
        let timed = timed.map_err(|error| self.failed("set the time of", name, error));
        if temporary.is_some() {
            self.temporary = temporary;
        }
        timed
    }

    /// Creates and opens the node `name` in the innermost directory, or the root.
    fn create(&mut self, name: &[u8], action: &'static str, create: Create) -> Result<OwnedFd, UnpackError> {
        if !name.is_empty() {
            return create(self.directory(), name).map_err(|error| self.failed(action, name, error));
        }
        for _ in 0..ATTEMPTS {
            let temporary = self.temporary.insert(fresh_name());
            match create(self.parent.as_fd(), temporary.as_bytes()).and_then(lock) {
                Ok(Some(fd)) => {
                    self.lock = Some(fd.try_clone().map_err(|error| self.failed(action, name, error))?);
                    return Ok(fd);
                }
                Ok(None) | Err(Errno::NOENT | Errno::EXIST) => self.temporary = None,
                Err(error) => return Err(self.failed(action, name, error)),
            }
        }
        Err(self.failed(action, name, Errno::AGAIN))
    }

    /// Renames the tree, if it could be `written` to disk, to the target. Returns that.
    fn take_name(mut self, written: Result<(), Errno>) -> Result<PathBuf, UnpackError> {
        let failed =
            |action, error: Errno| Err(UnpackError::Io { action, path: self.target.clone(), source: error.into() });
        let Some(temporary) = &self.temporary else { return failed("rename", Errno::NOENT) };
        if let Err(error) = written {
            return failed("write to disk", error);
        }
        let renamed =
            rustix::fs::renameat_with(&self.parent, temporary, &self.parent, &self.name, RenameFlags::NOREPLACE);
        let renamed = match renamed {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rename_without_flags(self.parent.as_fd(), temporary, &self.name)
            }
            other => other,
        };
        match renamed {
            Ok(()) => self.temporary = None,
            Err(Errno::EXIST | Errno::NOTEMPTY) => return Err(UnpackError::Exists(self.target.clone())),
            Err(error) => return failed("rename", error),
        }
        Ok(self.target.clone())
    }

    /// The innermost open directory, or the one around the root.
    fn directory(&self) -> BorrowedFd<'_> {
        self.open.last().map_or_else(|| self.parent.as_fd(), |directory| directory.fd.as_fd())
    }

    fn failed(&self, action: &'static str, name: &[u8], error: impl Into<io::Error>) -> UnpackError {
        let names = self.open.iter().skip(1).map(|directory| directory.name.as_os_str());
        let names = names.chain([OsStr::from_bytes(name)]).filter(|name| !name.is_empty());
        let mut path = self.target.clone();
        path.extend(names);
        UnpackError::Io { action, path, source: error.into() }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let Some(temporary) = &self.temporary else { return };
        if let Err(error) = remove_tree(self.parent.as_fd(), OsStr::new(temporary)) {
            tracing::warn!(target = %self.target.display(), temporary, %error, "unfinished tree left behind");
        }
    }
}

type Create = fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<OwnedFd>;

fn create_directory(within: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(within, name, Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(within, name, flags, Mode::empty())
}

fn create_file(within: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(within, name, flags, Mode::RUSR | Mode::WUSR)
}

fn fresh_name() -> String {
    format!("{PREFIX}{:016x}", rand::random::<u64>())
}

/// Locks a new root; `None` when a cleaner saw it in the instant before, and takes it away.
fn lock(root: OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok((rustix::fs::fstat(&root)?.st_nlink > 0).then_some(root)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Time of modification 1, as Nix gives to all in its store; time of access as it is.
const SECOND_1: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

fn close(node: impl AsFd, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::fchmod(&node, Mode::from_raw_mode(mode))?;
    rustix::fs::futimens(&node, &SECOND_1)
}

/// For file systems without `RENAME_NOREPLACE`: takes the final name in a way that fails when it is taken.
fn rename_without_flags(parent: BorrowedFd<'_>, temporary: &str, name: &OsStr) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(parent, temporary, AtFlags::SYMLINK_NOFOLLOW)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        // A directory may replace an empty one, which is ours, and replaces nothing else.
        rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
        rustix::fs::renameat(parent, temporary, parent, name)
    } else {
        rustix::fs::linkat(parent, temporary, parent, name, AtFlags::empty())?;
        rustix::fs::unlinkat(parent, temporary, AtFlags::empty())
    }
}

#[cfg(test)]
mod tests;
