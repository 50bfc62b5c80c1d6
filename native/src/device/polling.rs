//! Job: how long to look again before going to sleep, learned from the sleeps of the past.
//! Before: `plane` found nothing more to do.
//! After: it looks at rings and sockets for so long, and sleeps then.
//! Rules: no clock in here. An idle VM costs nothing: long sleeps bring the time down to zero, and only a sleep that looking
//! would have spared brings it up (the rule by which KVM polls a halted processor, `kvm_vcpu_halt` in virt/kvm/kvm_main.c).

use crate::timers::MICROSECOND;

/// Where growing starts. A wake-up costs about as much as looking for so long.
const START: u64 = 10 * MICROSECOND;

/// The time to look, and its bound.
#[derive(Debug)]
pub struct Polling {
    /// The most, in nanoseconds; 0 for not at all.
    max: u64,
    /// How long to look the next time.
    current: u64,
}

impl Polling {
    /// Not at all at first, and never longer than `max` nanoseconds.
    pub fn new(max: u64) -> Self {
        Self { max, current: 0 }
    }

    /// How long to look now, in nanoseconds.
    pub fn time(&self) -> u64 {
        self.current
    }

    /// Learns from a sleep of so many nanoseconds.
    pub fn slept(&mut self, nanoseconds: u64) {
        if nanoseconds > self.max {
            self.current = if self.current <= START { 0 } else { self.current / 2 };
        } else {
            self.current = (self.current * 2).clamp(START.min(self.max), self.max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_bring_it_up_to_the_bound_and_long_ones_down_to_nothing() {
        let mut polling = Polling::new(50 * MICROSECOND);
        assert_eq!(polling.time(), 0);
        for _ in 0..4 {
            polling.slept(30 * MICROSECOND);
        }
        assert_eq!(polling.time(), 50 * MICROSECOND);
        for _ in 0..4 {
            polling.slept(1000 * MICROSECOND);
        }
        assert_eq!(polling.time(), 0);
    }

    #[test]
    fn switched_off_it_never_looks() {
        let mut polling = Polling::new(0);
        polling.slept(0);
        polling.slept(1);
        assert_eq!(polling.time(), 0);
    }
}
