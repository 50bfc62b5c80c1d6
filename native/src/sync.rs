//! Job: what one thread shares with another: locks, atomics, and the signal by which it wakes the other one.
//! Before, after: nothing; `events`, `device` and `stats` are made of it.
//! Rules: those of the standard library, but in the tests of `device/interleavings.rs`, where loom has its own and tries every
//! order in which threads can come.

#[cfg(all(test, loom))]
pub use loom::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(all(test, loom)))]
pub use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Wakes a thread that sleeps on a descriptor.
///
/// Whoever has news puts them where the other thread finds them and then raises the signal. The other one takes the signal
/// first and looks for news after, or does both under the lock of the news. So nothing is slept through.
#[derive(Debug)]
pub struct Signal {
    /// An eventfd, readable while the signal is raised.
    fd: OwnedFd,
    /// What loom sees of it: it knows nothing of descriptors. Under a lock, as the kernel has the count of an eventfd.
    #[cfg(all(test, loom))]
    raised: Mutex<bool>,
}

impl Signal {
    /// One that is not raised.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            fd: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            #[cfg(all(test, loom))]
            raised: Mutex::new(false),
        })
    }

    /// Makes the descriptor readable. What was written before is visible to whoever takes the signal.
    pub fn raise(&self) {
        #[cfg(all(test, loom))]
        self.set(true);
        // It fails only if the count is at its limit: then it is readable anyway.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable until the signal is raised anew.
    pub fn take(&self) {
        #[cfg(all(test, loom))]
        self.set(false);
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }

    /// Raises the signal or takes it, as loom sees it.
    #[cfg(all(test, loom))]
    fn set(&self, raised: bool) {
        *self.raised.lock().expect("nobody panics with it") = raised;
    }

    /// Whether whoever sleeps on the descriptor would wake up.
    #[cfg(all(test, loom))]
    pub fn is_raised(&self) -> bool {
        *self.raised.lock().expect("nobody panics with it")
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
