//! What the machines have to achieve in a [`World`].

use super::*;
use crate::block::RAW;

const ONE: SessionId = SessionId(1);
const LIMIT: Duration = Duration::from_secs(60);
const GIGABIT: u64 = 125_000_000;

/// `count` blocks of `size` bytes.
pub(super) fn blocks(count: usize, size: usize) -> Vec<Block> {
    let bytes = |n: usize| {
        let mut bytes = n.to_be_bytes().repeat(size.max(8).div_ceil(8));
        bytes.truncate(size.max(8));
        bytes
    };
    (0..count).map(|n| Block::v1(RAW, bytes(n).into()).unwrap()).collect()
}

pub(super) fn cids(blocks: &[Block]) -> Vec<Cid> {
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
    assert!(world.run(LIMIT));
    assert_eq!(world.machines[0].delivered.len(), 160);
    println!("40 MiB at 100 ms and 1 Gbit/s: {:.2} s", seconds(&world));
    // The wire alone takes 0.34 s, the first round trip 0.1 s.
    assert!(seconds(&world) < 0.7, "{}", seconds(&world));
}

#[test]
fn a_slow_path_is_not_taken_for_silence() {
    let blocks = blocks(16, 256 << 10);
    for rate in [50_000, 200_000, 1_000_000] {
        let mut world = fetch(&[Conduct::Honest], &[Link::new(100, rate)], &blocks);
        assert!(world.run(Duration::from_secs(120)));
        assert_eq!((world.machines[0].delivered.len(), world.machines[0].stalls.len()), (16, 0), "{rate} B/s");
    }
}

#[test]
fn peers_share_the_work_by_their_rates() {
    let blocks = blocks(640, 64 << 10);
    let links = [Link::new(5, 100_000_000), Link::new(5, 25_000_000), Link::new(5, 1_000_000)];
    let mut world = fetch(&[Conduct::Honest; 3], &links, &blocks);
    assert!(world.run(LIMIT));
    let by = |peer| world.machines[0].delivered.values().filter(|from| **from == peer).count();
    let shares = [by(1), by(2), by(3)];
    println!("640 blocks of three peers: {shares:?} in {:.2} s", seconds(&world));
    assert!(shares[0] > 3 * shares[1] && shares[1] > 3 * shares[2], "{shares:?}");
    // The wires alone take 0.33 s.
    assert!(seconds(&world) < 1.0, "{}", seconds(&world));
    let sent: usize = world.machines[1..].iter().map(|machine| machine.bytes_out).sum();
    assert!(sent < 43 << 20, "blocks came twice: {sent} bytes for 40 MiB");
}

#[test]
fn a_silent_peer_is_passed_over_within_five_seconds() {
    let blocks = blocks(100, 100_000);
    for conduct in [Conduct::Silent(Duration::ZERO), Conduct::Silent(Duration::from_millis(15)), Conduct::Trickle] {
        for others in 0..3 {
            let mut conducts = vec![conduct];
            conducts.extend(std::iter::repeat_n(Conduct::Honest, others));
            let mut world = fetch(&conducts, &[Link::new(5, 10_000_000); 3], &blocks);
            assert!(world.run(LIMIT));
            let reader = &world.machines[0];
            assert!(others > 0 || reader.stalls == [1], "{conduct:?}");
            assert!(
                seconds(&world) < if others > 0 { 2.5 } else { 5.0 },
                "{conduct:?} and {others} others: {}",
                seconds(&world)
            );
            assert_eq!(reader.missing.is_empty(), others > 0);
        }
    }
}

