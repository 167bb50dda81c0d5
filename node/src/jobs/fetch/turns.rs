//! Whose turn it is: a path comes after all it refers to, and among those that may come, whoever is ready first.

use super::closure::{Closure, PathId};
use std::collections::VecDeque;

/// The turns of a closure.
#[derive(Debug)]
pub(super) struct Turns {
    paths: Vec<Path>,
    /// Nothing stands before these any more.
    next: VecDeque<PathId>,
}

#[derive(Debug, Default)]
struct Path {
    /// How many of those it refers to are not done.
    waits_for: u32,
    /// Who refers to it.
    awaited_by: Vec<PathId>,
    is_ready: bool,
}

impl Turns {
    /// The turns of a closure, out of which the references are taken; nothing of it is ready. And an order in which each
    /// path comes after what it refers to. Of a cycle (which Nix does not make) some path comes first.
    pub(super) fn new(closure: &mut Closure) -> (Self, Vec<PathId>) {
        let order = dependencies_first(closure);
        let mut paths: Vec<Path> = Vec::new();
        paths.resize_with(closure.len(), Path::default);
        let mut is_before = vec![false; closure.len()];
        for id in &order {
            for reference in closure.take_references(*id) {
                // What comes later in the order is not waited for: it closes a cycle.
                if is_before[reference.index()] {
                    paths[reference.index()].awaited_by.push(*id);
                    paths[id.index()].waits_for += 1;
                }
            }
            is_before[id.index()] = true;
        }
        (Self { paths, next: VecDeque::new() }, order)
    }

    /// From now on the path waits for nothing but what it refers to.
    pub(super) fn ready(&mut self, id: PathId) {
        let path = &mut self.paths[id.index()];
        path.is_ready = true;
        if path.waits_for == 0 {
            self.next.push_back(id);
        }
    }

    /// The path whose turn it is, once.
    pub(super) fn next(&mut self) -> Option<PathId> {
        self.next.pop_front()
    }

    /// Nobody has to wait for the path any more.
    pub(super) fn done(&mut self, id: PathId) {
        for waiting in std::mem::take(&mut self.paths[id.index()].awaited_by) {
            let path = &mut self.paths[waiting.index()];
            path.waits_for -= 1;
            if path.waits_for == 0 && path.is_ready {
                self.next.push_back(waiting);
            }
        }
    }
}

/// Each path after what it refers to; cycles end in some order.
fn dependencies_first(closure: &Closure) -> Vec<PathId> {
    let mut order = Vec::with_capacity(closure.len());
    let mut seen = vec![false; closure.len()];
    let mut stack = Vec::new();
    for start in (0..closure.len()).map(PathId::at) {
        stack.push((start, false));
        while let Some((id, expanded)) = stack.pop() {
            if expanded {
                order.push(id);
            } else if let Some(path) = closure.get(id)
                && !std::mem::replace(&mut seen[id.index()], true)
            {
                stack.push((id, true));
                stack.extend(path.references.iter().map(|next| (*next, false)));
            }
        }
    }
    order
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

    /// The turns of paths that refer to others: `("a", "bc")`.
    struct Run {
        names: Vec<char>,
        turns: Turns,
        order: String,
    }

    impl Run {
        fn new(references: &[(char, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut closure = Closure::new(dir.path());
            let names: Vec<_> = references.iter().map(|(name, _)| *name).collect();
            let id = |name| names.iter().position(|known| *known == name).map(PathId::at);
            for (name, others) in references {
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
                let checked = Checked { trusted, profile: None, upstream: None };
                closure.insert(id(*name).unwrap(), checked, others.chars().filter_map(id).collect()).unwrap();
            }
            let (turns, order) = Turns::new(&mut closure);
            let order = order.iter().map(|id| names[id.index()]).collect();
            Self { names, turns, order }
        }

        /// Makes these ready, and lets all have their turn that can.
        fn ready(&mut self, ready: &str) -> String {
            for name in ready.chars() {
                self.turns.ready(PathId::at(self.names.iter().position(|known| *known == name).unwrap()));
            }
            let mut run = String::new();
            while let Some(id) = self.turns.next() {
                self.turns.done(id);
                run.push(self.names[id.index()]);
            }
            run
        }
    }

    #[test]
    fn what_is_ready_first_comes_first() {
        let mut turns = Run::new(&[('a', ""), ('b', ""), ('c', "c")]);
        assert_eq!(turns.ready("c"), "c");
        assert_eq!(turns.ready("ba"), "ba");
    }

    #[test]
    fn nobody_comes_before_what_he_refers_to() {
        let mut turns = Run::new(&[('a', "bc"), ('b', "d"), ('c', "dx"), ('d', "d")]);
        assert!(turns.order.starts_with('d') && turns.order.ends_with('a'), "{}", turns.order);
        assert_eq!(turns.ready("abc"), "");
        assert_eq!(turns.ready("d"), "dcba");
    }

    #[test]
    fn a_cycle_stops_nobody() {
        let mut turns = Run::new(&[('a', "b"), ('b', "c"), ('c', "a"), ('d', "b")]);
        assert_eq!(turns.order.len(), 4);
        assert_eq!(turns.ready("abcd").len(), 4);
    }
}
