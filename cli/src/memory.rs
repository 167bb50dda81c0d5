//! How the C library's allocator keeps memory, which by default is far more than this program needs.

/// Bytes: see [`keep_little`].
const KEPT: usize = 256 << 10;

/// Has glibc keep memory apart for half as many threads as can run at once, instead of eight times as many: of those here most
/// wait for the disk, and a heap is taken for a moment only. And has it keep what is free at the end of a heap up to twice
/// [`KEPT`]; else it gives all above 128 KiB back to the kernel, and gets it again for the next frame. It learns that from the
/// largest allocation of its own that was freed. To be called before the first thread is started.
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    limit_arenas();
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "there is no other way to set this from within a program")]
fn limit_arenas() {
    let most = (std::thread::available_parallelism().map_or(2, std::num::NonZero::get) / 2).max(1);
    // SAFETY: mallopt takes two integers by value; it may be called before any other thread uses the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::try_from(most).unwrap_or(i32::MAX)) };
}
