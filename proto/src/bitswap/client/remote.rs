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
/// Most refused wants that are left with the peer in case it gets the block.
const MAX_KEPT: usize = 256;
/// How long a peer that went silent is left alone, the first time. Doubles each time.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// The longest such time.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// Bytes of an incomplete message that count as a sign of life; fewer in [`Pace::silence`] are a trickle.
const SIGN_OF_LIFE: usize = 16 << 10;
/// How long incomplete messages alone keep a peer from counting as silent.
const MAX_INCOMPLETE: Duration = Duration::from_secs(30);
/// How often wants that the peer may have passed over are looked for.
const REVIEW: Duration = Duration::from_secs(1);
/// Bytes nobody asked for after which a peer is cut.
const MAX_UNSOLICITED: usize = 64 << 20;

/// What a peer was asked about a block, and what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// want-block; `estimate` bytes are expected. `had`: it said `HAVE` before.
    Block { at: Instant, estimate: usize, had: bool },
    /// want-have.
    Question { at: Instant },
    /// It said `HAVE`, and has forgotten the want.
    Has,
    /// It said `DONT_HAVE`, and keeps the want: it may say otherwise later.
    Kept { sequence: u64 },
}

impl Ask {
    /// When it was asked; `None` when no answer is due.
    pub(super) fn asked(self) -> Option<Instant> {
        match self {
            Self::Block { at, .. } | Self::Question { at } => Some(at),
            Self::Has | Self::Kept { .. } => None,
        }
    }
}

/// A connected peer.
#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) pace: Pace,
    asks: HashMap<Digest, Ask>,
    blocks: usize,
    questions: usize,
    /// The asks of kind [`Ask::Kept`], by age of the request.
    kept: BTreeMap<u64, (Digest, Cid)>,
    /// Bytes asked for with want-block, as estimated.
    in_flight: usize,
    /// Blocks that it has and nobody is asked for, by age of the request.
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
    /// Bytes of incomplete messages since the deadline was set.
    incomplete: usize,
    /// Not asked before this time.
    silent_until: Option<Instant>,
    backoff: Option<Duration>,
    /// A stream broke since the last block.
    failed: bool,
    /// Bytes that nobody asked for, less those that somebody did.
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

    /// Whether one more block may be asked for; one always may.
    pub(super) fn has_room(&self, estimate: usize) -> bool {
        self.live() < MAX_LIVE && (self.blocks == 0 || self.in_flight + estimate <= self.pace.window())
    }

    /// Whether one more question may be asked.
    pub(super) fn has_room_for_question(&self) -> bool {
        self.questions < MAX_QUESTIONS && self.live() < MAX_LIVE
    }

    /// When a block of `estimate` bytes would be here if it were asked for now.
    pub(super) fn expected(&self, estimate: usize) -> Duration {
        self.pace.expected(self.in_flight + estimate)
    }

    /// Asks for a block, or whether it is there.
    pub(super) fn want(&mut self, digest: Digest, cid: Cid, sequence: u64, ask: Ask) {
        if self.due() == 0
            && let Some(now) = ask.asked()
        {
            self.pace.resumed(self.useful, now);
            self.useful = Some(now);
            self.incomplete = 0;
            self.deadline = Some(now + self.pace.silence(self.in_flight));
            self.review = Some(now + REVIEW);
        }
        self.set(digest, Some(ask));
        let kind = if matches!(ask, Ask::Block { .. }) { WantKind::Block } else { WantKind::Have };
        // Older requests first, also when they are asked again later than younger ones.
        let priority = i32::MAX - i32::try_from(sequence % (1 << 31)).unwrap_or_default();
        self.outbox.insert(digest, Want { cid, priority, kind, cancel: false, send_dont_have: true });
    }

    /// It said `HAVE`.
    pub(super) fn has(&mut self, digest: Digest) {
        self.set(digest, Some(Ask::Has));
    }

    /// It said `DONT_HAVE`, and keeps the want. Takes back the one that it kept longest when it keeps many.
    pub(super) fn keeps(&mut self, digest: Digest, cid: Cid, sequence: u64) {
        self.set(digest, Some(Ask::Kept { sequence }));
        self.kept.insert(sequence, (digest, cid));
        if self.kept.len() > MAX_KEPT
            && let Some((_, (digest, cid))) = self.kept.pop_first()
        {
            self.take_back(digest, cid);
        }
    }

    /// Its answer is of no interest any more.
    pub(super) fn take_back(&mut self, digest: Digest, cid: Cid) {
        if matches!(self.set(digest, None), Some(Ask::Block { .. } | Ask::Question { .. } | Ask::Kept { .. })) {
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
        match before {
            Some(Ask::Block { estimate, .. }) => {
                self.blocks -= 1;
                self.in_flight -= estimate;
            }
            Some(Ask::Question { .. }) => self.questions -= 1,
            Some(Ask::Kept { sequence }) => _ = self.kept.remove(&sequence),
            Some(Ask::Has) | None => {}
        }
        match ask {
            Some(Ask::Block { estimate, .. }) => {
                self.blocks += 1;
                self.in_flight += estimate;
            }
            Some(Ask::Question { .. }) => self.questions += 1,
            Some(Ask::Kept { .. } | Ask::Has) | None => {}
        }
        if self.due() == 0 {
            (self.deadline, self.review) = (None, None);
        }
        before
    }

    /// It said something that was asked for, `bytes` of it blocks. Call after the ask was changed.
    pub(super) fn was_useful(&mut self, asked: Option<Instant>, bytes: usize, now: Instant) {
        if let Some(asked) = asked {
            self.pace.answered(asked, now);
        }
        if bytes > 0 {
            self.pace.delivered(bytes, now);
            self.unsolicited = self.unsolicited.saturating_sub(bytes);
            (self.failed, self.silent_until, self.backoff) = (false, None, None);
        }
        self.useful = Some(now);
        self.incomplete = 0;
        self.deadline = (self.due() > 0).then(|| now + self.pace.silence(self.in_flight));
    }

    /// It sent bytes that nobody asked for; true when that was too much.
    pub(super) fn was_useless(&mut self, bytes: usize) -> bool {
        self.unsolicited += bytes;
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

    /// Wants so old that the peer, while it answers others, must have passed over them.
    pub(super) fn passed_over(&mut self, now: Instant) -> Vec<Digest> {
        self.review = self.review.map(|_| now + REVIEW);
        let patience = self.pace.patience(self.in_flight);
        let old = |ask: &Ask| ask.asked().is_some_and(|asked| asked + patience <= now);
        self.asks.iter().filter(|(_, ask)| old(ask)).map(|(digest, _)| *digest).collect()
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
