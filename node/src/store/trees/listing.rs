//! Where the bytes of a tree's NAR lie: in its files, and between them what only the NAR has.

use nipfs_proto::nix::nar::{Event, MAX_DEPTH, Writer};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Most bytes of memory that one listing may take: about 200,000 files.
pub(super) const MAX_LISTING: usize = 64 << 20;

/// Most bytes in all files of a tree; a file by itself has at most 2⁶³.
const MAX_CONTENTS: u64 = 1 << 62;

/// A tree as its NAR.
#[derive(Debug)]
pub(super) struct Listing {
    root: PathBuf,
    /// What lies between the contents of files, all in one.
    frame: Vec<u8>,
    /// In the order of the NAR.
    files: Vec<Contents>,
    /// Bytes of the NAR.
    size: u64,
    /// Bytes of memory that it takes, roughly.
    pub(super) weight: usize,
}

/// The contents of a file.
#[derive(Debug)]
struct Contents {
    /// Where they begin in the NAR.
    start: u64,
    size: u64,
    /// Bytes of the frame before them.
    framed: usize,
    /// Below the root.
    path: Box<Path>,
}

enum Step {
    Visit(PathBuf, usize),
    Leave,
}

impl Listing {
    /// Lists the tree at `root` as it is now. Links are not followed.
    ///
    /// # Errors
    /// The file system's; `Unsupported` for what no NAR can hold; that there are too many files.
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let (mut frame, mut files, mut contents, mut weight) = (Vec::new(), Vec::new(), 0, 0);
        let mut writer = Writer::new();
        let mut steps = vec![Step::Visit(PathBuf::new(), 0)];
        while let Some(step) = steps.pop() {
            let Step::Visit(path, depth) = step else {
                writer.write(&Event::DirectoryEnd, &mut frame);
                continue;
            };
            let here = if depth == 0 { root.to_owned() } else { root.join(&path) };
            let name = path.file_name().unwrap_or_default().as_bytes();
            let meta = fs::symlink_metadata(&here)?;
            if meta.is_symlink() {
                let target = fs::read_link(&here)?;
                writer.write(&Event::Symlink { name, target: target.as_os_str().as_bytes() }, &mut frame);
            } else if meta.is_dir() && depth < MAX_DEPTH {
                writer.write(&Event::Directory { name }, &mut frame);
                let names = names_backwards(&here)?;
                weight +=
                    names.iter().map(|name| path.as_os_str().len() + name.len() + size_of::<Step>()).sum::<usize>();
                steps.push(Step::Leave);
                steps.extend(names.into_iter().map(|name| Step::Visit(path.join(name), depth + 1)));
            } else if meta.is_file() {
                let (size, executable) = (meta.len(), is_executable(&meta));
                writer.write(&Event::File { name, executable, size }, &mut frame);
                let start = frame.len() as u64 + contents;
                files.push(Contents { start, size, framed: frame.len(), path: path.into_boxed_path() });
                contents =
                    Some(contents + size).filter(|sum| *sum < MAX_CONTENTS).ok_or(io::ErrorKind::FileTooLarge)?;
                weight += size_of::<Contents>();
                writer.write(&Event::FileEnd, &mut frame);
            } else {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if weight + frame.len() > MAX_LISTING {
                return Err(io::Error::other("more files than can be kept track of"));
            }
        }
        weight += frame.len();
        Ok(Self { root: root.to_owned(), size: frame.len() as u64 + contents, frame, files, weight })
    }

    /// Reads `length` bytes of the NAR from `offset` on; `None` when the tree has changed so that they are not there.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.size) {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        let mut done = 0;
        // The file whose contents begin last at or before the place.
        let mut next = self.files.partition_point(|file| file.start <= offset);
        if let Some(file) = next.checked_sub(1).and_then(|last| self.files.get(last)) {
            let within = offset - file.start;
            if within < file.size {
                done = usize::try_from(file.size - within).map_or(length, |left| left.min(length));
                if !self.read_file(file, within, &mut bytes[..done])? {
                    return Ok(None);
                }
            }
        }
        while done < length {
            let at = offset + done as u64;
            let before = next.checked_sub(1).and_then(|last| self.files.get(last));
            let contents = before.map_or(0, |file| file.start + file.size - file.framed as u64);
            let framed = usize::try_from(at - contents).unwrap_or(usize::MAX);
            let until = self.files.get(next).map_or(self.frame.len(), |file| file.framed);
            let Some(frame) = self.frame.get(framed..until) else { return Ok(None) };
            let now = frame.len().min(length - done);
            bytes[done..done + now].copy_from_slice(&frame[..now]);
            done += now;
            if let Some(file) = self.files.get(next).filter(|_| done < length) {
                let now = usize::try_from(file.size).map_or(length - done, |size| size.min(length - done));
                if !self.read_file(file, 0, &mut bytes[done..done + now])? {
                    return Ok(None);
                }
                done += now;
                next += 1;
            }
        }
        Ok(Some(bytes))
    }

    /// False when there is no such part of a plain file any more.
    fn read_file(&self, file: &Contents, offset: u64, bytes: &mut [u8]) -> io::Result<bool> {
        let root = &self.root;
        let path = if file.path.as_os_str().is_empty() { root.clone() } else { root.join(&file.path) };
        match open(&path)
            .and_then(|file| file.map_or(Ok(false), |file| file.read_exact_at(bytes, offset).map(|()| true)))
        {
            Err(error) if is_change(&error) => Ok(false),
            other => other,
        }
    }
}

/// Whether an error says that the tree is no longer what it was, and not that reading failed.
pub(super) fn is_change(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, UnexpectedEof, Unsupported};
    // A symlink or a socket where a file was.
    let replaced = matches!(Errno::from_io_error(error), Some(Errno::LOOP | Errno::NXIO));
    replaced || matches!(error.kind(), NotFound | NotADirectory | UnexpectedEof | Unsupported)
}

/// Opens a plain file; `None` for anything else. What has taken a file's place must not make us wait.
fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let is_file = FileType::is_file(&file.metadata()?.file_type());
    Ok(Some(file).filter(|_| is_file))
}

fn names_backwards(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
    Ok(names)
}

/// As Nix sees it: whether the owner may execute it.
fn is_executable(meta: &Metadata) -> bool {
    meta.permissions().mode() & 0o100 != 0
}
