//! A cache directory: what it says of itself, and its narinfo files.

use crate::files::{self, Draft};
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_proto::nix::cache_info::{CacheInfo, CacheInfoError};
use nipfs_proto::nix::narinfo::{MAX_NARINFO, NarInfo};
use nipfs_proto::nix::store_path::StorePathHash;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// Characters of a store path's hash part.
const HASH_LENGTH: usize = 32;

/// Makes the directory and its `nix-cache-info`, unless it has one: its owner may have changed it.
///
/// # Errors
/// As [`write()`].
pub(crate) fn write_info(directory: &Path) -> Result<(), Failure> {
    let file = directory.join("nix-cache-info");
    if file.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(directory).map_err(|error| unwritable(directory, &error))?;
    write(&file, CacheInfo::OURS.to_text().as_bytes())
}

/// Makes the directory, and its `nix-cache-info` anew: what its owner says there stays, what Nix would not read goes.
///
/// # Errors
/// Class `Usage` when the cache is for another store, and as [`write()`].
pub(crate) fn renew_info(directory: &Path) -> Result<(), Failure> {
    write_info(directory)?;
    let file = directory.join("nix-cache-info");
    let text = std::fs::read(&file).map_err(|error| unreadable(directory, &error))?;
    let info = match CacheInfo::parse(&text) {
        Err(error @ CacheInfoError::OtherStore(_)) => return Err(unreadable(directory, &error)),
        parsed => parsed.unwrap_or(CacheInfo::OURS),
    };
    write(&file, info.to_text().as_bytes())
}

/// Takes back the narinfo of a store path that is no longer published. Where its NAR lies beside it, in a
/// cache that Nix wrote, only our lines go. Nothing is done for what is not a store path.
///
/// # Errors
/// As [`write()`].
pub(crate) fn retract(directory: &Path, target: &str) -> Result<(), Failure> {
    let base_name = target.rsplit('/').next().unwrap_or(target);
    let hash = base_name.get(..HASH_LENGTH).and_then(|hash| hash.parse::<StorePathHash>().ok());
    // The node parsed the target before: only a CID is not led by a hash part.
    let Some(hash) = hash.filter(|_| matches!(base_name.as_bytes().get(HASH_LENGTH), None | Some(b'-'))) else {
        return Ok(());
    };
    let file = directory.join(format!("{hash}.narinfo"));
    if let Ok(narinfo) = read_narinfo(&file)
        && directory.join(narinfo.url()).exists()
    {
        return write(&file, narinfo.plain().text().as_bytes());
    }
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unwritable(&file, &error)),
        _ => Ok(()),
    }
}

/// Removes what killed processes left unfinished.
///
/// # Errors
/// Class `Failed`, naming the directory.
pub(crate) fn sweep(directory: &Path) -> Result<(), Failure> {
    files::sweep(directory).map_err(|error| unwritable(directory, &error))
}

/// Replaces a file, durably.
///
/// # Errors
/// Class `NoSpace` or `Failed`, naming the file.
pub(crate) fn write(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::write(file, bytes).map_err(|error| unwritable(file, &error))
}

/// A file that will be replaced, unless it says the same already.
///
/// # Errors
/// As [`write()`].
pub(crate) fn draft(file: &Path, bytes: &[u8]) -> Result<Option<Draft>, Failure> {
    files::draft(file, bytes).map_err(|error| unwritable(file, &error))
}

/// Class `NoSpace` or `Failed`, naming the file.
pub(crate) fn unwritable(path: &Path, error: &io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let class = if full { Class::NoSpace } else { Class::Failed };
    Failure::new(class, format!("cannot write: {}", path.display())).because(error)
}

/// The narinfo files in `directory`, by name.
///
/// # Errors
/// Class `Usage` when it cannot be read.
pub(crate) fn narinfos(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let paths = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>());
    let mut paths = paths.map_err(|error| unreadable(directory, &error))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "narinfo"));
    paths.sort_unstable();
    Ok(paths)
}

fn unreadable(directory: &Path, error: &(dyn Error + 'static)) -> Failure {
    Failure::new(Class::Usage, format!("cannot read the cache directory: {}", directory.display())).because(error)
}

/// Reads `HASH.narinfo`, which must be about the path of that hash.
///
/// # Errors
/// Class `Failed`, naming the file, and the line and field at fault.
pub(crate) fn read_narinfo(file: &Path) -> Result<NarInfo, Failure> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use nipfs_proto::block::parse_cid;
    use nipfs_proto::nix::NarHash;
    use nipfs_proto::nix::narinfo::{PathInfo, Root};
    use nipfs_proto::nix::store_path::StorePath;

    fn narinfo() -> NarInfo {
        let path = StorePath::from_base_name(&format!("{}-hello", "0".repeat(32))).unwrap();
        let (references, signatures) = (Vec::new(), Vec::new());
        let nar_hash = NarHash::of(b"x");
        let info = PathInfo { path, nar_hash, nar_size: 1, references, deriver: None, signatures, ca: None };
        let root = parse_cid("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn").unwrap();
        NarInfo::new(&info).unwrap().with_ipfs(Root::new(root, None).unwrap())
    }

    #[test]
    fn a_narinfo_goes_with_its_path_unless_its_nar_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (narinfo, path) = (narinfo(), narinfo().store_path().to_absolute_path());
        let file = directory.path().join(format!("{}.narinfo", narinfo.store_path().hash_part()));
        write(&file, narinfo.text().as_bytes()).unwrap();
        retract(directory.path(), "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn").unwrap();
        assert_eq!(read_narinfo(&file).unwrap(), narinfo);

        std::fs::create_dir(directory.path().join("nar")).unwrap();
        std::fs::write(directory.path().join(narinfo.url()), "x").unwrap();
        retract(directory.path(), &path).unwrap();
        assert_eq!(read_narinfo(&file).unwrap(), narinfo.plain());

        std::fs::remove_file(directory.path().join(narinfo.url())).unwrap();
        retract(directory.path(), &path).unwrap();
        assert!(!file.exists());
        retract(directory.path(), &path).unwrap();
    }

    #[test]
    fn the_owner_of_a_cache_may_change_what_it_says() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("a/cache");
        write_info(&cache).unwrap();
        let file = cache.join("nix-cache-info");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), CacheInfo::OURS.to_text());
        std::fs::write(&file, "StoreDir: /nix/store\nPriority: 50\n").unwrap();
        write_info(&cache).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("50"));
    }

    #[test]
    fn what_nix_would_not_read_is_written_anew_and_what_the_owner_chose_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nix-cache-info");
        let ours = CacheInfo::OURS.to_text();
        renew_info(directory.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), ours);
        for (before, after) in [
            ("Priority:50\nStoreDir: /nix/store", "StoreDir: /nix/store\nPriority: 50\n"),
            ("StoreDir: /nix/store\nWantMassQuery: 1\n", "StoreDir: /nix/store\nWantMassQuery: 1\n"),
            ("StoreDir: /nix/store\nPriority: high\n", &ours),
            ("half a li", &ours),
        ] {
            std::fs::write(&file, before).unwrap();
            renew_info(directory.path()).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), after);
        }
        std::fs::write(&file, "StoreDir: /gnu/store\n").unwrap();
        let failure = renew_info(directory.path()).unwrap_err();
        assert!(failure.to_string().contains("/gnu/store"), "{failure}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "StoreDir: /gnu/store\n");
    }
}
