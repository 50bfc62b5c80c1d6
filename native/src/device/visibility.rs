//! Job: which clients may see the VM, by the network namespace in which each made its socket.
//! Before: `clients` has a socket that was accepted; the control plane said to which namespace the VM belongs.
//! After: the client is served, or treated as if there were no VM.
//! Rules: the kernel says where a client's socket was made, by a cookie that is never used twice; no path, pid or claim of
//! the client's counts. What is not known is asked once and remembered: the mode of a namespace never changes.

use crate::host::io::netns_cookie;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Namespaces remembered at the most.
const MAX_KNOWN: usize = 4096;

/// Whose namespaces may see the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All: there are no namespaces to tell apart.
    #[default]
    Everyone,
    /// The VM belongs to the global namespace with this cookie: that one and all other global ones.
    Global(u64),
    /// The VM belongs to the local namespace with this cookie: that one alone.
    Local(u64),
}

/// What is known of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It may see the VM.
    Visible,
    /// It may not.
    Hidden,
    /// Its namespace has to be looked up.
    Unknown {
        /// The namespace's cookie.
        netns: u64,
        /// Nobody was asked yet.
        first: bool,
    },
}

/// Who may see the VM, and what is known of namespaces.
#[derive(Debug, Default)]
pub struct Visibility {
    /// Whose namespaces may.
    scope: Scope,
    /// Namespaces by cookie: whether they are local, or `None` while that is being asked.
    local: HashMap<u64, Option<bool>>,
}

impl Visibility {
    /// The VM belongs elsewhere now.
    pub fn set_scope(&mut self, scope: Scope) {
        self.scope = scope;
        self.give_up();
    }

    /// Nobody answered in time: whoever comes next asks anew.
    pub fn give_up(&mut self) {
        self.local.retain(|_, local| local.is_some());
    }

    /// A namespace was looked up.
    pub fn learn(&mut self, netns: u64, local: bool) {
        // Namespaces come and go, and nobody tells when one is gone.
        if self.local.len() >= MAX_KNOWN {
            self.local.clear();
        }
        self.local.insert(netns, Some(local));
    }

    /// Judges the client at the other end of an accepted socket.
    pub fn judge(&mut self, accepted: &OwnedFd) -> Judgement {
        if self.scope == Scope::Everyone {
            return Judgement::Visible;
        }
        match netns_cookie(accepted) {
            Ok(netns) => self.judge_netns(netns),
            // What cannot be told is not let in.
            Err(_) => Judgement::Hidden,
        }
    }

    /// Judges a namespace.
    fn judge_netns(&mut self, netns: u64) -> Judgement {
        let verdict = |visible| if visible { Judgement::Visible } else { Judgement::Hidden };
        match (self.scope, self.local.get(&netns)) {
            (Scope::Everyone, _) => Judgement::Visible,
            (Scope::Local(own), _) => verdict(own == netns),
            (Scope::Global(own), _) if own == netns => Judgement::Visible,
            (Scope::Global(_), Some(&Some(local))) => verdict(!local),
            (Scope::Global(_), Some(None)) => Judgement::Unknown { netns, first: false },
            (Scope::Global(_), None) => {
                self.local.insert(netns, None);
                Judgement::Unknown { netns, first: true }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_of_a_local_namespace_is_seen_from_there_alone_and_nobody_is_asked() {
        let mut visibility = Visibility::default();
        visibility.set_scope(Scope::Local(7));
        assert_eq!(visibility.judge_netns(7), Judgement::Visible);
        assert_eq!(visibility.judge_netns(8), Judgement::Hidden);
    }

    #[test]
    fn a_namespace_that_nobody_knows_is_asked_about_once() {
        let mut visibility = Visibility::default();
        visibility.set_scope(Scope::Global(1));
        assert_eq!(visibility.judge_netns(1), Judgement::Visible);
        assert_eq!(visibility.judge_netns(7), Judgement::Unknown { netns: 7, first: true });
        assert_eq!(visibility.judge_netns(7), Judgement::Unknown { netns: 7, first: false });
        visibility.learn(7, false);
        visibility.learn(8, true);
        assert_eq!(visibility.judge_netns(7), Judgement::Visible);
        assert_eq!(visibility.judge_netns(8), Judgement::Hidden);
    }

    #[test]
    fn the_kernel_tells_where_a_client_made_its_socket() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let cookie = netns_cookie(&ours.into()).unwrap();
        assert_ne!(cookie, 0);
    }
}
