//! Job: what happens when, for things that are named by an [`Id`].
//! Before: `mux` and `device` set and clear deadlines.
//! After: the event loop sleeps no longer than until the next one.
//! Rules: no clock in here; times are nanoseconds of the caller's monotonic clock. At most one deadline per id, whose
//! value the owner remembers to clear it.

use crate::slab::Id;
use std::collections::BTreeSet;

/// One second, in the unit of all times here.
pub const SECOND: u64 = 1_000_000_000;
/// One microsecond.
pub const MICROSECOND: u64 = 1_000;
/// One millisecond.
pub const MILLISECOND: u64 = 1_000_000;

/// Deadlines in order.
#[derive(Debug, Default)]
pub struct Timers(BTreeSet<(u64, Id)>);

impl Timers {
    /// Moves the deadline of `id` from `old` to `new`.
    pub fn change(&mut self, id: Id, old: &mut Option<u64>, new: Option<u64>) {
        if *old == new {
            return;
        }
        if let Some(at) = old.take() {
            self.0.remove(&(at, id));
        }
        if let Some(at) = new {
            self.0.insert((at, id));
        }
        *old = new;
    }

    /// When the first one is due.
    pub fn next(&self) -> Option<u64> {
        self.0.first().map(|&(at, _)| at)
    }

    /// Takes out one that is due at `now`.
    pub fn pop_due(&mut self, now: u64) -> Option<Id> {
        let &(at, id) = self.0.first()?;
        if at > now {
            return None;
        }
        self.0.pop_first();
        Some(id)
    }
}
