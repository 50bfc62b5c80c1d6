//! Job: all connections of one guest: packets and `now` go in, what to do comes out.
//! Before: `device` read a header out of the TX queue, or a host application's socket has news.
//! After: `device` moves bytes, opens and closes sockets, fills receive buffers, as told here.
//! Rules: sans I/O. No descriptor, clock, thread or guest memory in here, so whole conversations run in a test.
//!
//! Calls that name a connection by its [`Id`] do nothing if it is gone.

mod actions;
pub mod connection;
pub mod credit;
mod ports;
mod seqpacket;
#[cfg(test)]
mod tests;

use crate::ids::{ConnKey, GuestCid, GuestPort, HOST_CID, HostPort, PortHash};
use crate::packet::spec::{MAX_PAYLOAD, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND};
use crate::packet::{Header, Op, Type};
use crate::slab::{Id, Slab};
use crate::stats::Stats;
use crate::timers::{MILLISECOND, SECOND, Timers};
pub use actions::{Expired, FromGuest, Refused, ToGuest};
use connection::{Connection, Reaction, State, Wants, reaction};
use credit::{FromGuestCredit, ToGuestCredit};
use ports::HostPorts;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// How long a guest may take to confirm the end of a connection (`VSOCK_CLOSE_TIMEOUT`,
/// net/vmw_vsock/virtio_transport_common.c).
const CLOSE_TIMEOUT: u64 = 8 * SECOND;
/// Answers that may wait for receive buffers before no more packets are taken from the guest, beside one for each connection that
/// it may have. A guest that closes all of them at once is heard to the end: Linux takes no packets while 128 answers of its
/// own wait (`virtio_vsock_more_replies`, net/vmw_vsock/virtio_transport.c), and these may stand behind all that it said
/// before, so that both sides would wait for each other.
const MAX_REPLIES: usize = 1024;
/// Stands for the socket of a connection that has none yet.
const NO_HOST: Id = Id { index: u32::MAX, generation: u32::MAX };

/// What the mux must know of its guest.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The guest's CID.
    pub guest_cid: GuestCid,
    /// Receive window of each connection, in bytes.
    pub buf_alloc: u32,
    /// Connections that may exist at once.
    pub max_connections: usize,
    /// Names the first host port given out.
    pub first_port: u32,
}

/// All connections of one guest.
#[derive(Debug)]
pub struct Mux {
    /// Constants.
    config: Config,
    /// The guest's driver knows message sockets.
    seqpacket: bool,
    /// The connections.
    conns: Slab<Connection>,
    /// Their ids by ports.
    by_key: HashMap<ConnKey, Id, PortHash>,
    /// Host ports for connections of host applications.
    ports: HostPorts,
    /// RST packets that belong to no connection (any more).
    replies: VecDeque<Header>,
    /// Connections with control packets to send.
    control_queue: VecDeque<Id>,
    /// Connections with payload to send and credit for it, each once, served in turn.
    data_queue: VecDeque<Id>,
    /// Deadlines of connections.
    timers: Timers,
    /// Counters.
    stats: Arc<Stats>,
}

impl Mux {
    /// A mux without connections.
    pub fn new(config: Config, stats: Arc<Stats>) -> Self {
        Self {
            config,
            seqpacket: false,
            conns: Slab::default(),
            by_key: HashMap::default(),
            ports: HostPorts::new(config.first_port),
            replies: VecDeque::new(),
            control_queue: VecDeque::new(),
            data_queue: VecDeque::new(),
            timers: Timers::default(),
            stats,
        }
    }

    /// Gives the guest another CID. There must be no connection.
    pub fn set_guest_cid(&mut self, guest_cid: GuestCid) {
        debug_assert!(self.conns.is_empty());
        self.config.guest_cid = guest_cid;
    }

    // ---- packets from the guest ----

    /// Whether so many answers wait that no more packets may be taken from the guest.
    pub fn replies_full(&self) -> bool {
        self.replies.len() >= self.config.max_connections.saturating_add(MAX_REPLIES)
    }

