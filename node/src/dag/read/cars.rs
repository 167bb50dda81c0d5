//! Blocks of one file by CAR: which gateway is asked, from where on, and when it is better left.
//!
//! One answer brings what would take a request for each block, and the blocks of a level do not wait for the one above.
//! But it also brings what is held already. So a file is asked for as a CAR from the first block on that neither the store
//! nor a peer has, and a CAR that brings too much for nothing is left for single blocks.

use super::{Arrived, Sources, keep};
use crate::upstream::{Car, Gateway};
use nipfs_proto::Cid;
use std::collections::{HashSet, VecDeque};
use std::error::Error;

/// Bytes that a CAR may bring for nothing: a little more than the nodes above where it begins.
const MAX_USELESS: u64 = 2 << 20;

/// The CARs of one file, a gateway after the other.
#[derive(Debug)]
pub(super) struct Cars {
    /// To be asked, in this order; each once.
    untried: VecDeque<Gateway>,
    /// Where in the file the CAR begins that is open.
    from: Option<u64>,
    /// The CAR that is open, while nobody reads it.
    resting: Option<Box<Car>>,
    /// What it is to bring.
    awaited: HashSet<Cid>,
    useless: u64,
    /// Bytes that came since the reader last had some.
    ahead: u64,
}

impl Cars {
    pub(super) fn new(gateways: &[Gateway]) -> Self {
        Self {
            untried: gateways.iter().cloned().collect(),
            from: None,
            resting: None,
            awaited: HashSet::new(),
            useless: 0,
            ahead: 0,
        }
    }

    /// Takes `cid`, wanted first at `offset`, as something that a CAR is to bring; false when none will.
    pub(super) fn awaits(&mut self, cid: Cid, offset: u64) -> bool {
        let will = self.from.map_or(!self.untried.is_empty(), |from| offset >= from);
        if will {
            self.awaited.insert(cid);
        }
        will
    }

    /// The gateway to be asked next for a CAR from `offset` on, unless one is open.
    pub(super) fn next_gateway(&mut self, offset: u64) -> Option<Gateway> {
        if self.from.is_some() {
            return None;
        }
        self.from = Some(offset);
        self.untried.pop_front()
    }

    /// The CAR that is open, if it is to be read on: what came from it is at most `window` bytes ahead of the reader.
    pub(super) fn resume(&mut self, window: u64) -> Option<Box<Car>> {
        self.resting.take_if(|_| self.ahead < window)
    }

    /// Books a block of `size` bytes that `car` brought, and whether it was wanted. False when the CAR is better left.
    pub(super) fn brought(&mut self, car: Box<Car>, cid: &Cid, size: u64, wanted: bool) -> bool {
        self.awaited.remove(cid);
        if wanted {
            self.ahead += size;
        } else {
            self.useless += size;
        }
        if self.useless > MAX_USELESS {
            self.untried.clear();
            return false;
        }
        self.resting = Some(car);
        true
    }

    /// The reader had bytes.
    pub(super) fn read(&mut self) {
        self.ahead = 0;
    }

    /// Ends the CAR that is open; returns what it did not bring.
    pub(super) fn close(&mut self) -> HashSet<Cid> {
        (self.from, self.resting) = (None, None);
        std::mem::take(&mut self.awaited)
    }

    /// Whether blocks are awaited of a CAR.
    pub(super) fn is_open(&self) -> bool {
        self.from.is_some()
    }
}

/// Asks `gateway` for the file `root` from `from` on, and reads the first block.
pub(super) async fn open(gateway: Gateway, sources: Sources, root: Cid, from: u64) -> Arrived {
    // What a lease keeps is found again in the store where it is wanted again.
    match gateway.car(&root, from, sources.lease.is_none()).await {
        Ok(Some(car)) => pull(Box::new(car), sources, root).await,
        Ok(None) => Arrived::CarOver,
        Err(error) => {
            tracing::info!(error = &error as &dyn Error, "no CAR from a gateway");
            Arrived::CarOver
        }
    }
}

/// Reads the next block of `car`.
pub(super) async fn pull(mut car: Box<Car>, sources: Sources, root: Cid) -> Arrived {
    match car.next_block().await {
        Ok(Some(block)) => match keep(&sources, root, block).await {
            Ok(block) => Arrived::Brought(car, block),
            Err(error) => Arrived::Failed(error),
        },
        Ok(None) => Arrived::CarOver,
        Err(error) => {
            tracing::info!(error = &error as &dyn Error, "a gateway's CAR is given up");
            Arrived::CarOver
        }
    }
}
