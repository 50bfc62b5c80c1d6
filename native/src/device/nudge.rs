//! Job: gets a device's thread out of a write that waits though it must not.
//! Before: `Device` finds that its thread does not come round.
//! After: the system call fails with EINTR, and `plane` throws out the front-end that caused it.
//! Rules: the only such write is that of an interrupt. It is non-blocking, but whoever shares the eventfd can change that at
//! any time, between our looking and our writing, too, and there is no way to write to an eventfd that they cannot change. The
//! signal is one that is ignored where nobody handles it.
// UNSAFETY: signal handlers and signals to threads.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::thread::JoinHandle;

/// The signal.
const SIGNAL: libc::c_int = libc::SIGURG;

/// Does nothing: that it is called is what ends a system call.
extern "C" fn handler(_signal: libc::c_int) {}

/// Installs the handler, once in the life of the process.
pub fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let error = INSTALLED.get_or_init(|| {
        // SAFETY: sigaction is plain data, for which zeroes are valid: no flags, so that system calls are not restarted.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        // SAFETY: `action` is whole, and its handler may run at any time.
        let result = unsafe { libc::sigaction(SIGNAL, &raw const action, null_mut()) };
        if result == 0 { None } else { io::Error::last_os_error().raw_os_error() }
    });
    error.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
}

/// Interrupts the system call in which `thread` waits, if it does.
pub fn nudge(thread: &JoinHandle<()>) {
    // SAFETY: the thread was not joined, so that its handle names it, or what is left of it.
    let _ = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL) };
}
