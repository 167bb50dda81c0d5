//! GC roots: what keeps Nix from deleting store paths while we need them.
//!
//! A root is a symlink to the store path in a directory of ours, of which Nix is told (an indirect root). Removing the
//! symlink is all that it takes to end it: Nix forgets roots whose symlinks are gone.

use nipfs_proto::nix::store_path::StorePath;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::fs::File;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

/// How long Nix may take to register a root: it waits while it collects garbage.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why a root was not made or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GcRootError {
    /// The directory or a symlink in it cannot be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// The directory or the symlink.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `nix-store` cannot be run.
    #[error("cannot run `nix-store --add-root`")]
    Run(#[source] io::Error),
    /// `nix-store` failed.
    #[error("`nix-store --add-root` ended with {status}: {says}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        says: String,
    },
    /// `nix-store` did not end in time.
    #[error("`nix-store --add-root` did not end within {} s", .0.as_secs())]
    Timeout(Duration),
    /// A `.drv`.
    #[error("{0} is a derivation, and Nix would build it instead of keeping it")]
    Derivation(StorePath),
    /// `nix-store` said that all was well.
    #[error("`nix-store --add-root` made no root at {}", .0.display())]
    NotMade(PathBuf),
}

/// The roots in one directory, each named as the store path that it keeps.
#[derive(Debug)]
pub struct GcRoots {
    dir: PathBuf,
    /// Where Nix keeps its own links to indirect roots.
    auto: PathBuf,
    line: Mutex<()>,
}

impl GcRoots {
    /// The roots in `dir`, an absolute path, of the Nix whose state is in `nix_state`. The directory is made with the
    /// first root.
    #[must_use]
    pub fn new(dir: PathBuf, nix_state: &Path) -> Self {
        Self { dir, auto: nix_state.join("gcroots/auto"), line: Mutex::new(()) }
    }

