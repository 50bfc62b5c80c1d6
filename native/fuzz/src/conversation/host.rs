//! Job: the host's ends: what the device does when sockets of host applications have news, written out without sockets.
//! Rules: the order of calls of the mux is that of `device/hosts.rs`, `device/messages.rs`, `device/clients.rs` and
//! `device/reaching.rs`.

use super::pair::{Host, Pair};
use super::step::message_length;
use super::{MAX_CONNECTIONS, World};
use vhostvsock_native::ids::GuestPort;
use vhostvsock_native::packet::Type;
use vhostvsock_native::slab::Id;
use vhostvsock_native::timers::SECOND;
use vsock_driver::header::{SHUTDOWN_RCV, SHUTDOWN_SEND};

/// What an application's socket holds, in bytes. One for messages takes any with which it begins to be full.
const SOCKET: u64 = 10_000;
/// What an application writes before somebody has to read, in bytes, beyond one write more.
const UNREAD: u64 = 1 << 20;
/// The port in the guest that applications ask for.
const GUEST_PORT: u32 = 80;
/// How long the guest may take to answer.
const TIMEOUT: u64 = 2 * SECOND;

impl World {
    /// The socket of a connection.
    fn host_id(pair: usize) -> Id {
        Id { index: u32::try_from(pair).expect("few"), generation: 0 }
    }

    // ---- connections begin ----

    /// The guest asks for a listener, which is being reached from now on.
    pub(super) fn asked(&mut self, pair: usize, conn: Id, kind: Type) {
        assert!(self.mux.awaits_host(conn) && self.mux.serves(kind));
        assert_eq!(kind, self.pairs[pair].kind);
        let ports = self.pairs[pair].ports;
        // One that waited for nothing but its end made way for it.
        if let Some(old) = self.pairs.iter_mut().find(|old| old.ports == ports && old.conn.is_some()) {
            assert!(old.host == Host::Closed, "{old:?} was replaced");
            old.conn = None;
        }
        self.mux.set_host(conn, Self::host_id(pair));
        self.limit_messages(conn, kind);
        let pair = &mut self.pairs[pair];
        (pair.conn, pair.host) = (Some(conn), Host::Waiting);
    }

    /// The listener takes the connection or does not.
    pub(super) fn listener_answers(&mut self, pair: usize, accepts: bool) {
        let pair = &mut self.pairs[pair];
        let (Host::Waiting, Some(conn)) = (pair.host, pair.conn) else { return };
        if accepts {
            pair.host = Host::Open;
            self.expected.established += 1;
            self.mux.host_accepted(conn);
        } else {
            (pair.host, pair.conn, pair.cut) = (Host::Closed, None, true);
            self.mux.host_refused(conn);
        }
    }

    /// An application asks for a port of the guest.
    pub(super) fn host_connects(&mut self, kind: Type, guest_listens: Option<Type>) {
        if !self.mux.serves(kind) {
            return;
        }
        self.expected.host_requests += 1;
        let host = Self::host_id(self.pairs.len());
        let Ok(conn) = self.mux.host_connects(GuestPort(GUEST_PORT), None, kind, host, self.now + TIMEOUT) else {
            let alive = self.pairs.iter().filter(|pair| pair.conn.is_some()).count();
            return assert_eq!(alive, MAX_CONNECTIONS, "refused without a reason");
        };
        let port = self.mux.host_port(conn).expect("it has one");
        self.limit_messages(conn, kind);
        let mut pair = Pair::new((GUEST_PORT, port.0), kind);
        (pair.conn, pair.host, pair.guest_listens) = (Some(conn), Host::Requested, guest_listens);
        self.insert(pair);
    }

    /// Sees to it that the guest sends no message that the socket cannot take.
    fn limit_messages(&mut self, conn: Id, kind: Type) {
        if kind == Type::Seqpacket {
            self.mux.limit_window(conn, self.longest);
        }
    }

