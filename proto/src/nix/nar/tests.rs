use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Strings of the wire format one after the other; `"@"` and a number is a bare length field.
fn wire(strings: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for string in strings {
        match string.strip_prefix(b"@") {
            Some(number) => {
                let number: u64 = str::from_utf8(number).expect("digits").parse().expect("a number");
                out.extend_from_slice(&number.to_le_bytes());
            }
            None => {
                out.extend_from_slice(&(string.len() as u64).to_le_bytes());
                out.extend_from_slice(string);
                out.resize(out.len().next_multiple_of(8), 0);
            }
        }
    }
    out
}

/// [`wire`] of the words of `text`, after the magic; `""` is the empty string.
fn nar(text: &str) -> Vec<u8> {
    let words = text.split(' ').map(|word| if word == "\"\"" { &b""[..] } else { word.as_bytes() });
    wire(&std::iter::once(MAGIC).chain(words).collect::<Vec<_>>())
}

/// Reads `bytes` in pieces that end at `cuts` and hands on every event.
fn read(bytes: &[u8], cuts: &[usize], mut on: impl FnMut(Event<'_>)) -> Result<(), NarError> {
    let mut reader = Reader::new();
    let mut start = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        let mut piece = &bytes[start..cut];
        while let Some(event) = reader.next_event(&mut piece)? {
            on(event);
        }
        assert!(piece.is_empty(), "the reader takes all it is given");
        start = cut;
    }
    assert_eq!(reader.offset(), bytes.len() as u64);
    reader.finish()
}

fn check(bytes: &[u8]) -> Result<(), NarError> {
    read(bytes, &[], |_| {})
}

/// What the writer makes of what the reader found in `bytes`.
fn rewrite(bytes: &[u8], cuts: &[usize]) -> Result<Vec<u8>, NarError> {
    let (mut writer, mut out) = (Writer::new(), Vec::new());
    read(bytes, cuts, |event| writer.write(&event, &mut out))?;
    Ok(out)
}

fn refused(bytes: &[u8], reason: Reason, offset: u64) {
    assert_eq!(check(bytes), Err(NarError { reason, offset }), "{}", bytes.escape_ascii());
}

#[test]
fn vectors() {
    let Some(folder) = std::env::var_os("NIPFS_VECTORS").map(|folder| PathBuf::from(folder).join("nar")) else {
        println!("skipped: NIPFS_VECTORS is not set");
        return;
    };
    let cases = std::fs::read(folder.join("cases.json")).expect("cases.json");
    let cases: serde_json::Value = serde_json::from_slice(&cases).expect("JSON");
    let cases = cases["cases"].as_array().expect("cases");
    assert!(cases.len() >= 40);
    for case in cases {
        let file = case["file"].as_str().expect("file");
        let bytes = std::fs::read(folder.join(file)).expect(file);
        let whole = rewrite(&bytes, &[]);
        println!("{file}: {:?}", whole.as_ref().err().map(ToString::to_string));
        assert_eq!(whole.is_ok(), case["valid"].as_bool().expect("valid"), "{file}");
        if let Ok(whole) = whole {
            assert_eq!(whole, bytes, "{file}");
        }
    }
}

#[test]
fn a_tree_has_the_bytes_that_nix_writes() {
    let mut writer = Writer::new();
    let mut out = Vec::new();
    for event in [
        Event::Directory { name: b"" },
        Event::File { name: b"a", executable: true, size: 5 },
        Event::Contents(b"hello"),
        Event::FileEnd,
        Event::Directory { name: b"d" },
        Event::DirectoryEnd,
        Event::Symlink { name: b"\xff", target: b"/" },
        Event::DirectoryEnd,
    ] {
        writer.write(&event, &mut out);
    }
    let entry = |name, node: &[&'static [u8]]| {
        [&[&b"entry"[..], b"(", b"name", name, b"node", b"("], node, &[b")", b")"]].concat()
    };
    let expected = [
        &[MAGIC, b"(", b"type", b"directory"][..],
        &entry(b"a", &[b"type", b"regular", b"executable", b"", b"contents", b"hello"]),
        &entry(b"d", &[b"type", b"directory"]),
        &entry(b"\xff", &[b"type", b"symlink", b"target", b"/"]),
        &[b")"],
    ];
    assert_eq!(out, wire(&expected.concat()));
}

