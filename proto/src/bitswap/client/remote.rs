//! The client's view of one connected peer: what it was asked, and what it said.

use super::pace::Pace;
use super::standing::Standing;
use crate::Cid;
use crate::bitswap::message::{Message, Want, WantKind};
use crate::block::Digest;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Most wants that a peer is asked to hold for us, and most in one message: what servers accept.
pub(super) const MAX_LIVE: usize = 1024;
/// Most want-haves without an answer.
const MAX_QUESTIONS: usize = 256;
/// As many, and wants that it refused, of a peer that never sent a block: it may have nothing of ours.
const MAX_STRANGER: usize = 64;
/// Most refused wants that are left with the peer in case it gets the block.
const MAX_KEPT: usize = 512;
/// A want was passed over when a younger one was answered that was asked so much later.
const PASSED_OVER: Duration = Duration::from_secs(5);
/// What a peer was asked about a block, and what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    /// Age of the request: older ones have priority.
    pub(super) sequence: u64,
    /// When it was asked.
    pub(super) at: Instant,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// want-block; `estimate` bytes are expected. `had`: it said `HAVE` before.
    Block { estimate: usize, had: bool },
    /// want-have.
    Question,
    /// It said `HAVE`, and has forgotten the want.
    Has,
    /// It said `DONT_HAVE`, and keeps the want: it may say otherwise later.
    Kept,
}

impl Ask {
    /// Whether the peer owes an answer.
    pub(super) fn is_due(&self) -> bool {
        matches!(self.state, State::Block { .. } | State::Question)
    }
}

/// A connected peer.
#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) pace: Pace,
    pub(super) standing: Standing,
    asks: HashMap<Digest, Ask>,
    blocks: usize,
    questions: usize,
    /// The asks of kind [`State::Kept`], by age of the request.
    kept: BTreeMap<u64, (Digest, Cid)>,
    /// Bytes asked for with want-block, as estimated.
    in_flight: usize,
    /// Bytes of blocks that were taken back and may come all the same, and when it was last asked before:
    /// an answer to a younger ask shows that they are through.
    cancelled: usize,
    asked: Option<Instant>,
    cancelled_after: Option<Instant>,
    /// Blocks that it said it has and nobody is asked for, by age of the request.
    pub(super) offers: BTreeMap<u64, Digest>,
    /// Changes to the wantlist it holds, not sent yet. One a block: boxo lets a cancel win over a want
    /// of the same block in the same message.
    outbox: HashMap<Digest, Want>,
    /// What it may still hold wants of, or believe that it has answered: to be taken back before it is asked
    /// for anything else.
    forgotten: Option<Vec<Digest>>,
    /// The ask that was answered last.
    answered: Option<Ask>,
}

impl Remote {
    pub(super) fn ask(&self, digest: &Digest) -> Option<Ask> {
        self.asks.get(digest).copied()
    }

    /// Whether it said `HAVE`, and is not asked for the block yet.
    pub(super) fn has_said_have(&self, digest: &Digest) -> bool {
        self.asks.get(digest).is_some_and(|ask| ask.state == State::Has)
    }

    pub(super) fn asks(&self) -> impl Iterator<Item = (&Digest, &Ask)> {
        self.asks.iter()
    }

    /// Wants that the peer holds for us.
    pub(super) fn live(&self) -> usize {
        self.due() + self.kept.len()
    }

    /// Wants that the peer has not answered.
    fn due(&self) -> usize {
        self.blocks + self.questions
    }

    /// Blocks that it was asked for and has not answered, but for those that it has yet to be told of.
    pub(super) fn owed(&self) -> usize {
        let untold = self.outbox.values().filter(|want| !want.cancel && want.kind == WantKind::Block);
        self.blocks.saturating_sub(untold.count())
    }

    /// Whether one more block may be asked for. Two always may: one on the way while the other is read.
    pub(super) fn has_room(&self, estimate: usize) -> bool {
        self.live() < MAX_LIVE && (self.blocks < 2 || self.in_flight + self.cancelled + estimate <= self.pace.window())
    }

    /// Whether one more question may be asked.
    pub(super) fn has_room_for_question(&self) -> bool {
        let few = self.standing.is_known() || self.questions + self.kept.len() < MAX_STRANGER;
        few && self.questions < MAX_QUESTIONS && self.live() < MAX_LIVE
    }

    /// When a block of `estimate` bytes would be here if it were asked for now. A peer that owes an answer
    /// for longer than usual gets less likely to give one.
    pub(super) fn expected(&self, estimate: usize, now: Instant) -> Duration {
        let delay = self.standing.delay(self.pace.latency(), now);
        self.pace.expected(self.in_flight + self.cancelled + estimate) + delay
    }

    /// Asks for a block, or whether it is there.
    pub(super) fn want(&mut self, digest: Digest, cid: Cid, ask: Ask) {
        if self.due() == 0 {
            self.pace.resumed(self.standing.useful(), ask.at);
            self.standing.owes(ask.at);
        }
        self.asked = Some(ask.at);
        self.set(digest, Some(ask));
        let kind = if ask.state == State::Question { WantKind::Have } else { WantKind::Block };
        // Older requests first, also when they are asked again later than younger ones.
        let priority = i32::MAX - i32::try_from(ask.sequence % (1 << 31)).unwrap_or_default();
        self.outbox.insert(digest, Want { cid, priority, kind, cancel: false, send_dont_have: true });
    }

    /// It said `HAVE`.
    pub(super) fn has(&mut self, digest: Digest, ask: Ask) {
        self.set(digest, Some(Ask { state: State::Has, ..ask }));
    }

