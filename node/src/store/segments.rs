//! The pack segments as files: `packs/00000001.pack` and so on.
//!
//! Files are opened when needed and at most [`MAX_OPEN`] stay open; a reader that has one keeps it, even if GC
//! unlinks the segment meanwhile.

use super::StoreError;
use super::disk::Disk;
use super::record::{self, Header, RECORD_HEADER, SEGMENT_HEADER, Salt};
use super::{Location, lock};
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Segment files kept open.
const MAX_OPEN: usize = 16;

/// One open segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl Segment {
    pub(super) fn len(&self) -> Result<u64, StoreError> {
        Ok(self.file.metadata().map_err(StoreError::io("read", &self.path))?.len())
    }

    /// Bytes that the file takes on the disk.
    pub(super) fn allocated(&self) -> Result<u64, StoreError> {
        Ok(self.file.metadata().map_err(StoreError::io("read", &self.path))?.blocks() * 512)
    }

    /// The first offset from `offset` on that is not in a hole, as far as the file system tells.
    pub(super) fn data_from(&self, offset: u64) -> Result<u64, StoreError> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => Ok(data),
            Err(rustix::io::Errno::NXIO) => self.len(),
            Err(rustix::io::Errno::INVAL) => Ok(offset),
            Err(error) => Err(StoreError::io("read", &self.path)(error.into())),
        }
    }

    /// Reads exactly `len` bytes; `None` when the file ends before.
    pub(super) fn read(&self, offset: u64, len: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            // Into memory that nobody has cleared, which may be more than asked for.
            match rustix::io::pread(&self.file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(StoreError::io("read", &self.path)(e.into())),
            }
        }
        bytes.truncate(len);
        Ok(Some(bytes))
    }

    /// The valid record header at `offset`.
    pub(super) fn header(&self, offset: u64, salt: &Salt) -> Result<Option<Header>, StoreError> {
        let bytes = self.read(offset, RECORD_HEADER)?;
        let bytes = bytes.and_then(|bytes| <[u8; RECORD_HEADER]>::try_from(bytes).ok());
        Ok(bytes.and_then(|bytes| Header::decode(&bytes, offset, salt)))
    }
}

/// All segments of a store.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    pub(super) disk: Disk,
    pub(super) salt: Salt,
    /// Most recently used last.
    open: Mutex<VecDeque<Arc<Segment>>>,
}

impl Segments {
    pub(super) fn new(dir: PathBuf, disk: Disk, salt: Salt) -> Self {
        Self { dir, disk, salt, open: Mutex::default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The numbers of all segments, ascending.
    pub(super) fn list(&self) -> Result<Vec<u32>, StoreError> {
        list(&self.dir)
    }

    /// Checks that every segment is what its name says: one that was renamed, or is from another store, would change
    /// what happened when. A damaged header tells nothing and is not needed.
    pub(super) fn check_names(&self) -> Result<(), StoreError> {
        for number in self.list()? {
            let path = path(&self.dir, number);
            if read_header(&path)?.is_some_and(|header| header != (number, self.salt)) {
                return Err(StoreError::BadFile(path));
            }
        }
        Ok(())
    }

    /// Opens a segment; `None` when there is no such file.
    pub(super) fn open(&self, number: u32) -> Result<Option<Arc<Segment>>, StoreError> {
        let mut open = lock(&self.open);
        if let Some(at) = open.iter().position(|segment| segment.number == number) {
            let segment = open.remove(at);
            open.extend(segment.clone());
            return Ok(segment);
        }
        let path = path(&self.dir, number);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                let segment = Arc::new(Segment { number, path, file });
                if open.len() == MAX_OPEN {
                    open.pop_front();
                }
                open.push_back(Arc::clone(&segment));
                Ok(Some(segment))
            }
            // Something else in its place holds nothing of ours.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(None),
            Err(e) => Err(StoreError::io("open", &path)(e)),
        }
    }

    /// Makes the next segment: when this returns, it survives a power cut.
    pub(super) fn create(&self, number: u32) -> Result<Arc<Segment>, StoreError> {
        let path = path(&self.dir, number);
        let file = self.disk.create(&path)?;
        let segment = Segment { number, path, file };
        if let Err(error) = self.write_header(&segment) {
            // Half a segment is harmless where it cannot be removed: it has no records.
            let _ = self.disk.remove(&segment.path);
            return Err(error);
        }
        Ok(Arc::new(segment))
    }

