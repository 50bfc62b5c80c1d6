//! Job: the vsock part of a Linux guest: sockets by ports, and what each packet means to them.
//! Before: `guest` delivers packets; applications connect, listen, read and write.
//! After: packets go out in order, as the ring and the peer's credit allow.
//! Rules: no threads: whoever waits for something pumps. Sends no more than Linux would, and no sooner.

use super::socket::{Ended, Received, Rules, Socket, State};
use crate::deadline::Deadline;
use crate::guest::{Guest, Packet};
use crate::header::{Header, MAX_PAYLOAD, SHUTDOWN_RCV, SHUTDOWN_SEND, STREAM, op};
use std::collections::{HashMap, VecDeque};

/// Names a socket for as long as the kernel lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId(usize);

/// A guest with sockets.
#[derive(Debug)]
pub struct Kernel {
    /// What is below.
    pub guest: Guest,
    /// Which kernel it is.
    rules: Rules,
    /// All sockets that were not released.
    sockets: HashMap<SocketId, Socket>,
    /// Sockets made so far.
    made: usize,
    /// Those that packets find.
    by_ports: HashMap<(u32, u32), SocketId>,
    /// Kinds of sockets that listen, and connections that no application has accepted, by port.
    listeners: HashMap<u32, (u16, VecDeque<SocketId>)>,
    /// Packets that wait for room in the ring.
    pending: VecDeque<Header>,
    /// The next port of a client.
    next_port: u32,
    /// The ring has packets that the device was not told of.
    unpublished: bool,
    /// Operations of all packets received so far, if they are to be kept.
    pub log: Option<Vec<Header>>,
}

impl Kernel {
    /// Sockets on top of a guest that was booted.
    pub fn new(guest: Guest, rules: Rules) -> Self {
        Self {
            guest,
            rules,
            sockets: HashMap::new(),
            made: 0,
            by_ports: HashMap::new(),
            listeners: HashMap::new(),
            pending: VecDeque::new(),
            next_port: 50_000,
            unpublished: false,
            log: None,
        }
    }

    /// A socket, to look at.
    pub fn socket(&self, id: SocketId) -> &Socket {
        self.sockets.get(&id).expect("the socket was not released")
    }

    /// The same, to change it.
    pub(super) fn socket_mut(&mut self, id: SocketId) -> &mut Socket {
        self.sockets.get_mut(&id).expect("the socket was not released")
    }

    /// Connections, open, being opened or being closed.
    pub fn open(&self) -> usize {
        self.by_ports.len()
    }

    // ---- applications ----

    /// Begins to connect to a port of the host.
    pub fn start_connect(&mut self, port: u32) -> SocketId {
        self.next_port += 1;
        self.start_connect_from(self.next_port, port)
    }

    /// Begins to connect from a certain port.
    pub fn start_connect_from(&mut self, local: u32, port: u32) -> SocketId {
        self.start_connect_as(STREAM, local, port)
    }

    /// Begins to connect with a socket of this kind.
    pub fn start_connect_as(&mut self, kind: u16, local: u32, port: u32) -> SocketId {
        let id = self.insert(kind, local, port, State::Connecting);
        self.send_op(id, op::REQUEST, 0);
        self.flush();
        id
    }

    /// Connects to a port of the host.
    pub fn connect(&mut self, port: u32) -> Result<SocketId, Ended> {
        self.connect_as(STREAM, port)
    }

    /// Connects with a socket of this kind.
    pub fn connect_as(&mut self, kind: u16, port: u32) -> Result<SocketId, Ended> {
        self.next_port += 1;
        let id = self.start_connect_as(kind, self.next_port, port);
        self.wait_connected(id).map(|()| id)
    }

    /// Waits until a connection that was begun is open.
    pub fn wait_connected(&mut self, id: SocketId) -> Result<(), Ended> {
        if !self.pump_until(|kernel| kernel.socket(id).state != State::Connecting) {
            return Err(Ended::TimedOut);
        }
        self.socket(id).fault.map_or(Ok(()), Err)
    }

    /// Receives connections at `port` from now on.
    pub fn listen(&mut self, port: u32) {
        self.listen_as(STREAM, port);
    }

    /// Receives connections of this kind.
    pub fn listen_as(&mut self, kind: u16, port: u32) {
        self.listeners.entry(port).or_insert((kind, VecDeque::new()));
    }

    /// Takes a connection from the host, waiting for it.
    #[track_caller]
    pub fn accept(&mut self, port: u32) -> SocketId {
        let found = self.pump_until(|kernel| kernel.listeners.get(&port).is_some_and(|(_, queue)| !queue.is_empty()));
        assert!(found, "nobody connected to port {port} of the guest");
        self.try_accept(port).expect("one waits")
    }

    /// Takes a connection from the host, if there is one.
    pub fn try_accept(&mut self, port: u32) -> Option<SocketId> {
        self.listeners.get_mut(&port)?.1.pop_front()
    }

