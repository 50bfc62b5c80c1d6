//! Job: an end to every wait, so that a test or a row of the benchmark fails rather than hangs.
//! Before: callers say how long something may take.
//! After: loops ask whether it is over, `poll` how long it may sleep.
//! Rules: monotonic time.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// How long anything may take that should take microseconds. Generous, as machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A moment after which waiting is over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// In `time` from now.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// Far enough away for all that should work.
    pub fn patient() -> Self {
        Self::after(PATIENCE)
    }

    /// Whether it has come.
    pub fn is_over(self) -> bool {
        Instant::now() >= self.0
    }

    /// The time until then.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Sleeps until one of `fds` is readable; `false` if the deadline came first.
    pub fn wait_readable(self, fds: &[BorrowedFd<'_>]) -> bool {
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        loop {
            let left = self.left();
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("poll: {error}"),
            }
        }
    }
}

/// Waits until `condition` holds, looking again every now and then; panics with `what` if it never does.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Deadline::patient();
    while !condition() {
        assert!(!deadline.is_over(), "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