    /// Writes the header of a segment that has no records, and makes it durable.
    pub(super) fn write_header(&self, segment: &Segment) -> Result<(), StoreError> {
        let Segment { number, path, file } = segment;
        self.disk.write_at(file, path, &[&record::segment_header(*number, &self.salt)], 0)?;
        self.disk.sync(file, path)?;
        self.disk.sync_dir(&self.dir)
    }

    /// Unlinks a segment.
    pub(super) fn remove(&self, number: u32) -> Result<(), StoreError> {
        lock(&self.open).retain(|segment| segment.number != number);
        self.disk.remove(&path(&self.dir, number))
    }

    /// The payload at a location; `None` when the segment is gone or ends before it.
    pub(super) fn payload(&self, location: &Location) -> Result<Option<Vec<u8>>, StoreError> {
        let Location { segment, offset, stored, .. } = *location;
        let Some(segment) = self.open(segment)? else { return Ok(None) };
        segment.read(u64::from(offset) + RECORD_HEADER as u64, stored as usize)
    }

    /// The record at a location, if its checksums hold.
    pub(super) fn record(&self, location: &Location) -> Result<Option<(Header, Bytes)>, StoreError> {
        let Location { segment, offset, stored, .. } = *location;
        let Some(segment) = self.open(segment)? else { return Ok(None) };
        let bytes = segment.read(u64::from(offset), RECORD_HEADER + stored as usize)?;
        Ok(bytes.and_then(|bytes| {
            let header = Header::decode(bytes.first_chunk()?, u64::from(offset), &self.salt)?;
            let payload = Bytes::from(bytes).slice(RECORD_HEADER..);
            (crc32c::crc32c(&payload) == header.payload_crc).then_some((header, payload))
        }))
    }

    /// Erases records, those that lie side by side in one step. A segment that is gone needs none.
    pub(super) fn erase(&self, mut records: Vec<(u32, Range<u64>)>) -> Result<(), StoreError> {
        records.sort_unstable_by_key(|(number, record)| (*number, record.start));
        let mut records = records.into_iter().peekable();
        while let Some((number, mut run)) = records.next() {
            while let Some((_, next)) = records.next_if(|(other, next)| *other == number && next.start <= run.end) {
                run.end = run.end.max(next.end);
            }
            if let Some(segment) = self.open(number)? {
                // Nothing lies behind the end, and a hole there would be none.
                let end = run.end.min(segment.len()?);
                self.disk.erase(&segment.file, &segment.path, run.start, end.saturating_sub(run.start))?;
            }
        }
        Ok(())
    }

    /// Makes a segment durable, with the holes in it.
    pub(super) fn sync(&self, number: u32) -> Result<(), StoreError> {
        match self.open(number)? {
            Some(segment) => self.disk.sync(&segment.file, &segment.path),
            None => Ok(()),
        }
    }
}

/// The numbers of the segments in a directory, ascending; foreign names are passed over.
pub(super) fn list(dir: &Path) -> Result<Vec<u32>, StoreError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".pack")).filter(|digits| digits.len() == 8);
        numbers.extend(number.and_then(|digits| digits.parse::<u32>().ok()).filter(|_| is_file));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The salt in the first segment of `dir` whose header is whole.
pub(super) fn find_salt(dir: &Path) -> Result<Option<Salt>, StoreError> {
    for number in list(dir)? {
        if let Some((_, salt)) = read_header(&path(dir, number))? {
            return Ok(Some(salt));
        }
    }
    Ok(None)
}

/// The number and the salt in the header of a segment file; `None` when the header is damaged.
fn read_header(path: &Path) -> Result<Option<(u32, Salt)>, StoreError> {
    let mut header = [0; SEGMENT_HEADER];
    match File::open(path).and_then(|file| file.read_exact_at(&mut header, 0)) {
        Ok(()) => Ok(record::read_segment_header(&header)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(StoreError::io("read", path)(e)),
    }
}

fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.pack"))
}
