//! Job: the socket of one host application, with the bytes that it was too slow to take; for messages with `messages`.
//! Before: `device` accepted it or connected it.
//! After: bytes of the guest are in it, or it is closed.
//! Rules: never blocks. The backlog is bounded by the guest's credit; its memory is there only while it is needed.

use super::messages::Messages;
use super::room::Room;
use crate::faults::{no_buffers, no_memory};
use crate::ids::GuestPort;
use crate::packet::Type;
use crate::slab::Id;
use crate::virtio::memory::Segment;
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_send_buffer_size};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// What the socket is for at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A client that has not sent its CONNECT line.
    Handshake,
    /// A client that asked for this port, and whose network namespace is being looked up.
    Parked(GuestPort),
    /// A client whose connection the guest has not accepted.
    Requested(Id),
    /// The listener of a host application is being reached for the guest; its backlog was full so far.
    Connecting(Id),
    /// Bytes flow.
    Open(Id),
    /// The connection is gone; the backlog is being delivered, then the socket is closed.
    Draining,
}

/// How a client is told what became of its request.
#[derive(Debug)]
pub enum Manners {
    /// As hybrid vsock has it: a line for success, the end of the stream for anything else.
    Hybrid,
    /// As the bridge has it: a line for everything.
    Bridge,
    /// As the bridge has it, on another socket than the connection.
    Apart {
        /// That socket.
        fd: OwnedFd,
        /// So many bytes at the beginning of the connection are no payload.
        filler: u64,
        /// It stays open as long as the connection lives, to tell of its end.
        stays: bool,
    },
}

/// Why no more bytes of a backlog are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// There are no more.
    Empty,
    /// The socket is full: it tells when there is room.
    Full,
    /// The kernel has no memory for them, and does not tell when it has.
    NoMemory,
    /// The socket's other end is gone or does not take part any more.
    Closed,
}

/// There is no memory for a backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// The most bytes by which a backlog grows beyond what it needs now, so that many of them are not much larger than the
/// guest's credit.
const GROW: usize = 32 * 1024;

/// Makes room in the socket for `window` bytes, as far as is allowed: what does not fit takes the long way, by a copy in the
/// backlog and one more wake-up. Between UNIX sockets it is the sender's buffer that counts.
pub fn make_room(socket: &OwnedFd, window: u32) {
    let window = window as usize;
    // The kernel doubles what is asked for, since it counts its own memory, too, and says what it made of it. Beyond
    // net.core.wmem_max it gives that much, without a complaint.
    if socket_send_buffer_size(socket).is_ok_and(|size| size < window.saturating_mul(2)) {
        let _ = set_socket_send_buffer_size(socket, window);
    }
}

/// Makes room for so many more bytes.
pub(super) fn make_room_for(wanted: usize, bytes: &mut Vec<u8>) -> Result<(), NoMemory> {
    let spare = bytes.len().min(GROW);
    let room = bytes.capacity() - bytes.len();
    if no_memory() || (room < wanted && bytes.try_reserve_exact(wanted + spare).is_err()) {
        return Err(NoMemory);
    }
    Ok(())
}

/// Bytes that wait for the host application.
#[derive(Debug, Default)]
struct Backlog {
    /// All of them, with those in front that were sent.
    bytes: Vec<u8>,
    /// How many in front were sent.
    sent: usize,
}

/// The socket of one host application.
#[derive(Debug)]
pub struct HostStream {
    /// The socket, connected or to be connected, non-blocking.
    pub fd: OwnedFd,
    /// What it is for.
    pub phase: Phase,
    /// How its application is answered.
    pub manners: Manners,
    /// The client passed it on, and may have the same socket still.
    pub shared: bool,
    /// Closed together with this one, by which the application learns of the end.
    pub herald: Option<OwnedFd>,
    /// The application closed its socket altogether.
    pub hung_up: bool,
    /// The application does not send any more; what it sent before may still be unread.
    pub sends_no_more: bool,
    /// The application does not receive any more.
    pub deaf: bool,
    /// The application sent a byte with MSG_OOB. Vsock knows of no such thing, and the byte is dropped; but reading stops in
    /// front of it, so that a short read is no sign of an empty socket.
    pub urgent: bool,
    /// The guest does not send any more: to be passed on once the backlog is delivered.
    pub end_after_backlog: bool,
    /// The event loop was asked to tell when there is room.
    pub watches_room: bool,
    /// Receive buffers filled in one go last time, as a guess for the next.
    pub burst: u16,
    /// Attempts to reach a listener whose backlog is full.
    pub attempts: u16,
    /// When the phase began, in nanoseconds.
    pub since: u64,
    /// When to look after it, in nanoseconds.
    pub deadline: Option<u64>,
    /// How much of what the socket took is credit for the guest.
    pub room: Room,
    /// Bytes of the guest that the application has not taken.
    backlog: Option<Box<Backlog>>,
    /// Messages on their way, if it is a message socket.
    pub messages: Option<Box<Messages>>,
}

impl HostStream {
    /// A socket in a phase.
    pub fn new(fd: OwnedFd, kind: Type, phase: Phase, now: u64) -> Self {
        Self {
            fd,
            phase,
            manners: Manners::Hybrid,
            shared: false,
            herald: None,
            hung_up: false,
            sends_no_more: false,
            deaf: false,
            urgent: false,
            end_after_backlog: false,
            watches_room: false,
            burst: 1,
            attempts: 0,
            since: now,
            deadline: None,
            room: Room::default(),
            backlog: None,
            messages: match kind {
                Type::Stream => None,
                Type::Seqpacket => Some(Box::default()),
            },
        }
    }

