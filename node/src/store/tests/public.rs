//! What an interrupted commit left to be shown or hidden.

use super::super::index::{self, Rows};
use super::super::{apply, lock};
use super::*;

#[test]
fn opening_shows_and_hides_what_a_commit_had_only_begun_to() {
    let dir = scratch();
    let mut store = small(dir.path());
    let dag = publish(&store, 1);
    let other = leaf(900, 100);
    store.lease().put(&other).unwrap();
    store.commit(Vec::new()).unwrap();
    let digests: Vec<_> = dag.iter().map(|block| block.digest().unwrap()).collect();
    for done in 0..=digests.len() {
        let index = &store.0.log.index;
        let note =
            |key, note: &[u8]| index.stage(&lock(&index.applied), Rows::from([(key, Some(note.into()))])).unwrap();
        note(index::key(index::UNSHOWN, &root(&dag).to_bytes()), &[]);
        apply::set_public(index, &digests[done..], false).unwrap();
        note(index::STALE_PUBLIC.to_vec(), &[7]);
        apply::set_public(index, &[other.digest().unwrap()], true).unwrap();
        drop(store);
        store = small(dir.path());
        assert!(digests.iter().all(|digest| store.is_public(digest).unwrap()), "{done} were shown");
        assert!(!store.is_public(&other.digest().unwrap()).unwrap());
        assert!(store.0.log.index.unshown().unwrap().is_empty());
        assert_eq!(store.0.log.index.stale_public().unwrap(), None);
    }
}

#[test]
fn what_a_lease_shows_is_public_as_long_as_the_lease_lives() {
    let dir = scratch();
    let store = small(dir.path());
    let (before, shown, other) = (leaf(1, 100), leaf(2, 100), leaf(3, 100));
    let is_public = |block: &Block| store.is_public(&block.digest().unwrap()).unwrap();
    let (lease, hidden) = (store.lease(), store.lease());
    lease.put(&before).unwrap();
    lease.show();
    lease.put(&shown).unwrap();
    hidden.put(&other).unwrap();
    assert_eq!([&before, &shown, &other].map(is_public), [false, true, false]);
    // It came again, from outside.
    lease.put(&other).unwrap();
    assert!(is_public(&other));
    drop(lease);
    assert_eq!([&before, &shown, &other].map(is_public), [false; 3]);
}
