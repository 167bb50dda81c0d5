//! The node's identity: an ed25519 key in a file, in libp2p's protobuf encoding.
//!
//! The file appears under its name complete or not at all, is never replaced, and is readable by its
//! owner only. Of two processes that create it at once both get the one that was first.

use super::NetworkError;
use libp2p::identity::{KeyType, Keypair};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The name of the file in the state directory.
const FILE: &str = "identity";
/// More bytes than an encoded key has.
const MAX_ENCODED: u64 = 4096;

/// Reads the identity from `state`, creating it and the directory on first use.
///
/// # Errors
/// [`NetworkError::Identity`] when the file cannot be read, written or decoded,
/// [`NetworkError::IdentityMode`] when it is open to others.
pub fn load_or_create(state: &Path) -> Result<Keypair, NetworkError> {
    let path = state.join(FILE);
    match load(&path) {
        Err(NetworkError::Identity { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    create(state, &path).map_err(|source| NetworkError::Identity { path: path.clone(), source })?;
    load(&path)
}

fn load(path: &Path) -> Result<Keypair, NetworkError> {
    let failed = |source: io::Error| NetworkError::Identity { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(NetworkError::IdentityMode { path: path.to_owned(), mode });
    }
    let mut encoded = Vec::new();
    file.take(MAX_ENCODED).read_to_end(&mut encoded).map_err(failed)?;
    let keypair = Keypair::from_protobuf_encoding(&encoded)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    match keypair.key_type() {
        KeyType::Ed25519 => Ok(keypair),
        other => Err(failed(io::Error::new(io::ErrorKind::InvalidData, format!("{other:?} keys are not used here")))),
    }
}

fn create(state: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(state)?;
    let encoded = Keypair::generate_ed25519().to_protobuf_encoding().map_err(io::Error::other)?;
    let draft = Draft(state.join(format!(".{FILE}.{:016x}", rand::random::<u64>())));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft.0)?;
    file.write_all(&encoded)?;
    file.sync_all()?;
    match fs::hard_link(&draft.0, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(state)?.sync_all()
}

/// A file that is removed when it has served.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // Left behind it is harmless: private, and a name that nobody reads.
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_identity_is_created_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = load_or_create(&state).unwrap();
        assert_eq!(load_or_create(&state).unwrap().public(), first.public());
        assert_eq!(fs::metadata(state.join(FILE)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "the draft is gone");
    }

    #[test]
    fn creating_it_twice_keeps_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap();
        create(dir.path(), &dir.path().join(FILE)).unwrap();
        assert_eq!(load_or_create(dir.path()).unwrap().public(), first.public());
    }

    #[test]
    fn an_identity_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        fs::set_permissions(dir.path().join(FILE), fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, NetworkError::IdentityMode { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        fs::write(dir.path().join(FILE), b"junk").unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(NetworkError::Identity { .. })));
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), b"junk");
    }
}
