//! Job: the guest's ends: what Linux makes of what its applications do, and of the packets of the mux.

use super::pair::{Host, Pair, Sending};
use super::step::message_length;
use super::{CID, Sent, World};
use vhostvsock_native::ids::HOST_CID;
use vhostvsock_native::packet::spec::MAX_PAYLOAD;
use vhostvsock_native::packet::{Header, Type};
use vsock_driver::header::{self as driver, SEQ_EOM, SEQ_EOR, SHUTDOWN_RCV, SHUTDOWN_SEND, op};
use vsock_driver::linux::Received;
use vsock_driver::linux::socket::{Socket, State};

/// The port of the host that the guest's applications ask for.
const HOST_PORT: u32 = 1000;
/// Ports of the guest from here on are those of its clients.
const FIRST_PORT: u32 = 60_000;

impl World {
    /// Adds a connection.
    pub(super) fn insert(&mut self, pair: Pair) -> usize {
        let index = self.pairs.len();
        self.by_ports.insert(pair.ports, index);
        self.pairs.push(pair);
        index
    }

    /// An application asks for a connection.
    pub(super) fn guest_connects(&mut self, reuse: bool, kind: Type) {
        // In an order that is the same in every run.
        let old = if reuse {
            self.by_ports
                .values()
                .map(|&last| &self.pairs[last])
                .filter(|last| self.may_be_reused(last))
                .max_by_key(|last| last.ports)
        } else {
            None
        };
        let fresh = (FIRST_PORT + u32::try_from(self.pairs.len()).expect("few"), HOST_PORT);
        let mut pair = Pair::new(old.map_or(fresh, |old| old.ports), kind);
        pair.reused = old.is_some();
        // Linux does not ask for messages without the feature; one that does is refused.
        pair.cut = !self.mux.serves(kind);
        pair.guest = Some(Socket::new(kind as u16, pair.ports.0, pair.ports.1, State::Connecting, self.rules));
        let pair = self.insert(pair);
        self.say(pair, op::REQUEST, 0, 0);
    }

    /// Whether the guest may take the ports of this connection for another one, and we can tell the two apart.
    fn may_be_reused(&self, pair: &Pair) -> bool {
        let closed = pair.guest.as_ref().is_some_and(|socket| socket.state == State::Closed);
        let over = pair.conn.is_none_or(|conn| self.mux.is_closing(conn));
        let on_wire = |sent: &Sent| (sent.header.src_port, sent.header.dst_port) == pair.ports;
        pair.ports.1 == HOST_PORT
            && closed
            && over
            && pair.host != Host::Unasked
            && !pair.spoilt
            && !self.wire.iter().any(on_wire)
    }

    /// The socket of a connection sends a packet.
    fn say(&mut self, pair: usize, op: u16, len: u32, flags: u32) {
        let pair = &mut self.pairs[pair];
        let Some(socket) = &mut pair.guest else { return };
        let (buf_alloc, fwd_cnt) = socket.tell();
        let header = Header { len, flags, buf_alloc, fwd_cnt, ..header_of(op, pair.kind as u16, pair.ports) };
        self.wire.push_back(Sent { header, available: len.into(), at: pair.from_guest.sent });
        pair.from_guest.sent += u64::from(len);
    }

    /// The application writes: as much as goes, or a message, which may have to wait for credit.
    pub(super) fn guest_writes(&mut self, index: usize, len: usize, record: bool) {
        let pair = &mut self.pairs[index];
        let away = pair.spoilt || pair.guest_left;
        let (kind, busy) = (pair.kind, pair.sending.is_some());
        let Some(socket) = pair.live_guest().filter(|socket| !away && socket.may_send()) else { return };
        match kind {
            Type::Stream => {
                let len = u32::try_from(socket.credit().min(len)).expect("a window").min(MAX_PAYLOAD);
                if len > 0 {
                    socket.tx_cnt = socket.tx_cnt.wrapping_add(len);
                    pair.from_guest.unread.push(len.into());
                    self.say(index, op::RW, len, 0);
                }
            }
            Type::Seqpacket => {
                let longest = socket.longest();
                let len = message_length(len, longest);
                // What is longer is EMSGSIZE, and what has no bytes is not sent.
                if !busy && (1..=longest).contains(&len) {
                    pair.sending = Some(Sending { len: len as u64, left: len as u64, record });
                }
                self.guest_goes_on(index);
            }
        }
    }