    /// Waits until nobody else brings roots into line with what needs them; nobody does while the guard lives.
    pub async fn lock(&self) -> MutexGuard<'_, ()> {
        self.line.lock().await
    }

    /// Makes a root of a valid store path. When this returns, Nix does not delete the path any more, nor what it
    /// refers to, not even after a power cut; one that was deleted just before is an error, and so is a derivation.
    ///
    /// # Errors
    /// [`GcRootError`].
    pub async fn add(&self, path: &StorePath) -> Result<(), GcRootError> {
        self.add_with(Path::new("nix-store"), path).await
    }

    async fn add_with(&self, nix_store: &Path, path: &StorePath) -> Result<(), GcRootError> {
        // To realise one is to build it, and the root would be one of what comes out.
        if path.name().ends_with(".drv") {
            return Err(GcRootError::Derivation(path.clone()));
        }
        fs::create_dir_all(&self.dir).map_err(|source| GcRootError::Io { path: self.dir.clone(), source })?;
        let mut command = Command::new(nix_store);
        command.arg("--add-root").arg(self.link(path)).arg("--indirect");
        // A path that is gone shall not be fetched: it would be another tree than the one that is asked about.
        command.args(["--option", "substitute", "false", "--realise", &path.to_absolute_path()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(GcRootError::Run)?;
        let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let output = ended.map_err(|_| GcRootError::Timeout(PATIENCE))?.map_err(GcRootError::Run)?;
        if !output.status.success() {
            let says = String::from_utf8_lossy(&output.stderr);
            let says = says.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
            return Err(GcRootError::Failed { status: output.status, says });
        }
        if !self.contains(path) {
            return Err(GcRootError::NotMade(self.link(path)));
        }
        self.sync().await
    }

    /// Returns when all roots are on the disk: what is recorded next relies on them.
    async fn sync(&self) -> Result<(), GcRootError> {
        for dir in [Some(self.dir.as_path()), self.dir.parent()].into_iter().flatten() {
            let synced = async { File::open(dir).await?.sync_all().await };
            synced.await.map_err(|source| GcRootError::Io { path: dir.to_owned(), source })?;
        }
        // Not ours: Nix may keep them elsewhere, or to itself.
        let Ok(auto) = File::open(&self.auto).await else { return Ok(()) };
        auto.sync_all().await.map_err(|source| GcRootError::Io { path: self.auto.clone(), source })
    }

    /// Whether the symlink of a path's root is there.
    #[must_use]
    pub fn contains(&self, path: &StorePath) -> bool {
        fs::read_link(self.link(path)).is_ok_and(|target| target == Path::new(&path.to_absolute_path()))
    }

    /// All paths that have a root here.
    ///
    /// # Errors
    /// When the directory cannot be read; a missing one holds none.
    pub fn list(&self) -> Result<Vec<StorePath>, GcRootError> {
        let failed = |source| GcRootError::Io { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            paths.extend(name.to_str().and_then(|name| StorePath::from_base_name(name).ok()));
        }
        Ok(paths)
    }

    /// Ends a root. One that is not there is no error.
    ///
    /// # Errors
    /// [`GcRootError::Io`].
    pub fn remove(&self, path: &StorePath) -> Result<(), GcRootError> {
        match fs::remove_file(self.link(path)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(GcRootError::Io { path: self.link(path), source })
            }
            _ => Ok(()),
        }
    }

    fn link(&self, path: &StorePath) -> PathBuf {
        self.dir.join(path.base_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::path_info::tests::script;

    fn path(name: &str) -> StorePath {
        StorePath::from_base_name(&format!("{}-{name}", "0".repeat(32))).unwrap()
    }

    #[tokio::test]
    async fn a_root_is_what_nix_store_makes_of_it_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let nix_store =
            script(&directory, r#"[ "$1 $3 $7" = "--add-root --indirect --realise" ] && ln -sfn "$8" "$2""#);
        let roots = GcRoots::new(directory.path().join("gcroots"), directory.path());
        assert_eq!(roots.list().unwrap(), []);
        roots.add_with(&nix_store, &path("a")).await.unwrap();
        assert!(roots.contains(&path("a")) && !roots.contains(&path("b")));
        assert_eq!(roots.list().unwrap(), [path("a")]);
        roots.remove(&path("a")).unwrap();
        roots.remove(&path("a")).unwrap();
        assert_eq!(roots.list().unwrap(), []);
    }

    #[tokio::test]
    async fn what_nix_says_against_a_root_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let nix_store = script(&directory, "echo 'these paths:' >&2; echo 'error: no such path' >&2; exit 1");
        let roots = GcRoots::new(directory.path().join("gcroots"), directory.path());
        let error = roots.add_with(&nix_store, &path("a")).await.unwrap_err().to_string();
        assert_eq!(error, "`nix-store --add-root` ended with exit status: 1: error: no such path");
        let error = roots.add_with(Path::new("/nonexistent/nix-store"), &path("a")).await.unwrap_err();
        assert!(matches!(error, GcRootError::Run(_)));
    }

    #[tokio::test]
    async fn a_derivation_is_refused_and_not_built() {
        let directory = tempfile::tempdir().unwrap();
        let nix_store = script(&directory, r#"echo built > "$0.built"; ln -sfn /nix/store/its-output "$2""#);
        let roots = GcRoots::new(directory.path().join("gcroots"), directory.path());
        let error = roots.add_with(&nix_store, &path("a.drv")).await.unwrap_err();
        assert!(matches!(error, GcRootError::Derivation(_)), "{error}");
        assert!(!nix_store.with_extension("built").exists() && roots.list().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_root_that_is_not_there_afterwards_is_not_taken_for_one() {
        let directory = tempfile::tempdir().unwrap();
        let roots = GcRoots::new(directory.path().join("gcroots"), directory.path());
        for does in ["true", r#"ln -sfn /nix/store/another "$2""#] {
            let error = roots.add_with(&script(&directory, does), &path("a")).await.unwrap_err();
            assert!(matches!(error, GcRootError::NotMade(_)), "{does}: {error}");
        }
    }
}
