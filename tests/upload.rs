//! Uploads: what `nix copy --to http://…` does, step by step.

use crate::common::{Machine, describe};
use crate::walk::{fetch, fetched, publish_tree};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Writes the machine's upload token.
fn token(machine: &Machine, text: &str, mode: u32) -> PathBuf {
    let file = machine.dir().join("token");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    file
}

#[test]
fn what_was_uploaded_is_published_and_is_there_after_a_kill() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let key = a.key();
    let (tree, published) = publish_tree(&a, "sent", 90, 3 << 20);
    let (path, at_a) = (published["path"].as_str().unwrap(), a.serve(&[]));
    let info = format!("/{}.narinfo", &path["/nix/store/".len()..][..32]);
    let nar = format!("/nar/{}.nar", published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap());
    let (narinfo, bytes) = (at_a.get(&info), at_a.get(&nar));

    let file = token(&b, "s3cret-s3cret\n", 0o600);
    let with = ["--enable-upload", "--upload-token-file", file.to_str().unwrap(), "--trusted-public-key", &key, "-vv"];
    let at_b = b.serve(&with);
    assert_eq!(at_b.put(&nar, "wrong", &bytes.body).status, 401);
    assert_eq!(at_b.put(&nar, "s3cret-s3cret", &bytes.body).status, 201);
    assert_eq!(at_b.put(&info, "s3cret-s3cret", &narinfo.body).status, 201);
    assert!(!at_b.log().contains("s3cret-s3cret"), "the token is in the log");
    at_b.kill();

    let at_b = b.serve(&[]);
    assert_eq!(at_b.put(&nar, "s3cret-s3cret", &bytes.body).status, 405, "uploads are off");
    assert_eq!(at_b.get(&info).text(), narinfo.text());
    assert_eq!(b.run(&["pin", "ls"]).ok().stdout.trim(), path);
    let said = fetch(&c, path, &at_b.http, &key, &["--peer", &at_b.peer]).ok().one();
    assert_eq!(said["source"], "bitswap", "{said}");
    assert_eq!(describe(&tree), describe(&fetched(&c, path)));
}

#[test]
fn uploads_need_a_token_that_nobody_else_can_read() {
    let a = Machine::new();
    let serve = |more: &[&str]| {
        a.run(&[&["serve", "--http", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"], more].concat())
    };
    serve(&["--enable-upload"]).fails(2, &["--upload-token-file", "hint: run:"]);
    for (text, mode, says) in
        [("s3cret", 0o644, "chmod 600"), ("\n", 0o600, "is empty"), ("s3cret\nmore", 0o600, "not one line")]
    {
        let file = token(&a, text, mode);
        let said = serve(&["--enable-upload", "--upload-token-file", file.to_str().unwrap()]);
        let said = said.fails(2, &[says, file.to_str().unwrap()]);
        assert!(!said.stderr.contains("s3cret"), "{said:?}");
    }
    // The same from a configuration file, whose names are relative to it.
    let config = a.dir().join("config.toml");
    fs::write(&config, "enable-upload = true\nupload-token-file = \"token\"\n").unwrap();
    token(&a, "s3cret", 0o640);
    let config = config.to_str().unwrap();
    a.run(&["config", "check", "--config", config]).fails(2, &["0640", "chmod 600"]);
    token(&a, "s3cret", 0o600);
    a.run(&["config", "check", "--config", config]).ok();
    assert!(!a.state().exists(), "a check makes nothing");
    let shown = a.run(&["config", "show", "--config", config]).ok().stdout;
    assert!(
        shown.contains("enable-upload = true") && shown.contains("/token\"") && !shown.contains("s3cret"),
        "{shown}"
    );
}
