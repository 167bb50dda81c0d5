//! Stock Nix on the other side: its NARs, its caches, its database, its store.

use crate::common::{Machine, describe, make_tree};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Runs a Nix command on the machine's own store, or on the chroot store that `--store` names.
pub(crate) fn nix(home: &Path, program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(args).env("HOME", home).env("NIX_REMOTE", "local").env("XDG_CACHE_HOME", home.join("nix-cache"));
    let config = "experimental-features = nix-command\nsandbox = false\nsubstituters =\nbuild-users-group =";
    command.env("NIX_CONFIG", config).env_remove("NIX_PATH");
    command.output().unwrap_or_else(|error| panic!("{program}: {error}: run this through `make test`"))
}

#[track_caller]
pub(crate) fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Two store paths, the first referring to the second and to itself: built once a test run.
fn built() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| {
        let home = tempfile::tempdir().unwrap();
        let expression = r##"
            let
              build = name: script: derivation {
                inherit name;
                system = builtins.currentSystem;
                builder = "/bin/sh";
                args = [ "-c" script ];
                PATH = "/usr/bin:/bin";
              };
              library = build "nipfs-test-library" "mkdir -p $out/lib; echo content > $out/lib/file";
            in
            build "nipfs-test-program"
              "mkdir -p $out/bin; echo \"#! ${library} $out\" > $out/bin/run; chmod +x $out/bin/run; ln -s ${library}/lib $out/lib"
        "##;
        ok(nix(home.path(), "nix-build", &["--no-out-link", "-E", expression]))
    })
}

fn nix32(published: &serde_json::Value) -> String {
    published["narHash"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned()
}

#[test]
fn our_nar_and_store_path_are_those_of_nix() {
    let a = Machine::new();
    a.key();
    let tree = a.dir().join("odd-tree");
    make_tree(&tree, 40, 1 << 20);
    let published = a.run(&["publish", "--json", tree.to_str().unwrap()]).ok().one();
    let serving = a.serve(&[]);
    let ours = serving.get(&format!("/nar/{}.nar", nix32(&published)));
    assert_eq!(ours.status, 200);
    let dumped = nix(a.dir(), "nix-store", &["--dump", tree.to_str().unwrap()]);
    assert!(dumped.status.success());
    assert!(ours.body == dumped.stdout, "our NAR differs from Nix's");
    let store = a.dir().join("chroot");
    let added = ok(nix(a.dir(), "nix-store", &["--store", store.to_str().unwrap(), "--add", tree.to_str().unwrap()]));
    assert_eq!(published["path"], added);
}

#[test]
fn a_single_file_and_a_symlink_are_paths_too() {
    let a = Machine::new();
    a.key();
    let file = a.dir().join("one-file");
    fs::write(&file, b"just this").unwrap();
    let published = a.run(&["publish", "--json", file.to_str().unwrap()]).ok().one();
    let store = a.dir().join("chroot");
    let added = ok(nix(a.dir(), "nix-store", &["--store", store.to_str().unwrap(), "--add", file.to_str().unwrap()]));
    assert_eq!(published["path"], added);
}

#[test]
fn a_closure_goes_from_one_nix_store_into_another() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let program = built();
    let serving = a.serve(&[]);
    // As `nix build` leaves it: a symlink to the store path.
    let result = a.dir().join("result");
    std::os::unix::fs::symlink(program, &result).unwrap();
    let published = a.run(&["publish", "--json", result.to_str().unwrap()]).ok().json();
    assert_eq!(published.len(), 2, "{published:?}");
    assert_eq!(published[1]["path"], program, "dependencies come first");

    let store = c.dir().join("store");
    let (http, peer, into) = (serving.http.as_str(), serving.peer.as_str(), store.to_str().unwrap());
    let args =
        ["fetch", "--json", program, "--from", http, "--peer", peer, "--trusted-public-key", &key, "--store", into];
    let fetched = c.run(&args).ok().json();
    assert_eq!(fetched.len(), 2, "{fetched:?}");
    assert!(fetched.iter().all(|path| path["source"] == "bitswap"), "{fetched:?}");
    ok(nix(c.dir(), "nix-store", &["--store", into, "--verify", "--check-contents"]));
    let references = ok(nix(c.dir(), "nix-store", &["--store", into, "-q", "--references", program]));
    assert_eq!(references.lines().count(), 2, "{references}");
    let there = store.join(program.strip_prefix('/').unwrap());
    assert_eq!(describe(Path::new(program)), describe(&there));
}

