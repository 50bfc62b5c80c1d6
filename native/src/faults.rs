//! Job: lets tests have happen to one device what cannot be had otherwise: a panic, a kernel without memory.
//! Before: `device` is told of a fault, in builds with the feature `faults` alone, which only tests have.
//! After: `host` asks here whether its next call is to fail.
//! Rules: without the feature nothing of it is there. A fault happens to the thread that was told of it and to no other.

#[cfg(feature = "faults")]
pub use injected::{Fault, inject, no_buffers, no_memory};

/// The faults of this thread.
#[cfg(feature = "faults")]
mod injected {
    use std::cell::Cell;

    /// What is to happen to a device's thread.
    #[derive(Clone, Copy, Debug)]
    pub enum Fault {
        /// A panic, as a mistake of ours would be.
        Panic,
        /// The kernel has no memory for so many calls on sockets.
        NoBuffers(u32),
        /// So many backlogs find no memory.
        NoMemory(u32),
    }

    thread_local! {
        /// Calls on sockets that are to fail.
        static NO_BUFFERS: Cell<u32> = const { Cell::new(0) };
        /// Backlogs that are to fail.
        static NO_MEMORY: Cell<u32> = const { Cell::new(0) };
    }

    /// Has it happen to the thread that calls.
    pub fn inject(fault: Fault) {
        match fault {
            Fault::Panic => panic!("injected"),
            Fault::NoBuffers(calls) => NO_BUFFERS.set(calls),
            Fault::NoMemory(backlogs) => NO_MEMORY.set(backlogs),
        }
    }

    /// Counts one down.
    fn take(left: &Cell<u32>) -> bool {
        let some = left.get() > 0;
        left.set(left.get().saturating_sub(1));
        some
    }

    /// Whether the next call on a socket finds the kernel without memory.
    pub fn no_buffers() -> bool {
        NO_BUFFERS.with(take)
    }

    /// Whether the next backlog finds no memory.
    pub fn no_memory() -> bool {
        NO_MEMORY.with(take)
    }
}

/// Never.
#[cfg(not(feature = "faults"))]
pub const fn no_buffers() -> bool {
    false
}

/// Never.
#[cfg(not(feature = "faults"))]
pub const fn no_memory() -> bool {
    false
}
