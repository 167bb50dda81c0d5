//! Machines for black-box tests: each has a state directory of its own and runs the real binary.

#![allow(dead_code, reason = "each test binary uses its own part")]

use nipfs_proto::Cid;
use nipfs_proto::block::DAG_PB;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long anything in a test may take before it counts as stuck.
pub(crate) const STUCK: Duration = Duration::from_secs(60);

/// One machine: a state directory, and the binary.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
}

/// What a finished command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// Its JSON lines.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The only JSON line.
    pub(crate) fn one(&self) -> serde_json::Value {
        let lines = self.json();
        assert_eq!(lines.len(), 1, "{self:?}");
        lines.into_iter().next().unwrap()
    }

    /// Itself, when it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Itself, when it failed with `code` and stderr says `words`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {self:#?}");
        }
        self
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A directory of the machine's own, outside its state.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The command, not yet started.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nipfs"));
        command.args(args).env("NIPFS_STATE", self.state());
        command.env("HOME", self.dir.path()).env("XDG_CONFIG_HOME", self.dir.path().join("config"));
        command.env_remove("NOTIFY_SOCKET").env_remove("XDG_STATE_HOME");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Said {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        Self::finish(child)
    }

    /// Waits for a started command, but not for ever.
    pub(crate) fn finish(child: Child) -> Said {
        let (done, wait) = mpsc::channel();
        let pid = child.id();
        std::thread::spawn(move || {
            let _ = done.send(child.wait_with_output());
        });
        match wait.recv_timeout(STUCK) {
            Ok(output) => output.unwrap().into(),
            Err(_) => {
                kill(pid, "-KILL");
                let said = wait.recv().unwrap().map(Said::from);
                panic!("still running after {STUCK:?}: {said:#?}");
            }
        }
    }

    /// Flips a bit of the byte at `offset` in the newest pack.
    pub(crate) fn rot(&self, offset: u64) {
        use std::os::unix::fs::FileExt;
        let packs = fs::read_dir(self.state().join("store/packs")).unwrap().map(|entry| entry.unwrap().path());
        let file = fs::OpenOptions::new().read(true).write(true).open(packs.max().unwrap()).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    }

    /// Makes the machine's signing key and returns the public one.
    pub(crate) fn key(&self) -> String {
        self.run(&["key", "generate", "test-1"]).ok();
        self.run(&["key", "public"]).ok().stdout.trim().to_owned()
    }

    /// Starts `serve` on free ports and waits until it is ready.
    pub(crate) fn serve(&self, args: &[&str]) -> Serving {
        self.serve_on("/ip4/127.0.0.1/tcp/0", args)
    }

    /// As [`Self::serve`], with peers at this address.
    pub(crate) fn serve_on(&self, listen: &str, args: &[&str]) -> Serving {
        let mut all = vec!["serve", "--http", "127.0.0.1:0", "--listen", listen];
        all.extend_from_slice(args);
        self.start(self.command(&all))
    }

    /// Starts `serve` in a network namespace, where it listens for peers only as `args` say. Needs root.
    pub(crate) fn serve_in(&self, namespace: &str, args: &[&str]) -> Serving {
        let all = [&["serve", "--http", "127.0.0.1:0"], args].concat();
        self.start(within(namespace, &self.command(&all)))
    }

    /// Runs a command to its end in a network namespace. Needs root.
    pub(crate) fn run_in(&self, namespace: &str, args: &[&str]) -> Said {
        let mut command = within(namespace, &self.command(args));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::finish(command.spawn().unwrap())
    }

    fn start(&self, mut command: Command) -> Serving {
        command.stdout(Stdio::piped());
        let log = self.dir.path().join("serve.log");
        command.stderr(fs::OpenOptions::new().create(true).append(true).open(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let line =
            lines.recv_timeout(STUCK).unwrap_or_else(|_| panic!("not ready: {}", fs::read_to_string(&log).unwrap()));
        let field = |name: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(name));
            word.unwrap_or_else(|| panic!("no {name} in {line:?}")).to_owned()
        };
        Serving { http: field("http="), peer: field("peer="), child, log }
    }
}

