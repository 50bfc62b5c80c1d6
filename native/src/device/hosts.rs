//! Job: the host's side of one VM's connections: the mux together with the sockets of host applications.
//! Before: `from_guest` and `to_guest` hand in what packets and sockets brought; `clients` opens sockets.
//! After: bytes are in sockets, the mux knows of every end.
//! Rules: the only place where the state of a socket and that of its connection change together. A socket is in the table
//! exactly as long as it is open; nothing here waits.

use super::Failure;
use super::clients::Spare;
use super::poller::{Poller, Ready, Token};
use super::visibility::Visibility;
use crate::events::{Level, Log};
use crate::host::handshake::{Refusal, error_line};
use crate::host::io::{Moved, send};
use crate::host::stream::{HostStream, Manners, Phase, Stop};
use crate::mux::{Expired, FromGuest, Mux};
use crate::packet::spec::{SHUTDOWN_RCV, SHUTDOWN_SEND};
use crate::slab::{Id, Slab};
use crate::stats::Stats;
use crate::timers::{MILLISECOND, Timers};
use crate::virtio::memory::Segment;
use rustix::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;

/// How long to leave a socket alone for which the kernel has no memory.
const RETRY: u64 = 10 * MILLISECOND;

/// All connections of one VM, both sides of each.
#[derive(Debug)]
pub struct Hosts {
    /// What the guest knows of them.
    pub mux: Mux,
    /// The sockets of host applications.
    pub(super) streams: Slab<HostStream>,
    /// Deadlines of sockets; those of connections are the mux's.
    pub(super) timers: Timers,
    /// Tells when sockets have news.
    pub(super) poller: Rc<Poller>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// What people should know.
    pub(super) log: Log,
    /// `<path>_<port>` is where the guest finds host applications.
    pub(super) uds_path: Vec<u8>,
    /// How long a client may take for its CONNECT line, in nanoseconds.
    pub(super) handshake_timeout: u64,
    /// How long the guest may take to answer one, in nanoseconds.
    pub(super) connect_timeout: u64,
    /// Sockets that may exist at once.
    pub(super) max_streams: usize,
    /// Whether a guest's driver runs, so that clients can be served.
    pub(super) running: bool,
    /// Which clients may see the VM.
    pub(super) visible: Visibility,
    /// Whether the control plane is asked about ports where nobody listens at the VM's own path.
    pub(super) asks: bool,
    /// Connections about which it was asked and has not answered, those that are gone among them.
    pub(super) asked: Vec<Id>,
    /// A descriptor in reserve.
    pub(super) spare: Spare,
}

impl Hosts {
    /// A socket.
    pub fn stream(&self, host: Id) -> Option<&HostStream> {
        self.streams.get(host)
    }

    /// A socket to change.
    pub fn stream_mut(&mut self, host: Id) -> Option<&mut HostStream> {
        self.streams.get_mut(host)
    }

    // ---- what the mux says about a packet ----

    /// Does what a packet of the guest asks for. Payload is [`deliver`](Self::deliver)'s business.
    pub fn act(&mut self, action: FromGuest, now: u64) {
        match action {
            FromGuest::Done | FromGuest::Data { .. } | FromGuest::Message { .. } => {}
            FromGuest::Connect { conn, port, kind } => self.reach_listener(conn, port, kind, now),
            FromGuest::Opened { host, port } => self.greet(host, port, now),
            FromGuest::Shutdown { host, flags } => {
                let Some(stream) = self.streams.get_mut(host) else { return };
                if flags & SHUTDOWN_SEND != 0 {
                    self.stats.dropped_bytes.add(stream.drop_part() as u64);
                    stream.end_after_backlog = true;
                    stream.end_if_delivered();
                }
                if flags & SHUTDOWN_RCV != 0 {
                    stream.close_half(Shutdown::Read);
                    // Nobody would find out by reading any more.
                    let gone = if stream.hung_up { stream.conn() } else { None };
                    if let Some(conn) = gone {
                        self.mux.host_closed(conn, now);
                        self.close_if_over(conn, host);
                    }
                }
            }
            FromGuest::Gone { host } => self.release(host, Refusal::Reset),
        }
    }

