use super::*;
use crate::vectors;
use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::convert::Infallible;

#[derive(Debug, PartialEq, Eq)]
struct Built {
    root: Root,
    blocks: u64,
    bytes: u64,
}

fn build(layout: Layout, mut input: impl FnMut(&mut dyn FnMut(&[u8]))) -> Built {
    let (mut blocks, mut bytes) = (0, 0);
    let mut builder = Builder::with_layout(layout);
    let mut count = |block: Block| {
        blocks += 1;
        bytes += block.bytes().len() as u64;
        Ok::<(), Infallible>(())
    };
    input(&mut |piece| builder.write(piece, &mut count).unwrap());
    let root = builder.finish(&mut count).unwrap();
    Built { root, blocks, bytes }
}

fn build_bytes(layout: Layout, bytes: &[u8]) -> Built {
    build(layout, |write| bytes.chunks(100_003).for_each(&mut *write))
}

/// The key stream that the vectors name by a seed.
fn build_chacha(layout: Layout, seed: &str, size: u64) -> Built {
    build(layout, |write| {
        let mut cipher = ChaCha20::new(&Sha256::digest(seed), &Default::default());
        let mut left = size;
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            buffer.fill(0);
            cipher.apply_keystream(&mut buffer[..piece]);
            write(&buffer[..piece]);
            left -= piece as u64;
        }
    })
}

/// The arguments of `ipfs add` in a vector.
fn layout(args: &Value) -> Layout {
    let v1 = args["cid_version"] == 1;
    let chunk = args["chunker"].as_str().map_or(256 << 10, |name| name["size-".len()..].parse().expect("a number"));
    Layout {
        chunk,
        max_links: args["max_file_links"].as_u64().map_or(174, |links| usize::try_from(links).expect("small")),
        raw_leaves: args["raw_leaves"].as_bool().unwrap_or(v1),
        cid_version: if v1 { Version::V1 } else { Version::V0 },
    }
}

fn size_of(case: &Value) -> u64 {
    let input = &case["input"];
    input["text"].as_str().map_or_else(|| input["chacha20"]["size"].as_u64().expect("a size"), |text| text.len() as u64)
}

#[test]
fn pins_of_kubo() {
    let Some(set) = vectors::json("unixfs/add.json") else { return };
    let pins = set["pins"].as_array().expect("a list");
    assert!(pins.len() >= 21, "only {} pins", pins.len());
    for case in pins {
        let layout = layout(&case["args"]);
        let built = match case["input"]["text"].as_str() {
            Some(text) => build_bytes(layout, text.as_bytes()),
            None => build_chacha(layout, case["input"]["chacha20"]["seed"].as_str().expect("a seed"), size_of(case)),
        };
        assert_eq!(built.root.cid.to_string(), case["cid"].as_str().expect("a CID"), "{}", case["name"]);
        assert_eq!((built.root.size, built.root.tsize), (size_of(case), built.bytes), "{}", case["name"]);
    }
}

#[test]
fn grid_of_sizes() {
    let Some(set) = vectors::json("unixfs/add.json") else { return };
    let grid = set["grid"].as_array().expect("a list");
    assert!(grid.len() >= 32, "only {} cases", grid.len());
    for case in grid {
        let number = |key: &str| case[key].as_u64();
        let size = number("size").expect("a size");
        let layout = Layout {
            chunk: usize::try_from(number("chunk").expect("a chunk size")).expect("small"),
            max_links: usize::try_from(number("max_links").expect("a number of links")).expect("small"),
            ..Profile::UnixfsV0_2015.layout()
        };
        let built = match case["seed"].as_str() {
            Some(seed) => build_chacha(layout, seed, size),
            None => build(layout, |write| (0..size >> 20).for_each(|_| write(&[0; 1 << 20]))),
        };
        assert_eq!(built.root.cid.to_string(), case["cid"].as_str().expect("a CID"), "{case}");
        assert_eq!((built.root.size, Some(built.root.tsize)), (size, number("tsize")), "{case}");
        if let Some(blocks) = number("blocks") {
            assert_eq!((built.blocks, Some(built.bytes)), (blocks, number("stored_bytes")), "{case}");
        }
    }
}

#[test]
fn nars_as_kubo_adds_them() {
    let Some(set) = vectors::json("unixfs/add.json") else { return };
    let nars = set["nars"].as_array().expect("a list");
    assert!(nars.len() >= 16, "only {} NARs", nars.len());
    for case in nars {
        let file = case["file"].as_str().expect("a name");
        let Some(nar) = vectors::bytes(&format!("nar/{file}")) else { return };
        let root = build_bytes(Profile::UnixfsV0_2015.layout(), &nar).root;
        assert_eq!(root.cid.to_string(), case["cid"].as_str().expect("a CID"), "{file}");
        assert_eq!((root.size, Some(root.tsize)), (nar.len() as u64, case["tsize"].as_u64()), "{file}");
    }
}

#[test]
fn known_roots() {
    let v0 = |bytes| build_bytes(Profile::UnixfsV0_2015.layout(), bytes).root.cid.to_string();
    let v1 = |bytes| build_bytes(Profile::UnixfsV1_2025.layout(), bytes).root.cid.to_string();
    assert_eq!(v0(b"hello world"), "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD");
    assert_eq!(v0(b""), "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH");
    assert_eq!(v1(b"hello world"), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
    assert_eq!(v1(b""), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku");
}

#[test]
fn the_error_of_the_receiver_comes_through() {
    let mut builder = Builder::new(Profile::UnixfsV0_2015);
    assert_eq!(builder.write(&[1; 300_000], &mut |_| Err("full")), Err("full"));
    let builder = Builder::new(Profile::UnixfsV1_2025);
    assert_eq!(builder.finish(&mut |_| Err("full")), Err("full"));
}
