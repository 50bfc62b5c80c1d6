//! Job: one thread wakes another, which sleeps on a descriptor.
//! Before: `events` and `device` put something where the other thread finds it.
//! After: the descriptor is readable until the other thread has taken the signal.
//! Rules: first the news, then [`Signal::raise`]; first [`Signal::take`], then a look at the news, or both under one lock.
//! So nothing is slept through. Under loom there is no descriptor, and whoever would sleep on it is told by
//! [`Signal::is_raised`].

#[cfg(not(loom))]
pub use kernel::Signal;
#[cfg(loom)]
pub use model::Signal;

/// The real one.
#[cfg(not(loom))]
mod kernel {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{read, write};
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    /// An eventfd.
    #[derive(Debug)]
    pub struct Signal(OwnedFd);

    impl Signal {
        /// One that is not raised.
        pub fn new() -> std::io::Result<Self> {
            Ok(Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
        }

        /// Makes the descriptor readable. What was written before is visible to whoever takes the signal.
        pub fn raise(&self) {
            // It fails only if the count is at its limit: then it is readable anyway.
            let _ = write(&self.0, &1_u64.to_ne_bytes());
        }

        /// Makes the descriptor unreadable, until it is raised anew.
        pub fn take(&self) {
            let _ = read(&self.0, &mut [0; 8]);
        }
    }

    impl AsFd for Signal {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

/// What loom sees of it.
#[cfg(loom)]
mod model {
    use loom::sync::atomic::{AtomicBool, Ordering};

    /// A flag.
    #[derive(Debug)]
    pub struct Signal(AtomicBool);

    impl Signal {
        /// One that is not raised.
        pub fn new() -> std::io::Result<Self> {
            Ok(Self(AtomicBool::new(false)))
        }

        /// Makes the descriptor readable.
        pub fn raise(&self) {
            self.0.store(true, Ordering::Release);
        }

        /// Makes the descriptor unreadable.
        pub fn take(&self) {
            self.0.swap(false, Ordering::AcqRel);
        }

        /// Whether whoever sleeps on the descriptor would wake up.
        pub fn is_raised(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }
    }
}
