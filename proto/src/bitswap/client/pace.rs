//! How fast a peer is, and what follows from it: how much to ask for, and when it would be here.
//!
//! The window follows the delivery rate as BBR does: twice what the peer delivers in its shortest
//! round trip and a little. A window that is too small shows as a higher rate in the next round, so it
//! grows threefold a round until the path is full; a slow or shared peer gets a small one, so that
//! little waits there which others could have brought.

use std::time::{Duration, Instant};

/// Window in bytes of a peer that was not measured yet.
const FIRST_WINDOW: usize = 1 << 20;
/// Smallest window in bytes.
const MIN_WINDOW: usize = 128 << 10;
/// Largest window in bytes: 1 Gbit/s at 500 ms.
const MAX_WINDOW: usize = 64 << 20;
/// Time that the window covers besides the round trip: for reading blocks and making messages.
const SLACK: Duration = Duration::from_millis(50);
/// Assumed of a peer that was not measured yet.
const USUAL_LATENCY: Duration = Duration::from_millis(100);
/// Assumed of a peer that was not measured yet, in bytes a second.
const USUAL_RATE: f64 = 10e6;
/// Long enough for anything.
const A_DAY: Duration = Duration::from_secs(86_400);
/// Measurements of one peer.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Shortest time from a want to its answer.
    latency: Option<Duration>,
    /// Bytes a second, while there was something to deliver.
    rate: Option<f64>,
    /// Since when the round is counted, and its bytes.
    round: Option<(Instant, usize)>,
    /// The window was full in this round, so that the peer and not the reader set the rate.
    full: bool,
}

impl Pace {
    /// An answer to a want that was asked at `asked`.
    pub(super) fn answered(&mut self, asked: Instant, now: Instant) {
        let sample = now.saturating_duration_since(asked);
        self.latency = Some(self.latency.map_or(sample, |latency| latency.min(sample)));
    }

    /// `bytes` of wanted blocks came in. The bytes that open a round are what the waiting was for, not
    /// a measure of the rate.
    pub(super) fn delivered(&mut self, bytes: usize, now: Instant) {
        let Some((start, total)) = &mut self.round else {
            self.round = Some((now, 0));
            return;
        };
        *total += bytes;
        let elapsed = now.saturating_duration_since(*start);
        if elapsed < self.latency.unwrap_or_default().max(SLACK) {
            return;
        }
        let sample = *total as f64 / elapsed.as_secs_f64();
        self.rate = Some(match self.rate {
            Some(rate) if sample < rate && self.full => (3.0 * rate + sample) / 4.0,
            Some(rate) => rate.max(sample),
            None => sample,
        });
        self.round = Some((now, 0));
        self.full = false;
    }

    /// A block was not here `age` after it was asked for: of what the window held then.
    pub(super) fn late(&mut self, age: Duration) {
        let bound = self.window() as f64 / age.as_secs_f64().max(1e-3);
        self.rate = Some(self.rate.map_or(bound, |rate| rate.min(bound)));
    }

    /// More could have been asked for, had the window been larger.
    pub(super) fn window_is_full(&mut self) {
        self.full = true;
    }

    /// It is asked again after owing nothing since `since`: that time says nothing about it.
    pub(super) fn resumed(&mut self, since: Option<Instant>, now: Instant) {
        if since.is_none_or(|since| now.saturating_duration_since(since) > SLACK) {
            self.round = None;
            self.full = false;
        }
    }

    /// Shortest time from a want to its answer.
    pub(super) fn latency(&self) -> Duration {
        self.latency.unwrap_or(USUAL_LATENCY)
    }

    /// Bytes that may be asked for at once.
    pub(super) fn window(&self) -> usize {
        let Some(rate) = self.rate else { return FIRST_WINDOW };
        let time = self.latency() + SLACK;
        saturating_bytes(2.0 * rate * time.as_secs_f64()).clamp(MIN_WINDOW, MAX_WINDOW)
    }

    /// When the last of `bytes` asked for now would be here.
    pub(super) fn expected(&self, bytes: usize) -> Duration {
        let seconds = bytes as f64 / self.rate.unwrap_or(USUAL_RATE).max(1.0);
        self.latency() + Duration::try_from_secs_f64(seconds).unwrap_or(A_DAY).min(A_DAY)
    }
}

/// `bytes` as an integer; what is out of range is at the end of it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-integer cast saturates")]
fn saturating_bytes(bytes: f64) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Delivers `rate` bytes a second in steps of 10 ms for `seconds`, with a window that is always full.
    fn deliver(pace: &mut Pace, clock: &mut Instant, rate: usize, seconds: u64) {
        for _ in 0..seconds * 100 {
            *clock += Duration::from_millis(10);
            pace.window_is_full();
            pace.delivered(rate / 100, *clock);
        }
    }

    #[test]
    fn window_covers_the_bandwidth_delay_product() {
        let mut clock = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.window(), FIRST_WINDOW);
        pace.answered(clock, clock + Duration::from_millis(100));
        deliver(&mut pace, &mut clock, 50_000_000, 2);
        let product = 50_000_000 / 10;
        assert!((2 * product..4 * product).contains(&pace.window()), "{}", pace.window());
        deliver(&mut pace, &mut clock, 100_000, 10);
        assert_eq!(pace.window(), MIN_WINDOW);
        deliver(&mut pace, &mut clock, 1_000_000_000, 1);
        assert_eq!(pace.window(), MAX_WINDOW);
    }

    #[test]
    fn a_reader_that_wants_little_does_not_shrink_the_window() {
        let mut clock = Instant::now();
        let mut pace = Pace::default();
        deliver(&mut pace, &mut clock, 50_000_000, 1);
        let window = pace.window();
        for _ in 0..100 {
            clock += Duration::from_millis(100);
            pace.delivered(1000, clock);
        }
        let since = Some(clock);
        clock += Duration::from_secs(60);
        pace.resumed(since, clock);
        pace.delivered(1000, clock);
        // The round in which it stopped to want more counts, no other.
        assert!(pace.window() >= window / 4 * 3, "{} {window}", pace.window());
    }

    #[test]
    fn a_late_block_lowers_the_rate() {
        let mut pace = Pace::default();
        let before = pace.expected(1 << 20);
        pace.late(Duration::from_secs(1));
        assert!(pace.expected(1 << 20) > 2 * before, "{:?}", pace.expected(1 << 20));
        pace.late(Duration::ZERO);
        assert!(pace.expected(1 << 20) > 2 * before, "a bound raised the rate");
        assert!(pace.expected(usize::MAX) <= A_DAY + USUAL_LATENCY);
    }
}
