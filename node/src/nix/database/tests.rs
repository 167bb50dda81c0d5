use super::*;
use rusqlite::params;
use std::path::PathBuf;
use tempfile::TempDir;

/// The tables of schema 10, as far as they are read.
const TABLES: &str = "
    CREATE TABLE ValidPaths (id integer primary key autoincrement not null, path text unique not null,
        hash text not null, registrationTime integer not null, deriver text, narSize integer, ultimate integer,
        sigs text, ca text);
    CREATE TABLE Refs (referrer integer not null, reference integer not null, primary key (referrer, reference));";
const HASH: &str = "sha256:60adfd293a4d81ad7cd7e47263cbb3fc846309ef91b154a08ba672b558f94ff3";
const SIGNATURE: &str =
    "test1:519iiVLx/c4Rdt5DNt6Y2Jm6hcWE9+XY69ygiWSZCNGVcmOcyL64uVAJ3cV8vaTusIZdbTnYo9Y7vDNeTmmMBQ==";

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-{name}", "0".repeat(32))).unwrap()
}

/// A state directory with an empty database, and a connection that may write to it.
fn state() -> (TempDir, Connection) {
    let state = tempfile::tempdir().unwrap();
    fs::create_dir(state.path().join("db")).unwrap();
    fs::write(state.path().join("db/schema"), SCHEMA).unwrap();
    let connection = Connection::open(file(&state)).unwrap();
    connection.execute_batch(TABLES).unwrap();
    (state, connection)
}

fn file(state: &TempDir) -> PathBuf {
    state.path().join("db/db.sqlite")
}

/// Registers a path of which nothing but the hash and a size is known.
fn register(connection: &Connection, name: &str, references: &[&str]) {
    let insert = "INSERT INTO ValidPaths (path, hash, registrationTime, narSize) VALUES (?, ?, 1, 120)";
    connection.execute(insert, params![path(name).to_absolute_path(), HASH]).unwrap();
    for reference in references {
        let insert =
            "INSERT INTO Refs SELECT r.id, t.id FROM ValidPaths r, ValidPaths t WHERE r.path = ? AND t.path = ?";
        let ends = params![path(name).to_absolute_path(), path(reference).to_absolute_path()];
        assert_eq!(connection.execute(insert, ends).unwrap(), 1);
    }
}

fn open(state: &TempDir) -> Database {
    Database::open(state.path()).unwrap()
}

#[test]
fn every_column_is_read() {
    let (state, connection) = state();
    register(&connection, "dep", &[]);
    register(&connection, "top", &["top", "dep"]);
    let sigs = format!("garbage {SIGNATURE}");
    let update = "UPDATE ValidPaths SET deriver = ?, ultimate = 1, sigs = ?, ca = 'text:sha256:x' WHERE path = ?";
    let values = params![path("top.drv").to_absolute_path(), sigs, path("top").to_absolute_path()];
    connection.execute(update, values).unwrap();
    let info = PathInfo {
        path: path("top"),
        nar_hash: HASH.parse().unwrap(),
        nar_size: 120,
        references: vec![path("dep"), path("top")],
        deriver: Some(path("top.drv")),
        signatures: vec![SIGNATURE.parse().unwrap()],
        ca: Some("text:sha256:x".to_owned()),
    };
    assert_eq!(open(&state).path_info(&path("top")).unwrap(), ValidPath { info, ultimate: true });

    let dep = open(&state).path_info(&path("dep")).unwrap();
    assert!(!dep.ultimate);
    assert_eq!((dep.info.deriver, dep.info.ca, dep.info.signatures.len()), (None, None, 0));
}

#[test]
fn closures_come_in_order() {
    let (state, connection) = state();
    register(&connection, "base", &["base"]);
    register(&connection, "left", &["base"]);
    register(&connection, "right", &["base", "left"]);
    register(&connection, "top", &["left", "right"]);
    let names = |roots: &[StorePath]| {
        let closure = open(&state).closure(roots).unwrap();
        closure.into_iter().map(|valid| valid.info.path.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&[path("top")]), ["base", "left", "right", "top"]);
    assert_eq!(names(&[path("left"), path("base")]), ["base", "left"]);
}

#[test]
fn valid_paths_are_listed_up_to_a_limit() {
    let (state, connection) = state();
    register(&connection, "one", &[]);
    register(&connection, "two", &[]);
    let mut paths = open(&state).valid_paths(9).unwrap();
    paths.sort_unstable();
    assert_eq!(paths, [path("one"), path("two")]);
    assert_eq!(open(&state).valid_paths(1).unwrap().len(), 1);
}

#[test]
fn absent_paths_are_named() {
    let (state, _connection) = state();
    let error = open(&state).closure(&[path("gone")]).unwrap_err();
    assert_eq!(error.to_string(), format!("{} is not valid in the local Nix store", path("gone")));
}

#[test]
fn damaged_rows_are_named() {
    let damages = [
        ("narSize = 0", "narSize"),
        ("narSize = NULL", "narSize"),
        ("narSize = -5", "narSize"),
        ("hash = 'sha256:x'", "hash"),
    ];
    for (damage, name) in damages {
        let (state, connection) = state();
        register(&connection, "a", &[]);
        connection.execute(&format!("UPDATE ValidPaths SET {damage}"), []).unwrap();
        let error = open(&state).path_info(&path("a")).unwrap_err();
        assert!(matches!(error, QueryError::Malformed { field, .. } if field == name), "{damage}: {error}");
    }
    let (state, connection) = state();
    register(&connection, "a", &["a"]);
    register(&connection, "b", &["a"]);
    connection.execute("UPDATE ValidPaths SET path = '/etc/passwd' WHERE id = 1", []).unwrap();
    let error = open(&state).path_info(&path("b")).unwrap_err().to_string();
    assert_eq!(error, format!("{} is registered with a bad reference: '/etc/passwd'", path("b")));
}

#[test]
fn other_schemas_are_refused() {
    let (state, _connection) = state();
    fs::write(state.path().join("db/schema"), "11\n").unwrap();
    let error = Database::open(state.path()).unwrap_err().to_string();
    assert_eq!(error, format!("Nix database has schema '11', not 10: {}/db/schema", state.path().display()));
    fs::remove_file(state.path().join("db/schema")).unwrap();
    assert!(matches!(Database::open(state.path()), Err(QueryError::Read { .. })));
}

#[test]
fn files_that_are_no_database_are_refused() {
    let (state, connection) = state();
    drop(connection);
    fs::write(file(&state), "x".repeat(4096)).unwrap();
    assert!(matches!(Database::open(state.path()), Err(QueryError::Sqlite { .. })));
    fs::remove_file(file(&state)).unwrap();
    assert!(matches!(Database::open(state.path()), Err(QueryError::Sqlite { .. })));
}

#[test]
fn unfinished_log_is_read_too() {
    let (state, connection) = state();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    register(&connection, "a", &[]);
    assert!(fs::metadata(state.path().join("db/db.sqlite-wal")).unwrap().len() > 0);
    open(&state).path_info(&path("a")).unwrap();
}

#[test]
fn names_with_odd_characters_are_opened_as_immutable() {
    let directory = tempfile::tempdir().unwrap();
    let odd = directory.path().join("a?b#c%20 d");
    Connection::open(&odd).unwrap().execute_batch(TABLES).unwrap();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(immutable_uri(&odd), flags).and_then(probed).unwrap();
    connection.query_row("SELECT count(*) FROM Refs", [], |_| Ok(())).unwrap();
}
