//! Encodes events as a NAR.

use super::{Event, MAGIC, padding};

/// Writes one archive.
///
/// The events must be those of one whole tree, in the order and with the names that [`Event`] asks for:
/// the writer does not check them, because its callers walk real trees or pass on what a reader checked.
#[derive(Debug, Default)]
pub struct Writer {
    started: bool,
    open_directories: usize,
    /// Of the open file.
    padding: usize,
}

impl Writer {
    /// A writer of a new archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the bytes of `event` to `out`. Contents have no framing of their own: large ones may go straight
    /// to where `out` goes, between the bytes of [`Event::File`] and of [`Event::FileEnd`].
    pub fn write(&mut self, event: &Event<'_>, out: &mut Vec<u8>) {
        match *event {
            Event::Directory { name } => {
                self.node(name, b"directory", out);
                self.open_directories += 1;
            }
            Event::DirectoryEnd => {
                self.open_directories -= 1;
                self.node_end(out);
            }
            Event::File { name, executable, size } => {
                self.node(name, b"regular", out);
                if executable {
                    strings(&[b"executable", b""], out);
                }
                string(b"contents", out);
                out.extend_from_slice(&size.to_le_bytes());
                self.padding = padding(size);
            }
            Event::Contents(bytes) => out.extend_from_slice(bytes),
            Event::FileEnd => {
                out.resize(out.len() + self.padding, 0);
                self.node_end(out);
            }
            Event::Symlink { name, target } => {
                self.node(name, b"symlink", out);
                strings(&[b"target", target], out);
                self.node_end(out);
            }
        }
    }

    fn node(&mut self, name: &[u8], kind: &[u8], out: &mut Vec<u8>) {
        if self.started {
            strings(&[b"entry", b"(", b"name", name, b"node"], out);
        } else {
            self.started = true;
            string(MAGIC, out);
        }
        strings(&[b"(", b"type", kind], out);
    }

    fn node_end(&self, out: &mut Vec<u8>) {
        string(b")", out);
        if self.open_directories > 0 {
            string(b")", out);
        }
    }
}

fn strings(all: &[&[u8]], out: &mut Vec<u8>) {
    for bytes in all {
        string(bytes, out);
    }
}

fn string(bytes: &[u8], out: &mut Vec<u8>) {
    let length = bytes.len() as u64;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len() + padding(length), 0);
}
