use super::*;
use crate::nix::signature::{PublicKey, SecretKey};
use crate::nix::trust::TrustedKeys;
use crate::vectors;
use proptest::prelude::*;
use serde_json::Value;

/// A real record of cache.nixos.org, with a second signature by the key that go-nix publishes for tests.
const CURL: &str = "\
StorePath: /nix/store/syd87l2rxw8cbsxmxl853h0r6pdwhwjr-curl-7.82.0-bin
URL: nar/05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56.nar.xz
Compression: xz
FileHash: sha256:05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56
FileSize: 68852
NarHash: sha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0
NarSize: 196040
References: 0jqd0rlxzra1rs38rdxl43yh6rxchgc6-curl-7.82.0 6w8g7njm4mck5dmjxws0z1xnrxvl81xa-glibc-2.34-115 \
j5jxw3iy7bbz4a57fh9g2xm2gxmyal8h-zlib-1.2.12 yxvjs9drzsphm9pcf42a4byzj1kb9m7k-openssl-1.1.1n
Deriver: 5rwxzi7pal3qhpsyfc16gzkh939q1np6-curl-7.82.0.drv
Sig: cache.nixos.org-1:TsTTb3WGTZKphvYdBHXwo6weVILmTytUjLB+vcX89fOjjRicCHmKA4RCPMVLkj6TMJ4GMX3HPVWRdD1hkeKZBQ==
Sig: test1:519iiVLx/c4Rdt5DNt6Y2Jm6hcWE9+XY69ygiWSZCNGVcmOcyL64uVAJ3cV8vaTusIZdbTnYo9Y7vDNeTmmMBQ==
";
const CURL_HASH: &str = "syd87l2rxw8cbsxmxl853h0r6pdwhwjr";
const ROOT: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";

fn parse(asked: &str, text: &str) -> Result<NarInfo, NarInfoError> {
    NarInfo::parse(&asked.parse().unwrap(), text.as_bytes())
}

fn curl() -> NarInfo {
    parse(CURL_HASH, CURL).unwrap()
}

/// The hash part in the record's own first line.
fn asked_by(text: &str) -> &str {
    &text["StorePath: /nix/store/".len()..][..32]
}

fn secret_key() -> SecretKey {
    SecretKey::from_seed("farm-1", &[7; 32]).unwrap()
}

#[test]
fn fields_are_read() {
    let info = curl();
    assert_eq!(info.text(), CURL);
    assert_eq!(info.store_path().base_name(), "syd87l2rxw8cbsxmxl853h0r6pdwhwjr-curl-7.82.0-bin");
    assert_eq!(info.url(), "nar/05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56.nar.xz");
    assert_eq!(info.compression(), Compression::Xz);
    let file_hash = info.file_hash().unwrap().to_string();
    assert_eq!(file_hash, "sha256:05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56");
    assert_eq!(info.file_size(), Some(68852));
    assert_eq!(info.nar_hash().to_string(), "sha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0");
    assert_eq!(info.nar_size(), 196_040);
    assert_eq!(info.references().len(), 4);
    assert_eq!(info.deriver().unwrap().name(), "curl-7.82.0.drv");
    assert_eq!(info.signatures().iter().map(Signature::key).collect::<Vec<_>>(), ["cache.nixos.org-1", "test1"]);
    assert_eq!((info.ca(), info.root()), (None, None));
}

