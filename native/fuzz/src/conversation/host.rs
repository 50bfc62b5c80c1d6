//! Job: the host's ends: what the device does when sockets of host applications have news, written out without sockets.
//! Rules: the order of calls of the mux is that of `device/hosts.rs` and `device/clients.rs`.

use super::pair::{Host, Pair};
use super::{MAX_CONNECTIONS, World};
use vhostvsock_native::ids::GuestPort;
use vhostvsock_native::packet::Type;
use vhostvsock_native::slab::Id;
use vhostvsock_native::timers::SECOND;
use vsock_driver::header::{SHUTDOWN_RCV, SHUTDOWN_SEND};

/// What an application's socket holds, in bytes.
const SOCKET: u64 = 10_000;
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
    pub(super) fn asked(&mut self, pair: usize, conn: Id) {
        assert!(self.mux.awaits_host(conn));
        let ports = self.pairs[pair].ports;
        // One that waited for nothing but its end made way for it.
        if let Some(old) = self.pairs.iter_mut().find(|old| old.ports == ports && old.conn.is_some()) {
            assert!(old.host == Host::Closed, "{old:?} was replaced");
            old.conn = None;
        }
        self.mux.set_host(conn, Self::host_id(pair));
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
    pub(super) fn host_connects(&mut self, guest_listens: bool) {
        self.expected.host_requests += 1;
        let host = Self::host_id(self.pairs.len());
        let Ok(conn) = self.mux.host_connects(GuestPort(GUEST_PORT), None, Type::Stream, host, self.now + TIMEOUT)
        else {
            let alive = self.pairs.iter().filter(|pair| pair.conn.is_some()).count();
            return assert_eq!(alive, MAX_CONNECTIONS, "refused without a reason");
        };
        let port = self.mux.host_port(conn).expect("it has one");
        let mut pair = Pair::new((GUEST_PORT, port.0));
        (pair.conn, pair.host, pair.guest_listens) = (Some(conn), Host::Requested, guest_listens);
        self.insert(pair);
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

    /// Payload of the guest.
    pub(super) fn received(&mut self, index: usize, len: u64, at: u64) {
        let pair = &mut self.pairs[index];
        let Some(conn) = pair.conn else { panic!("payload for {pair:?}") };
        assert!(pair.backlog + len <= u64::from(self.window), "the guest sent more than it may: {pair:?}");
        let count = u32::try_from(len).expect("a packet");
        if pair.deaf {
            return self.mux.delivered(conn, count);
        }
        if pair.host_left {
            // Sending fails.
            self.mux.delivered(conn, count);
            return self.became_deaf(index);
        }
        assert!(pair.spoilt || at == pair.host_got + pair.socket + pair.backlog, "payload out of order: {pair:?}");
        pair.backlog += len;
        self.flush(index);
    }

    /// A part of a message of a forged connection: the application takes whole ones.
    pub(super) fn received_part(&mut self, pair: usize, len: u64, complete: bool) {
        let pair = &mut self.pairs[pair];
        let (true, Some(conn)) = (pair.spoilt, pair.conn) else { panic!("a message on a stream: {pair:?}") };
        assert!(pair.backlog + len <= u64::from(self.window), "the guest sent more than it may: {pair:?}");
        pair.backlog += len;
        if complete {
            let whole = std::mem::take(&mut pair.backlog);
            self.mux.delivered(conn, u32::try_from(whole).expect("no more than the window"));
        }
    }

    /// The application's socket takes what waits.
    fn flush(&mut self, pair: usize) {
        let pair = &mut self.pairs[pair];
        let part = pair.backlog.min(SOCKET - pair.socket);
        pair.backlog -= part;
        pair.socket += part;
        if let Some(conn) = pair.conn.filter(|_| part > 0) {
            self.mux.delivered(conn, u32::try_from(part).expect("less than a socket holds"));
        }
        if pair.backlog == 0 {
            pair.host_saw_end |= std::mem::take(&mut pair.end_waits);
            if pair.host == Host::Draining {
                pair.host = Host::Closed;
            }
        }
    }

    /// The application reads.
    pub(super) fn host_reads(&mut self, index: usize, len: usize) {
        let pair = &mut self.pairs[index];
        if pair.host_left {
            return;
        }
        let part = pair.socket.min(len as u64);
        pair.socket -= part;
        pair.host_got += part;
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
        if flags & SHUTDOWN_SEND != 0 && !pair.deaf {
            pair.end_waits = true;
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
        if pair.host_ended || !able {
            return;
        }
        pair.host_wrote += len as u64;
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

    /// Takes up to `most` bytes out of its socket; nothing if it is empty, at its end or broken.
    pub(super) fn host_reads_from(&mut self, pair: usize, most: usize) -> Vec<u8> {
        let pair = &mut self.pairs[pair];
        assert!(pair.host == Host::Open && !pair.guest_deaf, "payload of {pair:?}");
        if pair.host_broken {
            return Vec::new();
        }
        let len = usize::try_from(pair.host_wrote - pair.host_sent).expect("few").min(most);
        let bytes = pair.bytes(pair.host_sent, len);
        pair.host_sent += len as u64;
        bytes
    }

    /// What the device makes of an empty read.
    pub(super) fn host_has_nothing(&mut self, index: usize) {
        let pair = &self.pairs[index];
        let Some(conn) = pair.conn else { return };
        match (pair.host_broken, pair.host_left, pair.host_ended) {
            (true, ..) => self.host_breaks(index),
            (_, true, _) => self.host_closed(index),
            (.., true) => self.mux.host_ended(conn, self.now),
            _ => self.mux.host_drained(conn, self.now),
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
                pair.host_broken = pair.socket > 0;
                if std::mem::take(&mut pair.backlog) > 0 {
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
    fn host_closed(&mut self, pair: usize) {
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
        let waits = pair.host == Host::Open && pair.backlog > 0 && !pair.deaf;
        pair.host = if waits { Host::Draining } else { Host::Closed };
    }
}
