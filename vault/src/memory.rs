//! How this process's allocator treats the data path's buffers.
#![allow(unsafe_code)]

/// Blocks of at least this size are asked of the system and given back to it one by one: chunks and packs, and nothing that is taken and
/// given back often.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: i32 = 1 << 20;

/// Tells the allocator to give large blocks back to the system when they are freed. To be called once, at the beginning of a process that
/// moves payload: glibc otherwise learns from the first large block that is freed to keep all of them, and a process that needs 70 MiB
/// ends with 200. Other allocators do so by themselves; there this does nothing.
pub fn give_large_blocks_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers, and may be called at any time.
    let set = unsafe { nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE) };
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if set == 0 {
        tracing::debug!("the allocator keeps large blocks");
    }
}
