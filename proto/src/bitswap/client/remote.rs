//! The client's view of one connected peer: what it was asked, what it said, how it behaves.

use super::pace::Pace;
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
/// How long a peer that went silent is left alone, the first time. Doubles each time.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// For how long others go before a peer that was slow, the first time. Doubles each time.
const MIN_SLOW: Duration = Duration::from_secs(1);
/// The longest such times.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// Bytes of an incomplete message that count as a sign of life; fewer in [`Pace::silence`] are a trickle.
const SIGN_OF_LIFE: usize = 16 << 10;
/// How long incomplete messages alone keep a peer from counting as silent.
const MAX_INCOMPLETE: Duration = Duration::from_secs(30);
/// How often a peer that owes answers is looked at.
pub(super) const REVIEW: Duration = Duration::from_millis(250);
/// A want was passed over when a younger one was answered that was asked so much later.
const PASSED_OVER: Duration = Duration::from_secs(5);
/// Bytes nobody asked for after which a peer is cut.
const MAX_UNSOLICITED: usize = 64 << 20;

/// What an unwanted block costs its sender besides the block's bytes.
const BLOCK_OVERHEAD: usize = 64;

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
    /// Blocks that it said it has, to be asked for when it would bring them soonest; by age of the request.
    pub(super) offers: BTreeMap<u64, Digest>,
    /// Changes to the wantlist it holds, not sent yet. One a block: boxo lets a cancel win over a want
    /// of the same block in the same message.
    outbox: HashMap<Digest, Want>,
    /// It may hold wants that we forgot: the next message replaces them.
    resync: bool,
    /// When it counts as silent; set while an answer is due.
    deadline: Option<Instant>,
    /// When its oldest wants are looked at; set while an answer is due.
    review: Option<Instant>,
    /// When it last said something useful, or was asked after owing nothing.
    useful: Option<Instant>,
    /// The ask that was answered last.
    answered: Option<Ask>,
    /// Bytes of incomplete messages since the deadline was set.
    incomplete: usize,
    /// Not asked before this time.
    silent_until: Option<Instant>,
    backoff: Option<Duration>,
    /// Others go first until then: blocks had to be rescued from it. And for how long the last time.
    slow_until: Option<(Instant, Duration)>,
    /// A stream broke since the last block.
    failed: bool,
    /// It sent a wanted block.
    known: bool,
    /// Blocks that it was asked for, that were taken back, and that did not come since.
    excused: usize,
    /// Bytes that it was never asked for, less those that somebody wanted.
    unsolicited: usize,
}

impl Remote {
    /// Whether it may be asked at all.
    pub(super) fn is_live(&self, now: Instant) -> bool {
        self.silent_until.is_none_or(|until| until <= now)
    }

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

    /// Whether one more block may be asked for. Two always may: one on the way while the other is read.
    pub(super) fn has_room(&self, estimate: usize) -> bool {
        self.live() < MAX_LIVE && (self.blocks < 2 || self.in_flight + self.cancelled + estimate <= self.pace.window())
    }

    /// Whether one more question may be asked.
    pub(super) fn has_room_for_question(&self) -> bool {
        let few = self.known || self.questions + self.kept.len() < MAX_STRANGER;
        few && self.questions < MAX_QUESTIONS && self.live() < MAX_LIVE
    }

    /// When a block of `estimate` bytes would be here if it were asked for now. A peer that owes an answer
    /// for longer than usual gets less likely to give one.
    pub(super) fn expected(&self, estimate: usize, now: Instant) -> Duration {
        let owed = self.useful.filter(|_| self.due() > 0).map(|useful| now.saturating_duration_since(useful));
        let late = owed.unwrap_or_default().saturating_sub(self.pace.latency());
        let slow = self.slow_until.map(|(until, _)| until.saturating_duration_since(now)).unwrap_or_default();
        self.pace.expected(self.in_flight + self.cancelled + estimate) + late + slow
    }

