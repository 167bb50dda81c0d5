//! How far ahead of the reader to ask over the network: twice what comes in the shortest time from asking to arrival.
//!
//! A window that is too small for the line shows as more bytes in the next round, so it doubles until the line is full. What
//! more would be asked for would wait in memory here, or for the disk.

use super::NEAR_WINDOW;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes asked for ahead until the line is known, and at least, so that nobody waits for messages to be filled.
const LEAST: u64 = 4 << 20;
/// Bytes asked for ahead at most: 1 Gbit/s at 100 ms.
const MOST: u64 = 12 << 20;
/// The same for all readers of this process together, as long as each has a [`NEAR_WINDOW`].
const ALL_MOST: u64 = 32 << 20;
/// Shortest time over which a rate is measured.
const ROUND: Duration = Duration::from_millis(50);

/// The readers that may wait for the network: they share [`ALL_MOST`].
static READERS: AtomicU64 = AtomicU64::new(0);

/// The window of one reader.
#[derive(Debug)]
pub(super) struct Window {
    /// Shortest time from asking a peer to the block.
    trip: Option<Duration>,
    /// Bytes a second: of the last round, or of a better one not long ago.
    rate: f64,
    /// Since when the round is counted, and its bytes.
    round: Option<(Instant, u64)>,
}

impl Window {
    pub(super) fn open() -> Self {
        READERS.fetch_add(1, Ordering::Relaxed);
        Self { trip: None, rate: 0.0, round: None }
    }

    /// A block of `bytes` came over the network, `waited` after it was asked for.
    pub(super) fn came(&mut self, bytes: u64, waited: Duration, now: Instant) {
        let trip = self.trip.map_or(waited, |trip| trip.min(waited));
        self.trip = Some(trip);
        // The bytes that open a round are what the waiting was for, not a measure of the rate.
        let Some((start, total)) = &mut self.round else {
            self.round = Some((now, 0));
            return;
        };
        *total += bytes;
        let elapsed = now.saturating_duration_since(*start);
        if elapsed >= trip.max(ROUND) {
            let rate = *total as f64 / elapsed.as_secs_f64();
            self.rate = rate.max((3.0 * self.rate + rate) / 4.0);
            self.round = Some((now, 0));
        }
    }

    /// Bytes to ask for ahead of the reader.
    pub(super) fn bytes(&self) -> u64 {
        self.wanted().min((ALL_MOST / READERS.load(Ordering::Relaxed).max(1)).max(NEAR_WINDOW))
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-integer cast saturates")]
    fn wanted(&self) -> u64 {
        let product = self.rate * self.trip.unwrap_or_default().as_secs_f64();
        ((2.0 * product) as u64).clamp(LEAST, MOST)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        READERS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills the window over a line for `seconds`: it brings `rate` bytes a millisecond, each block at least `trip`
    /// milliseconds after it was asked for.
    fn fill(window: &mut Window, clock: &mut Instant, rate: u64, trip: u64, seconds: u64) {
        for _ in 0..seconds * 100 {
            *clock += Duration::from_millis(10);
            let in_flight = (rate * trip).min(window.wanted());
            window.came(10 * in_flight / trip, Duration::from_millis(trip), *clock);
        }
    }

    #[test]
    fn the_window_grows_to_the_line_and_shrinks_with_it() {
        let (mut window, mut clock) = (Window::open(), Instant::now());
        assert_eq!(window.wanted(), LEAST);
        fill(&mut window, &mut clock, 50_000, 100, 2);
        assert!((9_000_000..=11_000_000).contains(&window.wanted()), "{}", window.wanted());
        fill(&mut window, &mut clock, 1_000_000, 100, 2);
        assert_eq!(window.wanted(), MOST);
        fill(&mut window, &mut clock, 1_000, 100, 5);
        assert_eq!(window.wanted(), LEAST);
    }

    #[test]
    fn a_near_peer_needs_no_large_window_however_fast_it_is() {
        let (mut window, mut clock) = (Window::open(), Instant::now());
        fill(&mut window, &mut clock, 500_000, 2, 2);
        assert_eq!(window.wanted(), LEAST);
    }
}