#[test]
fn a_pause_is_sat_out_or_gone_round() {
    let blocks = blocks(400, 100_000);
    let pause = Event::Pause { from: 1, to: 0, time: Duration::from_secs(3) };
    let mut world = fetch(&[Conduct::Honest], &[Link::new(5, 10_000_000)], &blocks);
    world.at(Duration::from_secs(2), pause);
    assert!(world.run(LIMIT));
    assert_eq!((world.machines[0].delivered.len(), world.machines[0].stalls.len()), (400, 0));
    assert!(seconds(&world) < 4.0 + 3.0 + 1.0, "{}", seconds(&world));

    let pause = Event::Pause { from: 1, to: 0, time: Duration::from_secs(3) };
    let mut world = fetch(&[Conduct::Honest; 2], &[Link::new(5, 10_000_000); 2], &blocks);
    world.at(Duration::from_secs(1), pause);
    assert!(world.run(LIMIT));
    // 2 s on two links, and 1 s more for what the other link has to do alone.
    assert!(seconds(&world) < 2.0 + 1.0 + 0.7, "{}", seconds(&world));
}

#[test]
fn lies_cost_little() {
    let blocks = blocks(100, 100_000);
    for (conduct, limit) in [(Conduct::Liar, 2.0), (Conduct::Forger, 6.0)] {
        let conducts = [conduct, Conduct::Honest, conduct];
        let mut world = fetch(&conducts, &[Link::new(5, 10_000_000); 3], &blocks);
        assert!(world.run(LIMIT));
        assert_eq!(world.machines[0].delivered.len(), 100);
        assert!(seconds(&world) < limit, "{conduct:?}: {}", seconds(&world));
    }
}

#[test]
fn a_peer_that_connects_later_is_asked() {
    let blocks = blocks(10, 1000);
    for open in [true, false] {
        let mut world = World::new(&[Conduct::Honest, Conduct::Silent(Duration::ZERO), Conduct::Honest]);
        world.connect(0, 1, Link::new(5, 10_000_000));
        for block in &blocks {
            world.put(2, block);
        }
        world.machines[0].client.open(ONE, if open { &[] } else { &[1, 2] });
        world.want(0, ONE, cids(&blocks));
        world.at(Duration::from_secs(1), Event::Connect { one: 0, other: 2 });
        assert!(world.run(LIMIT));
        assert_eq!(world.machines[0].delivered.len(), 10, "open: {open}");
    }
}

#[test]
fn many_sessions_share_what_they_both_want() {
    let blocks = blocks(100, 100_000);
    let mut world = fetch(&[Conduct::Honest], &[Link::new(5, 10_000_000)], &blocks);
    for session in 2..10 {
        world.machines[0].client.open(SessionId(session), &[]);
        world.want(0, SessionId(session), cids(&blocks));
    }
    assert!(world.run(LIMIT));
    assert_eq!(world.machines[0].delivered.len(), 900);
    assert!(world.machines[1].bytes_out < 11_000_000, "{}", world.machines[1].bytes_out);
}

#[test]
fn a_closed_session_leaves_nothing_behind() {
    let blocks = blocks(1000, 10_000);
    let mut world = fetch(&[Conduct::Honest, Conduct::Honest], &[Link::new(50, 10_000_000); 2], &blocks);
    world.at(Duration::from_millis(300), Event::Close { at: 0, session: ONE });
    assert!(world.run(LIMIT));
    let so_far = world.machines[0].delivered.len();
    while world.step(LIMIT) {}
    let (reader, servers) = (&world.machines[0], &world.machines[1..]);
    assert!(so_far > 0 && so_far < 1000 && reader.delivered.len() == so_far, "{so_far}");
    assert_eq!((reader.client.open_requests(), reader.client.next_wake()), (0, None));
    assert!(servers.iter().all(|machine| machine.server.wants(0) == 0));
}

/// A generator of numbers that a seed decides (xorshift64*).
pub(super) struct Seeded(pub(super) u64);

impl Seeded {
    pub(super) fn below(&mut self, end: usize) -> usize {
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
    // Large blocks take most of the time.
    let size = [10, 10, 2_000, 2_000, 40_000][random.below(5)];
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

/// Runs a random world to its end: nobody waits any more, and nobody misses what an honest machine had for him.
fn comes_to_an_end(seed: u64) {
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

#[test]
fn thousands_of_random_worlds_come_to_an_end() {
    with_seeds(0..2_000, comes_to_an_end);
}