    /// Asks for a block, or whether it is there.
    pub(super) fn want(&mut self, digest: Digest, cid: Cid, ask: Ask) {
        if self.due() == 0 {
            self.pace.resumed(self.useful, ask.at);
            self.useful = Some(ask.at);
            self.incomplete = 0;
            self.deadline = Some(ask.at + self.pace.silence(self.in_flight));
            self.review = Some(ask.at + REVIEW);
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
        if let State::Block { estimate, .. } = ask.state {
            self.excused += 1;
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
            (self.deadline, self.review) = (None, None);
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
            self.known = true;
            self.pace.delivered(bytes, now);
            self.unsolicited = self.unsolicited.saturating_sub(bytes);
            (self.failed, self.silent_until, self.backoff, self.slow_until) = (false, None, None, None);
        }
        self.useful = Some(now);
        self.incomplete = 0;
        self.deadline = (self.due() > 0).then(|| now + self.pace.silence(self.in_flight));
    }

    /// It sent a block of `bytes` bytes that nobody wants.
    pub(super) fn sent_unwanted(&mut self, bytes: usize) {
        self.cancelled = self.cancelled.saturating_sub(bytes);
        match self.excused.checked_sub(1) {
            Some(excused) => self.excused = excused,
            None => self.sent_useless(bytes + BLOCK_OVERHEAD),
        }
    }

    /// It sent bytes that it was never asked for.
    pub(super) fn sent_useless(&mut self, bytes: usize) {
        self.unsolicited += bytes;
    }

    /// It sent too much of that.
    pub(super) fn is_flooding(&self) -> bool {
        self.unsolicited > MAX_UNSOLICITED
    }

    /// More of a message that is not complete yet.
    pub(super) fn progress(&mut self, bytes: usize, now: Instant) {
        self.incomplete += bytes;
        if let (Some(deadline), Some(useful)) = (self.deadline, self.useful)
            && self.incomplete >= SIGN_OF_LIFE
        {
            let later = (now + self.pace.silence(self.in_flight)).min(useful + MAX_INCOMPLETE);
            self.deadline = Some(deadline.max(later));
            self.incomplete = 0;
        }
    }

    /// When it has to be looked at.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        [self.deadline, self.review].into_iter().flatten().min()
    }

    /// Whether it owes an answer for too long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Wants that the peer must have passed over: it answered a younger one that was asked much later.
    pub(super) fn passed_over(&mut self, now: Instant) -> Vec<Digest> {
        self.review = self.review.map(|_| now + REVIEW);
        let Some(last) = self.answered else { return Vec::new() };
        let old = |ask: &Ask| ask.is_due() && ask.at + PASSED_OVER <= last.at && ask.sequence < last.sequence;
        self.asks.iter().filter(|(_, ask)| old(ask)).map(|(digest, _)| *digest).collect()
    }

    /// A block was rescued from it `age` after it was asked for. Others go first for a while, longer each
    /// time.
    pub(super) fn was_late(&mut self, age: Duration, now: Instant) {
        self.pace.late(age);
        let last = self.slow_until.unwrap_or((now, Duration::ZERO));
        if last.0 <= now {
            let time = (2 * last.1).clamp(MIN_SLOW, MAX_BACKOFF);
            self.slow_until = Some((now + time, time));
        }
    }

    /// It is left alone for a while, longer each time.
    pub(super) fn demote(&mut self, now: Instant) {
        let backoff = self.backoff.map_or(FIRST_BACKOFF, |backoff| (2 * backoff).min(MAX_BACKOFF));
        self.backoff = Some(backoff);
        self.silent_until = Some(now + backoff);
    }

    /// A stream broke: what it holds for us is unknown. True when that happened before without a block since.
    pub(super) fn broke(&mut self) -> bool {
        self.outbox.clear();
        self.offers.clear();
        self.cancelled = 0;
        self.resync = true;
        std::mem::replace(&mut self.failed, true)
    }

    /// Forgets an ask whose want the peer need not be told about.
    pub(super) fn forget(&mut self, digest: Digest) {
        self.set(digest, None);
    }

    /// What it has to be told, oldest request first.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        if self.outbox.is_empty() {
            return None;
        }
        let mut wants: Vec<(Digest, Want)> = self.outbox.drain().collect();
        wants.sort_unstable_by_key(|(digest, want)| (!want.cancel, -i64::from(want.priority), *digest));
        let later = wants.split_off(wants.len().min(MAX_LIVE));
        self.outbox.extend(later);
        let wants = wants.into_iter().map(|(_, want)| want).collect();
        Some(Message { wants, full: std::mem::take(&mut self.resync), ..Message::default() })
    }
}