    /// Passes payload of the guest on: into the socket, and into the backlog what does not fit.
    pub fn deliver(&mut self, conn: Id, host: Id, pieces: &[Segment], len: usize, now: u64) -> Result<(), Failure> {
        self.stats.from_guest_bytes.add(len as u64);
        let Some(stream) = self.streams.get_mut(host) else { return Ok(()) };
        if stream.deaf {
            self.stats.dropped_bytes.add(len as u64);
            self.took(conn, len);
            return Ok(());
        }
        let used = stream.room.used(&stream.fd);
        // Bytes that wait go first.
        let moved = if stream.has_backlog() { Moved::WouldBlock } else { send(&stream.fd, pieces) };
        let sent = match moved {
            Moved::Bytes(sent) | Moved::Last(sent) => sent,
            Moved::WouldBlock | Moved::NoMemory => 0,
            Moved::Closed => {
                self.stats.dropped_bytes.add(len as u64);
                self.took(conn, len);
                self.became_deaf(conn, host, now);
                return Ok(());
            }
            Moved::BadMemory => return Err(Failure::Memory),
        };
        if sent < len {
            stream.room.was_full(&stream.fd, self.mux.window_of(conn) as usize);
            if stream.keep(pieces, sent).is_err() {
                self.out_of_memory(conn, host, now);
                return Ok(());
            }
            self.stats.backlog_bytes.add((len - sent) as u64);
            self.watch_room(host, true);
        }
        if moved == Moved::NoMemory {
            self.retry(host, now);
        }
        self.give_credit(conn, host, sent, used);
        Ok(())
    }

    /// Gives the guest credit for `sent` bytes that a socket took on top of `used`, as far as it has room for more.
    fn give_credit(&mut self, conn: Id, host: Id, sent: usize, used: usize) {
        let Some(stream) = self.streams.get_mut(host) else { return };
        let credit = stream.room.credit(sent, used);
        if stream.room.holds() {
            self.watch_room(host, true);
        }
        self.took(conn, credit);
    }

    /// There is no memory for what one end is too slow to take.
    pub(super) fn out_of_memory(&mut self, conn: Id, host: Id, now: u64) {
        self.stats.reset_memory.add(1);
        self.log.limited(now, Level::Error, || "a connection was reset: out of memory".into());
        self.broke(conn, host);
    }

    /// The kernel has no memory for this socket's bytes: looks after it again in a while.
    pub fn retry(&mut self, host: Id, now: u64) {
        self.stats.no_buffers.add(1);
        self.set_deadline(host, now + RETRY);
    }

    /// Gives the guest credit for bytes that were taken.
    pub(super) fn took(&mut self, conn: Id, len: usize) {
        // Bounded by the window of a connection, so it fits.
        self.mux.delivered(conn, u32::try_from(len).unwrap_or(u32::MAX));
    }

    // ---- news of sockets ----

    /// A socket woke the thread.
    pub fn on_ready(&mut self, host: Id, ready: Ready, now: u64) {
        let Some(stream) = self.streams.get_mut(host) else { return };
        stream.sends_no_more |= ready.sends_no_more;
        stream.hung_up |= ready.hung_up;
        stream.urgent |= ready.urgent;
        match stream.phase {
            Phase::Handshake => self.read_request(host, now),
            Phase::Requested(conn) => {
                // A client that only sends no more still waits for the answer.
                if ready.hung_up {
                    self.stats.handshake_left.add(1);
                    self.mux.host_aborted(conn);
                    self.close(host);
                }
            }
            Phase::Parked(_) => {
                if ready.hung_up {
                    self.stats.handshake_left.add(1);
                    self.close(host);
                }
            }
            // Not connected yet, so what it says means nothing.
            Phase::Connecting(_) => {}
            Phase::Open(conn) => {
                if ready.writable {
                    self.flush(host, now);
                }
                if ready.readable {
                    self.mux.host_readable(conn, now);
                }
                if ready.hung_up && !self.mux.host_may_be_read(conn) {
                    self.mux.host_closed(conn, now);
                    self.close_if_over(conn, host);
                }
            }
            Phase::Draining => self.flush(host, now),
        }
    }

    /// Sends what waits for an application that has room again.
    pub(super) fn flush(&mut self, host: Id, now: u64) {
        let Some(stream) = self.streams.get_mut(host) else { return };
        let conn = stream.conn();
        let used = stream.room.used(&stream.fd);
        let waited = stream.has_backlog();
        let (sent, stop) = stream.flush();
        if let Some(conn) = conn {
            if waited {
                self.give_credit(conn, host, sent, used);
            } else {
                let credit = stream.room.all();
                self.took(conn, credit);
            }
        }
        let Some(stream) = self.streams.get_mut(host) else { return };
        match stop {
            Stop::Empty => {
                stream.end_if_delivered();
                if stream.phase == Phase::Draining {
                    self.finish(host);
                } else {
                    let holds = stream.room.holds();
                    self.watch_room(host, holds);
                }
            }
            Stop::Full => {}
            Stop::NoMemory => self.retry(host, now),
            Stop::Closed => {
                self.stats.dropped_bytes.add(stream.drop_backlog() as u64);
                match conn {
                    Some(conn) => self.became_deaf(conn, host, now),
                    None => self.close(host),
                }
            }
        }
    }

