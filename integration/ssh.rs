//! `mirror push` through a real sshd on loopback.

use crate::common::{Machine, STUCK, describe, make_tree};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An sshd of the test's own, that lets the test's own key in.
struct Sshd {
    child: Child,
    config: PathBuf,
}

impl Sshd {
    /// `state` is where `nipfs` on the far side keeps its state.
    fn start(dir: &Path, state: &Path) -> Self {
        fs::create_dir_all(dir.join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_nipfs"), dir.join("bin/nipfs")).unwrap();
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key));
            assert!(keygen.status().expect("ssh-keygen: run this through `make test`").success());
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let show = |path: PathBuf| path.display().to_string();
        let server = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PasswordAuthentication no\nPermitRootLogin yes\nSetEnv PATH={}:/usr/bin:/bin NIPFS_STATE={}\n",
            show(dir.join("host")),
            show(dir.join("user.pub")),
            show(dir.join("bin")),
            state.display()
        );
        fs::write(dir.join("sshd_config"), server).unwrap();
        let client = format!(
            "Host mirror\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {}\n  IdentitiesOnly yes\n  BatchMode yes\n\
             StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n",
            show(dir.join("user"))
        );
        let config = dir.join("ssh_config");
        fs::write(&config, client).unwrap();
        // Where sshd separates its privileges; Debian makes it when the service starts.
        let _ = fs::create_dir_all("/run/sshd");
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config"));
        sshd.stderr(fs::File::create(dir.join("sshd.log")).unwrap()).stdin(Stdio::null());
        let child = sshd.spawn().expect("sshd: run this through `make test`");
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < STUCK, "{}", fs::read_to_string(dir.join("sshd.log")).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, config }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_push_over_one_ssh_connection_leaves_every_path_on_the_mirror() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let mut published = Vec::new();
    for (name, seed) in [("one", 30), ("two", 31), ("three", 32)] {
        let tree = a.dir().join(name);
        make_tree(&tree, seed, 2 << 20);
        published.push((tree.clone(), a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one()));
    }
    let at_b = b.serve(&[]);
    let sshd = Sshd::start(&b.dir().join("ssh"), &b.state());
    let cache = a.state().join("cache");
    let push = |json: bool| {
        let mut args = vec!["mirror", "push", "--ssh", "mirror", "--path", cache.to_str().unwrap()];
        args.extend(json.then_some("--json"));
        let mut command = a.command(&args);
        command.env("NIPFS_SSH", format!("ssh -F {}", sshd.config.display()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Machine::finish(command.spawn().unwrap())
    };
    let said = push(true).ok();
    assert_eq!(said.json().len(), 3, "{said:#?}");
    assert!(said.json().iter().all(|item| item["state"] == "fetched"), "{said:#?}");
    let again = push(true).ok();
    assert!(again.json().iter().all(|item| item["state"] == "held"), "{again:#?}");
    let log = fs::read_to_string(b.dir().join("ssh/sshd.log")).unwrap();
    assert_eq!(log.matches("Accepted publickey").count(), 2, "one connection a push:\n{log}");

    // A goes; B has it all.
    assert_eq!(at_a.stop(), 0);
    for (tree, published) in published {
        let path = published["path"].as_str().unwrap();
        let out = c.dir().join("out");
        fs::create_dir_all(&out).unwrap();
        let args = ["fetch", path, "--from", &at_b.http, "--peer", &at_b.peer, "--trusted-public-key", &key, "--out"];
        c.run(&[&args[..], &[out.to_str().unwrap()]].concat()).ok();
        assert_eq!(describe(&tree), describe(&out.join(Path::new(path).file_name().unwrap())));
    }
}

#[test]
fn a_push_fails_when_one_path_cannot_be_held() {
    let (a, b) = (Machine::new(), Machine::new());
    a.key();
    let _at_a = a.serve(&[]);
    let tree = a.dir().join("gone");
    make_tree(&tree, 33, 1 << 20);
    let published = a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    let path = published["path"].as_str().unwrap();
    let narinfo = fs::read(published["narinfo"].as_str().unwrap()).unwrap();
    // A says that it has the path, and has not.
    a.run(&["pin", "rm", path]).ok();
    a.run(&["gc"]).ok();
    fs::write(published["narinfo"].as_str().unwrap(), narinfo).unwrap();
    let _at_b = b.serve(&[]);
    let sshd = Sshd::start(&b.dir().join("ssh"), &b.state());
    let cache = a.state().join("cache");
    let mut command = a.command(&["mirror", "push", "--ssh", "mirror", "--path", cache.to_str().unwrap()]);
    command.env("NIPFS_SSH", format!("ssh -F {}", sshd.config.display()));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let said = Machine::finish(command.spawn().unwrap());
    assert_ne!(said.code, 0, "{said:#?}");
    assert!(said.stderr.contains(path), "{said:#?}");
}
