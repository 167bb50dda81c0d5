//! One peer's account: its live wants, and the answers that wait to be sent to it.

use super::{HAVE_REPLACED_BY_BLOCK, LoadId, Loaded, MAX_HELD, MAX_WANTS, Outcome};
use crate::Cid;
use crate::bitswap::message::{Message, Payload, Presence, TARGET_MESSAGE, Want, WantKind};
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Most wants in one load. A load usually ends at its budget; this bounds what is taken out of the queue
/// and put back into it when blocks are large.
const MAX_LOAD_WANTS: usize = 256;
/// Bytes around a payload's data in a message, at most: two tags and lengths, and the prefix with its own.
const PAYLOAD_OVERHEAD: usize = 40;
/// Bytes around a presence's CID in a message, at most.
const PRESENCE_OVERHEAD: usize = 8;
/// Bytes around the lists of a message, at most: the field of pending bytes.
const MESSAGE_OVERHEAD: usize = 16;
/// What answering a want costs a peer in the order of turns, in bytes, besides the bytes of the block.
const ANSWER_COST: u64 = 64;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    wants: HashMap<Cid, Live>,
    /// Order of arrival, for the queue and for who is kept longest.
    next_sequence: u64,
    queue: BTreeSet<(Reverse<i32>, u64, Cid)>,
    /// Wants whose block is absent, oldest first.
    kept: BTreeMap<u64, Cid>,
    loading: Option<(LoadId, Vec<Cid>)>,
    payloads: VecDeque<Payload>,
    presences: VecDeque<Presence>,
    /// Bytes of the answers that wait to become a message.
    ready: usize,
    /// Bytes of the messages that wait to be written.
    unsent: usize,
    /// Bytes that this peer got, for the order of turns.
    served: u64,
}

/// A want that is not answered yet, or kept.
#[derive(Debug)]
struct Live {
    sequence: u64,
    priority: i32,
    kind: WantKind,
    send_dont_have: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    /// `woken`: the block was stored after the load began, so an answer of absent is out of date.
    Loading {
        woken: bool,
    },
    Kept,
}

/// What became of a new want.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is live; `evicted` was dropped to make room.
    Taken { evicted: Option<Cid> },
    /// There was no room.
    Refused,
}

impl Ledger {
    pub(super) fn cids(&self) -> impl ExactSizeIterator<Item = &Cid> {
        self.wants.keys()
    }

    /// Bytes this peer was served.
    pub(super) fn served(&self) -> u64 {
        self.served
    }

    /// A peer that waits for nothing takes its turns from `clock` on when it begins to.
    pub(super) fn serve_from(&mut self, clock: u64) {
        if self.queue.is_empty() && self.loading.is_none() {
            self.served = self.served.max(clock);
        }
    }

    /// Drops every want and returns them.
    pub(super) fn clear(&mut self) -> Vec<Cid> {
        self.queue.clear();
        self.kept.clear();
        self.wants.drain().map(|(cid, _)| cid).collect()
    }

    pub(super) fn cancel(&mut self, cid: &Cid) {
        if let Some(live) = self.wants.remove(cid) {
            self.unlist(*cid, &live);
        }
    }

