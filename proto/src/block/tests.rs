use super::*;
use crate::vectors;
use proptest::prelude::*;

#[test]
fn cid_vectors_are_taken_or_refused_as_listed() {
    let Some(set) = vectors::json("cid/cases.json") else { return };
    let cases = set["cases"].as_array().expect("a list of cases");
    assert!(cases.len() >= 43, "only {} cases", cases.len());
    for case in cases {
        let (text, why) = (case["cid"].as_str().expect("text"), &case["why"]);
        let read = parse_cid(text);
        // The set leaves sha2-512 to the implementation, as long as it is never taken unverified.
        if why.as_str().is_some_and(|why| why.starts_with("sha2-512")) {
            assert_eq!(read, Err(CidError::HashFunction(0x13)), "{text}");
            continue;
        }
        assert_eq!(read.is_ok(), case["valid"].as_bool().expect("a verdict"), "{text} ({why}): {read:?}");
        if let Some(hex) = case["hex"].as_str() {
            let bytes = vectors::from_hex(hex);
            assert_eq!(read_cid(&bytes), read, "{text} ({why})");
            assert!(read.is_err() || read.map(|cid| cid.to_bytes()) == Ok(bytes), "{text} ({why})");
        }
    }
}

#[test]
fn text_that_is_not_one_cid_is_refused() {
    let cid = Digest::of(b"x").v0_cid();
    let v1 = Digest::of(b"x").raw_cid();
    for text in [
        format!("/ipfs/{cid}"),
        format!("{cid}/"),
        format!("{v1}/a"),
        format!("{v1} "),
        format!("z{cid}"),
        "b".repeat(10_000),
        "\0\u{1}\u{55}\0\0".to_owned(),
    ] {
        assert!(parse_cid(&text).is_err(), "{text:?}");
    }
    assert_eq!(parse_cid(&cid.to_string()), Ok(cid));
    assert_eq!(parse_cid(&v1.to_string()), Ok(v1));
}

#[test]
fn a_block_needs_the_bytes_of_its_cid() {
    let cid = Digest::of(b"right").raw_cid();
    assert!(Block::verify(cid, Bytes::from_static(b"right")).is_ok());
    assert_eq!(Block::verify(cid, Bytes::from_static(b"wrong")), Err(BlockError::Mismatch(cid)));
    let identity = Cid::new_v1(RAW, Multihash::wrap(IDENTITY, b"hi").expect("short"));
    assert!(Block::verify(identity, Bytes::from_static(b"hi")).is_ok());
    assert_eq!(Block::verify(identity, Bytes::from_static(b"ho")), Err(BlockError::Mismatch(identity)));
    assert_eq!(Block::inline(&identity).map(|block| block.bytes().clone()), Some(Bytes::from_static(b"hi")));
    assert_eq!(Block::inline(&cid), None);
}

#[test]
fn a_block_is_at_most_2_mib() {
    let bytes = Bytes::from(vec![7; MAX_BLOCK + 1]);
    let largest = bytes.slice(..MAX_BLOCK);
    assert!(Block::verify(Digest::of(&largest).raw_cid(), largest.clone()).is_ok());
    assert!(Block::v0(largest).is_ok());
    let refused = Err(BlockError::TooLarge(MAX_BLOCK + 1));
    assert_eq!(Block::verify(Digest::of(&bytes).raw_cid(), bytes.clone()), refused);
    assert_eq!(Block::v1(RAW, bytes.clone()), refused);
    assert_eq!(Block::v0(bytes), refused);
}

#[test]
fn another_cid_of_the_same_bytes_is_taken_and_no_other() {
    let block = Block::v0(Bytes::from_static(b"node")).expect("small");
    let digest = Digest::of(b"node");
    let v1 = Cid::new_v1(DAG_PB, digest.multihash());
    assert_eq!(block.clone().with_cid(v1).map(|block| *block.cid()), Ok(v1));
    let other = Digest::of(b"other").v0_cid();
    assert_eq!(block.with_cid(other), Err(BlockError::Mismatch(other)));
}

proptest! {
    #[test]
    fn any_bytes_and_text_are_read_without_panic(bytes: Vec<u8>, text in "\\PC*") {
        let _ = parse_cid(&text);
        if let Ok(cid) = read_cid(&bytes) {
            prop_assert_eq!(cid.to_bytes(), bytes);
        }
    }

    #[test]
    fn cids_come_back_from_text_and_bytes(digest: [u8; 32], codec: u64, inline in proptest::collection::vec(any::<u8>(), 0..=MAX_IDENTITY)) {
        // Varints of the multiformats end at 63 bits.
        let codec = codec >> 1;
        let identity = Multihash::wrap(IDENTITY, &inline).expect("at most 128 bytes");
        for cid in [Digest(digest).v0_cid(), Cid::new_v1(codec, Digest(digest).multihash()), Cid::new_v1(codec, identity)] {
            prop_assert_eq!(parse_cid(&cid.to_string()), Ok(cid));
            prop_assert_eq!(read_cid(&cid.to_bytes()), Ok(cid));
        }
    }
}