    /// The application does not receive any more. What it still sends is not concerned.
    pub(super) fn became_deaf(&mut self, conn: Id, host: Id, now: u64) {
        if let Some(stream) = self.streams.get_mut(host) {
            stream.deaf = true;
            stream.end_after_backlog = false;
            let credit = stream.room.all();
            self.took(conn, credit);
        }
        self.watch_room(host, false);
        self.mux.host_deaf(conn, now);
        self.close_if_over(conn, host);
    }

    /// Everything that the application sent was read, and it sends no more.
    pub fn ended(&mut self, conn: Id, host: Id, now: u64) {
        if self.streams.get(host).is_some_and(|stream| stream.hung_up) {
            self.mux.host_closed(conn, now);
        } else {
            self.mux.host_ended(conn, now);
        }
        self.close_if_over(conn, host);
    }

    /// The socket broke: the application closed it with bytes of the guest unread.
    pub fn broke(&mut self, conn: Id, host: Id) {
        self.mux.host_aborted(conn);
        self.close(host);
    }

    /// Closes the socket of a connection for which it is of no more use.
    fn close_if_over(&mut self, conn: Id, host: Id) {
        if self.mux.is_closing(conn) {
            self.close(host);
        }
    }

    /// Says whether room in a socket is of interest.
    pub(super) fn watch_room(&mut self, host: Id, on: bool) {
        let Some(stream) = self.streams.get_mut(host) else { return };
        if stream.watches_room != on {
            stream.watches_room = on;
            let watched = self.poller.watch_room(&stream.fd, Token::Host(host), on);
            debug_assert!(watched.is_ok(), "{watched:?}");
        }
    }

    // ---- the end of sockets ----

    /// The connection of a socket is gone: delivers what waits, then closes. A client that waits is told the reason.
    fn release(&mut self, host: Id, reason: Refusal) {
        let Some(stream) = self.streams.get_mut(host) else { return };
        self.stats.dropped_bytes.add(stream.drop_part() as u64);
        match stream.phase {
            Phase::Open(_) if stream.has_backlog() && !stream.deaf => stream.phase = Phase::Draining,
            Phase::Requested(_) => self.refuse(host, reason),
            _ => self.finish(host),
        }
    }

    /// A client gets no connection: says so, in the way that it expects, and closes.
    pub(super) fn refuse(&mut self, host: Id, refusal: Refusal) {
        let Some(stream) = self.streams.get(host) else { return };
        if !matches!(stream.manners, Manners::Hybrid) {
            stream.tell(&error_line(refusal));
        }
        // A client with a socket for answers keeps its end of the other one, perhaps to try again.
        if matches!(stream.manners, Manners::Apart { .. }) { self.close(host) } else { self.finish(host) }
    }

    /// Closes a socket so that the application sees the end of the stream.
    pub(super) fn finish(&mut self, host: Id) {
        if let Some(stream) = self.remove(host) {
            stream.finish();
        }
    }

    /// Closes a socket.
    pub(super) fn close(&mut self, host: Id) {
        if let Some(mut stream) = self.remove(host) {
            self.stats.dropped_bytes.add(stream.drop_backlog() as u64);
        }
    }

    /// Takes a socket out of the table.
    fn remove(&mut self, host: Id) -> Option<HostStream> {
        let mut stream = self.streams.remove(host)?;
        self.timers.change(host, &mut stream.deadline, None);
        if stream.shared {
            // It may ask with it again, or keep it for ever.
            self.poller.remove(&stream.fd);
        }
        Some(stream)
    }

    /// Ends all connections: the guest's driver starts anew, or the front-end is gone.
    pub fn reset(&mut self) {
        let mut sockets = Vec::new();
        self.mux.reset_all(|host| sockets.push(host));
        for host in sockets {
            self.release(host, Refusal::Gone);
        }
    }

    // ---- time ----

    /// When [`expire`](Self::expire) has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.mux.next_deadline(), self.timers.next()].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn expire(&mut self, now: u64) {
        while let Some(expired) = self.mux.expire(now) {
            if let Some(Expired { host }) = expired {
                self.refuse(host, Refusal::Timeout);
            }
        }
        while let Some(host) = self.timers.pop_due(now) {
            let Some(stream) = self.streams.get_mut(host) else { continue };
            stream.deadline = None;
            match stream.phase {
                Phase::Handshake => {
                    self.stats.handshake_timeout.add(1);
                    self.log.limited(now, Level::Warning, || {
                        "a client sent no complete CONNECT line in time and was closed".into()
                    });
                    self.close(host);
                }
                Phase::Parked(_) => {
                    self.visible.give_up();
                    self.refuse_unseen(host);
                }
                Phase::Connecting(conn) => self.try_again(conn, host, now),
                Phase::Open(conn) => {
                    self.flush(host, now);
                    self.mux.host_readable(conn, now);
                }
                Phase::Draining => self.flush(host, now),
                Phase::Requested(_) => {}
            }
        }
    }
}