    /// The application sends as much of its message as it has credit for.
    pub(super) fn guest_goes_on(&mut self, index: usize) {
        loop {
            let pair = &mut self.pairs[index];
            let away = pair.spoilt || pair.guest_left;
            let Some(Sending { len, left, record }) = pair.sending.filter(|_| !away) else { return };
            let Some(socket) = pair.live_guest().filter(|socket| socket.may_send()) else { return };
            let part = (socket.credit() as u64).min(left).min(MAX_PAYLOAD.into());
            if part == 0 {
                return;
            }
            let count = u32::try_from(part).expect("a packet");
            socket.tx_cnt = socket.tx_cnt.wrapping_add(count);
            let whole = part == left;
            pair.sending = (!whole).then_some(Sending { len, left: left - part, record });
            if whole {
                pair.from_guest.unread.push(len);
            }
            let flags = if record { SEQ_EOM | SEQ_EOR } else { SEQ_EOM };
            self.say(index, op::RW, count, if whole { flags } else { 0 });
        }
    }

    /// The application reads up to `max` bytes, or messages until it has so many.
    pub(super) fn guest_reads(&mut self, index: usize, max: usize) {
        let mut left = max;
        while left > 0 {
            let pair = &mut self.pairs[index];
            if pair.spoilt || pair.guest_left {
                return;
            }
            let Some(socket) = &mut pair.guest else { return };
            let (received, due) = match pair.kind {
                Type::Stream => socket.read(left),
                Type::Seqpacket => match socket.read_message() {
                    Ok(message) => {
                        assert!(!message.record, "a record of nobody");
                        (Received::Data(message.bytes), socket.state == State::Established)
                    }
                    Err(instead) => (instead, false),
                },
            };
            match received {
                Received::Data(bytes) => {
                    assert_eq!(bytes, pair.bytes(pair.to_guest.got, bytes.len()), "at {}", pair.to_guest.got);
                    pair.to_guest.came(bytes.len() as u64);
                    left = left.saturating_sub(bytes.len());
                }
                Received::End => {
                    pair.to_guest.saw_end = true;
                    return;
                }
                Received::Nothing => return,
                Received::Fault(fault) => {
                    assert!(pair.cut, "{fault:?} without a reason: {pair:?}");
                    return;
                }
            }
            if due {
                self.say(index, op::CREDIT_UPDATE, 0, 0);
            }
        }
    }

    /// `shutdown(2)` by the application.
    pub(super) fn guest_shuts_down(&mut self, pair: usize, flags: u32) {
        let known = &mut self.pairs[pair];
        let away = known.spoilt || known.guest_left;
        let Some(socket) = known.live_guest().filter(|socket| !away && socket.state == State::Established) else {
            return;
        };
        socket.own_shutdown |= flags;
        known.cut |= flags & SHUTDOWN_RCV != 0;
        // A message that is being sent has no end then.
        known.sending = known.sending.filter(|_| flags & SHUTDOWN_SEND == 0);
        self.say(pair, op::SHUTDOWN, 0, flags);
    }

    /// `close(2)` by the application.
    pub(super) fn guest_closes(&mut self, pair: usize) {
        let known = &mut self.pairs[pair];
        let away = known.spoilt || known.guest_left;
        let Some(socket) = known.live_guest().filter(|_| !away) else { return };
        let both = SHUTDOWN_RCV | SHUTDOWN_SEND;
        let (state, answered) = (socket.state, socket.peer_shutdown == both);
        socket.state = if answered || state == State::Connecting { State::Closed } else { State::Closing };
        (known.cut, known.guest_left) = (true, true);
        if answered {
            self.say(pair, op::RST, 0, 0);
        } else if state == State::Established {
            self.say(pair, op::SHUTDOWN, 0, both);
        }
    }