    /// Takes one packet; `available` is the number of payload bytes behind the header in its descriptors.
    pub fn from_guest(&mut self, header: &Header, available: u64, now: u64) -> FromGuest {
        self.stats.from_guest_packets.add(1);
        if header.src_cid != self.config.guest_cid.as_u64() || header.dst_cid != HOST_CID {
            // Linux drops these without an RST (vhost_vsock_handle_tx_kick, drivers/vhost/vsock.c).
            self.stats.dropped_forged.add(1);
            return FromGuest::Done;
        }
        if header.len > MAX_PAYLOAD || u64::from(header.len) > available {
            self.stats.dropped_malformed.add(1);
            return FromGuest::Done;
        }
        let op = Op::from_wire(header.op);
        let key = ConnKey { guest: GuestPort(header.src_port), host: HostPort(header.dst_port) };
        match self.by_key.get(&key) {
            Some(&id) => self.on_known(id, header, op, now),
            None => self.on_unknown(key, header, op),
        }
    }

    /// A packet on ports without a connection.
    fn on_unknown(&mut self, key: ConnKey, header: &Header, op: Option<Op>) -> FromGuest {
        let Some(kind) = Type::from_wire(header.type_).filter(|&kind| self.serves(kind)) else {
            return self.wrong_type(key, header, op);
        };
        match op {
            Some(Op::Rst) => {
                self.stats.ignored.add(1);
                FromGuest::Done
            }
            Some(Op::Request) => self.guest_connects(key, kind, header),
            _ => {
                self.stats.rst_unknown.add(1);
                self.reply_rst(key, header.type_);
                FromGuest::Done
            }
        }
    }

    /// A REQUEST of the guest.
    fn guest_connects(&mut self, key: ConnKey, kind: Type, header: &Header) -> FromGuest {
        self.stats.guest_requests.add(1);
        if self.conns.len() >= self.config.max_connections {
            self.stats.refused_limit.add(1);
            self.reply_rst(key, header.type_);
            return FromGuest::Done;
        }
        let conn = self.insert(key, kind, State::Connecting, NO_HOST);
        if let Some(connection) = self.conns.get_mut(conn) {
            connection.to_guest.update(header.buf_alloc, header.fwd_cnt);
        }
        FromGuest::Connect { conn, port: key.host, kind }
    }

    /// A packet on the ports of connection `id`.
    fn on_known(&mut self, id: Id, header: &Header, op: Option<Op>, now: u64) -> FromGuest {
        let Some(conn) = self.conns.get_mut(id) else { return FromGuest::Done };
        let (host, kind) = (conn.host, conn.kind);
        if header.type_ != kind as u16 {
            let key = conn.key;
            return self.wrong_type(key, header, op);
        }
        conn.to_guest.update(header.buf_alloc, header.fwd_cnt);
        let reaction = reaction(conn.state, op);
        // A window that became smaller may leave the guest with no credit but what it has not been told of.
        self.tell_credit_if_due(id);
        let Some(conn) = self.conns.get_mut(id) else { return FromGuest::Done };
        match reaction {
            // A CREDIT_UPDATE has said all that it had to say.
            Reaction::Ignore if op == Some(Op::CreditUpdate) => {}
            Reaction::Ignore => self.stats.ignored.add(1),
            Reaction::Open => {
                conn.state = State::Established;
                self.stats.established.add(1);
                let port = conn.key.host;
                self.timers.change(id, &mut conn.deadline, None);
                return FromGuest::Opened { host, port };
            }
            Reaction::Data => {
                if !conn.from_guest.receive(header.len) {
                    self.stats.reset_overrun.add(1);
                    self.reset(id);
                    return FromGuest::Gone { host };
                }
                self.schedule(id, now);
                return match kind {
                    Type::Stream => FromGuest::Data { conn: id, host },
                    Type::Seqpacket => self.message_part(id, host, header),
                };
            }
            Reaction::Shutdown => return self.guest_shuts_down(id, header.flags),
            Reaction::TellCredit => self.want(id, Op::CreditUpdate),
            Reaction::Forget => {
                match conn.state {
                    State::Requested => self.stats.refused_by_guest.add(1),
                    State::Connecting | State::Established => self.stats.reset_by_guest.add(1),
                    State::Closing => {}
                }
                self.remove(id);
                return FromGuest::Gone { host };
            }
            Reaction::Reset => {
                self.stats.reset_protocol.add(1);
                self.reset(id);
                return FromGuest::Gone { host };
            }
            Reaction::Renew => {
                // `host` was closed when the guest was told the end.
                let key = conn.key;
                self.remove(id);
                return self.guest_connects(key, kind, header);
            }
        }
        self.schedule(id, now);
        FromGuest::Done
    }