    /// What the guest may send on a connection of this kind before anybody reads, in bytes.
    pub(super) fn window_of(&self, kind: Type) -> u64 {
        match kind {
            Type::Stream => self.window.into(),
            Type::Seqpacket => self.window.min(self.longest).into(),
        }
    }

    /// The guest accepted.
    pub(super) fn opened(&mut self, pair: usize) {
        let pair = &mut self.pairs[pair];
        assert_eq!(pair.host, Host::Requested);
        pair.host = Host::Open;
        // The application may have sent something right behind its line.
        if let Some(conn) = pair.conn {
            self.mux.host_readable(conn, self.now);
        }
    }

    // ---- bytes of the guest ----

    /// Payload of the guest, at its place: bytes of a stream, or of a message that they complete or not.
    pub(super) fn received(&mut self, index: usize, len: u64, at: u64, complete: bool) {
        let window = self.window_of(self.pairs[index].kind);
        let pair = &mut self.pairs[index];
        let Some(conn) = pair.conn else { panic!("payload for {pair:?}") };
        let unread = pair.part + pair.backlog.bytes();
        assert!(unread + len <= window, "the guest sent more than it may: {pair:?}");
        let count = u32::try_from(len).expect("a packet");
        if pair.deaf {
            return self.mux.delivered(conn, count);
        }
        if pair.host_left && complete {
            // Sending fails. What had to be kept before it was sent is dropped with all that waits.
            if std::mem::take(&mut pair.part) == 0 {
                self.mux.delivered(conn, count);
            }
            return self.became_deaf(index);
        }
        let ahead = pair.from_guest.got + pair.socket.bytes() + unread;
        assert!(pair.spoilt || at == ahead, "payload out of order: {pair:?}");
        pair.part += len;
        if complete {
            pair.backlog.push(std::mem::take(&mut pair.part));
            self.flush(index);
        }
    }

    /// The application's socket takes what waits.
    fn flush(&mut self, pair: usize) {
        let pair = &mut self.pairs[pair];
        let mut taken = 0;
        loop {
            let room = SOCKET.saturating_sub(pair.socket.bytes());
            let most = if pair.kind == Type::Seqpacket && room > 0 { u64::MAX } else { room };
            let Some(len) = pair.backlog.pop(most) else { break };
            pair.socket.push(len);
            taken += len;
        }
        if let Some(conn) = pair.conn.filter(|_| taken > 0) {
            self.mux.delivered(conn, u32::try_from(taken).expect("no more than the window"));
        }
        if pair.backlog.is_empty() {
            pair.from_guest.saw_end |= std::mem::take(&mut pair.end_waits);
            if pair.host == Host::Draining {
                pair.host = Host::Closed;
            }
        }
    }

    /// The application reads up to so many bytes, or messages until it has so many.
    pub(super) fn host_reads(&mut self, index: usize, len: usize) {
        let pair = &mut self.pairs[index];
        if pair.host_left {
            return;
        }
        let mut left = len as u64;
        while left > 0 {
            let most = if pair.kind == Type::Seqpacket { u64::MAX } else { left };
            let Some(part) = pair.socket.pop(most) else { break };
            pair.host_gets(part);
            left = left.saturating_sub(part);
        }
        self.flush(index);
    }

    /// The application does not receive any more.
    fn became_deaf(&mut self, pair: usize) {
        let known = &mut self.pairs[pair];
        (known.deaf, known.cut, known.end_waits) = (true, true, false);
        if let Some(conn) = known.conn {
            self.mux.host_deaf(conn, self.now);
            self.close_if_over(pair);
        }
    }

