//! Where the control socket of a state directory is, in a form that the kernel takes.
//!
//! A Unix socket address holds 107 bytes of path; state directories may be longer. Then the directory
//! is opened and the socket is named through `/proc/self/fd`, which works for `bind` and `connect`
//! alike and leaves the current directory alone.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "control.sock";

/// Longest path in bytes that fits in a socket address, with its final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// A path to bind or connect to. Valid as long as this lives.
#[derive(Debug)]
pub struct SocketAddress {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl SocketAddress {
    /// The path to give to `bind` or `connect`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The address of the control socket of `state`.
///
/// # Errors
/// When the path is too long for a socket and the directory cannot be opened.
pub fn socket_address(state: &Path) -> io::Result<SocketAddress> {
    let path = state.join(SOCKET_NAME);
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(SocketAddress { path, _directory: None });
    }
    let directory = rustix::fs::open(state, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(SOCKET_NAME);
    Ok(SocketAddress { path, _directory: Some(directory) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn short_and_long_directories_can_be_bound_and_reached() {
        let root = tempfile::tempdir().unwrap();
        for depth in [0, 4] {
            let state = (0..depth).fold(root.path().to_owned(), |path, _| path.join("d".repeat(60)));
            std::fs::create_dir_all(&state).unwrap();
            let _listener = UnixListener::bind(socket_address(&state).unwrap().path()).unwrap();
            assert!(state.join(SOCKET_NAME).exists());
            UnixStream::connect(socket_address(&state).unwrap().path()).unwrap();
        }
    }

    #[test]
    fn a_missing_long_directory_is_an_error() {
        let missing = Path::new("/nonexistent").join("d".repeat(200));
        assert_eq!(socket_address(&missing).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
