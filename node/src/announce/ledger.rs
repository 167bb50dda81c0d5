//! When each root was last announced, in a file that survives restarts: `STATE/announced`, a line a root, seconds since
//! 1970 and the CID. It is derived: without it everything is announced once more.

use nipfs_proto::Cid;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// After so many seconds a root is told again. Servers of the DHT forget after 24 h at the earliest, and 22 h is what
/// IPFS nodes keep to; the rest is for rounds that fail.
const AGAIN: u64 = 20 * 3600;
/// Longest file that is read: twice what the largest number of roots takes.
const MAX_FILE: u64 = 2 << 20;

/// Whether what was told `then` is to be told again. What was told in the future, by a clock that was wrong, is too.
pub(super) fn is_due(then: u64, now: u64) -> bool {
    now < then || now - then >= AGAIN
}

/// The ledger.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    told: HashMap<Cid, u64>,
    saved: bool,
}

impl Ledger {
    /// Reads the ledger of a state directory. Lines that cannot be read are left out.
    pub(super) fn load(state: &Path) -> Self {
        let path = state.join("announced");
        let mut text = Vec::new();
        if let Ok(file) = File::open(&path) {
            // What cannot be read is announced again.
            _ = file.take(MAX_FILE).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let line = |line: &str| {
            let (at, cid) = line.split_once(' ')?;
            Some((cid.parse().ok()?, at.parse().ok()?))
        };
        Self { told: text.lines().filter_map(line).collect(), path, saved: true }
    }

    /// How many roots were told.
    pub(super) fn len(&self) -> usize {
        self.told.len()
    }

    /// Forgets all other roots.
    pub(super) fn keep_only(&mut self, roots: &[Cid]) {
        let roots: HashSet<&Cid> = roots.iter().collect();
        let before = self.told.len();
        self.told.retain(|root, _| roots.contains(root));
        self.saved &= self.told.len() == before;
    }

    /// Those of `roots` that are to be told now: first those that never were, in their order, then the longest ago.
    pub(super) fn due(&self, roots: &[Cid], now: u64) -> Vec<Cid> {
        let at = |root: &Cid| self.told.get(root).copied();
        let mut due: Vec<Cid> =
            roots.iter().copied().filter(|root| at(root).is_none_or(|at| is_due(at, now))).collect();
        due.sort_by_key(at);
        due
    }

    pub(super) fn told(&mut self, root: Cid, now: u64) {
        self.told.insert(root, now);
        self.saved = false;
    }

    /// Writes the ledger, if it changed: whole or not at all.
    pub(super) fn save(&mut self) -> io::Result<()> {
        if self.saved {
            return Ok(());
        }
        let mut text = String::new();
        for (root, at) in &self.told {
            // A string takes everything.
            _ = writeln!(text, "{at} {root}");
        }
        let draft = self.path.with_extension("new");
        let mut file = File::create(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        self.saved = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nipfs_proto::block::{Block, RAW};

    fn roots(count: u8) -> Vec<Cid> {
        (0..count).map(|number| *Block::v1(RAW, vec![number].into()).unwrap().cid()).collect()
    }

    #[test]
    fn the_untold_come_first_and_the_told_again_in_time() {
        let state = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::load(state.path());
        let all = roots(4);
        assert_eq!(ledger.due(&all, 1_000_000), all);
        ledger.told(all[1], 1_000_000);
        ledger.told(all[3], 1_000_000 - AGAIN / 2);
        assert_eq!(ledger.due(&all, 1_000_000), [all[0], all[2]]);
        assert_eq!(ledger.due(&all, 1_000_000 + AGAIN / 2), [all[0], all[2], all[3]]);
        assert_eq!(ledger.due(&all, 1_000_000 + AGAIN), [all[0], all[2], all[3], all[1]]);
        // A clock that was put back.
        assert_eq!(ledger.due(&all, 5), [all[0], all[2], all[3], all[1]]);
    }

    #[test]
    fn what_was_told_survives_a_restart_and_what_was_unpublished_does_not() {
        let state = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::load(state.path());
        let all = roots(3);
        all.iter().for_each(|root| ledger.told(*root, 77));
        ledger.save().unwrap();
        let mut ledger = Ledger::load(state.path());
        assert_eq!((ledger.len(), ledger.due(&all, 78)), (3, Vec::new()));
        ledger.keep_only(&all[..1]);
        ledger.save().unwrap();
        let ledger = Ledger::load(state.path());
        assert_eq!(ledger.due(&all, 78), all[1..]);
    }

    #[test]
    fn a_damaged_ledger_is_read_as_far_as_it_goes() {
        let state = tempfile::tempdir().unwrap();
        let all = roots(2);
        let text = format!("77 {}\nnonsense\n\n12 Qm\n\u{1}{}\n99999999999999999999 {}\n78", all[0], all[1], all[1]);
        fs::write(state.path().join("announced"), text).unwrap();
        assert_eq!(Ledger::load(state.path()).due(&all, 78), all[1..]);
        fs::write(state.path().join("announced"), [0xff; 100]).unwrap();
        assert_eq!(Ledger::load(state.path()).len(), 0);
    }
}