/// The same command in a network namespace.
fn within(namespace: &str, inner: &Command) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null());
    command
}

/// A running `serve`. Killed when dropped.
pub(crate) struct Serving {
    /// `http://ADDR`.
    pub(crate) http: String,
    /// Multiaddr with `/p2p/ID`.
    pub(crate) peer: String,
    child: Child,
    log: PathBuf,
}

impl Serving {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(mut self) -> i32 {
        kill(self.child.id(), "-TERM");
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < STUCK, "serve did not stop: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The same, and all that it logged.
    pub(crate) fn end(self) -> String {
        let log = self.log.clone();
        assert_eq!(self.stop(), 0);
        fs::read_to_string(log).unwrap()
    }

    /// SIGKILL: the process has no last word.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Peak resident set of the process in bytes.
    pub(crate) fn peak_rss(&self) -> u64 {
        peak_rss(self.child.id())
    }

    /// Status, headers and body of a PUT that shows this token.
    pub(crate) fn put(&self, path: &str, token: &str, body: &[u8]) -> Answer {
        let headers = format!("Content-Length: {}\r\nAuthorization: Bearer {token}\r\n", body.len());
        send(self.http.strip_prefix("http://").unwrap(), "PUT", path, &headers, body)
    }

    /// Status, headers and body of a GET.
    pub(crate) fn get(&self, path: &str) -> Answer {
        request(self.http.strip_prefix("http://").unwrap(), "GET", path, "")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Peak resident set of a process in bytes; 0 when it has ended.
pub(crate) fn peak_rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024)
}

/// Sends a signal to a process that the test started.
pub(crate) fn kill(pid: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &pid.to_string()]).status();
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One HTTP/1.1 request on a connection of its own. `headers` end each with CRLF.
pub(crate) fn request(address: &str, method: &str, path: &str, headers: &str) -> Answer {
    send(address, method, path, headers, b"")
}

/// The same with a body, whose length is among the headers.
pub(crate) fn send(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(STUCK)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n").unwrap();
    // Who refuses a body may close before all of it is sent.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("an HTTP head");
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer[end + 4..].to_vec();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Answer { status, head, body: if chunked { unchunk(&body) } else { body } }
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if length == 0 || body.len() < end + 2 + length {
            break;
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + length]);
        body = &body[end + 4 + length..];
    }
    whole
}

/// The CID of the other version for the same dag-pb block.
pub(crate) fn other_version(cid: &str) -> String {
    let hash = *cid.parse::<Cid>().unwrap().hash();
    let other = if cid.starts_with("Qm") { Cid::new_v1(DAG_PB, hash) } else { Cid::new_v0(hash).unwrap() };
    other.to_string()
}

/// Deterministic bytes that do not compress.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tree with all that a NAR can hold: executables, symlinks, empty and odd names, one file of `size` bytes.
pub(crate) fn make_tree(root: &Path, seed: u64, size: usize) {
    use std::os::unix::ffi::OsStrExt;
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::create_dir_all(root.join("share/deep/er")).unwrap();
    fs::write(root.join("bin/run"), b"#!/bin/sh\necho hello\n").unwrap();
    fs::set_permissions(root.join("bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join("share/nothing"), b"").unwrap();
    fs::write(root.join("share/deep/er/noise"), noise(seed, size)).unwrap();
    fs::write(root.join("share").join(OsStr::from_bytes(b"not utf-8 \xff\xfe")), b"odd").unwrap();
    fs::write(root.join("share").join("x".repeat(255)), b"long").unwrap();
    symlink("../bin/run", root.join("share/link")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
}

/// What a NAR keeps of a tree, one line an entry: for comparing two trees.
pub(crate) fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap();
        if meta.is_symlink() {
            lines.push(format!("{name:?} -> {:?}", fs::read_link(&path).unwrap()));
        } else if meta.is_dir() {
            lines.push(format!("{name:?}/"));
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let executable = meta.permissions().mode() & 0o100 != 0;
            let hash = <sha2::Sha256 as sha2::Digest>::digest(fs::read(&path).unwrap());
            lines.push(format!("{name:?} {executable} {hash:x?}"));
        }
    }
    lines.sort();
    lines
}