    /// A SHUTDOWN of the guest. Once it closed both directions its ports are free at once.
    fn guest_shuts_down(&mut self, id: Id, flags: u32) -> FromGuest {
        let Some(conn) = self.conns.get_mut(id) else { return FromGuest::Done };
        let host = conn.host;
        conn.guest_shutdown |= flags & SHUTDOWN_BOTH;
        let flags = conn.guest_shutdown;
        if flags == SHUTDOWN_BOTH {
            self.reset(id);
            return FromGuest::Gone { host };
        }
        FromGuest::Shutdown { host, flags }
    }

    // ---- news of host applications ----

    /// A host application asks for `port` of the guest, which has until `deadline` to answer. `from` is the port of its own
    /// end, if it has one; else it gets one.
    pub fn host_connects(
        &mut self,
        port: GuestPort,
        from: Option<HostPort>,
        kind: Type,
        host: Id,
        deadline: u64,
    ) -> Result<Id, Refused> {
        self.stats.host_requests.add(1);
        if self.conns.len() >= self.config.max_connections {
            self.stats.refused_limit.add(1);
            return Err(Refused::Limit);
        }
        let by_key = &self.by_key;
        let taken = |candidate| by_key.contains_key(&ConnKey { guest: port, host: candidate });
        let host_port = match from {
            Some(wanted) if taken(wanted) => {
                self.stats.refused_port.add(1);
                return Err(Refused::PortTaken);
            }
            Some(wanted) => wanted,
            None => self.ports.allocate(taken).ok_or_else(|| {
                self.stats.refused_limit.add(1);
                Refused::Limit
            })?,
        };
        let id = self.insert(ConnKey { guest: port, host: host_port }, kind, State::Requested, host);
        self.set_deadline(id, deadline);
        self.want(id, Op::Request);
        Ok(id)
    }