#[test]
fn stock_nix_substitutes_from_us_over_http() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let serving = a.serve(&[]);
    let program = built();
    a.run(&["publish", program]).ok();
    let store = c.dir().join("store");
    let from = &serving.http;
    let args =
        ["copy", "--from", from, "--to", store.to_str().unwrap(), "--option", "trusted-public-keys", &key, program];
    ok(nix(c.dir(), "nix", &args));
    assert_eq!(describe(Path::new(program)), describe(&store.join(program.strip_prefix('/').unwrap())));
}

#[test]
fn stock_nix_gets_a_peers_nar_through_the_node_next_to_it() {
    let (a, c) = (Machine::new(), Machine::new());
    let key = a.key();
    let at_a = a.serve(&[]);
    let program = built();
    a.run(&["publish", program]).ok();
    let at_c = c.serve(&["--upstream", &at_a.http, "--peer", &at_a.peer, "--trusted-public-key", &key]);
    let store = c.dir().join("store");
    let to = store.to_str().unwrap();
    let args = ["copy", "--from", &at_c.http, "--to", to, "--option", "trusted-public-keys", &key, program];
    ok(nix(c.dir(), "nix", &args));
    assert_eq!(describe(Path::new(program)), describe(&store.join(program.strip_prefix('/').unwrap())));
    let status = c.run(&["status", "--json"]).ok().one();
    assert!(status["bytes"]["bitswap"].as_u64().unwrap() > 0, "{status}");
    assert_eq!(status["bytes"]["http"], 0, "{status}");
}

#[test]
fn a_cache_that_nix_wrote_gets_its_ipfs_hashes_in_place() {
    let (a, c) = (Machine::new(), Machine::new());
    let ours = a.key();
    let program = built();
    let (secret, public) = (a.dir().join("nix.secret"), a.dir().join("nix.public"));
    let (to_secret, to_public) = (secret.to_str().unwrap(), public.to_str().unwrap());
    ok(nix(a.dir(), "nix-store", &["--generate-binary-cache-key", "nix-1", to_secret, to_public]));
    let key = fs::read_to_string(&public).unwrap();
    let cache = a.dir().join("cache");
    let url = format!("file://{}?compression=none&secret-key={to_secret}", cache.display());
    ok(nix(a.dir(), "nix", &["copy", "--to", &url, program]));
    let before = narinfos(&cache);
    let published = a.run(&["publish", "--json", cache.to_str().unwrap()]).ok().json();
    assert_eq!(published.len(), 2, "{published:?}");
    let after = narinfos(&cache);
    for ((file, old), (_, new)) in before.iter().zip(&after) {
        let added = new.strip_prefix(old.as_str()).unwrap_or_else(|| panic!("{file:?} was changed, not extended"));
        assert!(added.starts_with("IPFSHash: Qm") && added.contains("\nIPFSSig: test-1:"), "{added}");
    }
    // Again: nothing to do, nothing changes.
    a.run(&["publish", cache.to_str().unwrap()]).ok();
    assert_eq!(narinfos(&cache), after);

    // C trusts Nix's key for the content; ours only says where it is.
    let serving = a.serve(&[]);
    let out = c.dir().join("out");
    fs::create_dir_all(&out).unwrap();
    let keys = ["--trusted-public-key", key.trim(), "--trusted-public-key", &ours];
    let args = ["fetch", "--json", program, "--from", &serving.http, "--peer", &serving.peer, "--out"];
    let fetched = c.run(&[&args[..], &[out.to_str().unwrap()], &keys].concat()).ok().json();
    assert!(fetched.iter().all(|path| path["source"] == "bitswap"), "{fetched:?}");
    assert_eq!(describe(Path::new(program)), describe(&out.join(Path::new(program).file_name().unwrap())));
}

