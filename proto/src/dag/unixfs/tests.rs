use super::*;
use crate::block::Digest;
use crate::vectors;

fn leaf(data: &[u8]) -> Bytes {
    leaf_node([&[0; LEAF_HEAD], data].concat())
}

fn node(data: &Data, links: Vec<Link>) -> Bytes {
    Node { links, data: Some(data.encode_to_vec().into()) }.encode().into()
}

fn link(name: Option<&str>) -> Link {
    Link { cid: Digest::of(b"child").raw_cid(), name: name.map(str::to_owned), tsize: Some(5) }
}

fn read(block: &Bytes) -> Result<FileNode, NodeError> {
    FileNode::decode(&Digest::of(block).v0_cid(), block)
}

#[test]
fn leaves_are_framed_as_the_codec_would() {
    for size in [0, 1, 127, 128, 129, 16_383, 16_384, 16_500, 262_144, 1 << 20, (2 << 20) - 40] {
        let bytes = vec![b'x'; size];
        let data = Data {
            kind: Some(DataType::File.into()),
            data: (size > 0).then(|| bytes.clone().into()),
            filesize: Some(size as u64),
            ..Data::default()
        };
        let framed = leaf(&bytes);
        assert_eq!(framed, node(&data, Vec::new()), "{size}");
        assert_eq!(read(&framed), Ok(FileNode { data: bytes.into(), children: Vec::new(), size: size as u64 }));
    }
}

#[test]
fn a_leaf_shares_the_memory_of_its_block() {
    let block = leaf(b"bytes of a file");
    let data = read(&block).unwrap().data;
    assert!(block.as_ptr_range().contains(&data.as_ptr()));
}

#[test]
fn rules_of_files() {
    let file = || Data {
        kind: Some(DataType::File.into()),
        data: Some(Bytes::from_static(b"own")),
        filesize: Some(8),
        blocksizes: vec![5],
        ..Data::default()
    };
    let good = FileNode { data: Bytes::from_static(b"own"), children: vec![(link(None).cid, 5)], size: 8 };
    assert_eq!(read(&node(&file(), vec![link(None)])), Ok(good.clone()));
    assert_eq!(read(&node(&file(), vec![link(Some(""))])), Ok(good.clone()));
    let legacy = Data { kind: Some(DataType::Raw.into()), ..file() };
    assert_eq!(read(&node(&legacy, vec![link(None)])), Ok(good));

    let named = read(&node(&file(), vec![link(Some("a"))]));
    assert_eq!(named, Err(NodeError::File("a link has a name")));
    let counts = Err(NodeError::File("the number of blocksizes is not the number of links"));
    assert_eq!(read(&node(&file(), Vec::new())), counts);
    assert_eq!(read(&node(&file(), vec![link(None), link(None)])), counts);
    let sum = Err(NodeError::File("filesize is not the sum of data and blocksizes"));
    for filesize in [None, Some(0), Some(7), Some(9), Some(u64::MAX)] {
        assert_eq!(read(&node(&Data { filesize, ..file() }, vec![link(None)])), sum, "{filesize:?}");
    }
    let wraps = Data { blocksizes: vec![u64::MAX, 6], ..file() };
    assert_eq!(read(&node(&wraps, vec![link(None), link(None)])), sum);
    let nothing = Node { links: vec![link(None)], data: None }.encode().into();
    assert_eq!(read(&nothing), Err(NodeError::File("a node without data")));
    let cbor = Link { cid: Cid::new_v1(0x71, Digest::of(b"").multihash()), ..link(None) };
    assert_eq!(read(&node(&file(), vec![cbor])), Err(NodeError::Codec(0x71)));
}

#[test]
fn other_types_are_named() {
    let of = |kind| read(&node(&Data { kind, ..Data::default() }, Vec::new()));
    for (kind, name) in [(1, "directory"), (3, "metadata node"), (4, "symbolic link"), (5, "sharded directory")] {
        assert_eq!(of(Some(kind)), Err(NodeError::NotAFile(name)));
    }
    assert_eq!(of(Some(6)), Err(NodeError::File("unknown type")));
    assert_eq!(of(None), Err(NodeError::File("the type is missing")));
    let junk = Node { links: Vec::new(), data: Some(Bytes::from_static(b"\xff")) }.encode().into();
    assert!(matches!(read(&junk), Err(NodeError::Unixfs(_))));
    assert_eq!(
        FileNode::decode(&Cid::new_v1(0x71, Digest::of(b"").multihash()), &Bytes::new()),
        Err(NodeError::Codec(0x71))
    );
}

#[test]
fn only_one_fixture_of_the_codec_is_a_file() {
    let Some(set) = vectors::json("dag-pb/cases.json") else { return };
    let fixtures = set["cases"].as_array().expect("a list").iter();
    let files = fixtures.filter(|case| {
        let bytes = Bytes::from(vectors::from_hex(case["hex"].as_str().expect("hex")));
        read(&bytes).is_ok()
    });
    let names: Vec<_> = files.map(|case| case["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["dagpb_7unnamedlinks+data"]);
}

#[test]
fn metadata_of_unixfs_1_5_is_passed_over() {
    let mut data = Data { kind: Some(DataType::File.into()), filesize: Some(0), ..Data::default() }.encode_to_vec();
    // mode 0644, mtime 1 s
    data.extend_from_slice(b"\x38\xa4\x03\x42\x02\x08\x01");
    let block = Node { links: Vec::new(), data: Some(data.into()) }.encode().into();
    assert_eq!(read(&block).map(|node| node.size), Ok(0));
}

#[test]
fn a_directory_is_sorted_and_leads_from_names_to_entries() {
    let empty = directory_node(Vec::new());
    assert_eq!(Digest::of(&empty).v0_cid().to_string(), "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn");
    let entry =
        |name: &str| Link { cid: Digest::of(name.as_bytes()).raw_cid(), name: Some(name.to_owned()), tsize: None };
    let names = ["b", "a", "ab", "B", "\u{e4}", "0"];
    let block = directory_node(names.map(entry).to_vec());
    let links = Node::decode(&block).unwrap().links;
    assert_eq!(links, ["0", "B", "a", "ab", "b", "\u{e4}"].map(entry));
    let Entity::Directory(directory) = Entity::decode(&Digest::of(&block).v0_cid(), &block).unwrap() else {
        panic!("not a directory")
    };
    for name in names {
        assert_eq!(directory.look_up(name, 0), Lookup::Entry(entry(name).cid));
    }
    assert_eq!(directory.look_up("A", 0), Lookup::Absent);
}
