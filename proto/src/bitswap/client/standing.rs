//! How a peer behaves: whether it answers in time, and sends what it was asked for.

use std::time::{Duration, Instant};

/// How long a peer may owe answers without saying anything useful. A block that others have is rescued
/// long before; this is for those that nobody else is known to have.
const SILENCE: Duration = Duration::from_secs(4);
/// How long a peer that went silent is left alone, the first time. Doubles each time.
const MIN_BACKOFF: Duration = Duration::from_secs(10);
/// For how long others go before a peer that was late, the first time. Doubles each time.
const MIN_SLOW: Duration = Duration::from_secs(1);
/// The longest such times.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// How often a peer that owes answers is looked at.
pub(super) const REVIEW: Duration = Duration::from_millis(250);
/// Bytes of an incomplete message that count as a sign of life; fewer in [`SILENCE`] are a trickle.
const SIGN_OF_LIFE: usize = 16 << 10;
/// How long incomplete messages alone keep a peer from counting as silent.
const MAX_INCOMPLETE: Duration = Duration::from_secs(30);
/// Bytes nobody asked for after which a peer is cut.
const MAX_UNSOLICITED: usize = 64 << 20;
/// What an unwanted block costs its sender besides the block's bytes.
const BLOCK_OVERHEAD: usize = 64;

/// What a peer's behaviour earned it.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// When it last said something useful, or was asked after owing nothing.
    useful: Option<Instant>,
    /// When it counts as silent; set while it owes an answer.
    deadline: Option<Instant>,
    /// When it is looked at next; set while it owes an answer.
    review: Option<Instant>,
    /// Bytes of incomplete messages since the deadline was set.
    incomplete: usize,
    /// Not asked before this time, because it was silent; and for how long that was.
    silent_until: Option<(Instant, Duration)>,
    /// Others go first until then, because it was late; and for how long that was.
    slow_until: Option<(Instant, Duration)>,
    /// A stream broke since the last block.
    broke: bool,
    /// It sent a wanted block.
    known: bool,
    /// Blocks that it was asked for, that were taken back, and that did not come since.
    excused: usize,
    /// Bytes that it was never asked for, less those that somebody wanted.
    unsolicited: usize,
}

impl Standing {
    /// Whether it may be asked at all.
    pub(super) fn is_live(&self, now: Instant) -> bool {
        self.silent_until.is_none_or(|(until, _)| until <= now)
    }

    /// Whether it ever sent a wanted block.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// When it last said something useful, or was asked after owing nothing.
    pub(super) fn useful(&self) -> Option<Instant> {
        self.useful
    }

    /// It is asked after owing nothing.
    pub(super) fn owes(&mut self, now: Instant) {
        self.useful = Some(now);
        self.incomplete = 0;
        self.deadline = Some(now + SILENCE);
        self.review = Some(now + REVIEW);
    }

    /// No answer of it is waited for.
    pub(super) fn owes_nothing(&mut self) {
        self.deadline = None;
        self.review = None;
    }

    /// It said something that was wanted, `bytes` of it blocks.
    pub(super) fn was_useful(&mut self, bytes: usize, now: Instant) {
        self.useful = Some(now);
        self.incomplete = 0;
        self.deadline = self.deadline.map(|_| now + SILENCE);
        if bytes > 0 {
            self.known = true;
            self.broke = false;
            self.silent_until = None;
            self.slow_until = None;
            self.unsolicited = self.unsolicited.saturating_sub(bytes);
        }
    }

    /// More of a message that is not complete yet.
    pub(super) fn progress(&mut self, bytes: usize, now: Instant) {
        self.incomplete += bytes;
        if let (Some(deadline), Some(useful)) = (self.deadline, self.useful)
            && self.incomplete >= SIGN_OF_LIFE
        {
            let later = (now + SILENCE).min(useful + MAX_INCOMPLETE);
            self.deadline = Some(deadline.max(later));
            self.incomplete = 0;
        }
    }

    /// When it has to be looked at.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        [self.deadline, self.review].into_iter().flatten().min()
    }

    /// It was looked at.
    pub(super) fn reviewed(&mut self, now: Instant) {
        self.review = self.review.map(|_| now + REVIEW);
    }

    /// Whether it owes an answer for too long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// How much longer than by its pace an answer will probably take: the longer it is silent, and while
    /// it makes up for being late.
    pub(super) fn delay(&self, latency: Duration, now: Instant) -> Duration {
        let silent =
            self.useful.filter(|_| self.deadline.is_some()).map(|useful| now.saturating_duration_since(useful));
        let slow = self.slow_until.map(|(until, _)| until.saturating_duration_since(now));
        silent.unwrap_or_default().saturating_sub(latency) + slow.unwrap_or_default()
    }

    /// A block had to be asked for elsewhere. Others go first for a while, longer each time.
    pub(super) fn was_late(&mut self, now: Instant) {
        let (until, time) = self.slow_until.unwrap_or((now, Duration::ZERO));
        if until <= now {
            let time = (2 * time).clamp(MIN_SLOW, MAX_BACKOFF);
            self.slow_until = Some((now + time, time));
        }
    }

    /// It was silent. It is left alone for a while, longer each time.
    pub(super) fn was_silent(&mut self, now: Instant) {
        let time = self.silent_until.map_or(MIN_BACKOFF, |(_, time)| (2 * time).min(MAX_BACKOFF));
        self.silent_until = Some((now + time, time));
    }

    /// A stream broke. It is forgiven once, until a block comes.
    pub(super) fn stream_broke(&mut self, now: Instant) {
        if std::mem::replace(&mut self.broke, true) {
            self.was_silent(now);
        }
    }

    /// A block that it was asked for may come though it is not wanted any more.
    pub(super) fn excuse_block(&mut self) {
        self.excused += 1;
    }

    /// It sent a block of `bytes` bytes that nobody wants.
    pub(super) fn sent_unwanted(&mut self, bytes: usize) {
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
}
