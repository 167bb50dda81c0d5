//! Key files as Nix writes them: one line `NAME:BASE64`, no newline at the end; and other secrets of one line.
//!
//! A secret that anyone but its owner could have read or replaced is refused, not warned about. What counts is the
//! file that a symbolic link leads to (secret managers hand out links). Under systemd's credentials directory the
//! manager has set the access, by means that the mode does not show.

use nipfs_proto::nix::signature::{KeyError, SecretKey};
use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest key file in bytes: a name, a colon, 88 characters.
const MAX_KEY_FILE: usize = 512;

/// Why a key file cannot be used. All are errors of the user's configuration, but for [`KeyFileError::Write`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file or its directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A directory, a pipe or a device.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Group or others have some right to the file.
    #[error("secret file {0} has mode {mode:04o}, so others may have read it: run `chmod 600 {0}`", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs neither to who runs this nor to root.
    #[error("secret file {} belongs to user {owner}: run `chown {} {0}`", path.display(), geteuid().as_raw())]
    Owner {
        /// The file.
        path: PathBuf,
        /// The user that it belongs to.
        owner: u32,
    },
    /// Not one line: several keys, a carriage return, or something else altogether.
    #[error("secret file {} is not one line of at most {MAX_KEY_FILE} bytes", .0.display())]
    NotOneLine(PathBuf),
    /// One line, but not a key.
    #[error("key file {} holds no key", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        source: KeyError,
    },
    /// A key of this name is there already.
    #[error("key file {} exists already", .0.display())]
    Exists(PathBuf),
    /// A new key file cannot be written.
    #[error("cannot write key file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Reads the secret key in `path`.
///
/// # Errors
/// As [`load_secret_line`], and [`KeyFileError::Key`].
pub fn load_secret_key(path: &Path, credentials: Option<&Path>) -> Result<SecretKey, KeyFileError> {
    let line = load_secret_line(path, credentials)?;
    line.parse().map_err(|source| KeyFileError::Key { path: path.to_owned(), source })
}

/// Reads the one line in `path`. A newline at the end is allowed, as in Nix.
///
/// `credentials` is the value of `$CREDENTIALS_DIRECTORY`: mode and owner of files in it are not looked at.
///
/// # Errors
/// [`KeyFileError`]: unreadable, accessible to others, or not exactly one line.
pub fn load_secret_line(path: &Path, credentials: Option<&Path>) -> Result<Zeroizing<String>, KeyFileError> {
    let unreadable = |source: io::Error| KeyFileError::Read { path: path.to_owned(), source };
    // Without NONBLOCK, opening a pipe would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| unreadable(errno.into()))?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile(path.to_owned()));
    }
    if !is_below(path, credentials) {
        let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
        if mode & 0o077 != 0 {
            return Err(KeyFileError::Mode { path: path.to_owned(), mode });
        }
        if owner != 0 && owner != geteuid().as_raw() {
            return Err(KeyFileError::Owner { path: path.to_owned(), owner });
        }
    }
    // Room for one byte too many, so that a longer file shows and the secret is never left behind by a reallocation.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE + 1));
    file.take(MAX_KEY_FILE as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = str::from_utf8(&bytes).ok().filter(|text| text.len() <= MAX_KEY_FILE);
    let line = text.map(|text| text.strip_suffix('\n').unwrap_or(text)).filter(|line| !line.contains(['\n', '\r']));
    let line = line.ok_or_else(|| KeyFileError::NotOneLine(path.to_owned()))?;
    Ok(Zeroizing::new(line.to_owned()))
}

/// Whether `path`, links resolved, is inside `directory`.
fn is_below(path: &Path, directory: Option<&Path>) -> bool {
    let resolved = |path: &Path| path.canonicalize().ok();
    let directory = directory.and_then(resolved);
    directory.is_some_and(|directory| resolved(path).is_some_and(|path| path.starts_with(directory)))
}

/// Writes `NAME.secret` (mode 0600) and `NAME.public` into `directory`, which is made if need be, and returns their
/// paths. Both are whole and durable, or not there.
///
/// # Errors
/// [`KeyFileError::Exists`] rather than replacing either file, [`KeyFileError::Key`] for a name that would hide the
/// files, and [`KeyFileError::Write`].
pub fn write_key_pair(directory: &Path, key: &SecretKey) -> Result<(PathBuf, PathBuf), KeyFileError> {
    let name = key.name();
    let secret = directory.join(format!("{name}.secret"));
    let public = directory.join(format!("{name}.public"));
    if name.starts_with('.') {
        return Err(KeyFileError::Key { path: secret, source: KeyError::Name(name.to_owned()) });
    }
    let failed = |source| KeyFileError::Write { path: secret.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    if public.symlink_metadata().is_ok() {
        return Err(KeyFileError::Exists(public));
    }
    write_new(&secret, key.to_text().as_bytes(), 0o600)?;
    write_new(&public, key.public_key().to_string().as_bytes(), 0o644)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    Ok((secret, public))
}

/// Writes a file that must not exist: under a passing name first, so that it never shows half written.
fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), KeyFileError> {
    let mut passing = path.as_os_str().to_owned();
    passing.push(format!(".{}.new", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&passing)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        // A link, other than a rename, never replaces what has the name.
        let named = written.and_then(|()| fs::hard_link(&passing, path));
        fs::remove_file(&passing).and(named)
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists if path.symlink_metadata().is_ok() => KeyFileError::Exists(path.to_owned()),
        _ => KeyFileError::Write { path: path.to_owned(), source },
    })
}