    /// Sends as much as goes now; how much that is.
    pub fn send(&mut self, id: SocketId, bytes: &[u8]) -> usize {
        self.send_part(id, bytes, 0)
    }

    /// Sends as much as goes now; the packet that ends it has these flags.
    pub(super) fn send_part(&mut self, id: SocketId, bytes: &[u8], last_flags: u32) -> usize {
        let mut sent = 0;
        while sent < bytes.len() && self.pending.is_empty() && self.socket(id).may_send() {
            let len = self.socket(id).credit().min(MAX_PAYLOAD).min(bytes.len() - sent);
            if len == 0 {
                break;
            }
            let flags = if sent + len == bytes.len() { last_flags } else { 0 };
            let mut header = self.header(id, op::RW, flags);
            header.len = u32::try_from(len).expect("a packet");
            if !self.guest.put(&header, &bytes[sent..sent + len]) {
                break;
            }
            self.unpublished = true;
            let socket = self.socket_mut(id);
            socket.tx_cnt = socket.tx_cnt.wrapping_add(header.len);
            sent += len;
        }
        self.publish();
        sent
    }

    /// Sends everything, waiting as needed.
    #[track_caller]
    pub fn send_all(&mut self, id: SocketId, bytes: &[u8]) {
        let mut sent = 0;
        let mut deadline = Deadline::patient();
        while sent < bytes.len() {
            self.pump();
            let part = self.send(id, &bytes[sent..]);
            sent += part;
            if part > 0 {
                deadline = Deadline::patient();
            } else {
                assert!(self.socket(id).may_send(), "the connection ended while sending: {:?}", self.socket(id));
                assert!(self.guest.wait(deadline), "stuck after {sent} bytes: {:?}", self.socket(id));
            }
        }
    }

    /// Reads up to `max` bytes, if there are any.
    pub fn recv(&mut self, id: SocketId, max: usize) -> Received {
        let (received, due) = self.socket_mut(id).read(max);
        if due {
            self.send_op(id, op::CREDIT_UPDATE, 0);
            self.flush();
        }
        received
    }