    /// Which kind of socket it is.
    pub fn kind(&self) -> Type {
        if self.messages.is_some() { Type::Seqpacket } else { Type::Stream }
    }

    /// Tells the client that its connection is open; from here on all that it sends is payload. `false` if it is gone.
    pub fn welcome(&mut self, line: &str) -> bool {
        if let Manners::Apart { filler, .. } = self.manners {
            self.discard(filler);
        }
        let told = self.tell(line);
        // Without anything to tell later, a socket for the answer is of no more use.
        if let Manners::Apart { fd, stays: true, .. } = std::mem::replace(&mut self.manners, Manners::Hybrid) {
            self.herald = Some(fd);
        }
        told
    }

    /// Tells a client what became of its request. `false` if it is gone, or is told nothing of the kind.
    pub fn tell(&self, line: &str) -> bool {
        // Nothing was ever written to either, so there is room.
        let socket = if let Manners::Apart { fd, .. } = &self.manners { fd } else { &self.fd };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        send(socket, line.as_bytes(), flags).is_ok_and(|sent| sent == line.len())
    }

    /// Takes so many bytes, which are there, out of the socket.
    fn discard(&self, mut left: u64) {
        let mut scratch = [0_u8; 16384];
        while left > 0 {
            let part = usize::try_from(left).map_or(scratch.len(), |left| left.min(scratch.len()));
            match recv(&self.fd, &mut scratch[..part], RecvFlags::DONTWAIT) {
                Ok((_, got @ 1..)) => left -= got as u64,
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    /// The connection that it belongs to.
    pub fn conn(&self) -> Option<Id> {
        match self.phase {
            Phase::Requested(conn) | Phase::Connecting(conn) | Phase::Open(conn) => Some(conn),
            Phase::Handshake | Phase::Parked(_) | Phase::Draining => None,
        }
    }

    /// Whether bytes, or whole messages, wait.
    pub fn has_backlog(&self) -> bool {
        self.backlog.is_some() || self.messages.as_ref().is_some_and(|messages| messages.has_backlog())
    }

    /// Bytes of the application that nobody read.
    pub fn unread(&self) -> u64 {
        ioctl_fionread(&self.fd).unwrap_or(0)
    }

    /// Keeps for later what these pieces hold behind their first `skip` bytes.
    pub fn keep(&mut self, pieces: &[Segment], mut skip: usize) -> Result<(), NoMemory> {
        let wanted = pieces.iter().map(Segment::len).sum::<usize>().saturating_sub(skip);
        let backlog = self.backlog.get_or_insert_default();
        backlog.bytes.drain(..std::mem::take(&mut backlog.sent));
        make_room_for(wanted, &mut backlog.bytes)?;
        for piece in pieces {
            let passed = skip.min(piece.len());
            skip -= passed;
            let rest = piece.split_at(passed).1;
            let old = backlog.bytes.len();
            backlog.bytes.resize(old + rest.len(), 0);
            rest.read(&mut backlog.bytes[old..]);
        }
        if backlog.bytes.is_empty() {
            self.backlog = None;
        }
        Ok(())
    }

    /// Forgets what waits; returns how much it was.
    pub fn drop_backlog(&mut self) -> usize {
        match &mut self.messages {
            None => self.backlog.take().map_or(0, |backlog| backlog.bytes.len() - backlog.sent),
            Some(messages) => messages.drop_all(),
        }
    }

    /// Forgets the beginning of a message that will have no end; returns how much it was.
    pub fn drop_part(&mut self) -> usize {
        self.messages.as_mut().map_or(0, |messages| messages.drop_part())
    }

    /// Sends what waits, as much as goes: how many bytes that was, and why there were no more.
    pub fn flush(&mut self) -> (usize, Stop) {
        if let Some(messages) = &mut self.messages {
            return messages.flush(&self.fd);
        }
        let Some(backlog) = &mut self.backlog else { return (0, Stop::Empty) };
        let before = backlog.sent;
        let stop = loop {
            let rest = &backlog.bytes[backlog.sent..];
            if rest.is_empty() {
                break Stop::Empty;
            }
            if no_buffers() {
                break Stop::NoMemory;
            }
            match send(&self.fd, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => backlog.sent += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Stop::Full,
                Err(Errno::NOBUFS | Errno::NOMEM) => break Stop::NoMemory,
                Err(_) => break Stop::Closed,
            }
        };
        let sent = backlog.sent - before;
        if stop == Stop::Empty {
            self.backlog = None;
        }
        (sent, stop)
    }

    /// Passes the guest's end on, if it is time.
    pub fn end_if_delivered(&mut self) {
        if self.end_after_backlog && !self.has_backlog() {
            self.end_after_backlog = false;
            self.close_half(Shutdown::Write);
        }
    }

    /// Closes a direction. One that is closed already, or a peer that is gone, is no error.
    pub fn close_half(&self, how: Shutdown) {
        let _ = shutdown(&self.fd, how);
    }

    /// Ends the conversation so that the application sees the end of the stream, as a connection of the kernel's would
    /// show it. Closed with unread bytes in it, the socket would show it ECONNRESET instead.
    pub fn finish(self) {
        self.close_half(Shutdown::Both);
        // Nobody looks at it, so it need not be cleared.
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; 16384];
        // A message without bytes looks like the end, but is none.
        let more = || self.messages.is_some() && self.unread() > 0;
        while matches!(recv(&self.fd, &mut scratch[..], RecvFlags::DONTWAIT), Ok((_, 1..))) || more() {}
    }
}
