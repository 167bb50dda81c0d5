//! An order of each reader's own, for when there is a choice of peers.
//!
//! Of many who fetch the same at the same time each soon has something that the others want, and the one source need not
//! send it to each of them. Of a wide part of the file blocks are chosen at random; no more of them are in flight than in
//! read order, and those that come long before their turn are left to the store until then.

use super::NEAR_WINDOW;
use nipfs_proto::Cid;
use nipfs_proto::block::Block;
use nipfs_proto::dag::walk::FileWalk;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

/// Of so many bytes ahead of the reader the next ones are chosen.
const WIDE_WINDOW: u64 = 128 << 20;

/// What is asked for when.
#[derive(Debug, Default)]
pub(super) struct Scatter {
    /// Its key makes the order.
    order: RandomState,
    /// Blocks that came before their turn and are in the store.
    parked: HashSet<Cid>,
}

impl Scatter {
    /// What to ask for besides what is `asked` for, so that `window` bytes are in flight; with the bytes of the file in
    /// each block and below.
    pub(super) fn choose(&self, walk: &FileWalk, asked: &HashMap<Cid, u64>, window: u64) -> Vec<(Cid, u64)> {
        let room = window.saturating_sub(asked.values().sum());
        if room == 0 {
            return Vec::new();
        }
        let is_new = |(cid, _): &(Cid, u64)| !asked.contains_key(cid) && !self.parked.contains(cid);
        let mut chosen: Vec<(Cid, u64)> = walk.upcoming(WIDE_WINDOW).filter(is_new).collect();
        chosen.sort_by_cached_key(|(cid, _)| self.order.hash_one(cid));
        let fits = chosen.iter().scan(room, |left, (_, size)| {
            let is_room = *left > 0;
            *left = left.saturating_sub(*size);
            Some(is_room)
        });
        let count = fits.take_while(|is_room| *is_room).count();
        chosen.truncate(count);
        chosen
    }

    /// Whether a block, which is in the store, is left there for now: one whose turn is far. An inner node is not, if it
    /// was `asked` for as so many bytes of the file: it says what else to ask for.
    pub(super) fn park(&mut self, walk: &FileWalk, block: &Block, asked: Option<u64>) -> bool {
        let is_inner = asked.is_some_and(|size| (block.bytes().len() as u64) < size);
        let cid = block.cid();
        let is_far =
            || walk.offset_of(cid).is_some() && walk.upcoming(NEAR_WINDOW).all(|(near, _)| near.hash() != cid.hash());
        let parks = !is_inner && is_far();
        if parks {
            self.parked.insert(*cid);
        }
        parks
    }

    /// The parked blocks whose turn is near.
    pub(super) fn unpark(&mut self, walk: &FileWalk) -> Vec<(Cid, u64)> {
        walk.upcoming(NEAR_WINDOW).filter(|(cid, _)| self.parked.remove(cid)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nipfs_proto::dag::Profile;
    use nipfs_proto::dag::build::Builder;
    use std::convert::Infallible;

    /// A walk over a file of `size` bytes whose root was fed, and the leaves in order.
    fn walk(size: usize) -> (FileWalk, Vec<Block>) {
        let bytes: Vec<u8> = (0..size / 8).flat_map(usize::to_be_bytes).collect();
        let (mut builder, mut blocks) = (Builder::new(Profile::UnixfsV0_2015), Vec::new());
        let mut put = |block| {
            blocks.push(block);
            Ok::<_, Infallible>(())
        };
        builder.write(&bytes, &mut put).unwrap();
        let root = builder.finish(&mut put).unwrap().cid;
        let mut walk = FileWalk::new(root, 0..u64::MAX).unwrap();
        walk.feed(&blocks.pop().unwrap()).unwrap();
        (walk, blocks)
    }

    #[test]
    fn each_reader_has_an_order_of_its_own_and_fills_the_window() {
        let (walk, leaves) = walk(20 << 20);
        let choose = |asked: &HashMap<Cid, u64>| Scatter::default().choose(&walk, asked, 8 << 20);
        let (one, other) = (choose(&HashMap::new()), choose(&HashMap::new()));
        assert_eq!((one.len(), other.len(), leaves.len()), (32, 32, 80));
        assert_ne!(one, other);
        let asked: HashMap<Cid, u64> = one.iter().copied().collect();
        assert!(choose(&asked).is_empty(), "the window is full");
        let asked: HashMap<Cid, u64> = one[1..].iter().copied().collect();
        assert!(matches!(choose(&asked)[..], [(cid, _)] if !asked.contains_key(&cid)));
    }

    #[test]
    fn what_comes_early_is_parked_until_its_turn_is_near() {
        let (mut walk, leaves) = walk(4 << 20);
        let mut scatter = Scatter::default();
        let asked = Some(256 << 10);
        let parked: Vec<bool> = leaves.iter().map(|leaf| scatter.park(&walk, leaf, asked)).collect();
        let near = usize::try_from(NEAR_WINDOW >> 18).unwrap();
        assert_eq!(parked, [vec![false; near], vec![true; leaves.len() - near]].concat());
        assert!(scatter.unpark(&walk).is_empty());
        for (leaf, next) in leaves.iter().zip(&leaves[near..]) {
            assert!(walk.feed(leaf).unwrap() && walk.next_bytes().is_some());
            assert_eq!(scatter.unpark(&walk), [(*next.cid(), 256 << 10)]);
        }
        assert!(!scatter.park(&walk, &leaves[0], asked), "it was read");
    }
}