#[test]
fn offsets_are_those_of_contents() {
    let bytes = nar("( type directory entry ( name a node ( type regular contents hello ) ) )");
    let mut reader = Reader::new();
    let mut input = bytes.as_slice();
    let mut found = None;
    while let Some(event) = reader.next_event(&mut input).expect("a NAR") {
        if matches!(event, Event::File { .. }) {
            found = Some(reader.offset());
        }
    }
    let expected = bytes.windows(5).position(|window| window == b"hello").expect("contents");
    assert_eq!(found, Some(expected as u64));
}

#[test]
fn refusals_name_the_reason_and_the_byte() {
    let tag = |expected, found: &str| Reason::Tag { expected, found: found.to_owned() };
    let name = |name: &str| Reason::Name(name.to_owned());
    refused(b"", Reason::Truncated, 0);
    refused(b"hello world, this is not a NAR at all", Reason::Magic, 0);
    refused(&wire(&[b"nix-archive-2"]), Reason::Magic, 0);
    refused(&nar("( type fifo )"), Reason::FileType("fifo".into()), 56);
    refused(&nar("["), tag("(", "["), 24);
    refused(&nar("( typo"), tag("type", "typo"), 40);
    refused(&nar("( type regular )"), tag("executable' or 'contents", ")"), 72);
    refused(&nar("( type regular type"), tag("executable' or 'contents", "type"), 72);
    refused(&nar("( type regular executable yes"), Reason::ExecutableValue, 96);
    refused(&nar("( type regular executable \"\" )"), tag("contents", ")"), 104);
    refused(&nar("( type regular contents x executable"), tag(")", "executable"), 104);
    refused(&nar("( type symlink target x contents"), tag(")", "contents"), 104);
    refused(&nar("( type symlink )"), tag("target", ")"), 72);
    refused(&nar("( type symlink target \"\" )"), Reason::Target(String::new()), 88);
    refused(&nar("( type symlink target a\0b )"), Reason::Target("a\\x00b".into()), 88);
    let entry = |rest: &str| nar(&format!("( type directory entry ( name {rest}"));
    for bad in ["..", ".", "a/b", "/x", "/"] {
        refused(&entry(bad), name(bad), 128);
    }
    refused(&entry("\"\""), name(""), 128);
    refused(&entry("a\0b"), name("a\\x00b"), 128);
    refused(&entry("a )"), tag("node", ")"), 144);
    let file = "( type regular contents x )";
    refused(&entry(&format!("a node {file} node")), tag(")", "node"), 256);
    refused(&entry(&format!("b node {file} ) entry ( name a")), Reason::Unsorted("a".into()), 320);
    refused(&entry(&format!("b node {file} ) entry ( name b")), Reason::Unsorted("b".into()), 320);
    refused(&nar("( type directory entry ( node"), tag("name", "node"), 112);
    refused(&nar("( type directory name"), tag("entry' or ')", "name"), 80);
    refused(&nar(&format!("{file} )")), Reason::Trailing, 120);
    refused(&[nar(file), vec![0]].concat(), Reason::Trailing, 120);
    let mut padded = nar(file);
    padded[101] = 1;
    refused(&padded, Reason::Padding, 101);
    let mut padded = nar(file);
    padded[37] = 0x80;
    refused(&padded, Reason::Padding, 37);
}

#[test]
fn lengths_are_bounded_before_bytes_are_awaited() {
    let too_long = |length, limit| Reason::TooLong { length, limit };
    let announce = |before: &str, length: u64| [nar(before), length.to_le_bytes().to_vec()].concat();
    let name = "( type directory entry ( name";
    for (before, limit) in [("(", MAX_TAG), (name, MAX_NAME), ("( type symlink target", MAX_TARGET)] {
        let offset = nar(before).len() as u64;
        for length in [limit as u64 + 1, 1 << 40, u64::MAX - 7, u64::MAX] {
            refused(&announce(before, length), too_long(length, limit), offset);
        }
        let allowed = announce(before, limit as u64);
        refused(&allowed, Reason::Truncated, allowed.len() as u64);
    }
    for size in [1 << 63, u64::MAX] {
        let file = announce("( type regular contents", size);
        refused(&[file, vec![b'x'; 100]].concat(), Reason::Truncated, 196);
    }
    let longest = "n".repeat(MAX_NAME);
    assert_eq!(
        check(&nar(&format!("{name} {longest} node ( type symlink target {} ) ) )", "t".repeat(MAX_TARGET)))),
        Ok(())
    );
}

const MAX_TAG: usize = 32;

