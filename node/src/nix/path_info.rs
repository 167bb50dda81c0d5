//! `nix path-info`, asked where Nix's database cannot be read: another user's, behind a daemon, or of a newer schema.
//!
//! Its JSON has had three forms: a list (Nix 2.8), an object keyed by path (2.19), and since 2.33, on demand, an object
//! with a version, base names and structured values. The second is asked for where it can be; all are understood.

use super::closure::{QueryError, ValidPath, in_order};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use nipfs_proto::nix::base32;
use nipfs_proto::nix::narinfo::PathInfo;
use nipfs_proto::nix::store_path::StorePath;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// Paths on one command line, which the kernel limits to 2 MiB.
const BATCH: usize = 1000;
/// Longest answer in bytes. A closure of 10,000 paths takes about 15 MiB.
const MAX_ANSWER: u64 = 256 << 20;
/// Longest complaint in bytes.
const MAX_COMPLAINT: u64 = 64 << 10;
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The closure of `roots` as `nix` tells it, ordered as [`in_order`] does.
///
/// # Errors
/// [`QueryError`].
pub(super) async fn closure(roots: &[StorePath]) -> Result<Vec<ValidPath>, QueryError> {
    let mut known = HashMap::new();
    for batch in roots.chunks(BATCH) {
        let answer = ask(Path::new("nix"), batch).await?;
        known.extend(read(&answer)?.into_iter().map(|valid| (valid.info.path.clone(), valid)));
    }
    in_order(roots, |path| known.remove(path).ok_or_else(|| QueryError::NotValid(path.clone())))
}

/// Asks `nix` for the closure of `roots`, first in a way that only newer versions understand.
async fn ask(nix: &Path, roots: &[StorePath]) -> Result<Vec<u8>, QueryError> {
    match run(nix, &["--json-format", "1"], roots).await {
        Err(QueryError::Failed(complaint)) if complaint.contains("--json-format") => run(nix, &[], roots).await,
        result => result,
    }
}

async fn run(nix: &Path, format: &[&str], roots: &[StorePath]) -> Result<Vec<u8>, QueryError> {
    let mut command = Command::new(nix);
    command.args(["--extra-experimental-features", "nix-command", "path-info", "--recursive", "--json"]).args(format);
    command.args(roots.iter().map(StorePath::to_absolute_path));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(QueryError::Run)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let end = async { tokio::try_join!(read_all(stdout, MAX_ANSWER), read_all(stderr, MAX_COMPLAINT), child.wait()) };
    let end = tokio::time::timeout(PATIENCE, end).await.map_err(|_| QueryError::Timeout(PATIENCE))?;
    let (answer, complaint, status) = end.map_err(QueryError::Run)?;
    if status.success() {
        return Ok(answer);
    }
    let complaint = String::from_utf8_lossy(&complaint);
    Err(QueryError::Failed(format!("{status}: {}", complaint.trim())))
}

