//! Job: the one place where a device's thread sleeps, and the closed list of what can wake it.
//! Before: descriptors are added with the [`Token`] that names them.
//! After: `plane` acts on each token.
//! Rules: a token names its source for ever: those of sockets carry the generation of their table entry, so that
//! an event that was already on its way when a socket closed finds nothing. Kicks and sockets are edge-triggered: what is
//! ready is remembered by its owner instead of being asked for again.

use crate::packet::Type;
use crate::slab::Id;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, OwnedFd};

/// How many events one call takes.
const BATCH: usize = 256;
/// Indices from here on, too high for a table of sockets, name the other sources.
const FIRST_SPECIAL: u32 = u32::MAX - 15;

/// What an edge-triggered source wakes for.
const NEWS: EventFlags = EventFlags::IN.union(EventFlags::PRI).union(EventFlags::RDHUP).union(EventFlags::ET);

/// What can wake a device's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The control plane has something to say.
    Command,
    /// A host application connects with a socket of this kind.
    Listener(Type),
    /// A message of the front-end.
    FrontEnd,
    /// The guest kicked a queue.
    Kick(u8),
    /// News of a host application's socket.
    Host(Id),
}

impl Token {
    /// As the kernel keeps it.
    fn to_data(self) -> EventData {
        let special = |number, generation| Id { index: FIRST_SPECIAL + number, generation };
        let id = match self {
            Self::Command => special(0, 0),
            Self::Listener(Type::Stream) => special(1, 0),
            Self::Listener(Type::Seqpacket) => special(4, 0),
            Self::FrontEnd => special(2, 0),
            Self::Kick(queue) => special(3, u32::from(queue)),
            Self::Host(id) => id,
        };
        EventData::new_u64(id.to_u64())
    }

    /// Back from what the kernel kept.
    fn from_data(data: EventData) -> Self {
        let id = Id::from_u64(data.u64());
        match id.index.wrapping_sub(FIRST_SPECIAL) {
            0 => Self::Command,
            1 => Self::Listener(Type::Stream),
            4 => Self::Listener(Type::Seqpacket),
            2 => Self::FrontEnd,
            3 => Self::Kick(id.generation.to_le_bytes()[0]),
            _ => Self::Host(id),
        }
    }
}

/// What happened to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Whom it is about.
    pub token: Token,
    /// There may be bytes to read, or an end.
    pub readable: bool,
    /// There is room.
    pub writable: bool,
    /// The other end sends no more.
    pub sends_no_more: bool,
    /// Both directions are closed.
    pub hung_up: bool,
    /// A byte was sent with MSG_OOB.
    pub urgent: bool,
}

/// An epoll instance.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// An empty one.
    pub fn new() -> Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Wakes as long as `fd` is readable.
    pub fn add_level(&self, fd: impl AsFd, token: Token) -> Result<()> {
        epoll::add(&self.0, fd, token.to_data(), EventFlags::IN)
    }

    /// Wakes once whenever `fd` becomes readable anew.
    pub fn add_edge(&self, fd: impl AsFd, token: Token) -> Result<()> {
        epoll::add(&self.0, fd, token.to_data(), NEWS)
    }

    /// Says whether `fd`, which was added with [`add_edge`](Self::add_edge), shall also wake when there is room.
    pub fn watch_room(&self, fd: impl AsFd, token: Token, on: bool) -> Result<()> {
        let room = if on { EventFlags::OUT } else { EventFlags::empty() };
        epoll::modify(&self.0, fd, token.to_data(), NEWS | room)
    }

    /// Forgets `fd`. To be called before it is closed where others hold the same open file, as with eventfds: epoll
    /// forgets by itself only when the last of them closes it.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Sleeps until something happens, but no longer than `timeout` nanoseconds (`None`: without limit).
    pub fn wait(&self, timeout: Option<u64>, ready: &mut Vec<Ready>) -> Result<()> {
        ready.clear();
        let timeout = timeout.map(|nanos| Timespec {
            tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
        });
        let mut events = [const { std::mem::MaybeUninit::uninit() }; BATCH];
        let (events, _) = match epoll::wait(&self.0, &mut events[..], timeout.as_ref()) {
            Ok(events) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error),
        };
        ready.extend(events.iter().map(|event| {
            let flags = event.flags;
            Ready {
                token: Token::from_data(event.data),
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
                writable: flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
                sends_no_more: flags.intersects(EventFlags::RDHUP | EventFlags::HUP),
                hung_up: flags.contains(EventFlags::HUP),
                urgent: flags.contains(EventFlags::PRI),
            }
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_through_the_kernel() {
        let host = |index, generation| Token::Host(Id { index, generation });
        for token in [
            Token::Command,
            Token::Listener(Type::Stream),
            Token::Listener(Type::Seqpacket),
            Token::FrontEnd,
            Token::Kick(0),
            Token::Kick(1),
            host(0, 0),
            host(7, u32::MAX),
            host(FIRST_SPECIAL - 1, 3),
        ] {
            assert_eq!(Token::from_data(token.to_data()), token);
        }
    }
}
