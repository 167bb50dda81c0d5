//! `nipfs key`, and which keys `publish` signs with.

use super::App;
use crate::args::Key;
use crate::config::Settings;
use crate::outcome::Stop;
use nipfs_node::control::protocol::{Class, Failure};
use nipfs_node::http::Token;
use nipfs_node::nix::keys::{KeyFileError, load_secret_key, load_secret_line, secret_key_files, write_key_pair};
use nipfs_proto::nix::signature::SecretKey;
use serde::Serialize;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A line of `key generate` and `key public`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    public_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_key_file: Option<PathBuf>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public_key)
    }
}

/// Runs the verb.
pub(crate) fn run(app: &App<'_>, verb: Key) -> Result<(), Stop> {
    match verb {
        Key::Generate { name } => {
            let key = generate(&name)?;
            let (secret, _) = write_key_pair(&directory(&app.settings), &key).map_err(|error| refused(&error))?;
            app.printer.note(format_args!("wrote {}", secret.display()));
            app.printer.item(&Line { public_key: key.public_key().to_string(), secret_key_file: Some(secret) })
        }
        Key::Public => {
            let keys = load(&files(&app.settings)?)?;
            if keys.is_empty() {
                return Err(none(&app.settings).into());
            }
            let mut lines =
                keys.iter().map(|key| Line { public_key: key.public_key().to_string(), secret_key_file: None });
            lines.try_for_each(|line| app.printer.item(&line))
        }
    }
}

/// The keys that `publish` signs with: those configured, else the one in the state directory.
///
/// # Errors
/// Class `Usage` when there is none, when there are several to choose from, or when one cannot be used.
pub(crate) fn signing_keys(settings: &Settings) -> Result<Vec<SecretKey>, Failure> {
    let files = files(settings)?;
    if settings.signing_key_files.value.is_empty() && files.len() > 1 {
        let directory = directory(settings);
        let text = format!("{} signing keys to choose from: {}", files.len(), directory.display());
        let hint = format!("run with: --signing-key-file {}", files[0].display());
        return Err(Failure::new(Class::Usage, text).hint(hint));
    }
    let keys = load(&files)?;
    if keys.is_empty() { Err(none(settings)) } else { Ok(keys) }
}

/// The secret key files: those configured, else those in the state directory.
///
/// # Errors
/// Class `Usage` when the directory cannot be read.
pub(crate) fn files(settings: &Settings) -> Result<Vec<PathBuf>, Failure> {
    let configured = &settings.signing_key_files.value;
    if configured.is_empty() {
        return secret_key_files(&directory(settings)).map_err(|error| refused(&error));
    }
    Ok(configured.clone())
}

/// Reads secret keys.
///
/// # Errors
/// Class `Usage`, naming the file and what to do about it.
pub(crate) fn load(files: &[PathBuf]) -> Result<Vec<SecretKey>, Failure> {
    let credentials = credentials();
    let keys = files.iter().map(|file| load_secret_key(file, credentials.as_deref()));
    keys.collect::<Result<_, _>>().map_err(|error| refused(&error))
}

/// Reads the token that uploaders show.
///
/// # Errors
/// Class `Usage`, naming the file and what to do about it.
pub(crate) fn load_token(file: &Path) -> Result<Token, Failure> {
    let line = load_secret_line(file, credentials().as_deref()).map_err(|error| refused(&error))?;
    if line.is_empty() {
        let failure = Failure::new(Class::Usage, format!("no token: {} is empty", file.display()));
        return Err(failure.hint(format!("run: head -c 32 /dev/urandom | base64 > {}", file.display())));
    }
    Ok(Token::new(&line))
}

fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

fn generate(name: &str) -> Result<SecretKey, Failure> {
    let mut seed = [0; 32];
    let drawn = std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut seed));
    drawn.map_err(|error| Failure::new(Class::Failed, "no randomness: /dev/urandom").because(&error))?;
    let key = SecretKey::from_seed(name, &seed);
    key.map_err(|error| Failure::new(Class::Usage, format!("not a name for a key: {name}")).because(&error))
}

fn directory(settings: &Settings) -> PathBuf {
    settings.state.value.join("keys")
}

fn none(settings: &Settings) -> Failure {
    let failure = Failure::new(Class::Usage, format!("no signing key: {}", directory(settings).display()));
    failure.hint("run: nipfs key generate NAME, as in cache.example.org-1; or publish with --unsigned")
}

fn refused(error: &KeyFileError) -> Failure {
    let class = if matches!(error, KeyFileError::Write { .. }) { Class::Failed } else { Class::Usage };
    Failure::from_error(class, error)
}
