//! Job: news for the control plane: log lines and changes of a device's life.
//! Before: device threads push.
//! After: one eventfd becomes readable; `ffi` hands the events out one by one.
//! Rules: never waits. Log lines that nobody reads are dropped, and repeated warnings thinned out; no event of one device
//! takes the place of another device's.

use crate::sync::{AtomicU32, Mutex, Ordering, Signal};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Log lines are dropped once so many events wait.
const CAPACITY: usize = 4096;
/// How far back an event is looked for that a newer one replaces.
const LOOK_BACK: usize = 64;

/// How important an event is; the numbers are those of Python's logging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// For those who look for a fault.
    Debug = 10,
    /// For those who want to know what happens.
    Info = 20,
    /// Somebody else's mistake.
    Warning = 30,
    /// Something does not work.
    Error = 40,
}

/// What an event is about; the numbers are part of the C interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A log line.
    Log = 0,
    /// A front-end took over the device.
    Attached = 1,
    /// The front-end is gone.
    Detached = 2,
    /// Both rings run.
    Started = 3,
    /// They do not any more.
    Stopped = 4,
    /// The device's thread ended by a fault of its own.
    Fault = 5,
    /// The guest asks for a port where no host application of its own listens. To be answered under `token`. `value` has
    /// the port in its lower half, and that of the guest's socket in the upper one.
    Ask = 6,
    /// A client belongs to the network namespace with cookie `value`, of which the device knows nothing yet. `fd` is its
    /// socket.
    Netns = 7,
    /// As [`Ask`](Self::Ask), for a message socket (SOCK_SEQPACKET).
    AskSeqpacket = 8,
}

/// One piece of news.
#[derive(Debug)]
pub struct Event {
    /// The device that it is about.
    pub device: u64,
    /// What it is about.
    pub kind: Kind,
    /// How important it is.
    pub level: Level,
    /// Names what is asked about, in the answer; 0 where nothing is asked.
    pub token: u64,
    /// A number; what it means depends on the kind.
    pub value: u64,
    /// A descriptor that goes with it; closed with an event that nobody reads.
    pub fd: Option<OwnedFd>,
    /// For people.
    pub text: String,
}

/// What waits.
#[derive(Debug, Default)]
struct Waiting {
    /// Events, the oldest first.
    events: VecDeque<Event>,
    /// Log lines that were dropped since that was told last.
    lost: u64,
}

/// The queue between all devices and their control plane.
#[derive(Debug)]
pub struct Events {
    /// Waiting events.
    queue: Mutex<Waiting>,
    /// Readable while events wait.
    signal: Signal,
    /// Log lines below this level are not made.
    level: AtomicU32,
}

impl Events {
    /// An empty queue.
    pub fn new() -> std::io::Result<Self> {
        let level = AtomicU32::new(Level::Info as u32);
        Ok(Self { queue: Mutex::new(Waiting::default()), signal: Signal::new()?, level })
    }

    /// The descriptor to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }

    /// Whether the descriptor is readable.
    #[cfg(all(test, loom))]
    pub fn is_raised(&self) -> bool {
        self.signal.is_raised()
    }

    /// Sets the level below which log lines are not made.
    pub fn set_level(&self, level: u32) {
        self.level.store(level, Ordering::Relaxed);
    }

    /// Whether a log line of this level would be read.
    pub fn wants(&self, level: Level) -> bool {
        level as u32 >= self.level.load(Ordering::Relaxed)
    }

    /// Adds an event. A log line that finds the queue full is dropped, which is told once there is room. Of a device's rings that start and stop faster than
    /// anybody reads, only the last news are kept. Everything else is bounded by whoever answers it.
    pub fn push(&self, event: Event) {
        let mut queue = self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if event.kind == Kind::Log && queue.events.len() >= CAPACITY {
            queue.lost += 1;
            return;
        }
        let rings = |kind| matches!(kind, Kind::Started | Kind::Stopped);
        let of_rings = |other: &&mut Event| other.device == event.device && other.kind != Kind::Log;
        match queue.events.iter_mut().rev().take(LOOK_BACK).find(of_rings).filter(|last| rings(last.kind)) {
            Some(last) if rings(event.kind) => *last = event,
            _ => queue.events.push_back(event),
        }
        drop(queue);
        self.signal.raise();
    }

    /// Takes the oldest event out.
    pub fn pop(&self) -> Option<Event> {
        let mut queue = self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let event = queue.events.pop_front();
        if event.is_none() && queue.lost > 0 {
            let text = format!("{} log lines were lost: there were too many at once", std::mem::take(&mut queue.lost));
            let (kind, level) = (Kind::Log, Level::Warning);
            return Some(Event { device: 0, kind, level, token: 0, value: 0, fd: None, text });
        }
        if event.is_none() {
            // Under the lock, so that a push in between signals anew.
            self.signal.take();
        }
        event
    }
}

/// One device's way to the queue, thinning out what others can cause at will.
#[derive(Debug)]
pub struct Log {
    /// The queue.
    events: std::sync::Arc<Events>,
    /// The device.
    device: u64,
    /// When the current window of warnings began, in nanoseconds.
    window: u64,
    /// Warnings in it.
    count: u32,
}

/// Length of a window of warnings.
const WINDOW: u64 = 10 * crate::timers::SECOND;
/// Warnings in one window.
const PER_WINDOW: u32 = 10;

impl Log {
    /// The log of `device`.
    pub fn new(events: std::sync::Arc<Events>, device: u64) -> Self {
        Self { events, device, window: 0, count: 0 }
    }

    /// A change in the device's life.
    pub fn state(&self, kind: Kind, level: Level, text: impl Into<String>) {
        self.events.push(Event { device: self.device, kind, level, token: 0, value: 0, fd: None, text: text.into() });
    }

    /// A question to the control plane.
    pub fn ask(&self, kind: Kind, token: u64, value: u64, fd: Option<OwnedFd>) {
        let text = String::new();
        self.events.push(Event { device: self.device, kind, level: Level::Debug, token, value, fd, text });
    }

    /// A line that only the operator or ourselves can cause.
    pub fn line(&self, level: Level, text: impl FnOnce() -> String) {
        if self.events.wants(level) {
            self.state(Kind::Log, level, text());
        }
    }

    /// A line that a guest or a host application can cause at any rate.
    pub fn limited(&mut self, now: u64, level: Level, text: impl FnOnce() -> String) {
        if !self.events.wants(level) {
            return;
        }
        if now.saturating_sub(self.window) >= WINDOW {
            let suppressed = self.count.saturating_sub(PER_WINDOW);
            if suppressed > 0 {
                self.state(Kind::Log, level, format!("{suppressed} more such messages in the last 10 s were left out"));
            }
            (self.window, self.count) = (now, 0);
        }
        self.count += 1;
        if self.count <= PER_WINDOW {
            self.state(Kind::Log, level, text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_beyond_the_bound_are_dropped_and_that_is_told() {
        let events = std::sync::Arc::new(Events::new().unwrap());
        let log = Log::new(std::sync::Arc::clone(&events), 1);
        for _ in 0..CAPACITY + 7 {
            log.line(Level::Error, || "again".into());
        }
        // What is no log line has its place.
        log.state(Kind::Fault, Level::Error, "");
        let texts: Vec<_> = std::iter::from_fn(|| events.pop()).map(|event| event.text).collect();
        assert_eq!(texts.len(), CAPACITY + 2);
        assert!(texts.last().unwrap().starts_with("7 log lines were lost"), "{:?}", texts.last());
    }
}
