//! Job: a device without a thread of its own, for measurements in which each thing has to come after the other.
//! Before: `benches/insns` puts packets into the rings and bytes into sockets.
//! After: the event loop of `plane`, the same as in a device with a thread, has served them.
//! Rules: not for serving VMs: a fault ends the caller.

use super::plane::{Plane, Seeds};
use super::poller::Ready;
use super::{Admission, Busy, Listeners, Settings, Shared};
use crate::events::{Events, Log};
use crate::stats::Snapshot;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A device that runs when it is told to.
pub struct ByHand {
    /// What a thread would run.
    plane: Plane,
    /// The way to it.
    shared: Arc<Shared>,
    /// News of one look, kept for its memory.
    ready: Vec<Ready>,
}

impl ByHand {
    /// A device that serves the clients of `listener`, a UNIX socket that listens and does not block.
    pub fn new(settings: Settings, listener: OwnedFd, events: Arc<Events>) -> io::Result<Self> {
        let shared = Shared::new()?;
        let seeds = Seeds::new(
            settings,
            Listeners { stream: listener, seqpacket: None },
            Arc::clone(&shared),
            Log::new(events, 0),
        )?;
        Ok(Self { plane: Plane::new(seeds), shared, ready: Vec::new() })
    }

    /// Hands a connected vhost-user socket over. The error closes it.
    pub fn attach(&self, front_end: OwnedFd, admission: Admission) -> Result<(), Busy> {
        self.shared.attach(front_end, admission)
    }

    /// One turn of the event loop: waits for news for at most `timeout` nanoseconds, and serves until there is no more.
    #[inline(never)]
    pub fn turn(&mut self, timeout: u64) -> io::Result<()> {
        self.plane.turn(Some(timeout), &mut self.ready).map(drop)
    }

    /// The counters as they are now.
    pub fn stats(&self) -> Snapshot {
        self.shared.stats.snapshot()
    }
}