    /// Takes a want in. A want that is live already is asked again: a want-have may become a want-block.
    pub(super) fn admit(&mut self, want: &Want) -> Admission {
        let mut evicted = None;
        if self.wants.len() >= MAX_WANTS && !self.wants.contains_key(&want.cid) {
            let Some((_, cid)) = self.kept.pop_first() else { return Admission::Refused };
            self.wants.remove(&cid);
            evicted = Some(cid);
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let live = match self.wants.entry(want.cid) {
            Entry::Occupied(entry) => {
                let live = entry.into_mut();
                self.queue.remove(&(Reverse(live.priority), live.sequence, want.cid));
                live.kind = live.kind.max(want.kind);
                live.send_dont_have |= want.send_dont_have;
                live.priority = want.priority;
                live
            }
            Entry::Vacant(entry) => entry.insert(Live {
                sequence,
                priority: want.priority,
                kind: want.kind,
                send_dont_have: want.send_dont_have,
                state: State::Queued,
            }),
        };
        if !matches!(live.state, State::Loading { .. }) {
            self.kept.remove(&live.sequence);
            live.state = State::Queued;
            self.queue.insert((Reverse(live.priority), live.sequence, want.cid));
        }
        Admission::Taken { evicted }
    }

    /// The block of a want may be here now.
    pub(super) fn wake(&mut self, cid: &Cid) {
        let Some(live) = self.wants.get_mut(cid) else { return };
        match live.state {
            State::Queued => {}
            State::Loading { .. } => live.state = State::Loading { woken: true },
            State::Kept => {
                self.kept.remove(&live.sequence);
                live.state = State::Queued;
                self.queue.insert((Reverse(live.priority), live.sequence, *cid));
            }
        }
    }

    /// Whether something may be loaded for this peer now.
    pub(super) fn may_load(&self) -> bool {
        !self.queue.is_empty() && self.loading.is_none() && self.ready + self.unsent < MAX_HELD
    }

    /// Takes the next wants out of the queue for load `id`.
    pub(super) fn start(&mut self, id: LoadId) -> Vec<(Cid, WantKind)> {
        let mut wants = Vec::new();
        while wants.len() < MAX_LOAD_WANTS
            && let Some((_, _, cid)) = self.queue.pop_first()
        {
            if let Some(live) = self.wants.get_mut(&cid) {
                live.state = State::Loading { woken: false };
                wants.push((cid, live.kind));
            }
        }
        self.loading = Some((id, wants.iter().map(|(cid, _)| *cid).collect()));
        wants
    }

    /// Turns the findings of load `id` into answers, and queues again what it did not come to. Returns the
    /// wants that are over.
    pub(super) fn finish(&mut self, id: LoadId, loaded: Vec<Loaded>) -> Vec<Cid> {
        // A load that began under an earlier connection of this peer says nothing about this one's wants.
        let Some((_, batch)) = self.loading.take_if(|(loading, _)| *loading == id) else { return Vec::new() };
        let nothing = loaded.is_empty();
        let mut over = Vec::new();
        for Loaded { cid, outcome } in loaded {
            over.extend(self.answer(cid, outcome).then_some(cid));
        }
        for cid in batch {
            if nothing {
                self.answer(cid, Outcome::Absent);
            } else {
                self.requeue(cid);
            }
        }
        over
    }

    /// Answers a want that is loading; true when it is over.
    fn answer(&mut self, cid: Cid, outcome: Outcome) -> bool {
        let Some(live) = self.wants.get_mut(&cid) else { return false };
        let State::Loading { woken } = live.state else { return false };
        self.served += ANSWER_COST;
        match (outcome, live.kind) {
            (Outcome::Block(bytes), kind) if kind == WantKind::Block || bytes.len() <= HAVE_REPLACED_BY_BLOCK => {
                self.served += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                self.ready += bytes.len() + PAYLOAD_OVERHEAD;
                self.payloads.push_back(Payload { cid, bytes });
            }
            (Outcome::Block(_) | Outcome::Have, WantKind::Have) => self.say(cid, true),
            // The want-have became a want-block while it was loaded; or the block came while it was looked for.
            (Outcome::Block(_) | Outcome::Have, WantKind::Block) => return false,
            (Outcome::Absent, _) if woken => return false,
            (Outcome::Absent, _) => {
                live.state = State::Kept;
                self.kept.insert(live.sequence, cid);
                if std::mem::take(&mut live.send_dont_have) {
                    self.say(cid, false);
                }
                return false;
            }
        }
        self.wants.remove(&cid).is_some()
    }

    fn say(&mut self, cid: Cid, have: bool) {
        self.ready += cid.encoded_len() + PRESENCE_OVERHEAD;
        self.presences.push_back(Presence { cid, have });
    }

    fn requeue(&mut self, cid: Cid) {
        if let Some(live) = self.wants.get_mut(&cid)
            && matches!(live.state, State::Loading { .. })
        {
            live.state = State::Queued;
            self.queue.insert((Reverse(live.priority), live.sequence, cid));
        }
    }

    fn unlist(&mut self, cid: Cid, live: &Live) {
        match live.state {
            State::Queued => _ = self.queue.remove(&(Reverse(live.priority), live.sequence, cid)),
            State::Kept => _ = self.kept.remove(&live.sequence),
            State::Loading { .. } => {}
        }
    }

    /// Whether there is something to send.
    pub(super) fn has_answers(&self) -> bool {
        !self.presences.is_empty() || !self.payloads.is_empty()
    }

    /// The next message: answers up to [`TARGET_MESSAGE`] bytes, or one larger block alone.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        let mut message = Message::default();
        let mut length = MESSAGE_OVERHEAD;
        while let Some(presence) = self.presences.front() {
            let cost = presence.cid.encoded_len() + PRESENCE_OVERHEAD;
            if length + cost > TARGET_MESSAGE {
                break;
            }
            length += cost;
            self.ready -= cost;
            message.presences.extend(self.presences.pop_front());
        }
        while let Some(payload) = self.payloads.front() {
            let cost = payload.bytes.len() + PAYLOAD_OVERHEAD;
            if length + cost > TARGET_MESSAGE && length > MESSAGE_OVERHEAD {
                break;
            }
            length += cost;
            self.ready -= cost;
            message.payloads.extend(self.payloads.pop_front());
        }
        if message.is_empty() {
            return None;
        }
        message.pending_bytes = i32::try_from(self.ready).unwrap_or(i32::MAX);
        self.unsent += message.encoded_len();
        Some(message)
    }

    /// A message was written or lost.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.unsent = self.unsent.saturating_sub(bytes);
    }
}
