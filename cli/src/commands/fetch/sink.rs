//! Where fetched NARs go.

use super::nix::Import;
use crate::args;
use crate::files::{self, Draft};
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_node::nix::unpack::{Unpack, UnpackError, clean_leftovers};
use nipfs_proto::nix::narinfo::PathInfo;
use nipfs_proto::nix::store_path::StorePath;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where fetched NARs go.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Unpacked, side by side in this directory.
    Directory(PathBuf, Option<(PathBuf, Box<Unpack>)>),
    /// The one NAR, as it is.
    File(PathBuf, Option<Draft>),
    /// A Nix store, when all is fetched.
    Nix(Import),
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
                let target = directory.join(path.base_name());
                let unpack = Unpack::new(&target).map_err(|error| unpacking(&error))?;
                *current = Some((target, Box::new(unpack)));
            }
            Self::File(file, draft) => {
                refuse_existing(file)?;
                *draft = Some(Draft::new(file).map_err(|error| writing(file, &error))?);
            }
            Self::Nix(import) => import.add(path, narinfo)?,
        }
        Ok(())
    }

    /// Bytes of the path that began last.
    ///
    /// # Errors
    /// When they cannot be written, or are not those of a NAR.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Directory(_, Some((_, unpack))) => unpack.write(bytes).map_err(|error| unpacking(&error)),
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
            Self::Directory(_, Some((target, unpack))) => {
                **unpack = Unpack::new(target).map_err(|error| unpacking(&error))?;
            }
            Self::File(file, draft) => {
                // The old draft has the name that the new one takes.
                *draft = None;
                *draft = Some(Draft::new(file).map_err(|error| writing(file, &error))?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The path that began last is complete and verified: it takes its place. Returns that place.
    ///
    /// # Errors
    /// When it cannot be made durable, or something has appeared in its place.
    pub(crate) fn finish(&mut self, path: &StorePath) -> Result<PathBuf, Failure> {
        match self {
            Self::Directory(_, current) => {
                let (target, unpack) = current.take().ok_or_else(nothing)?;
                unpack.finish().map_err(|error| unpacking(&error))?;
                Ok(target)
            }
            Self::File(file, draft) => {
                let draft = draft.take().ok_or_else(nothing)?;
                draft.create().map_err(|error| writing(file, &error))?;
                Ok(file.clone())
            }
            Self::Nix(_) => Ok(self.place(path)),
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

fn unpacking(error: &UnpackError) -> Failure {
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
