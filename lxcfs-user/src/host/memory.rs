//! The daemon's own heap: it must stay small beside the containers that it serves.

/// Large buffers are mapped, and so given back when freed, however many there were before.
/// By itself the C library stops that after the first one. To be called once, at the start.
pub fn configure() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes numbers of the allocator; any value is allowed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives freed pages back to the kernel, also those between pages in use. Costs some 100 us.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