#[test]
fn nesting_ends_at_the_bound_of_nix() {
    let nested = |directories: usize| {
        let open = "( type directory entry ( name d node ".repeat(directories);
        nar(&format!("{open}( type regular contents x ){}", " ) )".repeat(directories)))
    };
    assert_eq!(check(&nested(MAX_DEPTH - 1)), Ok(()));
    assert_eq!(check(&nested(MAX_DEPTH)).map_err(|error| error.reason), Err(Reason::Depth));
    assert_eq!(check(&nested(20_000)).map_err(|error| error.reason), Err(Reason::Depth));
}

#[test]
fn wide_directories_and_huge_files_pass_through() {
    let mut reader = Reader::new();
    let mut files = 0;
    let mut feed = |mut bytes: &[u8]| {
        while let Some(event) = reader.next_event(&mut bytes).expect("valid") {
            files += u32::from(event == Event::FileEnd);
        }
    };
    feed(&nar("( type directory"));
    for number in 0..1_000_000 {
        let name = format!("{number:07}");
        feed(&wire(&[b"entry", b"(", b"name", name.as_bytes(), b"node"]));
        feed(&wire(&[b"(", b"type", b"regular", b"contents", b"", b")", b")"]));
    }
    let piece = vec![0; 1 << 20];
    feed(&wire(&[b"entry", b"(", b"name", b"sparse", b"node", b"(", b"type", b"regular", b"contents", b"@8589934592"]));
    (0..8192).for_each(|_| feed(&piece));
    feed(&wire(&[b")", b")", b")"]));
    assert_eq!(files, 1_000_001);
    reader.finish().expect("complete");
}

#[test]
fn a_failed_reader_stays_failed() {
    let mut reader = Reader::new();
    let error = reader.next_event(&mut &nar("( typo")[..]).expect_err("a bad tag");
    assert_eq!(reader.next_event(&mut &nar("( type regular")[..]), Err(error.clone()));
    assert_eq!(reader.finish(), Err(error));
}

#[derive(Debug, Clone)]
enum Tree {
    File(bool, Vec<u8>),
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Self>),
}

fn trees() -> impl Strategy<Value = Tree> {
    let bytes = |length: std::ops::Range<usize>| proptest::collection::vec(any::<u8>(), length);
    let text = |length| proptest::collection::vec(any::<u8>().prop_filter("legal", |b| !matches!(b, 0 | b'/')), length);
    let name = text(1..20).prop_filter("a name", |name| name != b"." && name != b"..");
    let leaf = prop_oneof![
        (any::<bool>(), bytes(0..50)).prop_map(|(x, c)| Tree::File(x, c)),
        text(1..20).prop_map(Tree::Symlink)
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        proptest::collection::btree_map(name.clone(), inner, 0..6).prop_map(Tree::Directory)
    })
}

fn encode(tree: &Tree, name: &[u8], writer: &mut Writer, out: &mut Vec<u8>) {
    match tree {
        Tree::File(executable, contents) => {
            writer.write(&Event::File { name, executable: *executable, size: contents.len() as u64 }, out);
            writer.write(&Event::Contents(contents), out);
            writer.write(&Event::FileEnd, out);
        }
        Tree::Symlink(target) => writer.write(&Event::Symlink { name, target }, out),
        Tree::Directory(entries) => {
            writer.write(&Event::Directory { name }, out);
            for (name, entry) in entries {
                encode(entry, name, writer, out);
            }
            writer.write(&Event::DirectoryEnd, out);
        }
    }
}

proptest! {
    #[test]
    fn trees_are_read_back_however_they_are_cut(tree in trees(), cut: proptest::sample::Index) {
        let (mut writer, mut bytes) = (Writer::new(), Vec::new());
        encode(&tree, b"", &mut writer, &mut bytes);
        prop_assert_eq!(bytes.len() % 8, 0);
        prop_assert_eq!(rewrite(&bytes, &[cut.index(bytes.len())]), Ok(bytes.clone()));
        let everywhere: Vec<_> = (0..bytes.len()).collect();
        prop_assert_eq!(rewrite(&bytes, &everywhere), Ok(bytes.clone()));
        prop_assert!(check(&bytes[..cut.index(bytes.len())]).is_err(), "truncated");
    }

    #[test]
    fn a_flipped_byte_is_refused_or_another_tree(tree in trees(), at: proptest::sample::Index, flip in 1..=255u8) {
        let (mut writer, mut bytes) = (Writer::new(), Vec::new());
        encode(&tree, b"", &mut writer, &mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(rewritten) = rewrite(&bytes, &[]) {
            prop_assert_eq!(rewritten, bytes);
        }
    }
}
