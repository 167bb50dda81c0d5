use super::*;
use nipfs_proto::Cid;
use std::cell::RefCell;
use std::time::Instant;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("full")]
struct Full;

/// Gives `left` bytes in pieces of odd lengths, then fails or ends.
struct Source {
    left: usize,
    then: Option<io::ErrorKind>,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.left).min(70_001);
        buffer[..length].fill(b'n');
        self.left -= length;
        match self.then {
            Some(kind) if length == 0 => Err(kind.into()),
            _ => Ok(length),
        }
    }
}

#[test]
fn the_root_and_the_hash_are_those_of_the_stream() {
    for (size, profile) in [
        (0, Profile::UnixfsV0_2015),
        (1, Profile::UnixfsV0_2015),
        (PIECE, Profile::UnixfsV0_2015),
        (9 * PIECE + 17, Profile::UnixfsV0_2015),
        (9 * PIECE + 17, Profile::UnixfsV1_2025),
    ] {
        let whole = vec![b'n'; size];
        let mut expected = Vec::new();
        let mut builder = Builder::new(profile);
        let mut keep = |block: Block| {
            expected.push(*block.cid());
            Ok::<(), Full>(())
        };
        builder.write(&whole, &mut keep).unwrap();
        let root = builder.finish(&mut keep).unwrap();

        let blocks = RefCell::new(Vec::<Cid>::new());
        let imported = import(Source { left: size, then: None }, profile, |block| {
            blocks.borrow_mut().push(*block.cid());
            Ok::<(), Full>(())
        });
        assert_eq!(blocks.into_inner(), expected, "{size} {profile}");
        let nar_hash = Sha256::digest(&whole).into();
        assert_eq!(imported.unwrap(), Imported { root, nar_hash, size: size as u64 }, "{size} {profile}");
    }
}

#[test]
fn a_stream_that_fails_gives_no_root() {
    let broken = Source { left: 5 * PIECE, then: Some(io::ErrorKind::UnexpectedEof) };
    match import(broken, Profile::UnixfsV0_2015, |_| Ok::<(), Full>(())) {
        Err(ImportError::Read(error)) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_block_that_is_not_taken_ends_the_import() {
    for good in [0, 1, 20] {
        let mut left = good;
        let put = |_| {
            left -= 1;
            if left < 0 { Err(Full) } else { Ok(()) }
        };
        let endless = Source { left: usize::MAX, then: None };
        assert!(matches!(import(endless, Profile::UnixfsV0_2015, put), Err(ImportError::Put(Full))));
    }
}

/// Run with `--release`: prints the throughput beside its limit, the slower of two hashes on two threads.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    const SIZE: usize = 2 << 30;
    let mebibytes = |start: Instant| (SIZE >> 20) as f64 / start.elapsed().as_secs_f64();
    let piece = vec![b'n'; PIECE];
    let hash = || (0..SIZE / PIECE).fold(Sha256::new(), |hash, _| hash.chain_update(&piece));
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(hash);
        hash()
    });
    let limit = mebibytes(start);
    for profile in [Profile::UnixfsV0_2015, Profile::UnixfsV1_2025] {
        let start = Instant::now();
        import(Source { left: SIZE, then: None }, profile, |_| Ok::<(), Full>(())).unwrap();
        let import = mebibytes(start);
        println!("{profile}: {import:.0} MiB/s of {limit:.0}, {:.0} %", 100.0 * import / limit);
    }
}
