//! Nix's own database, read and never written.
//!
//! Its schema has been number 10 from Nix 2.8 to 2.36; another number is refused rather than guessed at. A closure is
//! read in one transaction, so that it belongs together even while Nix collects garbage.

#[cfg(test)]
mod tests;

use super::closure::{QueryError, ValidPath, in_order};
use nipfs_proto::nix::narinfo::PathInfo;
use nipfs_proto::nix::store_path::StorePath;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The schema that is understood.
pub const SCHEMA: &str = "10";

/// How long a query waits for a writer.
const BUSY: Duration = Duration::from_secs(5);

/// A connection to the database of a local Nix store.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens `db/db.sqlite` below `state_dir` (`/nix/var/nix`).
    ///
    /// # Errors
    /// [`QueryError::Schema`], [`QueryError::Read`], or [`QueryError::Sqlite`] when it cannot be opened, such as when it
    /// has an unfinished write-ahead log that this user may not read.
    pub fn open(state_dir: &Path) -> Result<Self, QueryError> {
        let schema = state_dir.join("db/schema");
        let found = match fs::read_to_string(&schema) {
            Ok(found) => found.trim().to_owned(),
            Err(source) => return Err(QueryError::Read { path: schema, source }),
        };
        if found != SCHEMA {
            return Err(QueryError::Schema { path: schema, found });
        }
        let path = state_dir.join("db/db.sqlite");
        match connect(&path) {
            Ok(connection) => Ok(Self { connection, path }),
            Err(source) => Err(QueryError::Sqlite { path, source }),
        }
    }

    /// What is registered about `path`.
    ///
    /// # Errors
    /// [`QueryError::NotValid`] when it is not in the store, or that the query failed or a row is damaged.
    pub fn path_info(&self, path: &StorePath) -> Result<ValidPath, QueryError> {
        let registered = self.registered(path).map_err(|error| self.failed(error))?;
        let (row, references) = registered.ok_or_else(|| QueryError::NotValid(path.clone()))?;
        row.into_valid_path(path, &references)
    }

    /// The closure of `roots`: every path once, and no path before its references (but itself).
    ///
    /// # Errors
    /// As [`Database::path_info`].
    pub fn closure(&self, roots: &[StorePath]) -> Result<Vec<ValidPath>, QueryError> {
        let transaction = self.connection.unchecked_transaction().map_err(|error| self.failed(error))?;
        let closure = in_order(roots, |path| self.path_info(path));
        transaction.finish().map_err(|error| self.failed(error))?;
        closure
    }

    /// Paths that are in the store, at most `limit` of them, in no order.
    ///
    /// # Errors
    /// That the query failed.
    pub fn valid_paths(&self, limit: usize) -> Result<Vec<StorePath>, QueryError> {
        let query = || {
            let mut rows = self.connection.prepare("SELECT path FROM ValidPaths LIMIT ?")?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            rows.query_map([limit], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
        };
        let paths = query().map_err(|error| self.failed(error))?;
        Ok(paths.iter().filter_map(|path| StorePath::parse(path).ok()).collect())
    }

    /// The row of `path`, and the paths that it refers to.
    fn registered(&self, path: &StorePath) -> rusqlite::Result<Option<(Registered, Vec<String>)>> {
        let mut row = self
            .connection
            .prepare_cached("SELECT id, hash, narSize, deriver, ultimate, sigs, ca FROM ValidPaths WHERE path = ?")?;
        let row = row.query_row([path.to_absolute_path()], |row| Ok((row.get(0)?, Registered::read(row)?)));
        let Some((id, registered)) = row.optional()? else {
            return Ok(None);
        };
        let id: i64 = id;
        let mut references = self
            .connection
            .prepare_cached("SELECT path FROM Refs JOIN ValidPaths ON reference = id WHERE referrer = ?")?;
        let references = references.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(Some((registered, references)))
    }

    fn failed(&self, source: rusqlite::Error) -> QueryError {
        QueryError::Sqlite { path: self.path.clone(), source }
    }
}

/// The columns of `ValidPaths` as they are stored.
struct Registered {
    hash: String,
    nar_size: Option<i64>,
    deriver: Option<String>,
    ultimate: Option<bool>,
    signatures: Option<String>,
    ca: Option<String>,
}

impl Registered {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            hash: row.get(1)?,
            nar_size: row.get(2)?,
            deriver: row.get(3)?,
            ultimate: row.get(4)?,
            signatures: row.get(5)?,
            ca: row.get(6)?,
        })
    }

    fn into_valid_path(self, path: &StorePath, references: &[String]) -> Result<ValidPath, QueryError> {
        let malformed = |field, value: &str| QueryError::Malformed {
            path: path.to_absolute_path(),
            field,
            value: value.to_owned(),
        };
        let nar_hash = self.hash.parse().map_err(|_| malformed("hash", &self.hash))?;
        let nar_size = self.nar_size.and_then(|size| u64::try_from(size).ok()).filter(|&size| size > 0);
        let nar_size = nar_size.ok_or_else(|| malformed("narSize", &format!("{:?}", self.nar_size)))?;
        let read = |reference: &String| StorePath::parse(reference).map_err(|_| malformed("reference", reference));
        let mut references = references.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        references.sort_unstable();
        // Imports by old versions left `unknown-deriver` and signatures without a name: neither is worth a failure.
        let deriver = self.deriver.and_then(|deriver| StorePath::parse(&deriver).ok());
        let signatures = self.signatures.iter().flat_map(|all| all.split(' ')).filter_map(|one| one.parse().ok());
        let info = PathInfo {
            path: path.clone(),
            nar_hash,
            nar_size,
            references,
            deriver,
            signatures: signatures.collect(),
            ca: self.ca.filter(|ca| !ca.is_empty()),
        };
        Ok(ValidPath { info, ultimate: self.ultimate.unwrap_or(false) })
    }
}

/// Opens the database for reading. A write-ahead log takes shared memory beside it, which on a read-only file system
/// or as another user cannot be made; without a log the file alone is the truth and is read as immutable.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let plain = Connection::open_with_flags(path, flags).and_then(probed);
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if plain.is_ok() || fs::metadata(log).is_ok_and(|log| log.len() > 0) {
        return plain;
    }
    let uri = immutable_uri(path);
    Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI).and_then(probed)
}

/// A connection on which a query was tried: SQLite opens files only then.
fn probed(connection: Connection) -> rusqlite::Result<Connection> {
    connection.busy_timeout(BUSY)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

fn immutable_uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri += &format!("%{byte:02X}");
        }
    }
    uri + "?immutable=1"
}
