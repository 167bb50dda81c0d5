//! What the machine's Nix store holds: paths with their metadata, closures in the order of their dependencies.

use super::database::Database;
use super::path_info;
use nipfs_proto::nix::narinfo::PathInfo;
use nipfs_proto::nix::store_path::StorePath;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A path that the local Nix has registered as valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidPath {
    /// Its metadata, references sorted.
    pub info: PathInfo,
    /// Whether it was built on this machine, and not fetched.
    pub ultimate: bool,
}

/// Why the local Nix store cannot be asked, or has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The path is not in the store.
    #[error("{0} is not valid in the local Nix store")]
    NotValid(StorePath),
    /// The file that says which schema the database has cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A database of a Nix that is newer or much older than those known.
    #[error("Nix database has schema '{found}', not {}: {}", super::database::SCHEMA, path.display())]
    Schema {
        /// The file that says so.
        path: PathBuf,
        /// Its content.
        found: String,
    },
    /// SQLite fails.
    #[error("cannot query Nix database {}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A path is registered with something that Nix does not write.
    #[error("{path} is registered with a bad {field}: '{value}'")]
    Malformed {
        /// The path.
        path: String,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// `nix` cannot be run.
    #[error("cannot run `nix path-info`")]
    Run(#[source] io::Error),
    /// `nix` failed.
    #[error("`nix path-info` failed: {0}")]
    Failed(String),
    /// `nix` did not end in time.
    #[error("`nix path-info` did not end within {} s", .0.as_secs())]
    Timeout(Duration),
    /// `nix` printed something that is not one of the known forms.
    #[error("`nix path-info --json` printed what is not understood")]
    Output(#[source] serde_json::Error),
}

/// The closure of `roots`: every path once, and no path before its references (but itself).
///
/// It is read from the database below `state_dir` (`/nix/var/nix`), or where that cannot be read, asked of `nix`.
///
/// # Errors
/// [`QueryError`]; [`QueryError::NotValid`] names the first path that is not in the store.
pub async fn closure(state_dir: &Path, roots: Vec<StorePath>) -> Result<Vec<ValidPath>, QueryError> {
    let directory = state_dir.to_owned();
    let asked = roots.clone();
    let read = move || Database::open(&directory).map(|database| database.closure(&asked));
    let unreadable = match tokio::task::spawn_blocking(read).await {
        Ok(Ok(closure)) => return closure,
        Ok(Err(error)) => error,
        Err(panic) => QueryError::Read { path: state_dir.to_owned(), source: panic.into() },
    };
    tracing::info!("{unreadable}; asking `nix path-info`");
    path_info::closure(&roots).await
}

/// Walks from `roots` along the references and gives every path once, after its references.
pub(super) fn in_order<E>(
    roots: &[StorePath],
    mut look_up: impl FnMut(&StorePath) -> Result<ValidPath, E>,
) -> Result<Vec<ValidPath>, E> {
    enum Step {
        Visit(StorePath),
        Leave(ValidPath),
    }
    let mut steps: Vec<Step> = roots.iter().rev().cloned().map(Step::Visit).collect();
    let mut visited = HashSet::new();
    let mut ordered = Vec::new();
    while let Some(step) = steps.pop() {
        match step {
            Step::Visit(path) => {
                if visited.insert(path.clone()) {
                    let valid = look_up(&path)?;
                    let references = valid.info.references.clone();
                    steps.push(Step::Leave(valid));
                    steps.extend(references.into_iter().filter(|path| !visited.contains(path)).map(Step::Visit));
                }
            }
            Step::Leave(valid) => ordered.push(valid),
        }
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nipfs_proto::nix::NarHash;
    use std::collections::HashMap;

    fn path(name: &str) -> StorePath {
        StorePath::from_base_name(&format!("{}-{name}", "0".repeat(32))).unwrap()
    }

    /// The order in which the paths of `graph` come, by name.
    fn order(graph: &[(&str, &[&str])], roots: &[&str]) -> Result<Vec<String>, StorePath> {
        let valid = |&(name, references): &(&str, &[&str])| {
            let info = PathInfo {
                path: path(name),
                nar_hash: NarHash([0; 32]),
                nar_size: 1,
                references: references.iter().map(|name| path(name)).collect(),
                deriver: None,
                signatures: Vec::new(),
                ca: None,
            };
            (path(name), ValidPath { info, ultimate: false })
        };
        let store: HashMap<_, _> = graph.iter().map(valid).collect();
        let roots: Vec<_> = roots.iter().map(|name| path(name)).collect();
        let ordered = in_order(&roots, |path| store.get(path).cloned().ok_or_else(|| path.clone()))?;
        Ok(ordered.into_iter().map(|valid| valid.info.path.name().to_owned()).collect())
    }

    #[test]
    fn references_come_first_and_once() {
        let graph: &[(&str, &[&str])] = &[
            ("top", &["left", "right", "top"]),
            ("left", &["base"]),
            ("right", &["base", "left"]),
            ("base", &["base"]),
            ("other", &[]),
        ];
        assert_eq!(order(graph, &["top"]).unwrap(), ["base", "left", "right", "top"]);
        assert_eq!(order(graph, &["other", "left", "other"]).unwrap(), ["other", "base", "left"]);
        assert_eq!(order(graph, &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn damaged_graphs_end() {
        assert_eq!(order(&[("a", &["b"]), ("b", &["a"])], &["a"]).unwrap(), ["b", "a"]);
        assert_eq!(order(&[("a", &["gone"])], &["a"]), Err(path("gone")));
    }

    #[test]
    fn long_chains_do_not_recurse() {
        let names: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
        let next: Vec<Vec<&str>> = (1..20_000).map(|n| vec![names[n].as_str()]).chain([vec![]]).collect();
        let graph: Vec<(&str, &[&str])> =
            names.iter().map(String::as_str).zip(next.iter().map(Vec::as_slice)).collect();
        assert_eq!(order(&graph, &["0"]).unwrap().last().unwrap(), "0");
    }
}
