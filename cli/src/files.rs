//! Files that are whole or absent, whatever happens.

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A new file under a temporary name beside `target`; removed when dropped unfinished.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    path: PathBuf,
    target: PathBuf,
    done: bool,
}

impl Draft {
    /// Starts the file that will be `target`, world-readable as the umask allows.
    ///
    /// # Errors
    /// When the directory is missing or not writable.
    pub(crate) fn new(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        // A process makes one draft of a file at a time, and O_EXCL guards against all others.
        let path = target.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path);
        let file = match open() {
            // Left behind by a process with our number that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&path)?;
                open()?
            }
            opened => opened?,
        };
        Ok(Self { file, path, target: target.to_owned(), done: false })
    }

    /// Makes the file durable under its final name, in the place of what was there.
    ///
    /// # Errors
    /// When it cannot be written out; then it is gone.
    pub(crate) fn replace(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, &self.target)?;
        self.done = true;
        sync_parent(&self.target)
    }

    /// Makes the file durable under its final name, where nothing may be.
    ///
    /// # Errors
    /// `AlreadyExists` when something is there, even a dangling symlink.
    pub(crate) fn create(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        match renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => self.done = true,
            // NFS cannot; it can link, and the draft's own name goes with the drop.
            Err(Errno::INVAL | Errno::NOSYS) => std::fs::hard_link(&self.path, &self.target)?,
            Err(error) => return Err(error.into()),
        }
        sync_parent(&self.target)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Replaces a small file by `bytes`, durably. Nothing is written when it says the same already.
///
/// # Errors
/// When the directory is missing or not writable.
pub(crate) fn write(target: &Path, bytes: &[u8]) -> io::Result<()> {
    if std::fs::read(target).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let mut draft = Draft::new(target)?;
    draft.write_all(bytes)?;
    draft.replace()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x.narinfo");
        write(&target, b"one").unwrap();
        write(&target, b"two").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"two");
        assert_eq!(names(directory.path()), ["x.narinfo"]);
    }

    #[test]
    fn an_unfinished_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut draft = Draft::new(&directory.path().join("x")).unwrap();
        draft.write_all(b"half").unwrap();
        drop(draft);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_leftover_of_a_killed_process_is_in_nobodys_way() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        std::mem::forget(Draft::new(&target).unwrap());
        write(&target, b"new").unwrap();
        assert_eq!(names(directory.path()), ["x"]);
    }

    #[test]
    fn what_is_there_is_never_overwritten_by_create() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        std::os::unix::fs::symlink("/nonexistent", &target).unwrap();
        let error = Draft::new(&target).unwrap().create().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(target.is_symlink());
        std::fs::remove_file(&target).unwrap();
        Draft::new(&target).unwrap().create().unwrap();
        assert_eq!(names(directory.path()), ["x"]);
    }
}
