//! Job: what message sockets (SOCK_SEQPACKET) need beyond streams: boundaries, and types that have to match.
//! Before: `mod.rs` has a packet of a message, or of a type that does not fit.
//! After: `device` joins the parts of a message that came in several packets, and cuts those that go to the guest.
//! Rules: a message is taken from the guest's credit as it comes, and given back when the host application has all of it. One
//! without bytes is none: Linux never sends such, and to the receiver it would look like the end.

use super::{FromGuest, Mux};
use crate::ids::ConnKey;
use crate::packet::spec::SEQ_EOM;
use crate::packet::{Header, Op, Type};
use crate::slab::Id;

impl Mux {
    /// Whether the guest's driver took `VIRTIO_VSOCK_F_SEQPACKET`. Streams there are always.
    pub fn set_seqpacket(&mut self, on: bool) {
        self.seqpacket = on;
    }

    /// Whether the guest has sockets of this kind.
    pub fn serves(&self, kind: Type) -> bool {
        match kind {
            Type::Stream => true,
            Type::Seqpacket => self.seqpacket,
        }
    }

    /// A packet whose type is unknown, not negotiated, or not that of the connection on its ports, which is not concerned
    /// (`virtio_transport_recv_pkt`, net/vmw_vsock/virtio_transport_common.c).
    pub(super) fn wrong_type(&mut self, key: ConnKey, header: &Header, op: Option<Op>) -> FromGuest {
        if op == Some(Op::Rst) {
            self.stats.ignored.add(1);
        } else {
            self.stats.rst_type.add(1);
            self.reply_rst(key, header.type_);
        }
        FromGuest::Done
    }

    /// A packet of a message, which the guest had credit for.
    pub(super) fn message_part(&mut self, id: Id, host: Id, header: &Header) -> FromGuest {
        let Some(conn) = self.conns.get_mut(id) else { return FromGuest::Done };
        let complete = header.flags & SEQ_EOM != 0;
        let message = conn.from_guest.join(header.len, complete);
        // With the window full of what cannot be delivered yet, credit may be all that the rest waits for.
        self.tell_credit_if_due(id);
        if message == 0 || (header.len == 0 && !complete) {
            return FromGuest::Done;
        }
        FromGuest::Message { conn: id, host, complete }
    }

    /// Notes a message, or a part of one, that went into receive buffers.
    pub fn message_sent(&mut self, id: Id, bytes: u32, packets: u32, complete: bool, now: u64) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.in_message = !complete;
        }
        self.sent_to_guest(id, bytes, packets, now);
    }
}
