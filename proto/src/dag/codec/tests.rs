use super::*;
use crate::block::{DAG_PB, Digest};
use crate::vectors;
use ipld_dagpb::PbNode;
use proptest::prelude::*;

#[test]
fn vectors_decode_or_are_refused_as_listed() {
    let Some(set) = vectors::json("dag-pb/cases.json") else { return };
    let cases = set["cases"].as_array().expect("a list");
    assert!(cases.len() >= 31, "only {} cases", cases.len());
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let bytes = Bytes::from(vectors::from_hex(case["hex"].as_str().expect("hex")));
        let cid = Cid::new_v1(DAG_PB, Digest::of(&bytes).multihash());
        assert_eq!(cid.to_string(), case["cid"].as_str().expect("a CID"), "{name}");
        let read = Node::decode(&bytes);
        assert_eq!(read.is_ok(), case["valid_dag_pb"].as_bool().expect("a verdict"), "{name}: {read:?}");
        // The two valid blocks that are not canonical; their order is kept on decoding.
        let canonical = !name.starts_with("ok: ");
        if let Ok(node) = read {
            assert_eq!(node.encode() == bytes, canonical, "{name}");
        }
    }
}

#[test]
fn errors_name_the_rule_and_the_place() {
    let cid = Digest::of(b"x").v0_cid().to_bytes();
    let with = |before: &[u8], after: &[u8]| Bytes::from([before, &cid, after].concat());
    let cases: &[(Bytes, usize, &str)] = &[
        (Bytes::from_static(b"\x0a\x01a\x0a\x01b"), 4, "data twice"),
        (Bytes::from_static(b"\x18\x01"), 1, "unknown field of a node"),
        (Bytes::from_static(b"\x0a\x02a"), 2, "length beyond the end"),
        (Bytes::from_static(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 11, "length beyond the end"),
        (Bytes::from_static(b"\x0a"), 1, "unexpected end"),
        (Bytes::from_static(b"\x0a\x80"), 2, "unexpected end"),
        (Bytes::from_static(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), 10, "number over 64 bits"),
        (Bytes::from_static(b"\x12\x00"), 2, "link without a hash"),
        (with(b"\x12\x26\x0a\x22", b"\x18"), 2, "length beyond the end"),
        (with(b"\x12\x25\x0a\x22", b"\x18"), 39, "unexpected end"),
        (with(b"\x12\x27\x0a\x22", b"\x12\x01\xff"), 41, "link name that is not UTF-8"),
        (with(b"\x12\x26\x0a\x22", b"\x20\x01"), 39, "unknown field of a link"),
        (with(b"\x12\x28\x0a\x22", b"\x18\x01\x18\x01"), 41, "link field twice or out of order"),
    ];
    for (bytes, offset, why) in cases {
        assert_eq!(Node::decode(bytes), Err(NodeError::Malformed { offset: *offset, why }), "{bytes:?}");
    }
    let sha1 = [&b"\x12\x1a\x0a\x18\x01\x55\x11\x14"[..], &[7; 20]].concat();
    let refused = NodeError::Link { index: 0, source: CidError::HashFunction(0x11) };
    assert_eq!(Node::decode(&sha1.into()), Err(refused));
}

#[test]
fn links_are_sorted_by_name_and_keep_their_order_otherwise() {
    let link = |name: Option<&str>, tsize| Link {
        cid: Digest::of(b"x").raw_cid(),
        name: name.map(str::to_owned),
        tsize: Some(tsize),
    };
    let node =
        Node { links: vec![link(Some("b"), 1), link(Some(""), 2), link(Some("a"), 3), link(None, 4)], data: None };
    let sorted = Node::decode(&node.encode().into()).unwrap();
    assert_eq!(sorted.links.iter().map(|link| link.tsize.unwrap()).collect::<Vec<_>>(), [2, 4, 3, 1]);
}

fn cids() -> impl Strategy<Value = Cid> {
    let inline = |bytes: Vec<u8>| Cid::new_v1(DAG_PB, multihash::Multihash::wrap(0, &bytes).expect("short"));
    prop_oneof![
        any::<[u8; 32]>().prop_map(|digest| Digest(digest).v0_cid()),
        any::<[u8; 32]>().prop_map(|digest| Digest(digest).raw_cid()),
        proptest::collection::vec(any::<u8>(), 0..=64).prop_map(inline),
    ]
}

fn nodes() -> impl Strategy<Value = Node> {
    let name = proptest::option::of("[a-z]{0,3}|\\PC{0,200}");
    let link = (cids(), name, any::<Option<u64>>()).prop_map(|(cid, name, tsize)| Link { cid, name, tsize });
    let data = any::<Option<Vec<u8>>>().prop_map(|data| data.map(Bytes::from));
    (proptest::collection::vec(link, 0..6), data).prop_map(|(links, data)| Node { links, data })
}

/// What ipld-dagpb reads in a block.
fn oracle(bytes: &Bytes) -> Node {
    let PbNode { links, data } = PbNode::from_bytes(bytes.clone()).expect("ipld-dagpb is more lenient");
    let cid = |bytes: Vec<u8>| Cid::try_from(bytes).expect("a CID");
    let links = links.into_iter().map(|link| Link { cid: cid(link.cid.to_bytes()), name: link.name, tsize: link.size });
    Node { links: links.collect(), data }
}

proptest! {
    #[test]
    fn nodes_come_back(mut node in nodes()) {
        let bytes = Bytes::from(node.encode());
        node.links.sort_by_key(|link| link.name.clone().unwrap_or_default());
        prop_assert_eq!(Node::decode(&bytes), Ok(node.clone()));
        prop_assert_eq!(&oracle(&bytes), &node);
        let encoded_there = PbNode::from_bytes(bytes.clone()).expect("read above").into_bytes();
        prop_assert_eq!(encoded_there, bytes);
    }

    #[test]
    fn damaged_nodes_are_refused_or_read_alike(node in nodes(), at: prop::sample::Index, byte: u8) {
        let mut bytes = node.encode();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let bytes = Bytes::from(bytes);
        if let Ok(read) = Node::decode(&bytes) {
            prop_assert_eq!(read, oracle(&bytes));
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        let _ = Node::decode(&bytes.into());
    }
}
