//! Job: a file of guest memory that shrinks under us costs one guest its device, not the process its life.
//! Before: `memory` maps a region and has it watched.
//! After: an access behind the file's end finds empty memory of our own, and the region knows that it is broken.
//! Rules: the handler uses nothing but atomics and two system calls. What is not about a watched region goes to whoever
//! handled the signal before us.
// UNSAFETY: signal handlers, and a mapping put in place of another.
#![allow(unsafe_code)]

use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

/// Regions watched at the most, of all guests together.
const SLOTS: usize = 16384;

/// A watched region, or a free place.
struct Slot {
    /// Its first byte; null for a free place.
    start: AtomicPtr<libc::c_void>,
    /// Its length in bytes.
    len: AtomicUsize,
    /// Not 0 once it was replaced.
    broken: AtomicU32,
}

/// All places. A place is written under [`FREE`]'s lock, and read by the handler at any time.
static TABLE: [Slot; SLOTS] =
    [const { Slot { start: AtomicPtr::new(null_mut()), len: AtomicUsize::new(0), broken: AtomicU32::new(0) } }; SLOTS];
/// Places that were freed, and how many were never used.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));
/// How often a region broke.
static BROKEN: AtomicU32 = AtomicU32::new(0);
/// Whoever handled the signal before us.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// How often any region of the process broke so far.
pub fn times_broken() -> u32 {
    BROKEN.load(Ordering::Relaxed)
}

/// A region that is watched for as long as this lives, which must not be longer than the mapping.
#[derive(Debug)]
pub struct Watched(usize);

impl Watched {
    /// Watches the `len` bytes that are mapped at `start`.
    pub fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        install()?;
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match free.0.pop() {
            Some(slot) => slot,
            None if free.1 < SLOTS => {
                free.1 += 1;
                free.1 - 1
            }
            None => return Err(io::Error::other("too many memory regions in this process")),
        };
        TABLE[slot].broken.store(0, Ordering::Relaxed);
        TABLE[slot].len.store(len, Ordering::Relaxed);
        TABLE[slot].start.store(start.cast(), Ordering::Release);
        Ok(Self(slot))
    }

    /// Whether its file shrank, and its memory is not the guest's any more.
    pub fn is_broken(&self) -> bool {
        TABLE[self.0].broken.load(Ordering::Relaxed) != 0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        TABLE[self.0].start.store(null_mut(), Ordering::Release);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.0);
    }
}

/// Installs the handler, once in the life of the process.
fn install() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = install_now());
    if BEFORE.get().is_some() { Ok(()) } else { result.and(Err(io::Error::other("SIGBUS cannot be handled"))) }
}

/// Installs the handler.
fn install_now() -> io::Result<()> {
    // SAFETY: sigaction is plain data, for which zeroes are valid.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is whole, and its handler keeps to what is allowed in one; `before` is a variable of ours.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let _ = BEFORE.set(before);
    Ok(())
}

/// The handler. It returns to the access, which succeeds now, or fails again in the way of those before us.
extern "C" fn handle(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole record, and for SIGBUS it has an address.
    let at = unsafe { (*info).si_addr() } as usize;
    for slot in &TABLE {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Relaxed);
        if start.is_null() || at < start as usize || at - start as usize >= len {
            continue;
        }
        let (access, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the place is watched, so the whole range is a mapping of ours, which only this thread uses and which
        // is unmapped in the same way whatever is behind it.
        let mapped = unsafe { libc::mmap(start, len, access, how | libc::MAP_FIXED | libc::MAP_NORESERVE, -1, 0) };
        if mapped == start {
            slot.broken.store(1, Ordering::Relaxed);
            BROKEN.fetch_add(1, Ordering::Relaxed);
            return;
        }
        break;
    }
    if let Some(before) = BEFORE.get() {
        // SAFETY: it is what `sigaction` told, so it is whole.
        unsafe { libc::sigaction(libc::SIGBUS, before, null_mut()) };
    }
}
