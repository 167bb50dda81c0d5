//! The memory of frames, used again.
//!
//! Fresh memory costs more than what is read into it: the kernel clears each page, and growing copies. So a buffer that
//! held a long frame waits for the next one of about its length.

use std::sync::{Mutex, PoisonError};

/// Bytes of fresh memory that a frame gets before any of its own bytes have come.
pub(super) const FIRST_READ: usize = 64 << 10;
/// Bytes of the largest buffer that is kept: those that fit our own messages and Kubo's.
const MAX_SPARE: usize = 1 << 20;
/// Buffers that wait, for all connections of this process together: about as many as one of them has in work.
const MAX_SPARES: usize = 4;

static SPARES: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Memory for one frame. All of it is initialized; where it was used before, with bytes of another frame.
#[derive(Debug)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// A buffer that may have to grow. A spare one is at most twice as long as the frame, for blocks in it
    /// may keep all of it in memory.
    pub(super) fn for_frame(length: usize) -> Self {
        let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |spare: &Vec<u8>| spare.len() <= 2 * length;
        let best = (0..spares.len()).filter(|at| fits(&spares[*at])).max_by_key(|at| spares[*at].len());
        Self(best.map(|at| spares.swap_remove(at)).unwrap_or_default())
    }

    /// Where the next bytes of a frame of `length` bytes go, `filled` of which are there. Memory doubles:
    /// what is fresh is at most as much as has arrived, from the first read on.
    pub(super) fn room(&mut self, filled: usize, length: usize) -> &mut [u8] {
        if filled == self.0.len() {
            let grown = length.min((2 * filled).max(FIRST_READ));
            self.0.reserve_exact(grown - filled);
            self.0.resize(grown, 0);
        }
        let end = length.min(self.0.len());
        &mut self.0[filled..end]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if (FIRST_READ..=MAX_SPARE).contains(&self.0.len()) {
            let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
            if spares.len() < MAX_SPARES {
                spares.push(std::mem::take(&mut self.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_with_what_arrives_and_never_beyond_the_frame() {
        let mut buffer = Buffer(Vec::new());
        let (length, mut filled, mut grown) = (300 << 10, 0, Vec::new());
        while filled < length {
            filled += buffer.room(filled, length).len();
            grown.push(buffer.0.len() >> 10);
        }
        assert_eq!(grown, [64, 128, 256, 300]);
    }

    #[test]
    fn a_short_frame_does_not_get_a_long_spare() {
        // Longer than any that another test leaves.
        drop(Buffer(vec![0; MAX_SPARE]));
        assert!(Buffer::for_frame(70 << 10).0.len() <= 140 << 10);
        drop(Buffer(vec![0; MAX_SPARE + 1]));
        assert!(Buffer::for_frame(usize::MAX / 2).0.len() <= MAX_SPARE);
    }
}
