//! Job: the host port of a connection that a host application opens.
//! Before: `mux` needs a port that is free together with the guest's.
//! After: it stands in the connection's key and in the `OK` line.
//! Rules: never 0, never below 1024 (a guest takes those for privileged peers); short numbers first.

use crate::ids::HostPort;

/// The first port given out; those below are privileged on Linux.
const FIRST: u32 = 1024;
/// The last short one. `OK 65535\n` is as much as the parser of systemd-ssh-proxy takes off the stream.
const LAST_SHORT: u32 = 65535;

/// Gives out host ports, each as late again as possible.
#[derive(Debug)]
pub struct HostPorts {
    /// The next short port to try.
    next_short: u32,
    /// The next long port to try, once the short ones are taken.
    next_long: u32,
}

impl HostPorts {
    /// Begins at any place among the short ones, which `start` names.
    pub fn new(start: u32) -> Self {
        Self { next_short: FIRST + start % (LAST_SHORT - FIRST + 1), next_long: LAST_SHORT + 1 }
    }

    /// A port for which `taken` says no; `None` when all 2^32 are taken.
    pub fn allocate(&mut self, taken: impl Fn(HostPort) -> bool) -> Option<HostPort> {
        if let Some(port) = search(&mut self.next_short, FIRST, LAST_SHORT, LAST_SHORT - FIRST + 1, &taken) {
            return Some(port);
        }
        // More than 64512 connections to one guest port. As many tries as there can be file descriptors.
        search(&mut self.next_long, LAST_SHORT + 1, u32::MAX - 1, 1 << 20, &taken)
    }
}

/// Walks from `next` through `first..=last`, at most `tries` steps, to a port that is not taken.
fn search(next: &mut u32, first: u32, last: u32, tries: u32, taken: impl Fn(HostPort) -> bool) -> Option<HostPort> {
    for _ in 0..tries {
        let port = *next;
        *next = if port == last { first } else { port + 1 };
        if !taken(HostPort(port)) {
            return Some(HostPort(port));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ports_are_short_and_unprivileged_until_those_run_out() {
        let mut ports = HostPorts::new(0);
        let mut taken = HashSet::new();
        for _ in FIRST..=LAST_SHORT {
            let port = ports.allocate(|port| taken.contains(&port)).unwrap();
            assert!((FIRST..=LAST_SHORT).contains(&port.0));
            assert!(taken.insert(port));
        }
        assert_eq!(ports.allocate(|port| taken.contains(&port)), Some(HostPort(LAST_SHORT + 1)));
        taken.remove(&HostPort(2000));
        assert_eq!(ports.allocate(|port| taken.contains(&port)), Some(HostPort(2000)));
    }

    #[test]
    fn ports_begin_anywhere_among_the_short_ones() {
        for start in [0, 1, LAST_SHORT - FIRST, LAST_SHORT - FIRST + 1, u32::MAX] {
            let mut ports = HostPorts::new(start);
            let first = ports.allocate(|_| false).unwrap().0;
            assert_eq!(first, FIRST + start % (LAST_SHORT - FIRST + 1));
            let second = ports.allocate(|_| false).unwrap().0;
            assert_eq!(second, if first == LAST_SHORT { FIRST } else { first + 1 });
        }
    }
}
