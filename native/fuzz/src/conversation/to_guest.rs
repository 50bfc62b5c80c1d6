//! Job: what the mux has for the guest into receive buffers, payload out of the sockets of host applications.
//! Rules: the order of calls of the mux is that of `device/to_guest.rs` and `device/to_guest/messages.rs`.

use super::pair::Host;
use super::{CID, World};
use vhostvsock_native::ids::HOST_CID;
use vhostvsock_native::mux::ToGuest;
use vhostvsock_native::packet::{Header, Type};
use vhostvsock_native::slab::Id;
use vsock_driver::header::{SEQ_EOM, op};

/// The most buffers of one connection in one turn.
const BURST: usize = 3;
/// Room in a receive buffer of Linux.
pub const ROOM: usize = 3732;

impl World {
    /// Fills one receive buffer with `room` for payload, or several if it is payload; whether there was anything.
    pub(super) fn fill(&mut self, room: usize) -> bool {
        // Credit that was left to payload which does not come is found out by asking, and said when asked once more.
        match self.mux.next_to_guest().or_else(|| self.mux.next_to_guest()) {
            None => {
                assert!(!self.mux.has_to_guest(), "something is left, and does not come");
                return false;
            }
            Some(ToGuest::Control(header)) => self.guest_hears(&header, Vec::new()),
            Some(ToGuest::Data { conn, host, bytes, packets }) => {
                assert!(bytes > 0 && packets > 0);
                let most = (bytes as usize).min(room * (packets as usize).min(BURST));
                self.fill_with_bytes(conn, host, most, room);
            }
            Some(ToGuest::Message { conn, host, bytes, longest }) => {
                assert!(bytes > 0);
                // Linux's buffers are no smaller; where it counts packets, more of them than it has room for make no message.
                let room = if self.rules.packet_limit { room.max(ROOM) } else { room };
                self.fill_with_message(conn, host, (bytes as usize).min(room * BURST), longest.into(), room);
            }
        }
        true
    }

    /// Puts up to `most` bytes of a stream into buffers with `room` each.
    fn fill_with_bytes(&mut self, conn: Id, host: Id, most: usize, room: usize) {
        let pair = self.read_by_device(conn, host, Type::Stream);
        let known = &mut self.pairs[pair];
        let read = if known.host_broken { None } else { known.outbox.pop(most as u64) };
        match read {
            Some(len) => self.send(pair, conn, len, room, true),
            None => self.host_has_nothing(pair),
        }
    }

    /// Puts up to `most` bytes of a message, or of what is left of one, into buffers with `room` each.
    fn fill_with_message(&mut self, conn: Id, host: Id, most: usize, longest: u64, room: usize) {
        let pair = self.read_by_device(conn, host, Type::Seqpacket);
        let known = &mut self.pairs[pair];
        let takes = known.guest.as_ref().map(|socket| u64::from(socket.buf_alloc));
        assert!(known.spoilt || takes == Some(longest), "messages of {longest} bytes are not too long for {known:?}");
        if known.rest == 0 {
            let read = if known.host_broken { None } else { known.outbox.pop(u64::MAX) };
            match read {
                // The guest could never take it.
                Some(len) if len > longest => return self.host_breaks(pair),
                Some(len @ 1..) => known.rest = len,
                // A message without bytes is none: what is behind it comes next.
                Some(0) if known.outbox.bytes() > 0 => return self.mux.host_readable(conn, self.now),
                Some(0) | None => return self.host_has_nothing(pair),
            }
        }
        let known = &mut self.pairs[pair];
        let part = known.rest.min(most as u64);
        known.rest -= part;
        let complete = known.rest == 0;
        self.send(pair, conn, part, room, complete);
    }

    /// The connection whose socket the mux has read.
    fn read_by_device(&self, conn: Id, host: Id, kind: Type) -> usize {
        let index = self.of_host(host);
        let pair = &self.pairs[index];
        assert_eq!((pair.conn, pair.kind), (Some(conn), kind));
        assert!(pair.host == Host::Open && !pair.guest_deaf, "payload of {pair:?}");
        index
    }

    /// Makes packets of the next `len` bytes, which end a message or not.
    fn send(&mut self, index: usize, conn: Id, len: u64, room: usize, complete: bool) {
        let pair = &mut self.pairs[index];
        let kind = pair.kind;
        let payload = pair.bytes(pair.to_guest.sent, usize::try_from(len).expect("a few buffers"));
        pair.to_guest.sent += len;
        let mut header = self.mux.rw_header(conn).expect("the connection is there");
        let packets = payload.len().div_ceil(room);
        for (number, piece) in (1..).zip(payload.chunks(room)) {
            header.len = u32::try_from(piece.len()).expect("a packet");
            let last = number == packets && complete && kind == Type::Seqpacket;
            header.flags = if last { SEQ_EOM } else { 0 };
            self.guest_hears(&header, piece.to_vec());
        }
        let (bytes, packets) = (u32::try_from(len).expect("few"), u32::try_from(packets).expect("few"));
        match kind {
            Type::Stream => self.mux.sent_to_guest(conn, bytes, packets, self.now),
            Type::Seqpacket => self.mux.message_sent(conn, bytes, packets, complete, self.now),
        }
    }

    /// What the device makes of an empty read.
    fn host_has_nothing(&mut self, index: usize) {
        let pair = &self.pairs[index];
        let Some(conn) = pair.conn else { return };
        match (pair.host_broken, pair.host_left, pair.host_ended) {
            (true, ..) => self.host_breaks(index),
            (_, true, _) => self.host_closed(index),
            (.., true) => self.mux.host_ended(conn, self.now),
            _ => self.mux.host_drained(conn, self.now),
        }
    }

    /// What every packet to the guest has to be.
    pub(super) fn check_header(header: &Header) {
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        let (reset, kind) = (header.op == op::RST, Type::from_wire(header.type_));
        assert!(reset || kind.is_some(), "{header:?}");
        assert!(header.flags & !3 == 0 && header.len <= 65_536, "{header:?}");
        let plain = header.op != op::RW || kind == Some(Type::Seqpacket) || header.flags == 0;
        assert!(plain, "a stream has no messages: {header:?}");
    }
}
