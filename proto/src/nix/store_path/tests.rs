use super::*;
use proptest::prelude::*;

fn path(text: &str) -> StorePath {
    StorePath::parse(text).expect("a store path")
}

/// The path that follows from a `CA:` field and all references of `path`, itself among them or not.
fn from_ca(ca: &str, path: &StorePath, references: &[StorePath]) -> Option<StorePath> {
    let others: Vec<_> = references.iter().filter(|reference| *reference != path).cloned().collect();
    ContentAddress::parse(ca)?.store_path(path.name(), &others, references.contains(path))
}

/// Facts of Nix 2.8: what `nix-store --add`, `nix-store --add-fixed sha256`, `builtins.toFile` and
/// `nix store make-content-addressed` registered.
#[test]
fn content_addresses_that_nix_registered() {
    let aaa = "/nix/store/n6q7rfdp7lhyhzc42ns4dv7k5vnpl7ch-aaa.txt";
    let plain = "/nix/store/v1i4dxgs94whbh07mjmpy4wlm46kikp6-plain.txt";
    let dep = "/nix/store/k0bq3s4hdvxal217l04jr24n8jm5l29g-dep";
    let top = "/nix/store/i5ggv3b4ab527zy9djm9331kcbgl60rg-top";
    let cases: [(&str, &str, &[&str]); 6] = [
        (
            "/nix/store/g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree",
            "fixed:r:sha256:0vsz0m83v7v64k4s20qh9akvdd6idgay1zmk6ljp522b3aa6pdjr",
            &[],
        ),
        (
            "/nix/store/1gp0v1h1g4yi9xpwf40sh9dfji9mxmnk-other-name",
            "fixed:r:sha256:0vsz0m83v7v64k4s20qh9akvdd6idgay1zmk6ljp522b3aa6pdjr",
            &[],
        ),
        (
            "/nix/store/gy454w1cxaq731grqwylhzf4pp9r5izh-hello.txt",
            "fixed:sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq",
            &[],
        ),
        (dep, "fixed:r:sha256:00kjynz8n03652qccs76ivsvark3pr3dfr6w1ba3x7bx83kcknvv", &[]),
        (top, "fixed:r:sha256:0hipnhcqmadl8jdfivjp7azszi88kbv45f9wkldamgd6wg7z3jjp", &[dep, top]),
        (
            "/nix/store/8bw50pafigd3ql4hzd9xirjxs123qnyn-with-refs",
            "text:sha256:00cdmfdplwhl9aa053jziibgbvycswkd03l532bx4ld5zlm32wik",
            // In the wrong order: they are sorted before they are hashed.
            &[plain, aaa],
        ),
    ];
    for (claimed, ca, references) in cases {
        let references: Vec<_> = references.iter().map(|reference| path(reference)).collect();
        assert_eq!(from_ca(ca, &path(claimed), &references), Some(path(claimed)));
        let other = path(&format!("/nix/store/00000000000000000000000000000000-{}", path(claimed).name()));
        assert_ne!(from_ca(ca, &other, &references), Some(other));
    }
}

#[test]
fn add_path_is_what_nix_store_add_makes() {
    let nar_hash = base32::decode("0vsz0m83v7v64k4s20qh9akvdd6idgay1zmk6ljp522b3aa6pdjr").expect("base 32");
    let added = add_path("tree", &nar_hash).expect("a name");
    assert_eq!(added.to_absolute_path(), "/nix/store/g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree");
    assert_eq!(add_path("a b", &nar_hash), Err(StorePathError::Name("a b".to_owned())));
}

#[test]
fn only_the_hash_of_the_nar_itself_proves_its_bytes() {
    let tree = path("/nix/store/g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree");
    let hash = base32::decode("0vsz0m83v7v64k4s20qh9akvdd6idgay1zmk6ljp522b3aa6pdjr").expect("base 32");
    assert!(ContentAddress::Recursive(hash).proves(&tree, &[], &hash));
    assert!(!ContentAddress::Recursive(hash).proves(&tree, &[], &[0; 32]), "other bytes");
    assert!(
        !ContentAddress::Recursive(hash).proves(&tree, std::slice::from_ref(&tree), &hash),
        "a reference to itself"
    );
    let other = path("/nix/store/1gp0v1h1g4yi9xpwf40sh9dfji9mxmnk-tree");
    assert!(!ContentAddress::Recursive(hash).proves(&other, &[], &hash), "another path");
    let text = ContentAddress::Text(hash);
    let of_text = text.store_path("tree", &[], false).expect("a path");
    assert!(!text.proves(&of_text, &[], &hash), "the hash of a file is not the hash of its NAR");
}

