//! Texts in a file that nobody else can open and that goes with its owner, however he ends.
//!
//! It is written and read at once: the kernel keeps what is young in memory, and writes it to the disk when it must.
//! The last texts wait here, so that few need no file.

use crate::control::protocol::{Class, Failure};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Bytes that wait before they are written.
const MAX_WAITING: usize = 256 << 10;
/// Bytes of all texts: 4 KiB for each path of the largest closure.
const MAX_BYTES: u64 = 1 << 30;

/// Where a text lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    at: u64,
    length: usize,
}

/// The texts.
#[derive(Debug)]
pub(super) struct Texts {
    dir: PathBuf,
    file: Option<File>,
    /// Bytes of the file.
    written: u64,
    waiting: Vec<u8>,
}

impl Texts {
    /// None yet; the file will be in `dir`, without a name.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: None, written: 0, waiting: Vec::new() }
    }

    /// Adds a text.
    ///
    /// # Errors
    /// When it cannot be written, or there are more than [`MAX_BYTES`].
    pub(super) fn push(&mut self, text: &[u8]) -> Result<Place, Failure> {
        if self.written > MAX_BYTES {
            return Err(Failure::new(Class::Refused, format!("closure with narinfos of more than {MAX_BYTES} bytes")));
        }
        if self.waiting.len() + text.len() > MAX_WAITING {
            self.write().map_err(|error| self.failure(&error))?;
        }
        let place = Place { at: self.written + self.waiting.len() as u64, length: text.len() };
        self.waiting.extend_from_slice(text);
        Ok(place)
    }

    /// A text that was added.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read(&self, place: Place) -> Result<Vec<u8>, Failure> {
        let Place { at, length } = place;
        let start = at.checked_sub(self.written).and_then(|start| usize::try_from(start).ok());
        if let Some(start) = start {
            return Ok(self.waiting[start..start + length].to_vec());
        }
        let mut text = vec![0; length];
        let read = self.file.as_ref().map_or(Ok(()), |file| file.read_exact_at(&mut text, at));
        read.map_err(|error| self.failure(&error))?;
        Ok(text)
    }

    fn write(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.dir)?),
        };
        file.write_all_at(&self.waiting, self.written)?;
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    fn failure(&self, error: &io::Error) -> Failure {
        let class = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
            _ => Class::Failed,
        };
        Failure::new(class, format!("{}: cannot keep the narinfos of the closure", self.dir.display())).because(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_back_from_memory_and_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut texts = Texts::new(dir.path());
        let text = |number: usize| format!("{number} ").repeat(number % 97).into_bytes();
        let places: Vec<_> = (0..4000).map(|number| texts.push(&text(number)).unwrap()).collect();
        assert!(texts.written > 0 && !texts.waiting.is_empty());
        for (number, place) in places.into_iter().enumerate() {
            assert_eq!(texts.read(place).unwrap(), text(number));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn few_texts_need_no_file_and_one_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        let mut texts = Texts::new(&nowhere);
        let place = texts.push(b"one").unwrap();
        assert_eq!(texts.read(place).unwrap(), b"one");
        let failure = texts.push(&vec![0; MAX_WAITING]).unwrap_err();
        assert_eq!(failure.class, Class::Failed);
        assert!(failure.message.contains("nowhere"), "{failure}");
    }
}
