//! Decodes a NAR from pieces of any size.
//!
//! A state machine without recursion. It holds one string (at most 4 KiB) and one name for every open
//! directory (at most 64); file contents pass through without a copy, and no length field decides what
//! is allocated.

use super::{Event, MAGIC, MAX_DEPTH, MAX_NAME, MAX_TARGET, padding};

/// Longest keyword in bytes. The real ones have at most 10; the rest makes for good error messages.
const MAX_TAG: usize = 32;
/// Bytes of a length field.
const LENGTH: usize = 8;

/// Why bytes are not a NAR, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid NAR: {reason} at byte {offset}")]
pub struct NarError {
    /// What is wrong.
    pub reason: Reason,
    /// Offset in the archive: of the string that is refused, of the byte that is not zero, or of the end.
    pub offset: u64,
}

/// What is wrong with a NAR. Foreign text is escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It does not begin as a NAR does.
    #[error("input does not look like a Nix archive")]
    Magic,
    /// Another keyword than the grammar has here.
    #[error("expected tag '{expected}', got '{found}'")]
    Tag {
        /// The keyword or keywords.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// A node that is no file, directory or symlink.
    #[error("unknown file type '{0}'")]
    FileType(String),
    /// Something after `executable`.
    #[error("executable marker has a value")]
    ExecutableValue,
    /// An empty name, `.`, `..`, or one with a slash or a NUL.
    #[error("invalid file name '{0}'")]
    Name(String),
    /// This name does not come after the one before it.
    #[error("directory is not sorted: '{0}'")]
    Unsorted(String),
    /// An empty symlink target or one with a NUL.
    #[error("invalid symlink target '{0}'")]
    Target(String),
    /// More than [`MAX_DEPTH`] nested nodes.
    #[error("directories nested deeper than {MAX_DEPTH}")]
    Depth,
    /// A string longer than its place allows.
    #[error("string of {length} bytes is too long (at most {limit})")]
    TooLong {
        /// Bytes announced.
        length: u64,
        /// Bytes allowed.
        limit: usize,
    },
    /// Padding with a byte other than zero.
    #[error("non-zero padding")]
    Padding,
    /// The input ended within the archive.
    #[error("unexpected end")]
    Truncated,
    /// The archive ended within the input.
    #[error("bytes after the end of the archive")]
    Trailing,
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum State {
    Magic,
    Open,
    TypeTag,
    Type,
    ExecutableOrContents,
    ExecutableValue,
    ContentsTag,
    Size { executable: bool },
    Contents { left: u64, padding: usize },
    Padding { length: usize },
    FileClose,
    TargetTag,
    Target,
    SymlinkClose,
    EntryOrClose,
    EntryOpen,
    NameTag,
    Name,
    NodeTag,
    EntryClose,
    End,
}

/// An event whose names are still in the reader.
#[derive(Clone, Copy)]
enum Found<'i> {
    Directory,
    DirectoryEnd,
    File { executable: bool, size: u64 },
    Contents(&'i [u8]),
    FileEnd,
    Symlink,
}

/// Reads one archive.
///
/// ```
/// # use nipfs_proto::nix::nar::{NarError, Reader};
/// # fn read(pieces: &[&[u8]]) -> Result<(), NarError> {
/// let mut reader = Reader::new();
/// for mut piece in pieces.iter().copied() {
///     while let Some(event) = reader.next_event(&mut piece)? {
///         println!("{event:?}");
///     }
/// }
/// reader.finish()
/// # }
/// ```
#[derive(Debug)]
pub struct Reader {
    state: State,
    /// Bytes taken from the input.
    offset: u64,
    /// The string (or number, or padding) that is being read: its length field, bytes and padding.
    buffer: Vec<u8>,
    /// For every open directory the name of its latest entry, empty before the first.
    names: Vec<Vec<u8>>,
    /// The latest symlink's.
    target: Vec<u8>,
    failed: Option<NarError>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader of a new archive.
    #[must_use]
    pub fn new() -> Self {
        let (buffer, names, target) = (Vec::new(), Vec::new(), Vec::new());
        Self { state: State::Magic, offset: 0, buffer, names, target, failed: None }
    }

    /// Takes bytes from the front of `input` until they make an event. `None` means that all of `input` was taken and
    /// more is needed, or that the archive is complete.
    ///
    /// # Errors
    /// [`NarError`], and the same again at every later call.
    pub fn next_event<'e, 'i: 'e>(&'e mut self, input: &mut &'i [u8]) -> Result<Option<Event<'e>>, NarError> {
        let found = match &self.failed {
            Some(error) => Err(error.clone()),
            None => self.advance(input),
        };
        if let Err(error) = &found {
            self.failed = Some(error.clone());
        }
        Ok(found?.map(|found| match found {
            // It is itself the innermost open directory by now.
            Found::Directory => Event::Directory { name: self.names.iter().nth_back(1).map_or(&[], Vec::as_slice) },
            Found::DirectoryEnd => Event::DirectoryEnd,
            Found::File { executable, size } => Event::File { name: self.name(), executable, size },
            Found::Contents(bytes) => Event::Contents(bytes),
            Found::FileEnd => Event::FileEnd,
            Found::Symlink => Event::Symlink { name: self.name(), target: &self.target },
        }))
    }

    /// Takes all of `input`, for those who only want to know whether it is a NAR so far.
    ///
    /// # Errors
    /// As [`Reader::next_event`].
    pub fn follow(&mut self, mut input: &[u8]) -> Result<(), NarError> {
        while self.next_event(&mut input)?.is_some() {}
        Ok(())
    }

    /// Bytes taken so far. After [`Event::File`] it is the offset of the file's contents in the archive.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Ends the input.
    ///
    /// # Errors
    /// [`NarError`] when the archive is not complete, or failed before.
    pub fn finish(self) -> Result<(), NarError> {
        match (self.failed, self.state) {
            (Some(error), _) => Err(error),
            (None, State::End) => Ok(()),
            (None, _) => Err(NarError { reason: Reason::Truncated, offset: self.offset }),
        }
    }

    fn name(&self) -> &[u8] {
        self.names.last().map_or(&[], Vec::as_slice)
    }

    fn advance<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Found<'i>>, NarError> {
        loop {
            match self.state {
                State::Contents { left: 0, padding } => self.state = State::Padding { length: padding },
                State::Contents { .. } if input.is_empty() => return Ok(None),
                State::Contents { left, padding } => {
                    let length = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                    let bytes = self.take(input, length);
                    self.state = State::Contents { left: left - length as u64, padding };
                    return Ok(Some(Found::Contents(bytes)));
                }
                State::Padding { length } => {
                    if !self.gather(input, length) {
                        return Ok(None);
                    }
                    self.check_padding(0)?;
                    self.buffer.clear();
                    self.state = State::FileClose;
                }
                State::Size { executable } => {
                    if !self.gather(input, LENGTH) {
                        return Ok(None);
                    }
                    let size = self.length();
                    self.buffer.clear();
                    self.state = State::Contents { left: size, padding: padding(size) };
                    return Ok(Some(Found::File { executable, size }));
                }
                State::End if input.is_empty() => return Ok(None),
                State::End => return Err(self.error(Reason::Trailing)),
                _ => {
                    let Some(length) = self.string(input)? else { return Ok(None) };
                    let found = self.accept(length)?;
                    self.buffer.clear();
                    if found.is_some() {
                        return Ok(found);
                    }
                }
            }
        }
    }

    fn take<'i>(&mut self, input: &mut &'i [u8], length: usize) -> &'i [u8] {
        let (bytes, rest) = input.split_at(length);
        *input = rest;
        self.offset += length as u64;
        bytes
    }

    /// Fills the buffer up to `length` bytes; false when `input` has too few.
    fn gather(&mut self, input: &mut &[u8], length: usize) -> bool {
        let missing = length.saturating_sub(self.buffer.len());
        let bytes = self.take(input, missing.min(input.len()));
        self.buffer.extend_from_slice(bytes);
        self.buffer.len() >= length
    }

    /// The length field in the buffer.
    fn length(&self) -> u64 {
        self.buffer.first_chunk().map_or(0, |length| u64::from_le_bytes(*length))
    }

    /// Gathers a string with its padding and gives its length; `None` when `input` has too few bytes.
    fn string(&mut self, input: &mut &[u8]) -> Result<Option<usize>, NarError> {
        if !self.gather(input, LENGTH) {
            return Ok(None);
        }
        let limit = match self.state {
            State::Magic => MAGIC.len(),
            State::Name => MAX_NAME,
            State::Target => MAX_TARGET,
            _ => MAX_TAG,
        };
        let announced = self.length();
        let length = usize::try_from(announced).ok().filter(|length| *length <= limit);
        let length = length.ok_or_else(|| match self.state {
            State::Magic => self.error(Reason::Magic),
            _ => self.error(Reason::TooLong { length: announced, limit }),
        })?;
        if !self.gather(input, LENGTH + length + padding(announced)) {
            return Ok(None);
        }
        self.check_padding(LENGTH + length)?;
        Ok(Some(length))
    }

    /// Checks that the buffer is zero from `start` on.
    fn check_padding(&self, start: usize) -> Result<(), NarError> {
        match self.buffer[start..].iter().position(|byte| *byte != 0) {
            None => Ok(()),
            Some(at) => {
                let offset = self.offset - (self.buffer.len() - start - at) as u64;
                Err(NarError { reason: Reason::Padding, offset })
            }
        }
    }

    /// An error at the start of what is in the buffer.
    fn error(&self, reason: Reason) -> NarError {
        NarError { reason, offset: self.offset - self.buffer.len() as u64 }
    }

    /// Takes the string of `length` bytes in the buffer as what the state waits for.
    fn accept(&mut self, length: usize) -> Result<Option<Found<'static>>, NarError> {
        let string = &self.buffer[LENGTH..LENGTH + length];
        let (state, found) = match (self.state, string) {
            (State::Magic, MAGIC) => (State::Open, None),
            (State::Open, b"(") => (State::TypeTag, None),
            (State::TypeTag, b"type") => (State::Type, None),
            (State::Type, b"regular") => (State::ExecutableOrContents, None),
            (State::Type, b"symlink") => (State::TargetTag, None),
            (State::Type, b"directory") => {
                self.names.push(Vec::new());
                (State::EntryOrClose, Some(Found::Directory))
            }
            (State::ExecutableOrContents, b"executable") => (State::ExecutableValue, None),
            (State::ExecutableOrContents, b"contents") => (State::Size { executable: false }, None),
            (State::ExecutableValue, b"") => (State::ContentsTag, None),
            (State::ContentsTag, b"contents") => (State::Size { executable: true }, None),
            (State::FileClose, b")") => (self.after_node(), Some(Found::FileEnd)),
            (State::TargetTag, b"target") => (State::Target, None),
            (State::Target, target) if !target.is_empty() && !target.contains(&0) => {
                self.target.clear();
                self.target.extend_from_slice(target);
                (State::SymlinkClose, Some(Found::Symlink))
            }
            (State::SymlinkClose, b")") => (self.after_node(), None),
            (State::EntryOrClose, b"entry") => (State::EntryOpen, None),
            (State::EntryOrClose, b")") => {
                self.names.pop();
                (self.after_node(), Some(Found::DirectoryEnd))
            }
            (State::EntryOpen, b"(") => (State::NameTag, None),
            (State::NameTag, b"name") => (State::Name, None),
            (State::Name, name) if is_name(name) && self.name() < name => {
                if let Some(latest) = self.names.last_mut() {
                    latest.clear();
                    latest.extend_from_slice(name);
                }
                (State::NodeTag, None)
            }
            (State::NodeTag, b"node") if self.names.len() < MAX_DEPTH => (State::Open, None),
            (State::EntryClose, b")") => (State::EntryOrClose, None),
            _ => return Err(self.error(refusal(self.state, string))),
        };
        self.state = state;
        Ok(found)
    }

    fn after_node(&self) -> State {
        if self.names.is_empty() { State::End } else { State::EntryClose }
    }
}

fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Why `string` is not accepted in `state`.
fn refusal(state: State, string: &[u8]) -> Reason {
    let found = string.escape_ascii().to_string();
    let expected = match state {
        State::Magic => return Reason::Magic,
        State::Type => return Reason::FileType(found),
        State::ExecutableValue => return Reason::ExecutableValue,
        State::Name if is_name(string) => return Reason::Unsorted(found),
        State::Name => return Reason::Name(found),
        State::Target => return Reason::Target(found),
        State::NodeTag if string == b"node" => return Reason::Depth,
        State::Open | State::EntryOpen => "(",
        State::TypeTag => "type",
        State::ExecutableOrContents => "executable' or 'contents",
        State::ContentsTag | State::Size { .. } => "contents",
        State::TargetTag => "target",
        State::EntryOrClose => "entry' or ')",
        State::NameTag => "name",
        State::NodeTag => "node",
        State::Contents { .. }
        | State::Padding { .. }
        | State::FileClose
        | State::SymlinkClose
        | State::EntryClose
        | State::End => ")",
    };
    Reason::Tag { expected, found }
}
