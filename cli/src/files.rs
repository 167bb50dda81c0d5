//! Files that are whole or absent, whatever happens.

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with, syncfs};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the names of drafts begin and end.
const PREFIX: &str = ".nipfs-";
const SUFFIX: &str = ".tmp";

/// Names that are tried for a draft.
const ATTEMPTS: usize = 100;

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
        static DRAFTS: AtomicU64 = AtomicU64::new(0);
        if target.file_name().is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for _ in 0..ATTEMPTS {
            let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!("{PREFIX}{}-{number}{SUFFIX}", std::process::id()));
            let file = match OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path) {
                // Of a process with our number that was killed, or that runs in another container.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                opened => opened?,
            };
            // Fails when a sweeper was faster: then it removes the file.
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(Self { file, path, target: target.to_owned(), done: false });
            }
        }
        Err(io::Error::other("too many unfinished files"))
    }

    /// Its final name.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the file durable under its final name, in the place of what was there.
    ///
    /// # Errors
    /// When it cannot be written out; then it is gone.
    pub(crate) fn replace(self) -> io::Result<()> {
        self.file.sync_all()?;
        let target = self.target.clone();
        self.take_name()?;
        sync_parent(&target)
    }

    /// Gives the file, which is durable, its final name.
    fn take_name(mut self) -> io::Result<()> {
        std::fs::rename(&self.path, &self.target)?;
        self.done = true;
        Ok(())
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

/// [`Draft::replace`] of several, in this order; the result of each. Waits for the disk twice for each directory, however many
/// they are.
pub(crate) fn replace_all(drafts: Vec<Draft>) -> Vec<io::Result<()>> {
    let drafts = match <[Draft; 1]>::try_from(drafts) {
        // Without what others write to the same disk.
        Ok([draft]) => return vec![draft.replace()],
        Err(drafts) => drafts,
    };
    let parents: BTreeMap<_, _> = drafts.iter().map(|draft| (parent(&draft.target).to_owned(), &draft.file)).collect();
    // Through a file that was open when it was written: it hears of what went wrong since.
    let written = parents.values().try_for_each(|file| Ok(syncfs(file)?));
    let parents: Vec<_> = parents.into_keys().collect();
    let named: Vec<_> = drafts.into_iter().map(|draft| same(&written).and_then(|()| draft.take_name())).collect();
    let synced = parents.iter().try_for_each(|parent| File::open(parent)?.sync_all());
    named.into_iter().map(|named| named.and_then(|()| same(&synced))).collect()
}

/// The same result for one more.
fn same(result: &io::Result<()>) -> io::Result<()> {
    result.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

/// Removes the drafts of processes that were killed. Those in work are locked and stay.
///
/// # Errors
/// When the directory cannot be read; a missing one is clean.
pub(crate) fn sweep(directory: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let draft = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if draft
            && entry.file_type()?.is_file()
            && let Ok(file) = File::open(entry.path())
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Replaces a small file by `bytes`, durably. Nothing is written when it says the same already.
///
/// # Errors
/// When the directory is missing or not writable.
pub(crate) fn write(target: &Path, bytes: &[u8]) -> io::Result<()> {
    draft(target, bytes)?.map_or(Ok(()), Draft::replace)
}

/// The file that will be `target` and say `bytes`; `None` when it says the same already.
///
/// # Errors
/// When the directory is missing or not writable.
pub(crate) fn draft(target: &Path, bytes: &[u8]) -> io::Result<Option<Draft>> {
    if std::fs::read(target).is_ok_and(|old| old == bytes) {
        return Ok(None);
    }
    let mut draft = Draft::new(target)?;
    draft.write_all(bytes)?;
    Ok(Some(draft))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
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
    fn leftovers_of_killed_processes_are_swept_and_drafts_in_work_stay() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("x");
        let leftover = directory.path().join(format!("{PREFIX}1-0{SUFFIX}"));
        std::fs::write(&leftover, "half").unwrap();
        std::fs::write(&target, "old").unwrap();
        let mut draft = Draft::new(&target).unwrap();
        draft.write_all(b"new").unwrap();
        sweep(directory.path()).unwrap();
        assert!(!leftover.exists());
        draft.replace().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["x"]);
        sweep(&directory.path().join("missing")).unwrap();
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