#[test]
fn methods_that_allow_no_references_have_no_path_with_them() {
    let reference = [path("/nix/store/k0bq3s4hdvxal217l04jr24n8jm5l29g-dep")];
    assert_eq!(ContentAddress::Flat([0; 32]).store_path("a", &reference, false), None);
    assert_eq!(ContentAddress::Flat([0; 32]).store_path("a", &[], true), None);
    assert_eq!(ContentAddress::Text([0; 32]).store_path("a", &[], true), None);
}

#[test]
fn unknown_content_addresses_are_none() {
    let hash = base32::encode(&[7; 32]);
    assert_eq!(ContentAddress::parse(&format!("text:sha256:{hash}")), Some(ContentAddress::Text([7; 32])));
    for field in ["", "text", "text:sha256:", "text:sha256:00", "fixed:r:sha1:x", "fixed:git:sha256:", "text:r:sha256:"]
    {
        assert_eq!(ContentAddress::parse(field), None, "{field}");
        assert_eq!(ContentAddress::parse(&format!("{field}{hash}x")), None, "{field}");
    }
}

#[test]
fn names() {
    let longest = "n".repeat(MAX_NAME);
    // `nix store add-path --name` of Nix 2.8 takes all of these.
    for name in ["a", "hello-2.10", ".hidden", "..x", "...", "b=?+._-Z", "-", "--", longest.as_str()] {
        let base_name = format!("g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-{name}");
        let parsed = StorePath::from_base_name(&base_name).expect(name);
        assert_eq!((parsed.name(), parsed.base_name()), (name, base_name));
    }
    let too_long = "n".repeat(MAX_NAME + 1);
    for name in ["", ".", "..", ".-x", "..-x", "a b", "a/b", "a\0", "a\n", "a:b", "é", too_long.as_str()] {
        let refused = StorePath::from_base_name(&format!("g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-{name}"));
        assert_eq!(refused, Err(StorePathError::Name(name.to_owned())));
    }
}

#[test]
fn refusals() {
    let hash = |text: &str| Err(StorePathError::Hash(text.to_owned()));
    for text in [
        "",
        "aaa",
        "g0q2bxbwj4m7lafm8r9rj4qkw27r7m51",
        "g0q2bxbwj4m7lafm8r9rj4qkw27r7m51.tree",
        "g0q2bxbwj4m7lafm8r9rj4qkw27r7m511-tree",
        "G0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree",
        "e0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree",
        "g0q2bxbwj4m7lafm8r9rj4qkw27r7mé-tree",
        "ééééééééééééééé-tree",
    ] {
        assert_eq!(StorePath::from_base_name(text), hash(text));
    }
    for text in [
        "",
        "/",
        "/nix/store",
        "/nix/storeg0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree",
        "g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree",
        "/gnu/store/g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree",
        "//nix/store/g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree",
        "/nix/store//g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree",
        "/nix/store/g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree/",
        "/nix/store/g0q2bxbwj4m7lafm8r9rj4qkw27r7m51-tree/bin",
        "/nix/store/../../etc/x-y",
    ] {
        assert_eq!(StorePath::parse(text), Err(StorePathError::NotInStore(text.to_owned())));
    }
    assert!("g0q2bxbwj4m7lafm8r9rj4qkw27r7m5".parse::<StorePathHash>().is_err());
}

proptest! {
    #[test]
    fn a_path_that_parses_is_written_back(hash in "[0-9abcdfghijklmnpqrsvwxyz]{32}", name in "[0-9a-zA-Z+._?=-]{1,40}") {
        let text = format!("{STORE_DIR}/{hash}-{name}");
        if let Ok(parsed) = StorePath::parse(&text) {
            prop_assert_eq!(parsed.to_absolute_path(), text);
            prop_assert_eq!(parsed.hash_part().to_string(), hash);
        }
    }

    #[test]
    fn paths_sort_as_their_base_names(a in "[0-9ab]{32}-[a-z-]{1,4}", b in "[0-9ab]{32}-[a-z-]{1,4}") {
        let (x, y) = (StorePath::from_base_name(&a), StorePath::from_base_name(&b));
        prop_assert_eq!(x.ok().cmp(&y.ok()), Some(a).cmp(&Some(b)));
    }

    #[test]
    fn no_text_panics(text in ".{0,60}") {
        let _ = (StorePath::parse(&text), StorePath::from_base_name(&text), ContentAddress::parse(&text));
    }
}
