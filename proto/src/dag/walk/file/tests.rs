use super::*;
use crate::block::{CidError, DAG_PB, Digest, RAW};
use crate::dag::Profile;
use crate::dag::build::Builder;
use crate::dag::codec::{Link, Node, NodeError};
use crate::dag::profile::Layout;
use crate::dag::unixfs::{Child, inner_node};
use crate::vectors;
use cid::Version;
use multihash::Multihash;
use proptest::prelude::*;
use std::collections::HashMap;
use std::convert::Infallible;

type Blocks = HashMap<Cid, Block>;

fn build(layout: Layout, bytes: &[u8]) -> (Cid, Blocks) {
    let mut blocks = Blocks::new();
    let mut keep = |block: Block| {
        blocks.insert(*block.cid(), block);
        Ok::<(), Infallible>(())
    };
    let mut builder = Builder::with_layout(layout);
    builder.write(bytes, &mut keep).unwrap();
    let root = builder.finish(&mut keep).unwrap();
    (root.cid, blocks)
}

/// Reads as a driver does, with `window` bytes ahead, feeding the wanted block that `choose` picks of as many.
fn read(
    mut walk: FileWalk,
    blocks: &Blocks,
    window: u64,
    mut choose: impl FnMut(usize) -> usize,
) -> Result<Vec<u8>, WalkError> {
    let mut out = Vec::new();
    loop {
        while let Some(bytes) = walk.next_bytes() {
            assert!(!bytes.is_empty());
            out.extend_from_slice(&bytes);
        }
        if walk.is_done() {
            return Ok(out);
        }
        let wanted: Vec<Cid> = walk.upcoming(window).map(|(cid, _)| cid).collect();
        let cid = wanted[choose(wanted.len())];
        assert!(walk.feed(&blocks[&cid])?, "{cid} was named and not wanted");
    }
}

fn read_all(root: Cid, blocks: &Blocks) -> Result<Vec<u8>, WalkError> {
    read(FileWalk::new(root, 0..u64::MAX)?, blocks, 1 << 20, |_| 0)
}

fn raw(bytes: &[u8]) -> Block {
    Block::v1(RAW, Bytes::copy_from_slice(bytes)).expect("small")
}

fn inner(children: &[(Cid, u64)]) -> Block {
    let child = |(cid, size): &(Cid, u64)| Child { cid: *cid, size: *size, tsize: 0 };
    Block::v0(inner_node(&children.iter().map(child).collect::<Vec<_>>())).expect("small")
}

