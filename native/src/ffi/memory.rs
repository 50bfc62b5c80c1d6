//! Job: memory that was freed goes back to the system.
//! Before: vhostvsock/memory.py, now and then. After: the C library's allocator.
//! Rules: like all exports.
// UNSAFETY: an export, and a call of the C library.
#![allow(unsafe_code)]

use super::guard::{VhvError, guard};

/// Gives freed memory back to the system. glibc keeps what lies between blocks in use, which is most of it after a busy time
/// with slow host applications. Elsewhere this does nothing.
///
/// # Safety
///
/// `err` is null or points to a record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhv_trim(err: *mut VhvError) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        guard(err, || {
            #[cfg(target_env = "gnu")]
            libc::malloc_trim(0);
            Ok(0)
        })
    }
}
