//! Where fetched NARs go.

use super::nix::Import;
use crate::args;
use crate::files::{self, Draft};
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_node::nix::unpack::{Complete, Unpack, UnpackError, clean_leftovers};
use nipfs_proto::nix::narinfo::PathInfo;
use nipfs_proto::nix::store_path::StorePath;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where fetched NARs go.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Unpacked, side by side in this directory.
    Directory(PathBuf, Option<Unpacking>),
    /// The one NAR, as it is.
    File(PathBuf, Option<Draft>),
    /// A Nix store, when all is fetched.
    Nix(Import),
}

/// A path that grows in a directory.
#[derive(Debug)]
pub(crate) struct Unpacking {
    target: PathBuf,
    /// Or why the bytes are no NAR. That is known here first, and the node's to judge: it may take them back.
    tree: Result<Box<Unpack>, Failure>,
}

impl Unpacking {
    fn new(target: PathBuf) -> Result<Self, Failure> {
        let unpack = Unpack::new(&target).map_err(|error| unpacking(&error))?;
        Ok(Self { target, tree: Ok(Box::new(unpack)) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Ok(unpack) = &mut self.tree else { return Ok(()) };
        match unpack.write(bytes) {
            Err(error @ UnpackError::Nar(_)) => self.tree = Err(unpacking(&error)),
            written => written.map_err(|error| unpacking(&error))?,
        }
        Ok(())
    }

    fn finish(self) -> Result<Complete, Failure> {
        self.tree?.finish().map_err(|error| unpacking(&error))
    }
}

/// A sink, and what is there already.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The sink.
    pub(crate) sink: Sink,
    /// Hash parts of all that need not be fetched.
    pub(crate) skip: Vec<String>,
    /// Wanted paths that a Nix store has.
    pub(crate) valid: Vec<PathInfo>,
}

impl Sink {
    /// Checks that there is room for `wanted`, before anything is fetched.
    ///
    /// # Errors
    /// Class `Usage` when something is in the way.
    pub(crate) fn prepare(args: args::Sink, wanted: &[StorePath]) -> Result<Prepared, Failure> {
        if let Some(directory) = args.out {
            let skip = prepare_directory(&directory, wanted)?;
            return Ok(Prepared { sink: Self::Directory(directory, None), skip, valid: Vec::new() });
        }
        if let Some(file) = args.nar {
            if wanted.len() > 1 {
                let text = format!("one NAR file cannot take {} paths: {}", wanted.len(), file.display());
                return Err(Failure::new(Class::Usage, text).hint("use --out DIR"));
            }
            refuse_existing(&file)?;
            let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            files::sweep(directory.unwrap_or_else(|| Path::new("."))).map_err(|error| writing(&file, &error))?;
            return Ok(Prepared { sink: Self::File(file, None), skip: Vec::new(), valid: Vec::new() });
        }
        let import = Import::new(args.store);
        let (skip, valid) = import.valid(wanted);
        Ok(Prepared { sink: Self::Nix(import), skip, valid })
    }

    /// Whether there is room for more than what was asked for.
    pub(crate) fn takes_closures(&self) -> bool {
        !matches!(self, Self::File(..))
    }

    /// A path begins.
    ///
    /// # Errors
    /// When something has appeared in its place.
    pub(crate) fn start(&mut self, path: &StorePath, narinfo: &str) -> Result<(), Failure> {
        match self {
            Self::Directory(directory, current) => {
                *current = Some(Unpacking::new(directory.join(path.base_name()))?);
            }
            Self::File(file, draft) => {
                refuse_existing(file)?;
                *draft = Some(Draft::new(file).map_err(|error| writing(file, &error))?);
            }
            Self::Nix(import) => import.add(path, narinfo)?,
        }
        Ok(())
    }

    /// Bytes of the path that began last. When they are not those of a NAR, [`Sink::finish`] says so.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Directory(_, Some(current)) => current.write(bytes),
            Self::File(file, Some(draft)) => draft.write_all(bytes).map_err(|error| writing(file, &error)),
            _ => Err(Failure::new(Class::Failed, "the node sent bytes of no path")),
        }
    }

    /// The bytes so far were wrong; they come again from the first.
    ///
    /// # Errors
    /// As [`Sink::start`].
    pub(crate) fn restart(&mut self) -> Result<(), Failure> {
        match self {
            Self::Directory(_, Some(current)) => *current = Unpacking::new(current.target.clone())?,
            Self::File(file, draft) => {
                // The old draft has the name that the new one takes.
                *draft = None;
                *draft = Some(Draft::new(file).map_err(|error| writing(file, &error))?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The path that began last is complete and verified. A file takes its place; a tree is returned, and has yet to.
    ///
    /// # Errors
    /// When it is no NAR, cannot be made durable, or something has appeared in its place.
    pub(crate) fn finish(&mut self) -> Result<Option<Complete>, Failure> {
        match self {
            Self::Directory(_, current) => current.take().ok_or_else(nothing)?.finish().map(Some),
            Self::File(file, draft) => {
                let draft = draft.take().ok_or_else(nothing)?;
                draft.create().map_err(|error| writing(file, &error))?;
                Ok(None)
            }
            Self::Nix(_) => Ok(None),
        }
    }

    /// Where a path is when it is complete.
    pub(crate) fn place(&self, path: &StorePath) -> PathBuf {
        match self {
            Self::Directory(directory, _) => directory.join(path.base_name()),
            Self::File(file, _) => file.clone(),
            Self::Nix(import) => import.place(path),
        }
    }

    /// The path that began last failed: nothing of it stays.
    pub(crate) fn abandon(&mut self) {
        match self {
            Self::Directory(_, current) => *current = None,
            Self::File(_, draft) => *draft = None,
            Self::Nix(import) => import.forget_last(),
        }
    }
}

fn prepare_directory(directory: &Path, wanted: &[StorePath]) -> Result<Vec<String>, Failure> {
    for path in wanted {
        refuse_existing(&directory.join(path.base_name()))?;
    }
    std::fs::create_dir_all(directory).map_err(|error| writing(directory, &error))?;
    clean_leftovers(directory).map_err(|error| unpacking(&error))?;
    let entries = std::fs::read_dir(directory).map_err(|error| writing(directory, &error))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| Some(StorePath::from_base_name(&name).ok()?.hash_part().to_string())).collect())
}

fn refuse_existing(target: &Path) -> Result<(), Failure> {
    match target.symlink_metadata() {
        Ok(_) => Err(Failure::new(Class::Usage, format!("already exists: {}", target.display()))),
        Err(_) => Ok(()),
    }
}

fn nothing() -> Failure {
    Failure::new(Class::Failed, "the node finished a path that it did not begin")
}

pub(super) fn unpacking(error: &UnpackError) -> Failure {
    let class = match error {
        UnpackError::Exists(_) => Class::Usage,
        UnpackError::Nar(_) => Class::Refused,
        UnpackError::Io { source, .. } => class_of(source),
        _ => Class::Failed,
    };
    Failure::from_error(class, error)
}

fn writing(path: &Path, error: &io::Error) -> Failure {
    Failure::new(class_of(error), format!("cannot write: {}", path.display())).because(error)
}

fn class_of(error: &io::Error) -> Class {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Class::Usage,
        _ => Class::Failed,
    }
}

#[cfg(test)]
mod tests;