#[test]
fn stock_nix_uploads_a_closure_and_another_machine_gets_it_from_a_peer() {
    let (a, b, c) = (Machine::new(), Machine::new(), Machine::new());
    let program = built();
    let (secret, public) = (a.dir().join("nix.secret"), a.dir().join("nix.public"));
    let (to_secret, to_public) = (secret.to_str().unwrap(), public.to_str().unwrap());
    ok(nix(a.dir(), "nix-store", &["--generate-binary-cache-key", "nix-1", to_secret, to_public]));
    let key = fs::read_to_string(&public).unwrap();
    let (token, netrc, wrong) = (b.dir().join("token"), a.dir().join("netrc"), a.dir().join("wrong"));
    fs::write(&token, "s3cret\n").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&netrc, "machine 127.0.0.1 login nipfs password s3cret\n").unwrap();
    fs::write(&wrong, "machine 127.0.0.1 login nipfs password guess\n").unwrap();
    let with = ["--enable-upload", "--upload-token-file", token.to_str().unwrap(), "--trusted-public-key", key.trim()];
    let at_b = b.serve(&with);

    // Each attempt has a home of its own: Nix remembers what caches have.
    let homes = a.dir().join("homes");
    let copy = |home: &str, parameters: &str, netrc: &Path| {
        let to = format!("{}?{parameters}", at_b.http);
        let home = homes.join(home);
        fs::create_dir_all(&home).unwrap();
        nix(&home, "nix", &["copy", "--to", &to, "--option", "netrc-file", netrc.to_str().unwrap(), program])
    };
    let refused = |output: Output, says: &str| {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && stderr.contains(says), "{says:?} is not in {stderr}");
    };
    let signed = format!("compression=none&secret-key={to_secret}");
    refused(copy("stranger", &signed, &wrong), "401");
    refused(copy("unsigned", "compression=none", &netrc), "it is not signed");
    refused(copy("listing", &format!("{signed}&write-nar-listing=true"), &netrc), "405");
    ok(copy("good", &signed, &netrc));
    assert_eq!(b.run(&["pin", "ls"]).ok().stdout.lines().count(), 2);
    ok(copy("again", &signed, &netrc));

    let out = c.dir().join("out");
    fs::create_dir_all(&out).unwrap();
    let args =
        ["fetch", "--json", program, "--from", &at_b.http, "--peer", &at_b.peer, "--trusted-public-key", key.trim()];
    let fetched = c.run(&[&args[..], &["--out", out.to_str().unwrap()]].concat()).ok().json();
    assert_eq!(fetched.len(), 2, "{fetched:?}");
    assert!(fetched.iter().all(|path| path["source"] == "bitswap"), "{fetched:?}");
    assert_eq!(describe(Path::new(program)), describe(&out.join(Path::new(program).file_name().unwrap())));

    // Nix's default is xz.
    b.run(&["pin", "rm", program]).ok();
    ok(copy("xz", &format!("secret-key={to_secret}"), &netrc));
    assert_eq!(b.run(&["pin", "ls"]).ok().stdout.lines().count(), 2);
    let store = c.dir().join("store");
    let to = store.to_str().unwrap();
    ok(nix(
        c.dir(),
        "nix",
        &["copy", "--from", &at_b.http, "--to", to, "--option", "trusted-public-keys", key.trim(), program],
    ));
    assert_eq!(describe(Path::new(program)), describe(&store.join(program.strip_prefix('/').unwrap())));
}

fn narinfos(cache: &Path) -> Vec<(PathBuf, String)> {
    let files = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "narinfo"));
    let mut narinfos: Vec<_> = files.map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect();
    narinfos.sort();
    assert!(!narinfos.is_empty());
    narinfos
}
