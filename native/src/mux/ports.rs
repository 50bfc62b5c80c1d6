//! Job: the host port of a connection that a host application opens.
//! Before: `mux` needs a port that is free together with the guest's.
//! After: it stands in the connection's key and in the `OK` line.
//! Rules: never 0, never below 1024 (a guest takes those for privileged peers); short numbers first.

use crate::ids::HostPort;

/// The first port given out; those below are privileged on Linux.
const FIRST: u32 = 1024;
/// The last short one. `OK 65535\n` is as much as the parser of systemd-ssh-proxy takes off the stream.
const LAST_SHORT: u32 = 65535;

/// Ports looked at, short and long ones each. What is taken lies mostly behind the next port, so that more would be looked at
/// only where nearly all are; and a client that asks for a connection must not cost others time.
const TRIES: u32 = 1024;

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

    /// A port for which `taken` says no; `None` when there is none among those that come next.
    pub fn allocate(&mut self, taken: impl Fn(HostPort) -> bool) -> Option<HostPort> {
        search(&mut self.next_short, FIRST, LAST_SHORT, &taken)
            // Many thousands of connections to one guest port.
            .or_else(|| search(&mut self.next_long, LAST_SHORT + 1, u32::MAX - 1, &taken))
    }
}

/// Walks from `next` through `first..=last`, at most [`TRIES`] steps, to a port that is not taken.
fn search(next: &mut u32, first: u32, last: u32, taken: impl Fn(HostPort) -> bool) -> Option<HostPort> {
    for _ in 0..TRIES {
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
    use std::cell::Cell;
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
        taken.remove(&HostPort(FIRST + TRIES + 10));
        assert_eq!(ports.allocate(|port| taken.contains(&port)), Some(HostPort(FIRST + TRIES + 10)));
    }

    #[test]
    fn hundred_thousand_connections_to_one_guest_port_cost_each_a_bounded_search() {
        let mut ports = HostPorts::new(0);
        let mut taken = HashSet::new();
        for _ in 0..100_000 {
            let looked_at = Cell::new(0);
            let port = ports.allocate(|port| {
                looked_at.set(looked_at.get() + 1);
                taken.contains(&port)
            });
            assert!(taken.insert(port.unwrap()));
            assert!(looked_at.get() <= TRIES + 1, "{looked_at:?} ports were looked at");
        }
    }

    #[test]
    fn search_gives_up_where_all_that_come_next_are_taken() {
        assert_eq!(HostPorts::new(0).allocate(|_| true), None);
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
