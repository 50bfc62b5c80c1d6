//! Job: what a message socket (SOCK_SEQPACKET) of a host application needs beyond a stream's: whole messages for an
//! application that is slow, parts of one that came in several packets, and what the guest has not got of one yet.
//! Before: `device` moves messages between the socket and the guest.
//! After: the application gets each message whole or not at all.
//! Rules: never blocks. What waits for the application is bounded by the guest's credit, what waits for the guest is one
//! message. The memory is there only while it is needed.

use super::lengths::Lengths;
use super::stream::{NoMemory, Stop, make_room_for};
use crate::faults::{no_buffers, no_memory};
use crate::packet::Type;
use crate::virtio::memory::Segment;
use rustix::io::Errno;
use rustix::net::sockopt::{socket_domain, socket_send_buffer_size, socket_type};
use rustix::net::{AddressFamily, SendFlags, SocketType, send};
use std::os::fd::OwnedFd;

/// What a UNIX socket wants to have left of its send buffer beside a message (`unix_dgram_sendmsg`, net/unix/af_unix.c).
const OVERHEAD: usize = 32;

/// Which kind of connection a socket can be an end of; `None` for one that is no UNIX socket with connections.
pub fn kind_of(socket: &OwnedFd) -> Option<Type> {
    // Others tell of their ends, and of a short read, in other ways.
    if socket_domain(socket) != Ok(AddressFamily::UNIX) {
        return None;
    }
    match socket_type(socket) {
        Ok(SocketType::STREAM) => Some(Type::Stream),
        Ok(SocketType::SEQPACKET) => Some(Type::Seqpacket),
        _ => None,
    }
}

/// Messages on their way.
#[derive(Debug, Default)]
pub struct Messages {
    /// Bytes of the guest: in front those that were sent, then whole messages, then the beginning of one.
    bytes: Vec<u8>,
    /// How many in front were sent.
    sent: usize,
    /// Lengths of the whole messages.
    whole: Lengths,
    /// Length of the beginning behind them.
    part: usize,
    /// A message for the guest, which has the beginning of it.
    rest: Vec<u8>,
    /// How much of that the guest has.
    taken: usize,
    /// The application closed its socket with messages unread. The kernel says so once, before it gives out what that one had
    /// sent (`__skb_try_recv_datagram`, net/core/datagram.c); of a stream, behind that.
    pub closed: bool,
}

impl Messages {
    /// How long a message the socket takes, in bytes.
    pub fn longest(socket: &OwnedFd) -> u32 {
        let room = socket_send_buffer_size(socket).unwrap_or(0).saturating_sub(OVERHEAD);
        u32::try_from(room).unwrap_or(u32::MAX)
    }

    // ---- to the application ----

    /// Whether whole messages wait.
    pub fn has_backlog(&self) -> bool {
        !self.whole.is_empty()
    }

    /// Whether there is the beginning of a message.
    pub fn has_part(&self) -> bool {
        self.part > 0
    }

    /// Keeps one more part of a message.
    pub fn join(&mut self, pieces: &[Segment]) -> Result<(), NoMemory> {
        // Not each time: what is moved is no more than what was sent meanwhile.
        if self.sent * 2 >= self.bytes.len() {
            self.bytes.drain(..std::mem::take(&mut self.sent));
        }
        let wanted = pieces.iter().map(Segment::len).sum();
        make_room_for(wanted, &mut self.bytes)?;
        self.whole.make_room()?;
        for piece in pieces {
            let old = self.bytes.len();
            self.bytes.resize(old + piece.len(), 0);
            piece.read(&mut self.bytes[old..]);
            self.part += piece.len();
        }
        Ok(())
    }

    /// The message is whole; its length.
    pub fn complete(&mut self) -> usize {
        let length = std::mem::take(&mut self.part);
        self.whole.push(length);
        length
    }

    /// Forgets the beginning of a message that will have no end; its length.
    pub fn drop_part(&mut self) -> usize {
        self.bytes.truncate(self.bytes.len() - self.part);
        self.forget_if_empty();
        std::mem::take(&mut self.part)
    }

    /// Forgets all that waits for the application; how many bytes that was.
    pub fn drop_all(&mut self) -> usize {
        let dropped = self.bytes.len() - self.sent;
        self.whole.clear();
        (self.bytes, self.sent, self.part) = (Vec::new(), 0, 0);
        dropped
    }

    /// Sends the messages that wait, as many as go: how many bytes that was, and why there were no more.
    pub fn flush(&mut self, socket: &OwnedFd) -> (usize, Stop) {
        let before = self.sent;
        let stop = loop {
            let Some(len) = self.whole.front() else { break Stop::Empty };
            if no_buffers() {
                break Stop::NoMemory;
            }
            let message = &self.bytes[self.sent..self.sent + len];
            match send(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => {
                    self.sent += len;
                    self.whole.pop();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Stop::Full,
                // A long message needs much of it in one piece.
                Err(Errno::NOBUFS | Errno::NOMEM) => break Stop::NoMemory,
                Err(_) => break Stop::Closed,
            }
        };
        let sent = self.sent - before;
        self.forget_if_empty();
        (sent, stop)
    }

    /// Gives the memory back when nothing waits.
    fn forget_if_empty(&mut self) {
        if self.sent == self.bytes.len() {
            (self.bytes, self.sent) = (Vec::new(), 0);
        }
    }

    // ---- to the guest ----

    /// Keeps what the guest has no room for yet.
    pub fn keep_rest(&mut self, rest: &[u8]) -> Result<(), NoMemory> {
        if rest.is_empty() {
            return Ok(());
        }
        if no_memory() || self.rest.try_reserve_exact(rest.len()).is_err() {
            return Err(NoMemory);
        }
        self.rest.extend_from_slice(rest);
        Ok(())
    }

    /// How much of a message the guest has not got.
    pub fn rest(&self) -> usize {
        self.rest.len() - self.taken
    }

    /// Writes the first bytes of the rest into `pieces`, as many as these hold; how many bytes that were.
    pub fn take_rest(&mut self, pieces: &[Segment]) -> usize {
        let before = self.taken;
        for piece in pieces {
            self.taken += piece.write(&self.rest[self.taken..]);
        }
        let taken = self.taken - before;
        if self.taken == self.rest.len() {
            (self.rest, self.taken) = (Vec::new(), 0);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::make_room;
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_message_as_long_as_the_window_fits_where_the_system_allows_it() {
        let flags = rustix::net::SocketFlags::NONBLOCK;
        let unix = rustix::net::AddressFamily::UNIX;
        let (ours, theirs) = rustix::net::socketpair(unix, SocketType::SEQPACKET, flags, None).unwrap();
        make_room(&ours, 100_000);
        let longest = Messages::longest(&ours) as usize;
        assert!(longest >= 100_000);
        assert_eq!(send(&ours, &vec![7; longest], SendFlags::NOSIGNAL), Ok(longest));
        assert_eq!(rustix::io::ioctl_fionread(&theirs), Ok(longest as u64));
        assert_eq!(send(&ours, &vec![7; longest + 1], SendFlags::NOSIGNAL), Err(Errno::MSGSIZE));
    }

    #[test]
    fn kinds_of_sockets() {
        let (stream, _other) = UnixStream::pair().unwrap();
        assert_eq!(kind_of(&stream.into()), Some(Type::Stream));
        let (datagrams, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert_eq!(kind_of(&datagrams.into()), None);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(kind_of(&tcp.into()), None);
    }
}
