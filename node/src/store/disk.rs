//! The operations that change the packs: every write, sync, hole and unlink of the room passes here.
//!
//! Tests stop the store at any one of them (see `tests::faults`).

use super::StoreError;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Zeros that overwrite what cannot be punched.
const ZEROS: &[u8] = &[0; 64 << 10];

/// The way to the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) faults: super::tests::faults::Faults,
}

impl Disk {
    #[cfg(test)]
    fn step(&self, path: &Path, action: &'static str) -> io::Result<()> {
        self.faults.step(path, action)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests stop the store here")]
    fn step(&self, _: &Path, _: &'static str) -> io::Result<()> {
        Ok(())
    }

    /// Makes a file that must not exist yet.
    pub(super) fn create(&self, path: &Path) -> Result<File, StoreError> {
        let create = || OpenOptions::new().read(true).write(true).create_new(true).open(path);
        self.step(path, "create").and_then(|()| create()).map_err(StoreError::io("create", path))
    }

    /// Writes the parts one after the other.
    pub(super) fn write_at(&self, file: &File, path: &Path, parts: &[&[u8]], offset: u64) -> Result<(), StoreError> {
        let result = self.step(path, "write").and_then(|()| write_all_at(file, parts, offset));
        result.map_err(StoreError::io("write", path))
    }

    /// Makes the bytes and the length of a file durable. After an error nobody knows what is on disk.
    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        self.step(path, "sync").and_then(|()| file.sync_data()).map_err(StoreError::io("sync", path))?;
        #[cfg(test)]
        self.faults.synced(path, file);
        Ok(())
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_dir(&self, path: &Path) -> Result<(), StoreError> {
        let sync = || File::open(path)?.sync_all();
        self.step(path, "sync").and_then(|()| sync()).map_err(StoreError::io("sync", path))
    }

    pub(super) fn truncate(&self, file: &File, path: &Path, len: u64) -> Result<(), StoreError> {
        self.step(path, "truncate").and_then(|()| file.set_len(len)).map_err(StoreError::io("truncate", path))
    }

    /// Turns a range into zeros and gives its space back, where the file system can.
    pub(super) fn erase(&self, file: &File, path: &Path, offset: u64, len: u64) -> Result<(), StoreError> {
        self.step(path, "erase").map_err(StoreError::io("erase", path))?;
        #[cfg(test)]
        self.faults.erasing(path, file, offset, len);
        match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let mut done = 0;
                while done < len {
                    let part = usize::try_from(len - done).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
                    file.write_all_at(&ZEROS[..part], offset + done).map_err(StoreError::io("erase", path))?;
                    done += part as u64;
                }
                Ok(())
            }
            Err(error) => Err(StoreError::io("erase", path)(error.into())),
        }
    }

    pub(super) fn remove(&self, path: &Path) -> Result<(), StoreError> {
        self.step(path, "remove").and_then(|()| fs::remove_file(path)).map_err(StoreError::io("remove", path))
    }

    /// Writes a small file in one step: all of it is there after a power cut, or nothing.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let fresh = path.with_extension("new");
        let write = || {
            let file = File::create(&fresh)?;
            file.write_all_at(bytes, 0)?;
            file.sync_all()?;
            fs::rename(&fresh, path)
        };
        self.step(path, "write").and_then(|()| write()).map_err(StoreError::io("write", path))?;
        self.sync_dir(path.parent().unwrap_or(path))
    }
}

fn write_all_at(file: &File, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match rustix::io::pwritev(file, left, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Bytes that this process may still write to the file system of `path`.
pub(super) fn available(path: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| StoreError::io("ask for the free space of", path)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