#[test]
fn hostile_files_are_refused_for_the_right_reason() {
    let bad = |name: &str, source: NodeError| (format!("unixfs/hostile/{name}.car"), source);
    let sum = || NodeError::File("filesize is not the sum of data and blocksizes");
    let counts = || NodeError::File("the number of blocksizes is not the number of links");
    let mut cases = vec![
        bad("filesize-too-big", sum()),
        bad("blocksizes-wrap", sum()),
        bad("blocksizes-more", counts()),
        bad("named-file-chunk", NodeError::File("a link has a name")),
        bad("type-missing", NodeError::File("the type is missing")),
        bad("data-absent", NodeError::File("a node without data")),
        bad("file-child-is-directory", NodeError::File("children, and not a byte in them")),
        bad("file-child-is-symlink", NodeError::NotAFile("symbolic link")),
        bad("dag-cbor-leaf", NodeError::Codec(0x71)),
        bad("md5-leaf", NodeError::Link { index: 0, source: CidError::HashFunction(0xd5) }),
    ];
    let parse = CidError::Malformed("Failed to parse multihash".to_owned());
    cases.push(bad("identity-leaf-129", NodeError::Link { index: 0, source: parse }));
    for entry in ["dotdot", "slash", "empty-name", "nul"] {
        cases.push(bad(&format!("dir-entry-{entry}"), NodeError::NotAFile("directory")));
    }
    for shard in ["fanout-1", "fanout-2147483648", "bitfield-too-long", "hash-unknown", "prefix-short", "deep-40"] {
        cases.push(bad(&format!("hamt-{shard}"), NodeError::NotAFile("sharded directory")));
    }
    for (name, expected) in cases {
        let Some((root, blocks)) = vectors::car(&name) else { return };
        match read_all(root, &blocks) {
            Err(WalkError::Node { source, .. }) => assert_eq!(source, expected, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn odd_files_are_read() {
    for name in ["raw-type-node", "tsize-zero", "tsize-huge"] {
        let Some((root, blocks)) = vectors::car(&format!("unixfs/hostile/{name}.car")) else { return };
        assert!(!read_all(root, &blocks).unwrap_or_else(|e| panic!("{name}: {e}")).is_empty());
    }
}

#[test]
fn files_of_other_implementations_are_read_whole() {
    let mut files = 0;
    for name in
        ["car/simple-unixfs", "boxo/directory-with-multilayer-hamt-and-multiblock-files", "boxo/dir-special-chars"]
    {
        let Some((_, blocks)) = vectors::car(&format!("{name}.car")) else { return };
        for (cid, block) in blocks.iter().filter(|(cid, _)| cid.codec() == DAG_PB) {
            let Ok(node) = FileNode::decode(cid, block.bytes()) else { continue };
            files += usize::from(!node.children.is_empty());
            assert_eq!(read_all(*cid, &blocks).map(|file| file.len() as u64), Ok(node.size), "{name}: {cid}");
        }
    }
    assert!(files >= 2, "only {files} files of several blocks");
}

#[test]
fn a_child_of_another_size_is_refused() {
    if let Some((root, blocks)) = vectors::car("unixfs/hostile/blocksizes-lie-short.car") {
        let Err(WalkError::Size { declared, found, .. }) = read_all(root, &blocks) else { panic!() };
        assert_eq!((declared, found), (2, 4));
    }
    if let Some((root, blocks)) = vectors::car("unixfs/hostile/filesize-u64max.car") {
        let Err(WalkError::Size { declared, found, .. }) = read_all(root, &blocks) else { panic!() };
        assert_eq!((declared, found), (u64::MAX, 4));
    }
    let leaf = raw(b"four");
    for declared in [1, 3, 5] {
        let root = inner(&[(*leaf.cid(), declared)]);
        let blocks = [&leaf, &root].map(|block| (*block.cid(), block.clone())).into();
        let refused = WalkError::Size { cid: *leaf.cid(), declared, found: 4 };
        assert_eq!(read_all(*root.cid(), &blocks), Err(refused));
    }
}

#[test]
fn a_bomb_is_read_with_little_memory() {
    let Some((root, blocks)) = vectors::car("unixfs/hostile/bomb-dup-174x8.car") else { return };
    let mut walk = FileWalk::new(root, 0..u64::MAX).unwrap();
    let mut left = 100_000;
    while left > 0 {
        while walk.next_bytes().is_some() {
            left -= 1;
        }
        let (cid, _) = walk.upcoming(1 << 20).next().expect("there is always more");
        walk.feed(&blocks[&cid]).unwrap();
        assert!(walk.open.len() <= 9 * 174, "{}", walk.open.len());
    }
}

#[test]
fn a_chain_is_followed_to_the_documented_depth() {
    let chain = |levels| {
        let mut blocks = vec![raw(b"end")];
        for _ in 0..levels {
            blocks.push(inner(&[(*blocks[blocks.len() - 1].cid(), 3)]));
        }
        let root = *blocks[blocks.len() - 1].cid();
        (root, blocks.into_iter().map(|block| (*block.cid(), block)).collect::<Blocks>())
    };
    let (root, blocks) = chain(MAX_DEPTH);
    assert_eq!(read_all(root, &blocks), Ok(b"end".to_vec()));
    let (root, blocks) = chain(MAX_DEPTH + 1);
    assert!(matches!(read_all(root, &blocks), Err(WalkError::TooDeep(_))));
    if let Some((root, blocks)) = vectors::car("unixfs/hostile/deep-chain-20000.car") {
        assert!(matches!(read_all(root, &blocks), Err(WalkError::TooDeep(_))));
    }
}

#[test]
fn open_links_have_a_bound() {
    // Full nodes below each other, each the first child of the one above.
    let mut blocks = vec![raw(b"x")];
    for _ in 0..3 {
        let (below, size) = (*blocks[blocks.len() - 1].cid(), 30_000u64.pow(u32::try_from(blocks.len() - 1).unwrap()));
        blocks.push(inner(&vec![(below, size); 30_000]));
    }
    let root = *blocks[3].cid();
    let widest = *blocks[1].cid();
    let blocks = blocks.into_iter().map(|block| (*block.cid(), block)).collect();
    assert_eq!(read_all(root, &blocks), Err(WalkError::TooWide(widest)));
}

#[test]
fn a_node_that_occurs_often_is_opened_one_place_at_a_time() {
    let last = Cid::new_v1(RAW, Multihash::wrap(0, b"!").expect("short"));
    let leaf = raw(b"x");
    let mut children = vec![(*leaf.cid(), 1); 200];
    children.push((last, 1));
    let node = inner(&children);
    let root = inner(&vec![(*node.cid(), 201); 1000]);
    let blocks = [&leaf, &node, &root].map(|block| (*block.cid(), block.clone())).into();
    let file = read_all(*root.cid(), &blocks).unwrap();
    assert_eq!(file, [&[b'x'; 200][..], b"!"].concat().repeat(1000));
}

#[test]
fn children_of_no_bytes_are_leaves() {
    let (empty, leaf) = (raw(b""), raw(b"x"));
    let children = [(*empty.cid(), 0), (*leaf.cid(), 1), (*empty.cid(), 0)];
    let root = inner(&children);
    let blocks = [&empty, &leaf, &root].map(|block| (*block.cid(), block.clone())).into();
    assert_eq!(read_all(*root.cid(), &blocks), Ok(b"x".to_vec()));

    let hollow = inner(&[(*empty.cid(), 0)]);
    let root = inner(&[(*leaf.cid(), 1), (*hollow.cid(), 0)]);
    let blocks = [&hollow, &leaf, &root].map(|block| (*block.cid(), block.clone())).into();
    let source = NodeError::File("children, and not a byte in them");
    assert_eq!(read_all(*root.cid(), &blocks), Err(WalkError::Node { cid: *hollow.cid(), source }));
}

#[test]
fn empty_files_are_done_when_the_root_is_known() {
    for profile in [Profile::UnixfsV0_2015, Profile::UnixfsV1_2025] {
        let (root, blocks) = build(profile.layout(), b"");
        let mut walk = FileWalk::new(root, 0..u64::MAX).unwrap();
        assert!(!walk.is_done());
        assert!(walk.feed(&blocks[&root]).unwrap());
        assert_eq!((walk.next_bytes(), walk.is_done(), walk.size()), (None, true, Some(0)));
    }
}

#[test]
fn the_window_limits_what_is_named() {
    let leaves: Vec<Block> = (0..10u8).map(|n| raw(&[n; 10])).collect();
    let root = inner(&leaves.iter().map(|leaf| (*leaf.cid(), 10)).collect::<Vec<_>>());
    let mut walk = FileWalk::new(*root.cid(), 0..u64::MAX).unwrap();
    assert_eq!(walk.upcoming(0).collect::<Vec<_>>(), [(*root.cid(), MAX_BLOCK as u64)]);
    assert_eq!(walk.feed(&leaves[0]), Ok(false));
    walk.feed(&root).unwrap();
    let named = |walk: &FileWalk, window| walk.upcoming(window).map(|(cid, _)| cid).collect::<Vec<_>>();
    let all: Vec<Cid> = leaves.iter().map(|leaf| *leaf.cid()).collect();
    assert_eq!(named(&walk, 0), all[..1]);
    assert_eq!(named(&walk, 10), all[..1]);
    assert_eq!(named(&walk, 11), all[..2]);
    assert_eq!(named(&walk, u64::MAX), all);
    // Fed bytes that were not read keep their place in the window.
    walk.feed(&leaves[1]).unwrap();
    assert_eq!(walk.next_bytes(), None);
    assert_eq!(named(&walk, 30), [all[0], all[2]]);
    walk.feed(&leaves[0]).unwrap();
    assert_eq!(walk.next_bytes(), Some(leaves[0].bytes().clone()));
    assert_eq!(named(&walk, 30), all[2..4]);
}

#[test]
fn a_leaf_is_fed_once_for_all_its_places() {
    let (same, other) = (raw(b"same"), raw(b"other"));
    let (s, o) = ((*same.cid(), 4), (*other.cid(), 5));
    let root = inner(&[s, s, o, s]);
    let mut walk = FileWalk::new(*root.cid(), 0..u64::MAX).unwrap();
    walk.feed(&root).unwrap();
    walk.feed(&same).unwrap();
    assert_eq!(walk.upcoming(100).collect::<Vec<_>>(), [(*other.cid(), 5)]);
    walk.feed(&other).unwrap();
    let all: Vec<u8> = std::iter::from_fn(|| walk.next_bytes()).flatten().collect();
    assert_eq!(all, b"samesameothersame");
}

#[test]
fn identity_children_are_read_out_of_their_cids() {
    let identity = |codec, bytes: &[u8]| Cid::new_v1(codec, Multihash::wrap(0, bytes).expect("short"));
    let (a, b) = (identity(RAW, b"aa"), identity(RAW, b"bbb"));
    let nested = identity(DAG_PB, inner(&[(a, 2), (b, 3)]).bytes());
    let leaf = raw(b"leaf");
    let root = inner(&[(nested, 5), (*leaf.cid(), 4), (a, 2), (nested, 5)]);
    let blocks = [&leaf, &root].map(|block| (*block.cid(), block.clone())).into();
    assert_eq!(read_all(*root.cid(), &blocks), Ok(b"aabbbleafaaaabbb".to_vec()));
    assert_eq!(read_all(nested, &Blocks::new()), Ok(b"aabbb".to_vec()));
    assert!(matches!(FileWalk::new(identity(DAG_PB, b"\xff"), 0..1), Err(WalkError::Node { .. })));
    let lies = inner(&[(a, 3)]);
    let mut walk = FileWalk::new(*lies.cid(), 0..u64::MAX).unwrap();
    assert_eq!(walk.feed(&lies), Err(WalkError::Size { cid: a, declared: 3, found: 2 }));
}

#[test]
fn own_bytes_come_before_those_of_the_children() {
    let leaf = raw(b"child");
    // type File, data "own", filesize 8, blocksizes [5]
    let data = Bytes::from_static(b"\x08\x02\x12\x03own\x18\x08\x20\x05");
    let link = Link { cid: *leaf.cid(), name: None, tsize: None };
    let root = Block::v0(Node { links: vec![link], data: Some(data) }.encode().into()).unwrap();
    let blocks = [&leaf, &root].map(|block| (*block.cid(), block.clone())).into();
    assert_eq!(read_all(*root.cid(), &blocks), Ok(b"ownchild".to_vec()));
    let walk = FileWalk::new(*root.cid(), 2..5).unwrap();
    assert_eq!(read(walk, &blocks, 100, |_| 0), Ok(b"nch".to_vec()));
    // type File, data "own", filesize 3, blocksizes [0], of which the range leaves only an empty identity child
    let data = Bytes::from_static(b"\x08\x02\x12\x03own\x18\x03\x20\x00");
    let empty = Cid::new_v1(RAW, Multihash::wrap(0, b"").expect("short"));
    let link = Link { cid: empty, name: None, tsize: None };
    let root = Block::v0(Node { links: vec![link], data: Some(data) }.encode().into()).unwrap();
    let mut walk = FileWalk::new(*root.cid(), 3..9).unwrap();
    assert_eq!((walk.feed(&root), walk.is_done()), (Ok(true), true));
}

#[test]
fn roots_that_are_no_files_are_refused_before_anybody_fetches_them() {
    let cbor = Cid::new_v1(0x71, Digest::of(b"").multihash());
    let refused = WalkError::Node { cid: cbor, source: NodeError::Codec(0x71) };
    assert_eq!(FileWalk::new(cbor, 0..1).map(|_| ()), Err(refused));
    let sha1 = Cid::new_v1(RAW, Multihash::wrap(0x11, &[7; 20]).expect("short"));
    assert!(matches!(FileWalk::new(sha1, 0..1), Err(WalkError::Root { .. })));
}

fn layouts() -> impl Strategy<Value = Layout> {
    let small = (1..40usize, 2..6usize, any::<bool>(), any::<bool>());
    let small = small.prop_map(|(chunk, max_links, raw_leaves, v1)| Layout {
        chunk,
        max_links,
        raw_leaves,
        cid_version: if v1 { Version::V1 } else { Version::V0 },
    });
    prop_oneof![
        4 => small,
        1 => Just(Profile::UnixfsV0_2015.layout()),
        1 => Just(Profile::UnixfsV1_2025.layout()),
    ]
}

/// Few distinct bytes, so that leaves and whole nodes repeat.
fn files() -> impl Strategy<Value = Vec<u8>> {
    let run = (0..3u8, 0..400usize).prop_map(|(byte, length)| vec![byte; length]);
    let repeated = proptest::collection::vec(run, 0..12).prop_map(|runs| runs.concat());
    prop_oneof![repeated, proptest::collection::vec(any::<u8>(), 0..3000)]
}

proptest! {
    #[test]
    fn what_was_built_is_read(
        layout in layouts(),
        file in files(),
        range: (prop::sample::Index, prop::sample::Index),
        beyond in 0..3u64,
        window in 1..500u64,
        choices: Vec<prop::sample::Index>,
    ) {
        let (root, blocks) = build(layout, &file);
        let (start, end) = (range.0.index(file.len() + 1), range.1.index(file.len() + 1));
        let (start, end) = (start.min(end), start.max(end));
        let walk = FileWalk::new(root, start as u64..end as u64).unwrap();
        let mut turn = 0;
        let choose = |of: usize| {
            turn += 1;
            choices.get(turn % (choices.len() + 1)).map_or(of - 1, |choice| choice.index(of))
        };
        prop_assert_eq!(read(walk, &blocks, window, choose), Ok(file[start..end].to_vec()));

        let to_beyond = FileWalk::new(root, start as u64..file.len() as u64 + beyond).unwrap();
        prop_assert_eq!(read(to_beyond, &blocks, window, |of| of - 1), Ok(file[start..].to_vec()));
    }

    #[test]
    fn a_range_asks_for_no_leaf_outside_it(file in proptest::collection::vec(any::<u8>(), 200..2000), range: (prop::sample::Index, prop::sample::Index)) {
        let layout = Layout { chunk: 10, max_links: 4, raw_leaves: true, cid_version: Version::V1 };
        let (root, blocks) = build(layout, &file);
        let (start, end) = (range.0.index(file.len()), range.1.index(file.len()));
        let (start, end) = (start.min(end), start.max(end) + 1);
        let mut fetched = 0;
        let mut walk = FileWalk::new(root, start as u64..end as u64).unwrap();
        while !walk.is_done() {
            let (cid, _) = walk.upcoming(0).next().expect("not done");
            fetched += u64::from(cid.codec() == RAW);
            walk.feed(&blocks[&cid]).unwrap();
            while walk.next_bytes().is_some() {}
        }
        prop_assert!(fetched <= (end.div_ceil(10) - start / 10) as u64);
    }
}
