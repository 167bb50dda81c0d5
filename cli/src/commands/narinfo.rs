//! Narinfo files of a cache directory.

use nipfs_node::control::protocol::{Class, Failure};
use nipfs_proto::nix::narinfo::{MAX_NARINFO, NarInfo};
use nipfs_proto::nix::store_path::StorePathHash;
use std::error::Error;
use std::path::{Path, PathBuf};

/// The narinfo files in `directory`, by name.
///
/// # Errors
/// Class `Usage` when it cannot be read.
pub(crate) fn files(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let paths = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>());
    let mut paths = paths.map_err(|error| {
        Failure::new(Class::Usage, format!("cannot read the cache directory: {}", directory.display())).because(&error)
    })?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "narinfo"));
    paths.sort_unstable();
    Ok(paths)
}

/// Reads `HASH.narinfo`, which must be about the path of that hash.
///
/// # Errors
/// Class `Failed`, naming the file, and the line and field at fault.
pub(crate) fn read(file: &Path) -> Result<NarInfo, Failure> {
    let failed = |error: &(dyn Error + 'static)| {
        Failure::new(Class::Failed, format!("cannot read narinfo: {}", file.display())).because(error)
    };
    let size = std::fs::metadata(file).map_err(|error| failed(&error))?.len();
    if size > MAX_NARINFO as u64 {
        return Err(Failure::new(Class::Failed, format!("narinfo of {size} bytes: {}", file.display())));
    }
    let text = std::fs::read(file).map_err(|error| failed(&error))?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let asked: StorePathHash = stem.parse().map_err(|error| failed(&error))?;
    NarInfo::parse(&asked, &text).map_err(|error| failed(&error))
}
