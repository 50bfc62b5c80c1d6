//! Job: how much of what a socket took is credit for the guest at once, when the application is slower than its guest.
//! Before: `device` put bytes of the guest into the socket.
//! After: the guest is told of that credit; the rest follows when the socket tells that there is room, or with more bytes.
//! Rules: once a socket was full, its guest gets no more credit than the socket has room for, until the application has caught
//! up. What the socket has no room for would be copied into the backlog, and sent after a wake-up of its own. How much
//! room there is is an estimate: the backlog takes what it was wrong about.

use super::io::outgoing;
use rustix::net::sockopt::socket_send_buffer_size;
use std::os::fd::OwnedFd;

/// So many times in a row there has to be nothing in a socket for its application to have caught up. A slow one that reads
/// everything in one go is met like that now and then.
const CAUGHT_UP: u8 = 2;

/// The room of one socket, as far as credit depends on it.
#[derive(Debug, Default)]
pub struct Room {
    /// How much of the kernel's memory may be in use while the guest has its whole window as credit; nothing as long as the
    /// application keeps up.
    limit: Option<usize>,
    /// Bytes that the socket took and the guest got no credit for.
    held: usize,
    /// How often in a row there was nothing in it.
    empty: u8,
}

impl Room {
    /// The socket of a connection with a window of `window` bytes was full.
    pub fn was_full(&mut self, socket: &OwnedFd, window: usize) {
        if self.limit.is_none() {
            self.limit = socket_send_buffer_size(socket).ok().map(|size| size.saturating_sub(window));
        }
        self.empty = 0;
    }

    /// How much is in the socket, in bytes of the kernel's memory; to be asked before more is put into it. Nothing if
    /// that is of no interest, since the application keeps up.
    pub fn used(&mut self, socket: &OwnedFd) -> usize {
        if self.limit.is_none() {
            return 0;
        }
        let used = outgoing(socket);
        self.empty = if used == 0 { self.empty + 1 } else { 0 };
        if self.empty == CAUGHT_UP {
            self.limit = None;
        }
        used
    }

    /// The credit for `taken` bytes, which the socket took on top of what it had [`used`](Self::used).
    pub fn credit(&mut self, taken: usize, used: usize) -> usize {
        let all = self.held + taken;
        self.held = self.limit.map_or(0, |limit| (used + taken).saturating_sub(limit).min(all));
        all - self.held
    }

    /// The credit for all that was held back.
    pub fn all(&mut self) -> usize {
        std::mem::take(&mut self.held)
    }

    /// Whether credit is held back, so that the socket has to tell when it has room.
    pub fn holds(&self) -> bool {
        self.held > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: usize = 256 * 1024;

    fn room(size: usize) -> Room {
        Room { limit: Some(size.saturating_sub(WINDOW)), ..Room::default() }
    }

    #[test]
    fn application_that_keeps_up_gets_its_guest_all_credit_at_once() {
        let mut room = Room::default();
        assert_eq!(room.credit(1000, 0), 1000);
        assert!(!room.holds());
    }

    #[test]
    fn credit_is_held_back_for_what_the_socket_has_no_room_for() {
        let mut room = room(400_000);
        // 100,000 are in it, 50,000 more were taken; there would be room for 250,000.
        assert_eq!(room.credit(50_000, 100_000), 50_000 - (WINDOW - 250_000));
        assert!(room.holds());
        assert_eq!(room.all(), WINDOW - 250_000);
        assert!(!room.holds());
    }

    proptest! {
        /// Each byte is credit once, in the end.
        #[test]
        fn no_credit_is_lost_and_none_made_up(limit in proptest::option::of(0_usize..1 << 20), taken in proptest::collection::vec((0_usize..1 << 17, 0_usize..1 << 20), 0..40)) {
            let mut room = Room { limit, ..Room::default() };
            let (mut given, mut got) = (0, 0);
            for (bytes, used) in taken {
                got += bytes;
                given += room.credit(bytes, used);
                prop_assert_eq!(given + room.held, got);
            }
            given += room.all();
            prop_assert_eq!(given, got);
        }
    }
}