    /// Reads exactly `len` bytes, waiting for them.
    #[track_caller]
    pub fn recv_exact(&mut self, id: SocketId, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            match self.recv_some(id, len - bytes.len()) {
                Received::Data(part) => bytes.extend(part),
                other => panic!("{other:?} after {} of {len} bytes", bytes.len()),
            }
        }
        bytes
    }

    /// Reads to the end of the stream.
    #[track_caller]
    pub fn recv_to_end(&mut self, id: SocketId) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            match self.recv_some(id, 65536) {
                Received::Data(part) => bytes.extend(part),
                Received::End => return bytes,
                other => panic!("{other:?} after {} bytes", bytes.len()),
            }
        }
    }

    /// Reads, waiting for something.
    #[track_caller]
    pub fn recv_some(&mut self, id: SocketId, max: usize) -> Received {
        let mut deadline = Deadline::patient();
        loop {
            self.pump();
            match self.recv(id, max) {
                Received::Nothing => assert!(self.guest.wait(deadline), "nothing came: {:?}", self.socket(id)),
                other => return other,
            }
            deadline = Deadline::after(deadline.left());
        }
    }

    /// `shutdown(2)`.
    pub fn shutdown(&mut self, id: SocketId, flags: u32) {
        self.socket_mut(id).own_shutdown |= flags;
        if self.socket(id).state == State::Established {
            self.send_op(id, op::SHUTDOWN, flags);
            self.flush();
        }
    }

    /// `close(2)`. Unread bytes are lost.
    pub fn close(&mut self, id: SocketId) {
        let both = SHUTDOWN_RCV | SHUTDOWN_SEND;
        match self.socket(id).state {
            // Even if it was answered before: Linux sends an RST once more.
            _ if self.socket(id).peer_shutdown == both => {
                self.send_op(id, op::RST, 0);
                self.end(id);
            }
            State::Established => {
                self.send_op(id, op::SHUTDOWN, both);
                self.socket_mut(id).state = State::Closing;
            }
            State::Connecting => self.end(id),
            State::Closing | State::Closed => {}
        }
        self.flush();
    }

    /// Closes a socket that nobody will look at again: it is forgotten once the peer has agreed.
    pub fn release(&mut self, id: SocketId) {
        self.close(id);
        match self.socket(id).state {
            State::Closed => drop(self.sockets.remove(&id)),
            _ => self.socket_mut(id).released = true,
        }
    }

    // ---- packets ----

    /// Handles all that the device delivered, without waiting.
    pub fn pump(&mut self) {
        self.guest.reclaim();
        self.flush();
        // Linux takes no more packets while its answers fill the ring.
        while self.pending.len() < usize::from(self.guest.rx.size) {
            let Some(packet) = self.guest.take() else { break };
            self.on_packet(packet);
            self.guest.refill();
        }
        self.flush();
    }

    /// Pumps until `condition` holds; `false` if it does not in time.
    pub fn pump_until(&mut self, mut condition: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline = Deadline::patient();
        loop {
            self.pump();
            if condition(self) {
                return true;
            }
            // Now and then even without news, as the condition may depend on the host.
            self.guest.wait(Deadline::after(deadline.left().min(std::time::Duration::from_millis(1))));
            if deadline.is_over() {
                return false;
            }
        }
    }

    /// Pumps until the socket is closed.
    #[track_caller]
    pub fn wait_closed(&mut self, id: SocketId) {
        assert!(self.pump_until(|kernel| kernel.socket(id).state == State::Closed), "{:?}", self.socket(id));
    }

    /// One packet.
    fn on_packet(&mut self, packet: Packet) {
        let Packet { header, payload } = packet;
        if let Some(log) = &mut self.log {
            log.push(header);
        }
        let ports = (header.dst_port, header.src_port);
        let Some(&id) = self.by_ports.get(&ports) else {
            match (header.op, self.listeners.get_mut(&header.dst_port)) {
                (op::REQUEST, Some((kind, queue))) if *kind == header.type_ => {
                    let id = SocketId(self.made);
                    queue.push_back(id);
                    self.insert(header.type_, ports.0, ports.1, State::Established);
                    self.socket_mut(id).learn(&header);
                    self.send_op(id, op::RESPONSE, 0);
                }
                _ => self.reset_no_socket(&header),
            }
            return;
        };
        let socket = self.sockets.get_mut(&id).expect("ports name no socket that was released");
        if socket.kind != header.type_ {
            return self.reset_no_socket(&header);
        }
        socket.learn(&header);
        match (socket.state, header.op) {
            (State::Connecting, op::RESPONSE) => socket.state = State::Established,
            (State::Connecting, op::RST) => self.fail(id, Ended::Reset, false),
            (State::Connecting, _) => self.fail(id, Ended::Protocol, true),
            (State::Established, op::RW) if socket.enqueue(payload, header.flags) => {}
            (State::Established, op::RW) => self.fail(id, Ended::NoBuffers, true),
            (State::Established, op::CREDIT_REQUEST) => self.send_op(id, op::CREDIT_UPDATE, 0),
            (State::Established, op::SHUTDOWN) => {
                socket.peer_shutdown |= header.flags & (SHUTDOWN_RCV | SHUTDOWN_SEND);
                if socket.peer_shutdown == SHUTDOWN_RCV | SHUTDOWN_SEND && !socket.has_unread() {
                    self.send_op(id, op::RST, 0);
                    self.end(id);
                }
            }
            (State::Established | State::Closing, op::RST) => self.end(id),
            _ => {}
        }
    }

    /// Answers a packet that belongs to no socket, unless it is an RST.
    fn reset_no_socket(&mut self, header: &Header) {
        if header.op != op::RST {
            let rst = self.guest.header(op::RST, header.dst_port, header.src_port);
            self.pending.push_back(Header { type_: header.type_, buf_alloc: 0, ..rst });
        }
    }

    /// Ends a connection with a fault, telling the peer or not.
    fn fail(&mut self, id: SocketId, why: Ended, tell: bool) {
        if tell {
            self.send_op(id, op::RST, 0);
        }
        self.socket_mut(id).fault = Some(why);
        self.end(id);
    }

    /// No packet finds this socket any more.
    fn end(&mut self, id: SocketId) {
        let socket = self.socket_mut(id);
        socket.state = State::Closed;
        let (ports, released) = ((socket.local, socket.peer), socket.released);
        if self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
        if released {
            self.sockets.remove(&id);
        }
    }

    /// Adds a socket.
    fn insert(&mut self, kind: u16, local: u32, peer: u32, state: State) -> SocketId {
        let id = SocketId(self.made);
        self.made += 1;
        self.sockets.insert(id, Socket::new(kind, local, peer, state, self.rules));
        self.by_ports.insert((local, peer), id);
        id
    }

    /// A header of this socket.
    fn header(&mut self, id: SocketId, op: u16, flags: u32) -> Header {
        let socket = self.socket_mut(id);
        let (buf_alloc, fwd_cnt) = socket.tell();
        let (type_, local, peer) = (socket.kind, socket.local, socket.peer);
        Header { type_, flags, buf_alloc, fwd_cnt, ..self.guest.header(op, local, peer) }
    }

    /// Queues a packet without payload.
    pub(super) fn send_op(&mut self, id: SocketId, op: u16, flags: u32) {
        let header = self.header(id, op, flags);
        self.pending.push_back(header);
    }

    /// Puts queued packets into the ring, as many as fit.
    pub(super) fn flush(&mut self) {
        while let Some(header) = self.pending.front() {
            if !self.guest.put(header, &[]) {
                break;
            }
            self.unpublished = true;
            self.pending.pop_front();
        }
        self.publish();
    }

    /// Lets the device see what was put.
    fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            self.guest.tx.publish_and_kick();
        }
    }
}
