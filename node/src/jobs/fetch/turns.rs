//! Whose turn it is: a path comes after all it refers to, and among those that may come, whoever is ready first.

use crate::jobs::narinfos::{Waiting, dependencies_first};
use nipfs_proto::nix::store_path::StorePathHash;
use std::collections::{BTreeMap, VecDeque};

/// The turns of a closure.
#[derive(Debug)]
pub(super) struct Turns {
    paths: BTreeMap<StorePathHash, Path>,
    /// Nothing stands before these any more.
    next: VecDeque<StorePathHash>,
}

#[derive(Debug, Default)]
struct Path {
    /// How many of those it refers to are not done.
    waits_for: usize,
    /// Who refers to it.
    awaited_by: Vec<StorePathHash>,
    is_ready: bool,
}

impl Turns {
    /// The turns of all that was `found`; nothing of it is ready. And an order in which each path comes after what it
    /// refers to. Of a cycle (which Nix does not make) some path comes first.
    pub(super) fn new(found: &BTreeMap<StorePathHash, Waiting>) -> (Self, Vec<StorePathHash>) {
        let order = dependencies_first(found);
        let mut paths: BTreeMap<StorePathHash, Path> = BTreeMap::new();
        for hash in &order {
            let mut path = Path::default();
            for reference in &found[hash].references {
                // What comes later in the order is not waited for: it closes a cycle.
                if let Some(before) = paths.get_mut(reference) {
                    before.awaited_by.push(*hash);
                    path.waits_for += 1;
                }
            }
            paths.insert(*hash, path);
        }
        (Self { paths, next: VecDeque::new() }, order)
    }

    /// From now on the path waits for nothing but what it refers to.
    pub(super) fn ready(&mut self, hash: StorePathHash) {
        if let Some(path) = self.paths.get_mut(&hash) {
            path.is_ready = true;
            if path.waits_for == 0 {
                self.next.push_back(hash);
            }
        }
    }

    /// The path whose turn it is, once.
    pub(super) fn next(&mut self) -> Option<StorePathHash> {
        self.next.pop_front()
    }

    /// Nobody has to wait for the path any more.
    pub(super) fn done(&mut self, hash: &StorePathHash) {
        let Some(done) = self.paths.remove(hash) else { return };
        for waiting in done.awaited_by {
            let Some(path) = self.paths.get_mut(&waiting) else { continue };
            path.waits_for -= 1;
            if path.waits_for == 0 && path.is_ready {
                self.next.push_back(waiting);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::narinfos::Checked;
    use nipfs_proto::nix::NarHash;
    use nipfs_proto::nix::narinfo::{NarInfo, PathInfo};
    use nipfs_proto::nix::store_path::StorePath;
    use nipfs_proto::nix::trust::TrustedNarInfo;

    fn path(name: char) -> StorePath {
        StorePath::from_base_name(&format!("{}-{name}", name.to_string().repeat(32))).unwrap()
    }

    /// Paths that refer to others: `("a", "bc")`.
    fn turns(references: &[(char, &str)]) -> (Turns, Vec<StorePathHash>) {
        let checked = |(name, others): &(char, &str)| {
            let info = NarInfo::new(&PathInfo {
                path: path(*name),
                nar_hash: NarHash::of(b"a NAR"),
                nar_size: 5,
                references: others.chars().map(path).collect(),
                deriver: None,
                signatures: vec![],
                ca: None,
            });
            let trusted = TrustedNarInfo::own(info.unwrap());
            (path(*name).hash_part(), Waiting::new(Checked { trusted, profile: None, upstream: None }))
        };
        Turns::new(&references.iter().map(checked).collect())
    }

    /// Makes these ready, and lets all have their turn that can.
    fn run(turns: &mut Turns, ready: &str) -> String {
        ready.chars().for_each(|name| turns.ready(path(name).hash_part()));
        let mut run = String::new();
        while let Some(hash) = turns.next() {
            turns.done(&hash);
            run.push(hash.to_string().chars().next().unwrap());
        }
        run
    }

    #[test]
    fn what_is_ready_first_comes_first() {
        let (mut turns, _) = turns(&[('a', ""), ('b', ""), ('c', "c")]);
        assert_eq!(run(&mut turns, "c"), "c");
        assert_eq!(run(&mut turns, "ba"), "ba");
    }

    #[test]
    fn nobody_comes_before_what_he_refers_to() {
        let (mut turns, order) = turns(&[('a', "bc"), ('b', "d"), ('c', "dx"), ('d', "d")]);
        assert_eq!(order.first(), Some(&path('d').hash_part()));
        assert_eq!(order.last(), Some(&path('a').hash_part()));
        assert_eq!(run(&mut turns, "abc"), "");
        assert_eq!(run(&mut turns, "d"), "dcba");
    }

    #[test]
    fn a_cycle_stops_nobody() {
        let (mut turns, order) = turns(&[('a', "b"), ('b', "c"), ('c', "a"), ('d', "b")]);
        assert_eq!(order.len(), 4);
        assert_eq!(run(&mut turns, "abcd").len(), 4);
    }
}