#[test]
fn real_records_survive_byte_for_byte_and_verify() {
    let Some(vectors) = vectors::json("narinfo/real.json") else { return };
    let cache_key: PublicKey = vectors["public_keys"]["cache.nixos.org-1"].as_str().unwrap().parse().unwrap();
    let keys = TrustedKeys::from_iter([cache_key]);
    for record in vectors["records"].as_array().unwrap() {
        let text = record["narinfo"].as_str().unwrap();
        let info = parse(asked_by(text), text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
        assert_eq!(info.text(), text);
        assert_eq!(info.fingerprint(), record["fingerprint"].as_str().unwrap());
        let verifies = record["verifies_with_cache_nixos_org_1"].as_bool().unwrap();
        assert_eq!(keys.check(&info).is_ok(), verifies, "{text}");
        let with_root = info.with_ipfs(Root::new(ROOT.parse().unwrap(), None).unwrap());
        assert_eq!(with_root.text(), format!("{text}IPFSHash: {ROOT}\n"));
        assert_eq!(with_root.plain(), info);
    }
}

#[test]
fn big_record_is_read() {
    let Some(bytes) = vectors::bytes("narinfo/big.narinfo") else { return };
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(parse(asked_by(&text), &text).unwrap().text(), text);
}

/// What is wrong with a vector's text: the field that its name mentions and the last line that has it.
fn fault(case: &Value, text: &str) -> Option<(usize, &'static str)> {
    let name = case["name"].as_str().unwrap();
    let lines = text.split_terminator('\n').count();
    match name {
        "missing URL" => return Some((lines + 1, "URL")),
        "leading space in field" => return Some((2, "line")),
        "NUL in value" => return Some((2, "URL")),
        "CRLF line ends" => return Some((1, "StorePath")),
        "line without colon" => return Some((lines, "line")),
        "empty body" => return Some((1, "text")),
        "HTML body" => return Some((1, "line")),
        "2 MiB narinfo" => return Some((1, "text")),
        _ => {}
    }
    let fields = ["StorePath", "URL", "NarHash", "NarSize", "References"];
    let field = fields.into_iter().find(|field| name.split([' ', ':']).any(|word| word == *field))?;
    let line = text.split('\n').zip(1..).filter(|(line, _)| key(line) == field).last()?.1;
    Some((line, field))
}

#[test]
fn hostile_records_are_refused_by_field_and_line() {
    let Some(vectors) = vectors::json("narinfo/bad.json") else { return };
    let mut read = Vec::new();
    for case in vectors["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut text = case["narinfo"].as_str().unwrap().to_owned();
        if name == "2 MiB narinfo" {
            text = format!("{}X-Large: {}\n", vectors["good"].as_str().unwrap(), "x".repeat(2 << 20));
        }
        match parse(case["asked_hash"].as_str().unwrap(), &text) {
            Ok(info) => read.push((name, info)),
            Err(error) => {
                assert_eq!(Some((error.line, error.field)), fault(case, &text), "{name}: {error}");
                let place = format!("narinfo line {}: {}: ", error.line, error.field);
                assert!(error.to_string().starts_with(&place), "{error}");
            }
        }
    }
    let test_key: PublicKey = "test1:tLAEn+EeaBUJYqEpTd2yeerr7Ic6+0vWe+aXL/vYUpE=".parse().unwrap();
    let keys = TrustedKeys::from_iter([test_key]);
    let names: Vec<&str> = read.iter().map(|(name, _)| *name).collect();
    let expected = [
        "Compression absent = bzip2",
        "no Sig",
        "Sig malformed among good",
        "unknown extra field",
        "IPFSHash of other content",
        "CA claim with unsigned body",
    ];
    assert_eq!(names, expected);
    assert_eq!(read[0].1.compression(), Compression::Bzip2);
    assert!(keys.check(&read[1].1).unwrap_err().to_string().starts_with("no trusted signature for /nix/store/syd87"));
    assert_eq!(read[2].1.signatures().len(), 1);
    assert!(!read[3].1.fingerprint().contains("Future"));
    assert_eq!(keys.check_root(&read[4].1, &["unixfs-v0-2015"]), None);
    assert!(keys.check(&read[5].1).is_err());
}

/// `CURL` with the line of `key` replaced by `line` (removed if empty).
fn altered(key: &str, line: &str) -> String {
    let replaced = |old: &str| if super::key(old) == key { line.to_owned() } else { old.to_owned() };
    CURL.split_inclusive('\n').map(replaced).collect()
}

#[test]
fn every_rule_has_its_error() {
    let other = "StorePath: /nix/store/0jqd0rlxzra1rs38rdxl43yh6rxchgc6-curl-7.82.0\n";
    let other_path = StorePath::from_base_name("0jqd0rlxzra1rs38rdxl43yh6rxchgc6-curl-7.82.0").unwrap();
    let identity = "IPFSHash: bafkqaaa\n";
    let cases = [
        (altered("StorePath", other), (1, "StorePath", Reason::OtherPath(other_path))),
        (altered("StorePath", ""), (11, "StorePath", Reason::Missing)),
        (altered("NarHash", ""), (11, "NarHash", Reason::Missing)),
        (altered("NarSize", ""), (11, "NarSize", Reason::Missing)),
        (altered("NarSize", "NarSize: +5\n"), (7, "NarSize", Reason::Number)),
        (altered("NarSize", "NarSize: 1099511627777\n"), (7, "NarSize", Reason::TooLarge(MAX_NAR_SIZE + 1))),
        (altered("FileSize", "FileSize: -\n"), (5, "FileSize", Reason::Number)),
        (altered("FileHash", "FileHash: sha256:x\n"), (4, "FileHash", Reason::Hash(NarHashError::Digest))),
        (altered("Compression", "Compression: br\n"), (3, "Compression", Reason::Compression)),
        (altered("References", "References:\n"), (8, "line", Reason::NotAField)),
        (altered("URL", "URL: \n"), (2, "URL", Reason::Url)),
        (CURL.trim_end().to_owned(), (11, "text", Reason::NoFinalNewline)),
        (format!("{CURL}\n"), (12, "line", Reason::NotAField)),
        (format!("{CURL}: x\n"), (12, "line", Reason::NotAField)),
        (format!("{CURL}X: a\rb\n"), (12, "line", Reason::ControlCharacter)),
        (format!("{CURL}{identity}"), (12, "IPFSHash", Reason::Cid(CidError::HashFunction(0)))),
        (format!("{CURL}IPFSHash: {ROOT}\nIPFSHash: {ROOT}\n"), (13, "IPFSHash", Reason::Duplicate)),
        (format!("{CURL}{}", "Sig: a:b\n".repeat(63)), (74, "Sig", Reason::TooManySignatures)),
    ];
    for (text, (line, field, reason)) in cases {
        assert_eq!(parse(CURL_HASH, &text), Err(NarInfoError { line, field, reason }), "{text}");
    }
    let not_utf8 = NarInfo::parse(&CURL_HASH.parse().unwrap(), b"A: b\nC: \xff\n");
    assert_eq!(not_utf8, Err(NarInfoError { line: 2, field: "text", reason: Reason::NotUtf8 }));
    let cbor = Root::new(Cid::new_v1(0x71, *ROOT.parse::<Cid>().unwrap().hash()), None);
    assert_eq!(cbor, Err(Reason::RootCodec(0x71)));
}

#[test]
fn lenient_where_old_caches_are() {
    let read = |text: &str| parse(CURL_HASH, text).unwrap();
    assert_eq!(read(&altered("Deriver", "Deriver: unknown-deriver\n")).deriver(), None);
    assert_eq!(read(&altered("Compression", "Compression: \n")).compression(), Compression::Bzip2);
    assert_eq!(read(&altered("References", "References: \n")).references(), []);
    assert_eq!(read(&altered("References", "")).references(), []);
    assert_eq!(read(&altered("FileHash", "")).file_hash(), None);
    assert_eq!(read(&format!("{CURL}Sig: garbage\n")).signatures().len(), 2);
    let unbound = read(&format!("{CURL}IPFSHash: {ROOT}\nIPFSSig: garbage\n"));
    assert_eq!(unbound.root().unwrap().signature(), None);
}

#[test]
fn urls_stay_in_the_cache() {
    let hash = "05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56";
    let short = CURL_HASH;
    let good = [
        format!("nar/{hash}.nar"),
        format!("nar/{hash}.nar.zst"),
        format!("nar/{short}-{hash}.nar"),
        format!("nar/{hash}.nar?hash={short}"),
        "a".repeat(MAX_URL),
    ];
    for url in good {
        assert_eq!(parse(CURL_HASH, &altered("URL", &format!("URL: {url}\n"))).unwrap().url(), url);
    }
    let mut bad: Vec<String> = "/x //h/x ../x nar/../x nar/./x nar//x nar/ http://h/x http:x file:x nar/%2e%2e/x x#y \
        x?a/../b x?y?z user@host nar\\x nar/ü"
        .split(' ')
        .map(str::to_owned)
        .collect();
    bad.extend(["nar/a b".to_owned(), "a".repeat(MAX_URL + 1)]);
    for url in bad {
        let refused = parse(CURL_HASH, &altered("URL", &format!("URL: {url}\n")));
        assert_eq!(refused, Err(NarInfoError { line: 2, field: "URL", reason: Reason::Url }), "{url}");
    }
}

#[test]
fn signatures_go_where_nix_has_them() {
    let key = secret_key();
    let mut info = parse(CURL_HASH, &format!("{CURL}CA: x\n")).unwrap();
    let signature = key.sign(&info.fingerprint());
    info.add_sig(signature.clone());
    info.add_sig(signature.clone());
    assert_eq!(info.text(), format!("{CURL}Sig: {signature}\nCA: x\n"));
    assert!(TrustedKeys::from_iter([key.public_key()]).check(&info).is_ok());

    let unsigned = altered("Sig", "");
    let root = format!("IPFSHash: {ROOT}\n");
    for (before, after) in [("", ""), ("System: i686\n", ""), ("", "CA: x\n"), ("", root.as_str())] {
        let mut info = parse(CURL_HASH, &format!("{unsigned}{before}{after}")).unwrap();
        info.add_sig(signature.clone());
        assert_eq!(info.text(), format!("{unsigned}{before}Sig: {signature}\n{after}"));
    }
}

#[test]
fn roots_are_last_and_replaced() {
    let info = curl();
    let key = secret_key();
    let cid: Cid = ROOT.parse().unwrap();
    let signature = key.sign(&ipfs_fingerprint(info.nar_hash(), info.nar_size(), &cid, "unixfs-v0-2015"));
    let bare = info.with_ipfs(Root::new(cid, None).unwrap());
    assert_eq!(bare.text(), format!("{CURL}IPFSHash: {ROOT}\n"));
    let bound = bare.with_ipfs(Root::new(cid, Some(signature.clone())).unwrap());
    assert_eq!(bound.text(), format!("{CURL}IPFSHash: {ROOT}\nIPFSSig: {signature}\n"));
    assert_eq!(bound.plain(), info);
    assert_eq!(parse(CURL_HASH, bound.text()), Ok(bound));
}

#[test]
fn root_fingerprint_is_frozen() {
    let hash: NarHash = "sha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0".parse().unwrap();
    let expected = format!("nipfs-root-1;{hash};196040;{ROOT};unixfs-v0-2015");
    assert_eq!(ipfs_fingerprint(hash, 196_040, &ROOT.parse().unwrap(), "unixfs-v0-2015"), expected);
}

#[test]
fn own_records_are_as_nix_writes_them() {
    let path = |name: &str| StorePath::from_base_name(name).unwrap();
    let mut info = PathInfo {
        path: path("k20pahypzvr49fy82cw5sx72hdfg3qcr-texlive-hyphenex-37354"),
        nar_hash: "sha256:0h1bm4sj1cnfkxgyhvgi8df1qavnnv94sd0v09wcrm971602shfg".parse().unwrap(),
        nar_size: 22552,
        references: vec![],
        deriver: None,
        signatures: vec![],
        ca: Some("fixed:r:sha1:1ak1ymbmsfx7z8kh09jzkr3a4dvkrfjw".to_owned()),
    };
    let expected = "\
StorePath: /nix/store/k20pahypzvr49fy82cw5sx72hdfg3qcr-texlive-hyphenex-37354
URL: nar/0h1bm4sj1cnfkxgyhvgi8df1qavnnv94sd0v09wcrm971602shfg.nar
Compression: none
FileHash: sha256:0h1bm4sj1cnfkxgyhvgi8df1qavnnv94sd0v09wcrm971602shfg
FileSize: 22552
NarHash: sha256:0h1bm4sj1cnfkxgyhvgi8df1qavnnv94sd0v09wcrm971602shfg
NarSize: 22552
References: \nCA: fixed:r:sha1:1ak1ymbmsfx7z8kh09jzkr3a4dvkrfjw
";
    assert_eq!(NarInfo::new(&info).unwrap().text(), expected);
    info.ca = Some("x\nURL: y".to_owned());
    let error = NarInfoError { line: 9, field: "CA", reason: Reason::ControlCharacter };
    assert_eq!(NarInfo::new(&info), Err(error));
    info.ca = None;
    info.nar_size = 0;
    assert_eq!(NarInfo::new(&info), Err(NarInfoError { line: 7, field: "NarSize", reason: Reason::Zero }));
}

prop_compose! {
    fn store_path()(hash in "[0-9a-df-np-sv-z]{32}", name in "[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,20}") -> StorePath {
        StorePath::from_base_name(&format!("{hash}-{name}")).unwrap()
    }
}

prop_compose! {
    fn path_info()(
        path in store_path(),
        nar_hash in any::<[u8; 32]>(),
        nar_size in 1..=MAX_NAR_SIZE,
        references in proptest::collection::btree_set(store_path(), 0..5),
        deriver in proptest::option::of(store_path()),
        seeds in proptest::collection::btree_set(any::<[u8; 32]>(), 0..3),
        ca in proptest::option::of("[a-z0-9:]{1,20}"),
    ) -> PathInfo {
        let sign = |seed: [u8; 32]| SecretKey::from_seed("k", &seed).unwrap().sign("");
        let signatures = seeds.into_iter().map(sign).collect();
        PathInfo { path, nar_hash: NarHash(nar_hash), nar_size, references: references.into_iter().collect(), deriver, signatures, ca }
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(facts in path_info()) {
        let info = NarInfo::new(&facts).unwrap();
        prop_assert_eq!(info.path_info(), &facts);
        prop_assert_eq!(NarInfo::parse(&facts.path.hash_part(), info.text().as_bytes()), Ok(info));
    }

    #[test]
    fn edits_keep_text_and_fields_together(facts in path_info(), rooted: bool, bound: bool) {
        let mut info = NarInfo::new(&facts).unwrap();
        let signature = secret_key().sign("");
        if rooted {
            info = info.with_ipfs(Root::new(ROOT.parse().unwrap(), bound.then(|| signature.clone())).unwrap());
        }
        info.add_sig(signature);
        prop_assert_eq!(NarInfo::parse(&facts.path.hash_part(), info.text().as_bytes()), Ok(info.clone()));
        prop_assert_eq!(NarInfo::parse(&facts.path.hash_part(), info.plain().text().as_bytes()), Ok(info.plain()));
    }

    #[test]
    fn damaged_text_is_kept_or_refused(at in 0..CURL.len(), byte: u8) {
        let mut bytes = CURL.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(info) = NarInfo::parse(&CURL_HASH.parse().unwrap(), &bytes) {
            prop_assert_eq!(info.text().as_bytes(), &bytes);
        }
    }
}