/// The secret key files in `directory`, by name; none when it does not exist.
///
/// # Errors
/// [`KeyFileError::Read`].
pub fn secret_key_files(directory: &Path) -> Result<Vec<PathBuf>, KeyFileError> {
    let unreadable = |source| KeyFileError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(unreadable)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "secret"));
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn key() -> SecretKey {
        SecretKey::from_seed("farm-1", &[7; 32]).unwrap()
    }

    /// A fresh directory with `NAME` in it.
    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn load(path: &Path) -> Result<SecretKey, KeyFileError> {
        load_secret_key(path, None)
    }

    #[test]
    fn what_is_written_is_what_nix_writes_and_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("state/keys");
        assert!(secret_key_files(&keys).unwrap().is_empty());
        let (secret, public) = write_key_pair(&keys, &key()).unwrap();
        assert_eq!((secret.clone(), public.clone()), (keys.join("farm-1.secret"), keys.join("farm-1.public")));
        assert_eq!(fs::read_to_string(&secret).unwrap(), *key().to_text());
        assert_eq!(fs::read_to_string(&public).unwrap(), key().public_key().to_string());
        assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(load(&secret).unwrap().public_key(), key().public_key());
        assert_eq!(secret_key_files(&keys).unwrap(), [secret]);
        assert_eq!(fs::read_dir(&keys).unwrap().count(), 2, "no passing files are left");
    }

    #[test]
    fn nothing_is_replaced() {
        let other = SecretKey::from_seed("farm-1", &[8; 32]).unwrap();
        for kept in ["farm-1.secret", "farm-1.public"] {
            let directory = tempfile::tempdir().unwrap();
            write_key_pair(directory.path(), &key()).unwrap();
            let gone = if kept == "farm-1.secret" { "farm-1.public" } else { "farm-1.secret" };
            fs::remove_file(directory.path().join(gone)).unwrap();
            let before = fs::read(directory.path().join(kept)).unwrap();
            let error = write_key_pair(directory.path(), &other).unwrap_err();
            assert!(matches!(&error, KeyFileError::Exists(path) if path.ends_with(kept)), "{error}");
            assert_eq!(fs::read(directory.path().join(kept)).unwrap(), before);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        let hidden = SecretKey::from_seed("..", &[8; 32]).unwrap();
        assert!(write_key_pair(tempfile::tempdir().unwrap().path(), &hidden).is_err());
    }

    #[test]
    fn keys_that_others_may_touch_are_refused() {
        for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
            let (_directory, path) = file(key().to_text().as_bytes(), mode);
            let message = load(&path).unwrap_err().to_string();
            assert!(message.contains(&format!("mode {mode:04o}")), "{message}");
            assert!(message.contains(&format!("`chmod 600 {}`", path.display())), "{message}");
        }
        for mode in [0o600, 0o400] {
            let (_directory, path) = file(key().to_text().as_bytes(), mode);
            load(&path).unwrap();
        }
    }

    #[test]
    fn keys_of_other_users_are_refused() {
        let (_directory, path) = file(key().to_text().as_bytes(), 0o600);
        let (me, other) = (geteuid().as_raw(), geteuid().as_raw() + 1);
        if chown(&path, Some(other), None).is_err() {
            println!("skipped: only root can give a file away");
            return;
        }
        let message = load(&path).unwrap_err().to_string();
        assert!(
            message.contains(&format!("belongs to user {other}: run `chown {me} {}`", path.display())),
            "{message}"
        );
    }

    #[test]
    fn links_are_judged_by_where_they_lead() {
        for (mode, good) in [(0o600, true), (0o644, false)] {
            let (directory, path) = file(key().to_text().as_bytes(), mode);
            let link = directory.path().join("link");
            symlink(&path, &link).unwrap();
            assert_eq!(load(&link).is_ok(), good);
        }
    }

    #[test]
    fn credentials_directory_is_exempt() {
        let (directory, path) = file(key().to_text().as_bytes(), 0o440);
        load_secret_key(&path, Some(directory.path())).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        assert!(load_secret_key(&path, Some(elsewhere.path())).is_err());
        let way_out = directory.path().join("inner");
        fs::create_dir(&way_out).unwrap();
        assert!(load_secret_key(&way_out.join("../key"), Some(&way_out)).is_err());
        symlink(&path, elsewhere.path().join("link")).unwrap();
        assert!(load_secret_key(&elsewhere.path().join("link"), Some(elsewhere.path())).is_err());
    }

    #[test]
    fn content_must_be_one_key() {
        let text = key().to_text().to_string();
        let (_directory, path) = file(format!("{text}\n").as_bytes(), 0o600);
        load(&path).unwrap();
        let lines = [format!("{text}\r\n"), format!("{text}\n{text}\n"), format!("{text}\n\n"), "x".repeat(600)];
        for content in lines {
            let (_directory, path) = file(content.as_bytes(), 0o600);
            assert!(matches!(load(&path), Err(KeyFileError::NotOneLine(_))), "{content:?}");
        }
        for content in [text.replace("==", ""), text[..90].to_owned(), String::new(), format!(" {text}")] {
            let (_directory, path) = file(content.as_bytes(), 0o600);
            let error = load(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Key { .. }), "{error}");
            assert!(!format!("{error:?}").contains(&text[10..30]), "{error:?}");
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(load(&pipe), Err(KeyFileError::NotAFile(_))));
        assert!(matches!(load(directory.path()), Err(KeyFileError::NotAFile(_))));
        assert!(matches!(load(&directory.path().join("none")), Err(KeyFileError::Read { .. })));
    }
}
