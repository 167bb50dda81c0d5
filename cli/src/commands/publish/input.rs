//! What an argument of `publish` is.

use nipfs_node::control::protocol::{Class, Failure};
use nipfs_proto::nix::store_path::{STORE_DIR, StorePath};
use std::path::{Path, PathBuf};

/// Symlinks that are followed from an argument to the store; as many as the kernel would.
const MAX_LINKS: usize = 40;

/// Something to publish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A path in the Nix store, or something that leads to one (`./result`).
    StorePath(StorePath),
    /// A binary cache that Nix wrote: it has a `nix-cache-info` and narinfos.
    CacheDirectory(PathBuf),
    /// Any other file, directory or symlink; the path is absolute and ends in its name.
    Tree(PathBuf),
}

impl Input {
    /// Looks at what is there.
    ///
    /// # Errors
    /// Class `Usage` when nothing is.
    pub(crate) fn of(argument: &Path) -> Result<Self, Failure> {
        let missing = |error: &std::io::Error| {
            Failure::new(Class::Usage, format!("cannot publish: {}", argument.display())).because(error)
        };
        let mut path = resolve(argument).map_err(|error| missing(&error))?;
        let tree = path.clone();
        for _ in 0..MAX_LINKS {
            if let Some(store_path) = in_store(&path) {
                return Ok(Self::StorePath(store_path));
            }
            let Ok(target) = std::fs::read_link(&path) else { break };
            let parent = path.parent().unwrap_or_else(|| Path::new("/"));
            match resolve(&parent.join(target)) {
                Ok(next) => path = next,
                Err(_) => break,
            }
        }
        std::fs::symlink_metadata(&tree).map_err(|error| missing(&error))?;
        if tree.join("nix-cache-info").is_file() {
            return Ok(Self::CacheDirectory(tree));
        }
        Ok(Self::Tree(tree))
    }
}

/// The absolute path with every symlink resolved but the last: a store path may be a symlink itself.
fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if !path.ends_with(".") => Ok(parent.canonicalize()?.join(name)),
        _ => absolute.canonicalize(),
    }
}

/// The store path that `path` is or lies in.
fn in_store(path: &Path) -> Option<StorePath> {
    let below = path.strip_prefix(STORE_DIR).ok()?;
    let name = below.components().next()?.as_os_str().to_str()?;
    StorePath::from_base_name(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const BASE: &str = "7qjiq2rnyqs4zsiyzasch7pvsvf8pplz-hello-2.10";

    fn hello() -> Input {
        Input::StorePath(StorePath::from_base_name(BASE).unwrap())
    }

    #[test]
    fn store_paths_need_not_be_there_to_be_recognised() {
        let store = Path::new(STORE_DIR);
        if store.exists() {
            assert_eq!(Input::of(&store.join(BASE)).unwrap(), hello());
        }
        assert_eq!(in_store(&store.join(BASE).join("bin/hello")).map(Input::StorePath), Some(hello()));
        assert_eq!(in_store(&store.join(".links")), None);
        assert_eq!(in_store(store), None);
    }

    #[test]
    fn symlinks_are_followed_to_the_store_and_no_further() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        if Path::new(STORE_DIR).exists() {
            symlink(Path::new(STORE_DIR).join(BASE), root.join("one")).unwrap();
            symlink("one", root.join("result")).unwrap();
            assert_eq!(Input::of(&root.join("result")).unwrap(), hello());
        }
        std::fs::write(root.join("file"), "x").unwrap();
        symlink("file", root.join("link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for name in ["file", "link", "loop"] {
            assert_eq!(Input::of(&root.join(name)).unwrap(), Input::Tree(root.join(name)), "{name}");
        }
        assert_eq!(Input::of(&root.join(".")).unwrap(), Input::Tree(root.clone()));
        assert_eq!(Input::of(&root.join("missing")).unwrap_err().class, Class::Usage);
    }

    #[test]
    fn a_binary_cache_is_recognised_by_its_info() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        assert_eq!(Input::of(&root).unwrap(), Input::Tree(root.clone()));
        std::fs::write(root.join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
        assert_eq!(Input::of(&root).unwrap(), Input::CacheDirectory(root));
    }
}
