use super::*;
use crate::announce::may_be_told;
use crate::announce::tests::published;
use crate::store::{GcOptions, NarRecord, Op, PathRecord, Store};
use nipfs_proto::block::{Digest, RAW};
use nipfs_proto::dag::codec::Node;
use nipfs_proto::dag::unixfs::{Entity, Lookup};
use nipfs_proto::nix::store_path::StorePath;
use nipfs_proto::nix::{NarHash, base32};
use std::collections::HashSet;
use tempfile::TempDir;

/// A cache in a directory of its own.
fn cache() -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, Cache::new(store))
}

/// The path of a number, whose hash part begins with `prefix`.
fn path(prefix: &str, number: u32) -> StorePath {
    let hash = base32::encode(&Digest::of(&number.to_le_bytes()).0[..20]);
    StorePath::from_base_name(&format!("{prefix}{}-path-{number}", &hash[prefix.len()..])).unwrap()
}

/// Publishes paths as one NAR, and returns its root.
fn publish(cache: &Cache, paths: &[StorePath], nar: &'static [u8]) -> Cid {
    let block = Block::v1(RAW, nar.into()).unwrap();
    let (nar_hash, nar_size) = (NarHash::of(nar), nar.len() as u64);
    let record = NarRecord { nar_hash, nar_size, roots: vec![("unknown".to_owned(), *block.cid())] };
    let lease = cache.store().lease();
    lease.put(&block).unwrap();
    let put = |path| Op::PutPath(published(path, nar_hash, 1));
    lease.commit([Op::PutNar(record)].into_iter().chain(paths.iter().map(put)).collect()).unwrap();
    *block.cid()
}

fn directory(cache: &Cache, cid: Cid) -> Block {
    let block = cache.store().block(&cid).unwrap().unwrap();
    assert!(cache.store().is_public(&block.digest().unwrap()).unwrap());
    block
}

/// Where a path's name leads, and the names of the directories on the way.
fn find(cache: &Cache, index: Cid, path: &StorePath) -> Option<(Cid, Vec<String>)> {
    let (base_name, mut at, mut way) = (path.base_name(), index, Vec::new());
    loop {
        let block = directory(cache, at);
        let Entity::Directory(here) = Entity::decode(&at, block.bytes()).unwrap() else { panic!("not a directory") };
        if let Lookup::Entry(root) = here.look_up(&format!("{base_name}.nar"), 0) {
            return Some((root, way));
        }
        let gone: usize = way.iter().map(String::len).sum();
        let next = &base_name[gone..gone + if way.is_empty() { 2 } else { 1 }];
        let Lookup::Entry(below) = here.look_up(next, 0) else { return None };
        way.push(next.to_owned());
        at = below;
    }
}

#[test]
fn every_published_path_is_in_it_and_the_same_paths_make_the_same_index() {
    let (_dir, cache) = cache();
    let paths: Vec<_> = (0..3000).map(|number| path("", number)).collect();
    let (one, two) = (publish(&cache, &paths[..2000], b"a NAR"), publish(&cache, &paths[2000..], b"another"));
    let store = cache.store();
    let secret = PathRecord { published: false, ..store.path(&paths[0].hash_part()).unwrap().unwrap() };
    let left = PathRecord {
        pinned: false,
        mirror: Some("/ip4/192.0.2.1/tcp/4001".to_owned()),
        ..store.path(&paths[1].hash_part()).unwrap().unwrap()
    };
    assert!(!may_be_told(&cache, &secret) && !may_be_told(&cache, &left));
    store.commit(vec![Op::PutPath(secret), Op::PutPath(left)]).unwrap();

    let index = Index::make(&cache).unwrap();
    for (number, path) in paths.iter().enumerate().skip(2) {
        let base_name = path.base_name();
        let root = if number < 2000 { one } else { two };
        assert_eq!(find(&cache, index.root, path), Some((root, vec![base_name[..2].to_owned()])));
    }
    assert_eq!((find(&cache, index.root, &paths[0]), find(&cache, index.root, &paths[1])), (None, None));

    let again = Index::make(&cache).unwrap();
    assert_eq!(again.root, index.root);
    drop(index);
    assert_eq!(store.gc(&GcOptions::default()).unwrap().spared_bytes, 0);
    assert!(find(&cache, again.root, &paths[2]).is_some());
    let root = again.root;
    drop(again);
    store.gc(&GcOptions::default()).unwrap();
    assert_eq!(store.block(&root).unwrap(), None);
}

#[test]
fn a_crowded_directory_is_cut_where_it_is_crowded() {
    let (_dir, cache) = cache();
    let most = u32::try_from(MAX_ENTRIES).unwrap();
    // One too many, spread over what follows the first two characters, and as many of which all but one go together.
    let spread = (0..=most).map(|number| path("aa", number));
    let close = (0..most).map(|number| path("bbccc", number)).chain([path("bb0", most)]);
    let fits = (0..most).map(|number| path("cc", number));
    let paths: Vec<_> = spread.chain(close).chain(fits).collect();
    let root = publish(&cache, &paths, b"a NAR");
    let index = Index::make(&cache).unwrap();
    for path in &paths {
        let base_name = path.base_name();
        let depth = if base_name.starts_with("cc") { 0 } else { 1 };
        let way = [base_name[..2].to_owned()].into_iter().chain(base_name[2..2 + depth].chars().map(String::from));
        assert_eq!(find(&cache, index.root, path), Some((root, way.collect())));
    }

    // Of those that go together, one more.
    publish(&cache, &[path("bbccc", most + 1)], b"a NAR");
    let index = Index::make(&cache).unwrap();
    let (_, way) = find(&cache, index.root, &path("bbccc", 0)).unwrap();
    assert!(way[..4] == ["bb", "c", "c", "c"] && way.len() == 5, "{way:?}");
    assert_eq!(find(&cache, index.root, &path("bb0", most)).unwrap().1, ["bb", "0"]);
    let mut ahead = vec![index.root];
    let mut seen = HashSet::new();
    while let Some(cid) = ahead.pop().filter(|cid| *cid != root && seen.insert(*cid)) {
        let links = Node::decode(directory(&cache, cid).bytes()).unwrap().links;
        assert!(links.len() <= MAX_ENTRIES && links.iter().all(|link| link.tsize.is_none()));
        ahead.extend(links.into_iter().map(|link| link.cid).filter(|cid| *cid != root && !seen.contains(cid)));
    }
    // The root, three, what they are cut into, and what that is.
    assert!(seen.len() > 4 + 32, "{}", seen.len());
}