    /// The guest closed directions.
    pub(super) fn guest_closed(&mut self, index: usize, flags: u32) {
        let pair = &mut self.pairs[index];
        if flags & SHUTDOWN_SEND != 0 {
            // Nobody sees the beginning of a message that has no end.
            pair.part = 0;
            pair.end_waits |= !pair.deaf;
        }
        pair.guest_deaf |= flags & SHUTDOWN_RCV != 0;
        let nobody_reads = pair.guest_deaf && pair.host_left;
        self.flush(index);
        if nobody_reads {
            self.host_closed(index);
        }
    }

    // ---- bytes of the application ----

    /// The application writes.
    pub(super) fn host_writes(&mut self, index: usize, len: usize) {
        let pair = &mut self.pairs[index];
        let able = matches!(pair.host, Host::Requested | Host::Open) && !pair.guest_deaf;
        if pair.host_ended || !able || pair.outbox.bytes() > UNREAD {
            return;
        }
        let longest = self.rules.buf_alloc as usize;
        let len = if pair.kind == Type::Seqpacket { message_length(len, longest) } else { len };
        pair.outbox.push(len as u64);
        if len > 0 {
            pair.to_guest.unread.push(len as u64);
        }
        self.readable(index);
    }

    /// The application sends no more.
    pub(super) fn host_ends(&mut self, index: usize) {
        let pair = &mut self.pairs[index];
        if matches!(pair.host, Host::Requested | Host::Open) {
            pair.host_ended = true;
            self.readable(index);
        }
    }

    /// Its socket has news; before the connection is open nobody looks.
    fn readable(&mut self, pair: usize) {
        let pair = &self.pairs[pair];
        if let (Host::Open, Some(conn)) = (pair.host, pair.conn) {
            self.mux.host_readable(conn, self.now);
        }
    }

    // ---- connections end ----

    /// The application closes its socket.
    pub(super) fn host_closes(&mut self, index: usize) {
        let pair = &mut self.pairs[index];
        let Some(conn) = pair.conn else { return };
        match pair.host {
            Host::Requested => {
                (pair.host, pair.conn, pair.cut) = (Host::Closed, None, true);
                self.mux.host_aborted(conn);
            }
            Host::Open if !pair.host_left => {
                (pair.host_left, pair.host_ended, pair.cut) = (true, true, true);
                pair.host_broken = !pair.socket.is_empty();
                if pair.backlog.clear() {
                    pair.part = 0;
                    self.became_deaf(index);
                }
                self.readable(index);
                if !self.mux.host_may_be_read(conn) {
                    self.host_closed(index);
                }
            }
            _ => {}
        }
    }

    /// All that the application sent was read, or is wanted by nobody, and its socket is of no more use.
    pub(super) fn host_closed(&mut self, pair: usize) {
        if let Some(conn) = self.pairs[pair].conn {
            self.mux.host_closed(conn, self.now);
            self.close_if_over(pair);
        }
    }

    /// The application's socket breaks.
    pub(super) fn host_breaks(&mut self, pair: usize) {
        let pair = &mut self.pairs[pair];
        if let (Host::Open, Some(conn)) = (pair.host, pair.conn) {
            (pair.host, pair.conn, pair.cut) = (Host::Closed, None, true);
            self.mux.host_aborted(conn);
        }
    }

    /// Closes a socket that is of no more use, while the guest has yet to confirm the end.
    fn close_if_over(&mut self, pair: usize) {
        let pair = &mut self.pairs[pair];
        if pair.conn.is_some_and(|conn| self.mux.is_closing(conn)) {
            pair.host = Host::Closed;
        }
    }

    /// The mux forgot the connection.
    pub(super) fn gone(&mut self, pair: usize) {
        let pair = &mut self.pairs[pair];
        assert!(pair.cut || pair.spoilt, "gone without a reason: {pair:?}");
        assert!(pair.conn.take().is_some(), "gone twice: {pair:?}");
        let waits = pair.host == Host::Open && !pair.backlog.is_empty() && !pair.deaf;
        pair.part = 0;
        pair.host = if waits { Host::Draining } else { Host::Closed };
    }
}