    /// The guest gets a packet.
    pub(super) fn guest_hears(&mut self, header: &Header, payload: Vec<u8>) {
        Self::check_header(header);
        let ports = (header.dst_port, header.src_port);
        let Some(&index) = self.by_ports.get(&ports) else { return self.refuse(header) };
        let window = self.window_of(self.pairs[index].kind);
        let pair = &mut self.pairs[index];
        if pair.spoilt {
            return;
        }
        let both = SHUTDOWN_RCV | SHUTDOWN_SEND;
        let (cut, asked) = (pair.cut || pair.reused, pair.conn.is_some());
        let (kind, reused) = (pair.kind as u16, pair.reused);
        let Some(socket) = pair.live_guest() else { return self.on_closed(index, header) };
        if header.type_ != kind {
            // The answer to a forged packet, or what was left to say to the one before on these ports.
            assert!(header.op == op::RST || reused, "{header:?} is of another type than {pair:?}");
            return self.refuse(header);
        }
        assert!(header.op == op::RST || u64::from(header.buf_alloc) == window, "not the window: {header:?}");
        socket.learn(&driver::Header::from_bytes(&header.to_bytes()));
        match (socket.state, header.op) {
            (State::Connecting, op::RESPONSE) => socket.state = State::Established,
            (State::Connecting, op::RST) => {
                assert!(cut || !asked, "a connection that was accepted is refused: {pair:?}");
                self.fail(index, false);
            }
            (State::Connecting, _) => {
                assert!(cut, "{header:?} in place of an answer");
                self.fail(index, true);
            }
            (State::Established, op::RW) => {
                assert!(socket.enqueue(payload, header.flags), "more than the guest allows: {pair:?}");
            }
            (State::Established, op::CREDIT_REQUEST) => self.say(index, op::CREDIT_UPDATE, 0, 0),
            (State::Established, op::SHUTDOWN) => {
                socket.peer_shutdown |= header.flags & both;
                if socket.peer_shutdown == both && !socket.has_unread() {
                    socket.state = State::Closed;
                    self.say(index, op::RST, 0, 0);
                }
            }
            (State::Established | State::Closing, op::RST) => {
                assert!(cut, "reset without a reason: {pair:?}");
                socket.state = State::Closed;
            }
            (State::Established, op::CREDIT_UPDATE) | (State::Closing, _) => {}
            _ => panic!("{header:?} makes no sense to {pair:?}"),
        }
    }

    /// A packet for a socket that is not there, or not any more.
    fn on_closed(&mut self, index: usize, header: &Header) {
        let pair = &mut self.pairs[index];
        let listens = pair.guest_listens.is_some_and(|kind| kind as u16 == header.type_);
        if header.op == op::REQUEST && pair.guest.is_none() && listens {
            assert_eq!(pair.kind as u16, header.type_, "nobody asked for that: {pair:?}");
            let mut socket = Socket::new(header.type_, pair.ports.0, pair.ports.1, State::Established, self.rules);
            socket.learn(&driver::Header::from_bytes(&header.to_bytes()));
            pair.guest = Some(socket);
            return self.say(index, op::RESPONSE, 0, 0);
        }
        // An RST of the other type answers a forged packet.
        pair.cut |= pair.kind as u16 == header.type_;
        self.refuse(header);
    }

    /// Answers a packet for which there is no socket.
    fn refuse(&mut self, packet: &Header) {
        if packet.op != op::RST {
            let header = header_of(op::RST, packet.type_, (packet.dst_port, packet.src_port));
            self.wire.push_back(Sent { header, available: 0, at: 0 });
        }
    }

    /// A connection that was asked for cannot be had.
    fn fail(&mut self, pair: usize, tell: bool) {
        if tell {
            self.say(pair, op::RST, 0, 0);
        }
        let pair = &mut self.pairs[pair];
        pair.cut = true;
        if let Some(socket) = &mut pair.guest {
            socket.state = State::Closed;
        }
    }
}

/// A header of the guest without credit.
fn header_of(op: u16, type_: u16, ports: (u32, u32)) -> Header {
    Header { src_cid: CID, dst_cid: HOST_CID, src_port: ports.0, dst_port: ports.1, type_, op, ..Header::default() }
}