    /// It said `DONT_HAVE`, and keeps the want. When it keeps many, the youngest is taken
    /// back, which is needed last.
    pub(super) fn keeps(&mut self, digest: Digest, cid: Cid, ask: Ask) {
        self.set(digest, Some(Ask { state: State::Kept, ..ask }));
        self.kept.insert(ask.sequence, (digest, cid));
        if self.kept.len() > MAX_KEPT
            && let Some((_, (digest, cid))) = self.kept.pop_last()
        {
            self.take_back(digest, cid);
        }
    }

    /// Its answer is of no interest any more.
    pub(super) fn take_back(&mut self, digest: Digest, cid: Cid) {
        let Some(ask) = self.set(digest, None) else { return };
        if ask.is_due() {
            self.standing.excuse_block();
        }
        if let State::Block { estimate, .. } = ask.state {
            self.cancelled += estimate;
            self.cancelled_after = self.asked;
        }
        if ask.state != State::Has {
            let kind = WantKind::Block;
            self.outbox.insert(digest, Want { cid, priority: 1, kind, cancel: true, send_dont_have: false });
        }
    }

    /// It sent the block, and so forgot the want.
    pub(super) fn sent(&mut self, digest: Digest) {
        self.set(digest, None);
        self.outbox.remove(&digest);
    }

    fn set(&mut self, digest: Digest, ask: Option<Ask>) -> Option<Ask> {
        let before = match ask {
            Some(ask) => self.asks.insert(digest, ask),
            None => self.asks.remove(&digest),
        };
        match before.map(|ask| (ask.state, ask.sequence)) {
            Some((State::Block { estimate, .. }, _)) => {
                self.blocks -= 1;
                self.in_flight -= estimate;
            }
            Some((State::Question, _)) => self.questions -= 1,
            Some((State::Kept, sequence)) => _ = self.kept.remove(&sequence),
            Some((State::Has, _)) | None => {}
        }
        match ask.map(|ask| ask.state) {
            Some(State::Block { estimate, .. }) => {
                self.blocks += 1;
                self.in_flight += estimate;
            }
            Some(State::Question) => self.questions += 1,
            Some(State::Kept | State::Has) | None => {}
        }
        if self.due() == 0 {
            self.standing.owes_nothing();
        }
        before
    }

    /// It said something that was wanted: the answer to `ask`, or a block without being asked; `bytes` of
    /// it blocks. Call after the ask was changed.
    pub(super) fn was_useful(&mut self, ask: Option<Ask>, bytes: usize, now: Instant) {
        if let Some(ask) = ask.filter(Ask::is_due) {
            self.pace.answered(ask.at, now);
            self.answered = Some(ask);
            if self.cancelled_after.is_some_and(|after| after < ask.at) {
                self.cancelled = 0;
            }
        }
        if bytes > 0 {
            self.pace.delivered(bytes, now);
        }
        self.standing.was_useful(bytes, now);
    }

    /// It sent a block of `bytes` bytes that nobody wants.
    pub(super) fn sent_unwanted(&mut self, bytes: usize) {
        self.cancelled = self.cancelled.saturating_sub(bytes);
        self.standing.sent_unwanted(bytes);
    }

    /// Wants that the peer must have passed over: it answered a younger one that was asked much later.
    pub(super) fn passed_over(&self) -> Vec<Digest> {
        let Some(last) = self.answered else { return Vec::new() };
        let old = |ask: &Ask| ask.is_due() && ask.at + PASSED_OVER <= last.at && ask.sequence < last.sequence;
        self.asks.iter().filter(|(_, ask)| old(ask)).map(|(digest, _)| *digest).collect()
    }

    /// A stream broke: what it holds for us is unknown, and none of it counts.
    pub(super) fn stream_broke(&mut self, now: Instant) {
        self.standing.stream_broke(now);
        let asks: Vec<(Digest, Ask)> = self.asks.iter().map(|(digest, ask)| (*digest, *ask)).collect();
        let forgotten = self.forgotten.get_or_insert_default();
        forgotten.extend(asks.iter().map(|(digest, _)| *digest));
        forgotten.truncate(MAX_LIVE);
        for (digest, ask) in asks {
            if ask.is_due() {
                self.standing.excuse_block();
            }
            self.set(digest, None);
        }
        self.outbox.clear();
        self.offers.clear();
        self.cancelled = 0;
    }

    /// What it has to be told, oldest request first.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        if self.outbox.is_empty() {
            return None;
        }
        if let Some(forgotten) = self.forgotten.take() {
            // An empty wantlist says it all to boxo. Helia keeps what it has sent lately all the same, and
            // does not send it again to who asks again: only a cancel makes it forget. In a message of its
            // own, as boxo lets a cancel win over a want in the same message.
            let cancel = |digest: Digest| {
                let (cid, kind) = (digest.raw_cid(), WantKind::Block);
                Want { cid, priority: 1, kind, cancel: true, send_dont_have: false }
            };
            let wants = forgotten.into_iter().map(cancel).collect();
            return Some(Message { wants, full: true, ..Message::default() });
        }
        let mut wants: Vec<(Digest, Want)> = self.outbox.drain().collect();
        wants.sort_unstable_by_key(|(digest, want)| (!want.cancel, -i64::from(want.priority), *digest));
        let later = wants.split_off(wants.len().min(MAX_LIVE));
        self.outbox.extend(later);
        let wants = wants.into_iter().map(|(_, want)| want).collect();
        Some(Message { wants, ..Message::default() })
    }
}
