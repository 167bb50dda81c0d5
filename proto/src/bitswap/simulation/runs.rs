//! What the machines have to achieve in a [`World`].

use super::*;
use crate::block::RAW;

const ONE: SessionId = SessionId(1);
const GIGABIT: u64 = 125_000_000;

/// `count` blocks of `size` bytes.
fn blocks(count: usize, size: usize) -> Vec<Block> {
    let bytes = |n: usize| n.to_be_bytes().into_iter().cycle().take(size.max(8)).collect::<Vec<u8>>();
    (0..count).map(|n| Block::v1(RAW, bytes(n).into()).unwrap()).collect()
}

fn cids(blocks: &[Block]) -> Vec<Cid> {
    blocks.iter().map(|block| *block.cid()).collect()
}

/// Machine 0 wants blocks of the others, which are connected to it by `links` and hold all of them.
fn fetch(conducts: &[Conduct], links: &[Link], blocks: &[Block]) -> World {
    let mut world = World::new(&[&[Conduct::Honest], conducts].concat());
    let peers: Vec<usize> = (1..=conducts.len()).collect();
    for (peer, link) in peers.iter().zip(links) {
        world.connect(0, *peer, *link);
        for block in blocks {
            world.put(*peer, block);
        }
    }
    world.machines[0].client.open(ONE, &peers);
    world.want(0, ONE, cids(blocks));
    world
}

fn seconds(world: &World) -> f64 {
    world.clock.as_secs_f64()
}

#[test]
fn a_long_path_is_filled() {
    let blocks = blocks(160, 256 << 10);
    let mut world = fetch(&[Conduct::Honest], &[Link::new(50, GIGABIT)], &blocks);
    assert!(world.run(Duration::from_secs(60)));
    assert_eq!(world.machines[0].delivered.len(), 160);
    println!("40 MiB at 100 ms: {:.2} s, {} messages", seconds(&world), world.machines[1].messages_out);
    assert!(seconds(&world) < 1.0, "{}", seconds(&world));
}

/// A generator of numbers that a seed decides (xorshift64*).
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % end
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn link(&mut self) -> Link {
        let latency = [0, 1, 10, 50, 150][self.below(5)];
        Link::new(latency, [1_000_000, 10_000_000, GIGABIT][self.below(3)])
    }

    fn conduct(&mut self) -> Conduct {
        match self.below(10) {
            0 => Conduct::Silent(Duration::from_millis(self.below(2000) as u64)),
            1 => Conduct::Liar,
            2 => Conduct::Forger,
            3 => Conduct::Trickle,
            _ => Conduct::Honest,
        }
    }
}

/// A random world: machines of all kinds, each block at some of them, several readers, and accidents.
fn random_world(seed: u64) -> World {
    let mut random = Seeded(seed * 2 + 1);
    let readers = 1 + random.below(3);
    let others = 1 + random.below(5);
    let conducts: Vec<Conduct> =
        (0..readers + others).map(|n| if n < readers { Conduct::Honest } else { random.conduct() }).collect();
    let mut world = World::new(&conducts);
    let size = [10, 2_000, 40_000][random.below(3)];
    let blocks = blocks(1 + random.below(150), size);
    for block in &blocks {
        for machine in readers..conducts.len() {
            if random.chance(60) {
                world.put(machine, block);
            }
        }
    }
    for reader in 0..readers {
        for other in reader + 1..conducts.len() {
            let link = random.link();
            world.connect(reader, other, link);
            if random.chance(10) {
                let time = Duration::from_millis(random.below(3000) as u64);
                world.at(time, Event::Disconnect { one: reader, other });
                world.at(time + Duration::from_millis(500), Event::Connect { one: reader, other });
            }
            if random.chance(10) {
                let time = Duration::from_millis(random.below(1000) as u64);
                world.at(time, Event::Break { at: reader, peer: other });
            }
        }
        for session in 1..=1 + random.below(3) as u64 {
            let session = SessionId(session);
            let all: Vec<usize> = (0..conducts.len()).filter(|peer| *peer != reader).collect();
            let open = random.chance(50);
            world.machines[reader].client.open(session, if open { &[] } else { &all });
            let wanted: Vec<Cid> = cids(&blocks).into_iter().filter(|_| random.chance(80)).collect();
            world.want(reader, session, wanted.iter().copied());
            if random.chance(20) {
                world.at(Duration::from_millis(random.below(500) as u64), Event::Close { at: reader, session });
            } else if let Some(cid) = wanted.first().filter(|_| random.chance(20)) {
                world.cancel(reader, session, *cid);
            }
        }
    }
    world
}

#[test]
fn random_worlds_come_to_an_end() {
    for seed in 0..300 {
        let mut world = random_world(seed);
        let held: Vec<Vec<Digest>> = world.machines.iter().map(|m| m.store.keys().copied().collect()).collect();
        let done = world.run(Duration::from_secs(600));
        let open: Vec<usize> = world.machines.iter().map(|machine| machine.client.open_requests()).collect();
        assert!(done, "seed {seed}: requests open at {:?}: {open:?}", world.clock);
        assert!(open.iter().all(|open| *open == 0), "seed {seed}: ended without being over: {open:?}");
        for (reader, machine) in world.machines.iter().enumerate() {
            for (_, cid) in &machine.missing {
                let digest = Digest::of_cid(cid).unwrap().unwrap();
                let holder = (0..held.len()).find(|other| {
                    let linked = world.links.contains_key(&(reader, *other)) && !world.cut.contains(&(reader, *other));
                    linked && world.machines[*other].conduct == Conduct::Honest && held[*other].contains(&digest)
                });
                assert_eq!(holder, None, "seed {seed}: {reader} misses {cid} at {:?}", world.clock);
            }
        }
    }
}