/// Reads a pipe to its end, up to `limit` bytes.
async fn read_all(pipe: Option<impl AsyncRead + Unpin>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(limit + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > limit { Err(io::Error::other(format!("it printed over {limit} bytes"))) } else { Ok(bytes) }
}

/// The three forms of an answer.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    List(Vec<Entry>),
    Versioned { info: BTreeMap<String, Entry> },
    Keyed(BTreeMap<String, Entry>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// Only in a list.
    #[serde(default)]
    path: String,
    nar_hash: String,
    nar_size: u64,
    references: Vec<String>,
    deriver: Option<String>,
    #[serde(default)]
    signatures: Vec<Signature>,
    ca: Option<ContentAddress>,
    #[serde(default)]
    ultimate: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Signature {
    Text(String),
    #[serde(rename_all = "camelCase")]
    Structured {
        key_name: String,
        sig: String,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ContentAddress {
    Text(String),
    Structured { method: String, hash: String },
}

fn read(answer: &[u8]) -> Result<Vec<ValidPath>, QueryError> {
    let entries: Vec<Entry> = match serde_json::from_slice(answer).map_err(QueryError::Output)? {
        Answer::List(entries) => entries,
        Answer::Versioned { info: entries } | Answer::Keyed(entries) => {
            entries.into_iter().map(|(path, entry)| Entry { path, ..entry }).collect()
        }
    };
    entries.into_iter().map(Entry::into_valid_path).collect()
}

impl Entry {
    fn into_valid_path(self) -> Result<ValidPath, QueryError> {
        let malformed =
            |field, value: &str| QueryError::Malformed { path: self.path.clone(), field, value: value.to_owned() };
        let path = store_path(&self.path).ok_or_else(|| malformed("path", &self.path))?;
        let nar_hash = self.nar_hash.parse().map_err(|_| malformed("narHash", &self.nar_hash))?;
        let read = |reference: &String| store_path(reference).ok_or_else(|| malformed("reference", reference));
        let mut references = self.references.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        references.sort_unstable();
        let ca = match &self.ca {
            None => None,
            Some(ContentAddress::Text(text)) => Some(text.clone()),
            Some(ContentAddress::Structured { method, hash }) => {
                Some(content_address(method, hash).ok_or_else(|| malformed("ca", hash))?)
            }
        };
        let signature = |signature: &Signature| match signature {
            Signature::Text(text) => text.parse().ok(),
            Signature::Structured { key_name, sig } => format!("{key_name}:{sig}").parse().ok(),
        };
        let info = PathInfo {
            path,
            nar_hash,
            nar_size: self.nar_size,
            references,
            deriver: self.deriver.as_deref().and_then(store_path),
            signatures: self.signatures.iter().filter_map(signature).collect(),
            ca,
        };
        Ok(ValidPath { info, ultimate: self.ultimate })
    }
}

/// A full path or a base name.
fn store_path(text: &str) -> Option<StorePath> {
    let path = if text.starts_with('/') { StorePath::parse(text) } else { StorePath::from_base_name(text) };
    path.ok()
}

/// The one-line form of a content address, of any hash algorithm.
fn content_address(method: &str, hash: &str) -> Option<String> {
    let prefix = match method {
        "nar" => "fixed:r:",
        "flat" => "fixed:",
        "text" => "text:",
        _ => return None,
    };
    let (algorithm, digest) = hash.split_once('-')?;
    Some(format!("{prefix}{algorithm}:{}", base32::encode(&STANDARD.decode(digest).ok()?)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const NOTE: &str = "5cj1lxfm9036yy5dlfj3s6ainzfhvy5d-note.txt";
    const BUSYBOX: &str = "93hswik0brc6ppfajxk7zb4h1hkh5cb6-busybox";
    const DRV: &str = "9fnah2hzx700fxjisxm35bkpfybpkjl0-fixed-output.drv";
    const SIGNATURE: &str =
        "test1:519iiVLx/c4Rdt5DNt6Y2Jm6hcWE9+XY69ygiWSZCNGVcmOcyL64uVAJ3cV8vaTusIZdbTnYo9Y7vDNeTmmMBQ==";
    const FIELDS: &str = r#""narHash": "sha256-cLJgSsRiqrMC812dh1A+g68m8ySj0cwxE2YLgWwaD8U=", "narSize": 200"#;

    fn path(name: &str) -> StorePath {
        StorePath::from_base_name(name).unwrap()
    }

    /// What all forms below say.
    fn note() -> ValidPath {
        let info = PathInfo {
            path: path(NOTE),
            nar_hash: "sha256:1i8g39n822v62cqwrld34krjdbw37r88g7axyc1b7ak2qi561ckh".parse().unwrap(),
            nar_size: 200,
            references: vec![path(BUSYBOX)],
            deriver: Some(path(DRV)),
            signatures: vec![SIGNATURE.parse().unwrap()],
            ca: Some("text:sha256:1dh5mlpsgf75cfmgb45y0wd4346rswbn0pv84p9k37fs2wjg0vqm".to_owned()),
        };
        ValidPath { info, ultimate: true }
    }

    #[test]
    fn all_forms_say_the_same() {
        let ca = note().info.ca.unwrap();
        let entry = format!(
            r#"{FIELDS}, "references": ["/nix/store/{BUSYBOX}"], "deriver": "/nix/store/{DRV}",
               "signatures": ["{SIGNATURE}"], "ca": "{ca}", "ultimate": true, "registrationTime": 1"#
        );
        let (key, sig) = SIGNATURE.split_once(':').unwrap();
        let sri = "sha256-FW/wJBfanTHTJWhfYBfX2ZBBGge+kPWqY+W4py+tBbY=";
        let structured = |signature: &str| {
            format!(
                r#"{{"version": 2, "storeDir": "/nix/store", "info": {{"{NOTE}": {{{FIELDS}, "version": 2,
                    "references": ["{BUSYBOX}"], "deriver": "{DRV}", "signatures": [{signature}],
                    "ca": {{"method": "text", "hash": "{sri}"}}, "ultimate": true}}}}}}"#
            )
        };
        let forms = [
            format!(r#"[{{"path": "/nix/store/{NOTE}", {entry}}}]"#),
            format!(r#"{{"/nix/store/{NOTE}": {{{entry}}}}}"#),
            structured(&format!(r#""{SIGNATURE}""#)),
            structured(&format!(r#"{{"keyName": "{key}", "sig": "{sig}"}}"#)),
        ];
        for form in forms {
            assert_eq!(read(form.as_bytes()).unwrap(), [note()], "{form}");
        }
    }

    #[test]
    fn missing_fields_have_their_meaning() {
        for nothing in ["", r#", "deriver": null, "ca": null, "signatures": [], "ultimate": false"#] {
            let form = format!(r#"[{{"path": "/nix/store/{NOTE}", {FIELDS}, "references": []{nothing}}}]"#);
            let valid = &read(form.as_bytes()).unwrap()[0];
            assert_eq!((&valid.info.deriver, &valid.info.ca, valid.ultimate), (&None, &None, false));
        }
    }

    #[test]
    fn other_answers_are_refused() {
        let of_path =
            |path: &str, references: &str| format!(r#"[{{"path": "{path}", {FIELDS}, "references": [{references}]}}]"#);
        for form in ["", "null", "[{}]", r#"{"/nix/store/x": null}"#] {
            assert!(matches!(read(form.as_bytes()), Err(QueryError::Output(_))), "{form}");
        }
        for form in [of_path("/etc/passwd", ""), of_path(NOTE, r#""../x""#)] {
            assert!(matches!(read(form.as_bytes()), Err(QueryError::Malformed { .. })), "{form}");
        }
    }

    #[test]
    fn content_addresses_of_other_hashes_are_kept() {
        let flat = content_address("flat", "sha1-C+7Hteo/D9vJXQ3UfzxbwnXaijM=");
        assert_eq!(flat.as_deref(), Some("fixed:sha1:6f5dlxf2bcy7zm0dbp4xn3rzxaswgvhb"));
        let nar = content_address("nar", "sha256-YK39KTpNga181+RyY8uz/IRjCe+RsVSgi6ZytVj5T/M=");
        assert_eq!(nar.as_deref(), Some("fixed:r:sha256:1wsgz5cbawm6ifh59ccixw4n717wng5n6wp4sxyav0ad78lzvbb0"));
        assert_eq!(content_address("git", "sha1-C+7Hteo/D9vJXQ3UfzxbwnXaijM="), None);
    }

    /// A program that stands for `nix`. A shell writes it: had this process a writable handle, a child that another test
    /// forks would have it too, and the program would be busy.
    pub(in crate::nix) fn script(directory: &tempfile::TempDir, text: &str) -> std::path::PathBuf {
        let path = directory.path().join("nix");
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 700 "$0""#;
        let status = std::process::Command::new("sh").args(["-c", write]).arg(&path).arg(text).status();
        assert!(status.unwrap().success());
        path
    }

    #[tokio::test]
    async fn older_versions_are_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let nix = script(
            &directory,
            "case \"$*\" in *--json-format*) echo \"error: unrecognised flag '--json-format'\" >&2; exit 1;; esac; echo \"$@\"",
        );
        let answer = String::from_utf8(ask(&nix, &[path(NOTE)]).await.unwrap()).unwrap();
        assert!(answer.ends_with(&format!("path-info --recursive --json /nix/store/{NOTE}\n")), "{answer}");
    }

    #[tokio::test]
    async fn failures_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let nix = script(&directory, "echo 'error: path is not valid' >&2; exit 1");
        let error = ask(&nix, &[path(NOTE)]).await.unwrap_err().to_string();
        assert_eq!(error, "`nix path-info` failed: exit status: 1: error: path is not valid");
        assert!(matches!(ask(Path::new("/nonexistent/nix"), &[]).await, Err(QueryError::Run(_))));
    }
}
