//! Removes unfinished trees: one's own, and those that killed processes left.

use super::UnpackError;
use crate::nix::dump::entry_names;
use nipfs_proto::nix::nar::MAX_DEPTH;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// How the names of unfinished trees begin; 16 hexadecimal digits follow.
pub(super) const PREFIX: &str = ".nipfs-";

/// Removes what unpacking left in `directory` when its process was killed, and gives the number of trees removed.
///
/// Trees that are growing now are locked and stay, and so do those of other users. So does an unfinished symlink:
/// it has no lock, and costs nothing.
///
/// # Errors
/// [`UnpackError::Io`] when `directory` cannot be listed or a leftover cannot be removed.
pub fn clean_leftovers(directory: &Path) -> Result<usize, UnpackError> {
    let failed =
        |action, path: &Path, error: Errno| UnpackError::Io { action, path: path.to_owned(), source: error.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = rustix::fs::openat(CWD, directory, flags, Mode::empty());
    let within = within.map_err(|error| failed("open", directory, error))?;
    let names = entry_names(within.as_fd()).map_err(|error| failed("list", directory, error))?;
    let mut removed = 0;
    for name in names.iter().filter(|name| is_temporary(name.to_bytes())) {
        let name = OsStr::from_bytes(name.to_bytes());
        let cleaned = remove_if_dead(within.as_fd(), name);
        removed += usize::from(cleaned.map_err(|error| failed("remove", &directory.join(name), error))?);
    }
    Ok(removed)
}

fn is_temporary(name: &[u8]) -> bool {
    let digits = name.strip_prefix(PREFIX.as_bytes());
    digits.is_some_and(|digits| digits.len() == 16 && digits.iter().all(u8::is_ascii_hexdigit))
}

fn remove_if_dead(within: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let root = match rustix::fs::openat(within, name, flags, Mode::empty()) {
        Ok(root) => root,
        // A symlink, somebody else's, or gone meanwhile.
        Err(Errno::LOOP | Errno::ACCESS | Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error),
    };
    if rustix::fs::fstat(&root)?.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => remove_tree(within, name).map(|()| true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

struct Doomed {
    name: CString,
    fd: OwnedFd,
    left: Vec<CString>,
}

/// Removes the tree or file `root` in `parent`, read-only directories as well, without following symlinks.
/// What is gone already is no error.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, root: &OsStr) -> rustix::io::Result<()> {
    let mut open: Vec<Doomed> = Vec::new();
    let mut next = CString::new(root.as_bytes()).ok();
    loop {
        let within = open.last().map_or(parent, |directory| directory.fd.as_fd());
        match next {
            Some(name) => match rustix::fs::unlinkat(within, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // No tree of ours is deeper: the number of open directories is bounded for foreign ones too.
                Err(Errno::ISDIR | Errno::PERM) if open.len() < MAX_DEPTH => {
                    let doomed = open_doomed(within, name)?;
                    open.push(doomed);
                }
                Err(error) => return Err(error),
            },
            None => {
                let Some(emptied) = open.pop() else { return Ok(()) };
                let within = open.last().map_or(parent, |directory| directory.fd.as_fd());
                rustix::fs::unlinkat(within, &emptied.name, AtFlags::REMOVEDIR)?;
            }
        }
        next = open.last_mut().and_then(|directory| directory.left.pop());
    }
}

fn open_doomed(within: BorrowedFd<'_>, name: CString) -> rustix::io::Result<Doomed> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(within, &name, flags, Mode::empty())?;
    rustix::fs::fchmod(&fd, Mode::RWXU)?;
    let left = entry_names(fd.as_fd())?;
    Ok(Doomed { name, fd, left })
}