    /// Gives the guest no larger window than `most` bytes on this connection. To be called before it hears of that.
    pub fn limit_window(&mut self, id: Id, most: u32) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.from_guest.limit(most);
        }
    }

    /// Notes which socket belongs to a connection that the guest asked for.
    pub fn set_host(&mut self, id: Id, host: Id) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.host = host;
        }
    }

    /// Whether the guest still waits for an answer to its REQUEST, and nobody is being reached for it.
    pub fn awaits_host(&self, id: Id) -> bool {
        self.conns.get(id).is_some_and(|conn| conn.state == State::Connecting && conn.host == NO_HOST)
    }

    /// Refuses the guest's REQUEST if nobody answered by then.
    pub fn set_deadline(&mut self, id: Id, deadline: u64) {
        if let Some(conn) = self.conns.get_mut(id) {
            self.timers.change(id, &mut conn.deadline, Some(deadline));
        }
    }

    /// The listener of a host application took the connection.
    pub fn host_accepted(&mut self, id: Id) {
        if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.state == State::Connecting) {
            self.timers.change(id, &mut conn.deadline, None);
            conn.state = State::Established;
            self.stats.established.add(1);
            self.want(id, Op::Response);
        }
    }

    /// Nobody listens, or the connection cannot be had.
    pub fn host_refused(&mut self, id: Id) {
        self.reset(id);
    }

    /// The host application left before the guest answered, or its socket failed.
    pub fn host_aborted(&mut self, id: Id) {
        self.reset(id);
    }

    /// The socket has bytes, or the end of the stream, to read.
    pub fn host_readable(&mut self, id: Id, now: u64) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.readable = true;
            self.schedule(id, now);
        }
    }

    /// The socket has nothing more to read for now.
    pub fn host_drained(&mut self, id: Id, now: u64) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.readable = false;
        self.tell_credit_without_data(id);
        self.schedule(id, now);
    }

    /// The host application does not send any more.
    pub fn host_ended(&mut self, id: Id, now: u64) {
        self.host_shuts_down(id, SHUTDOWN_SEND, now);
    }

    /// The host application does not receive any more.
    pub fn host_deaf(&mut self, id: Id, now: u64) {
        self.host_shuts_down(id, SHUTDOWN_RCV, now);
    }

    /// The host application closed its socket and everything that it sent is with the guest.
    pub fn host_closed(&mut self, id: Id, now: u64) {
        self.host_shuts_down(id, SHUTDOWN_BOTH, now);
    }

    /// Tells the guest which directions the host's side closed.
    fn host_shuts_down(&mut self, id: Id, flags: u32, now: u64) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.state != State::Established || conn.host_shutdown | flags == conn.host_shutdown {
            return;
        }
        conn.host_shutdown |= flags;
        if conn.host_shutdown & SHUTDOWN_SEND != 0 {
            conn.readable = false;
        }
        if conn.host_shutdown == SHUTDOWN_BOTH {
            conn.state = State::Closing;
            self.timers.change(id, &mut conn.deadline, Some(now + CLOSE_TIMEOUT));
        }
        self.want(id, Op::Shutdown);
    }

    /// Whether the connection waits for nothing but the guest's confirmation of its end, so that the host's
    /// socket is of no more use.
    pub fn is_closing(&self, id: Id) -> bool {
        self.conns.get(id).is_some_and(|conn| conn.state == State::Closing)
    }

    /// Whether the host's socket is still worth reading: the direction to the guest is open.
    pub fn host_may_be_read(&self, id: Id) -> bool {
        self.conns.get(id).is_some_and(Connection::is_open_to_guest)
    }

    /// What both ends are.
    pub fn kind(&self, id: Id) -> Option<Type> {
        self.conns.get(id).map(|conn| conn.kind)
    }

    /// The receive window of each connection, in bytes.
    pub fn window(&self) -> u32 {
        self.config.buf_alloc
    }

    /// The port of the guest's end.
    pub fn guest_port(&self, id: Id) -> Option<GuestPort> {
        self.conns.get(id).map(|conn| conn.key.guest)
    }

    /// The port of the host's end.
    pub fn host_port(&self, id: Id) -> Option<HostPort> {
        self.conns.get(id).map(|conn| conn.key.host)
    }

    /// The window of a connection: how many bytes the guest may have sent that were not [`delivered`](Self::delivered).
    pub fn window_of(&self, id: Id) -> u32 {
        self.conns.get(id).map_or(0, |conn| conn.from_guest.window())
    }

    /// The host application's socket took `len` bytes of the guest, which may send as many more.
    pub fn delivered(&mut self, id: Id, len: u32) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.from_guest.deliver(len);
            self.tell_credit_if_due(id);
        }
    }

    /// Has a CREDIT_UPDATE sent if the guest should know of more room.
    fn tell_credit_if_due(&mut self, id: Id) {
        let Some(conn) = self.conns.get(id) else { return };
        let open = conn.state == State::Established && conn.guest_shutdown & SHUTDOWN_SEND == 0;
        if open && conn.from_guest.update_due(conn.to_guest.window()) {
            self.want(id, Op::CreditUpdate);
        }
    }

    /// What was left to ride on payload that does not come now has to be said by itself.
    fn tell_credit_without_data(&mut self, id: Id) {
        if self.conns.get(id).is_some_and(|conn| conn.wants.contains(Op::CreditUpdate)) {
            self.want(id, Op::CreditUpdate);
        }
    }

    // ---- packets to the guest ----

    /// Whether [`next_to_guest`](Self::next_to_guest) may have something.
    pub fn has_to_guest(&self) -> bool {
        !(self.replies.is_empty() && self.control_queue.is_empty() && self.data_queue.is_empty())
    }

    /// What to put into the next receive buffers. Call only when there is one: a control packet is taken out.
    pub fn next_to_guest(&mut self) -> Option<ToGuest> {
        if let Some(header) = self.replies.pop_front() {
            return Some(ToGuest::Control(header));
        }
        while let Some(&id) = self.control_queue.front() {
            if let Some(header) = self.next_control(id) {
                return Some(ToGuest::Control(header));
            }
            self.control_queue.pop_front();
        }
        while let Some(id) = self.data_queue.pop_front() {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.in_data_queue = false;
                let (bytes, packets) = (conn.to_guest.bytes(), conn.to_guest.packets());
                if conn.may_send() && conn.has_credit(bytes, packets) {
                    let host = conn.host;
                    return Some(match conn.kind {
                        Type::Stream => ToGuest::Data { conn: id, host, bytes, packets },
                        Type::Seqpacket => ToGuest::Message { conn: id, host, bytes, longest: conn.to_guest.window() },
                    });
                }
                self.tell_credit_without_data(id);
            }
        }
        None
    }

    /// The next control packet of a connection; `None` when it has no more.
    fn next_control(&mut self, id: Id) -> Option<Header> {
        let conn = self.conns.get_mut(id)?;
        // The payload that follows tells the credit, too; it takes the wish back.
        let waits = conn.wants.is_only(Op::CreditUpdate) && conn.in_data_queue;
        let Some(op) = (if waits { None } else { conn.wants.pop() }) else {
            conn.in_control_queue = false;
            return None;
        };
        let flags = if op == Op::Shutdown { conn.host_shutdown } else { 0 };
        Some(header_to_guest(self.config.guest_cid, conn, op, flags))
    }

    /// The header of payload packets of this connection, all but `len`. The guest learns our credit by it.
    pub fn rw_header(&mut self, id: Id) -> Option<Header> {
        let conn = self.conns.get_mut(id)?;
        Some(header_to_guest(self.config.guest_cid, conn, Op::Rw, 0))
    }

    /// Notes payload that went into receive buffers.
    pub fn sent_to_guest(&mut self, id: Id, bytes: u32, packets: u32, now: u64) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.to_guest.sent(bytes, packets);
        conn.probes = 0;
        self.schedule(id, now);
    }

    // ---- time ----

    /// When [`expire`](Self::expire) has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.next()
    }

    /// Handles one deadline; call until `None`. The inner value is a socket to close.
    pub fn expire(&mut self, now: u64) -> Option<Option<Expired>> {
        let id = self.timers.pop_due(now)?;
        let Some(conn) = self.conns.get_mut(id) else { return Some(None) };
        conn.deadline = None;
        let host = conn.host;
        match conn.state {
            State::Requested => {
                self.stats.timeout_guest.add(1);
                self.reset(id);
            }
            State::Closing => {
                self.stats.timeout_close.add(1);
                self.reset(id);
            }
            State::Established => {
                self.want(id, Op::CreditRequest);
                self.schedule(id, now);
                return Some(None);
            }
            State::Connecting => {
                self.stats.refused_no_listener.add(1);
                self.reset(id);
            }
        }
        Some(Some(Expired { host }))
    }

    /// Forgets all connections and everything that was to be sent. Calls `closed` with the socket of each.
    pub fn reset_all(&mut self, mut closed: impl FnMut(Id)) {
        for id in self.conns.ids().collect::<Vec<_>>() {
            if let Some(conn) = self.conns.get(id) {
                closed(conn.host);
            }
            self.stats.reset_device.add(1);
            self.remove(id);
        }
        self.replies.clear();
        self.control_queue.clear();
        self.data_queue.clear();
    }

    // ---- the table of connections ----

    /// Adds a connection.
    fn insert(&mut self, key: ConnKey, kind: Type, state: State, host: Id) -> Id {
        let id = self.conns.insert(Connection {
            key,
            kind,
            host,
            state,
            guest_shutdown: 0,
            host_shutdown: 0,
            readable: false,
            in_message: false,
            in_data_queue: false,
            in_control_queue: false,
            wants: Wants::default(),
            probes: 0,
            deadline: None,
            to_guest: ToGuestCredit::default(),
            from_guest: FromGuestCredit::new(self.config.buf_alloc),
        });
        self.by_key.insert(key, id);
        self.stats.connections.set(self.conns.len() as u64);
        id
    }

    /// Forgets a connection and sends the guest an RST for it.
    fn reset(&mut self, id: Id) {
        if let Some(conn) = self.remove(id) {
            // A guest that never saw the REQUEST knows nothing of the connection.
            if !(conn.state == State::Requested && conn.wants.contains(Op::Request)) {
                self.reply_rst(conn.key, conn.kind as u16);
            }
        }
    }

    /// Forgets a connection.
    fn remove(&mut self, id: Id) -> Option<Connection> {
        let mut conn = self.conns.remove(id)?;
        self.timers.change(id, &mut conn.deadline, None);
        self.by_key.remove(&conn.key);
        self.stats.connections.set(self.conns.len() as u64);
        Some(conn)
    }

    /// Queues an RST that belongs to no connection: no credit in it (`virtio_transport_reset_no_sock`).
    fn reply_rst(&mut self, key: ConnKey, type_: u16) {
        self.replies.push_back(Header {
            src_cid: HOST_CID,
            dst_cid: self.config.guest_cid.as_u64(),
            src_port: key.host.0,
            dst_port: key.guest.0,
            type_,
            op: Op::Rst as u16,
            ..Header::default()
        });
    }

    /// Has a control packet sent.
    fn want(&mut self, id: Id, op: Op) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.wants.insert(op);
            if !conn.in_control_queue {
                conn.in_control_queue = true;
                push_bounded(&mut self.control_queue, id, &self.conns);
            }
        }
    }

    /// Queues the connection if it has data and credit; has the guest asked for credit if it has data and none.
    fn schedule(&mut self, id: Id, now: u64) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.state != State::Established {
            return;
        }
        if !conn.may_send() {
            self.timers.change(id, &mut conn.deadline, None);
            return;
        }
        let (bytes, packets) = (conn.to_guest.bytes(), conn.to_guest.packets());
        if conn.has_credit(bytes, packets) {
            self.timers.change(id, &mut conn.deadline, None);
            if !conn.in_data_queue {
                conn.in_data_queue = true;
                push_bounded(&mut self.data_queue, id, &self.conns);
            }
        } else if conn.deadline.is_none() {
            // Linux tells its credit unasked when bytes run short, but not when only the count of packets is
            // what stops us; and a guest of another kind may never do so. So ask, less and less often.
            let (first, last) = if bytes > 0 { (MILLISECOND, SECOND) } else { (SECOND, 64 * SECOND) };
            let wait = (first << conn.probes.min(10)).min(last);
            conn.probes = conn.probes.saturating_add(1);
            self.timers.change(id, &mut conn.deadline, Some(now + wait));
        }
    }
}

/// Queues a connection. Those that are gone stay in a queue until their turn comes, which takes buffers of the guest: without
/// any, connections that come and go would fill it without end.
fn push_bounded(queue: &mut VecDeque<Id>, id: Id, conns: &Slab<Connection>) {
    if queue.len() > 2 * conns.len() + MAX_REPLIES {
        queue.retain(|&each| conns.get(each).is_some());
    }
    queue.push_back(id);
}

/// A header from the host's end of `conn`; the guest learns our credit by it.
fn header_to_guest(guest_cid: GuestCid, conn: &mut Connection, op: Op, flags: u32) -> Header {
    conn.wants.remove(Op::CreditUpdate);
    let (buf_alloc, fwd_cnt) = conn.from_guest.tell();
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid.as_u64(),
        src_port: conn.key.host.0,
        dst_port: conn.key.guest.0,
        len: 0,
        type_: conn.kind as u16,
        op: op as u16,
        flags,
        buf_alloc,
        fwd_cnt,
    }
}
