//! What holds of the source tree: its arrows, its sizes, the floors of its dependencies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// For each room of node, the rooms it may use (DESIGN, "Rooms and arrows").
const ARROWS: &[(&str, &[&str])] = &[
    ("scope", &[]),
    ("store", &[]),
    ("network", &["store", "scope"]),
    ("upstream", &["scope"]),
    ("nix", &[]),
    ("dag", &["store", "network", "upstream"]),
    ("cache", &["dag", "store"]),
    ("jobs", &["cache", "dag", "store", "network", "upstream", "nix", "node", "control"]),
    ("http", &["cache", "dag", "store", "network", "upstream", "node", "control"]),
    ("node", &["cache", "dag", "store", "network", "upstream", "nix", "control"]),
    ("control", &["cache", "dag", "store", "jobs", "node"]),
    ("announce", &["cache", "store", "network", "node", "control"]),
    ("failure", &["control", "cache", "dag", "store", "network", "upstream", "nix"]),
    ("serve", &["announce", "control", "http", "jobs", "node", "network", "upstream", "cache", "dag"]),
];

/// Crate, lowest version allowed, why (`deny.toml` says the same to `cargo deny`).
const FLOORS: &[(&str, &str)] = &[
    ("yamux", "0.13.10"),
    ("libp2p-quic", "0.13.1"),
    ("quinn-proto", "0.11.15"),
    ("h2", "0.4.16"),
    ("rustls", "0.23.18"),
    ("rustls-webpki", "0.103.13"),
    ("ring", "0.17.12"),
    ("hickory-proto", "0.26.1"),
    ("bytes", "1.11.1"),
    ("lru", "0.18.2"),
    ("snow", "0.9.5"),
    ("ed25519-dalek", "2.0.0"),
    ("curve25519-dalek", "4.1.3"),
    ("multihash", "0.11.3"),
];

/// Crates that must not come in by any way.
const BANNED: &[&str] = &["openssl-sys", "libp2p-gossipsub", "libp2p-rendezvous", "core2", "protoc-bin-vendored"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![root().join(below)];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {below}");
    found
}

#[test]
fn the_rooms_of_node_use_only_the_rooms_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in sources("node/src") {
        let below = path.strip_prefix("node/src").unwrap();
        let room = below.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if room == "lib" || path.to_string_lossy().contains("tests") {
            continue;
        }
        let may = allowed.get(room.as_str()).unwrap_or_else(|| panic!("{}: no arrows for this room", path.display()));
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (at, _) in code.match_indices("crate::") {
            let used: String = code[at + 7..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if !used.is_empty() && used != room && !may.contains(&used.as_str()) {
                wrong.push(format!("{}: {room} → {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that the design does not have:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_is_short_and_says_its_job() {
    let mut wrong = Vec::new();
    for below in ["proto/src", "node/src", "cli/src", "tests", "integration"] {
        for (path, text) in sources(below) {
            let lines = text.lines().count();
            if lines > 500 {
                wrong.push(format!("{}: {lines} lines; find the second idea in it", path.display()));
            }
            let is_test = path.to_string_lossy().contains("tests");
            if !is_test && !text.starts_with("//!") {
                wrong.push(format!("{}: no module docs", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn proto_has_no_effects() {
    for (path, text) in sources("proto/src") {
        let code = text.split("#[cfg(test)]").next().unwrap();
        if ["tests", "simulation", "vectors"].iter().any(|test| path.to_string_lossy().contains(test)) {
            continue;
        }
        for effect in ["Instant::now", "SystemTime::now", "std::fs", "std::net", "tokio::", "rand::", "std::thread"] {
            assert!(!code.contains(effect), "{} uses {effect}", path.display());
        }
    }
}

#[test]
fn dependencies_are_above_their_floors() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let mut locked = Vec::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")))?;
            Some(line.trim_end_matches('"').to_owned())
        };
        locked.push((field("name").unwrap(), field("version").unwrap()));
    }
    assert!(locked.len() > 100, "Cargo.lock was not understood");
    for (name, version) in &locked {
        assert!(!BANNED.contains(&name.as_str()), "{name} {version} must not be in Cargo.lock");
        for (_, floor) in FLOORS.iter().filter(|(floored, _)| floored == name) {
            assert!(numbers(version) >= numbers(floor), "{name} {version} is below its floor {floor}");
        }
    }
    assert!(locked.iter().any(|(name, _)| name == "yamux"), "the floors no longer name what we use");
}

fn numbers(version: &str) -> Vec<u64> {
    let plain = version.split(['-', '+']).next().unwrap();
    plain.split('.').map(|part| part.parse().unwrap()).collect()
}
