//! Job: one connection, and what a packet of the guest means to it in each state.
//! Before: `mux` found it by the ports of a packet.
//! After: `mux` does what the [`Reaction`] says.
//! Rules: the table in [`reaction`] is the whole state machine of packets; nothing else looks at state and operation at once.

use super::credit::{FromGuestCredit, ToGuestCredit};
use crate::ids::ConnKey;
use crate::packet::spec::{SHUTDOWN_RCV, SHUTDOWN_SEND};
use crate::packet::{Op, Type};
use crate::slab::Id;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The guest asked; the host application's listener is being reached.
    /// Allowed to the guest: RST. Forbidden: data to the guest.
    Connecting,
    /// A host application asked; REQUEST is on its way to the guest.
    /// Allowed to the guest: RESPONSE, RST. Forbidden: data to the guest.
    Requested,
    /// Both ends agreed; each direction is open until its shutdown bit is set.
    Established,
    /// The guest was told that the host closed both directions; its RST is awaited.
    /// Forbidden: anything to the guest but the RST of a timeout.
    Closing,
}

/// What to do about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing beyond the credit that it brought.
    Ignore,
    /// The guest accepted: the connection is open.
    Open,
    /// Payload for the host application.
    Data,
    /// The guest closes one or both directions.
    Shutdown,
    /// Tell the guest our credit.
    TellCredit,
    /// The guest ended it; forget it, say nothing.
    Forget,
    /// Against the protocol: forget it and say RST.
    Reset,
    /// The guest forgot the old connection and asks for a new one on the same ports.
    Renew,
}

/// The state machine, row by row. `None` stands for an operation that the standard does not have.
///
/// Source: `virtio_transport_recv_connecting`, `_connected` and `_disconnecting` in
/// net/vmw_vsock/virtio_transport_common.c. One row differs on purpose: Linux swallows a REQUEST on ports that
/// still wait for an RST, and the guest then waits in vain; here the new connection wins.
pub fn reaction(state: State, op: Option<Op>) -> Reaction {
    use Op::{CreditRequest, CreditUpdate, Request, Response, Rst, Rw, Shutdown};
    use Reaction as R;
    match (state, op) {
        (_, Some(Rst)) => R::Forget,

        (State::Connecting, Some(Request | CreditUpdate | CreditRequest) | None) => R::Ignore,
        (State::Connecting, Some(Response | Rw | Shutdown)) => R::Reset,

        (State::Requested, Some(Response)) => R::Open,
        (State::Requested, _) => R::Reset,

        (State::Established, Some(Rw)) => R::Data,
        (State::Established, Some(Shutdown)) => R::Shutdown,
        (State::Established, Some(CreditRequest)) => R::TellCredit,
        (State::Established, Some(Request | Response | CreditUpdate) | None) => R::Ignore,

        (State::Closing, Some(Request)) => R::Renew,
        (State::Closing, Some(Shutdown)) => R::Shutdown,
        (State::Closing, Some(Response | Rw | CreditUpdate | CreditRequest) | None) => R::Ignore,
    }
}

/// Control packets that wait for a buffer of the guest, at most one of each kind, sent in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants(u8);

impl Wants {
    /// The kinds in the order of sending: a connection is asked for or accepted before anything else is said
    /// on it, and closed after.
    const ORDER: [Op; 5] = [Op::Request, Op::Response, Op::CreditRequest, Op::CreditUpdate, Op::Shutdown];

    /// The bit of `op`.
    fn bit(op: Op) -> u8 {
        1 << (op as u8)
    }

    /// Adds `op`.
    pub fn insert(&mut self, op: Op) {
        self.0 |= Self::bit(op);
    }

    /// Takes `op` back.
    pub fn remove(&mut self, op: Op) {
        self.0 &= !Self::bit(op);
    }

    /// Whether `op` waits.
    pub fn contains(self, op: Op) -> bool {
        self.0 & Self::bit(op) != 0
    }

    /// Whether `op` waits and nothing else.
    pub fn is_only(self, op: Op) -> bool {
        self.0 == Self::bit(op)
    }

    /// Whether nothing waits.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Takes the next one out.
    pub fn pop(&mut self) -> Option<Op> {
        let op = Self::ORDER.into_iter().find(|&op| self.0 & Self::bit(op) != 0)?;
        self.remove(op);
        Some(op)
    }
}

/// One connection between a guest port and a host port.
#[derive(Debug)]
pub struct Connection {
    /// Its two ports.
    pub key: ConnKey,
    /// What both ends are: streams or message sockets.
    pub kind: Type,
    /// The host application's socket, in the table of `device`.
    pub host: Id,
    /// How far it is.
    pub state: State,
    /// Bits of SHUTDOWN that the guest sent.
    pub guest_shutdown: u32,
    /// Bits of SHUTDOWN that hold for the host's side, told or to be told.
    pub host_shutdown: u32,
    /// The host application's socket may hold bytes that nobody read.
    pub readable: bool,
    /// The guest has the beginning of a message and waits for the rest.
    pub in_message: bool,
    /// It stands in the queue of connections with data.
    pub in_data_queue: bool,
    /// It stands in the queue of connections with control packets.
    pub in_control_queue: bool,
    /// Control packets to be sent.
    pub wants: Wants,
    /// Credit probes since the last progress, for the distance to the next one.
    pub probes: u8,
    /// When to look after it, in nanoseconds of the caller's clock.
    pub deadline: Option<u64>,
    /// What may be sent to the guest.
    pub to_guest: ToGuestCredit,
    /// What the guest may send.
    pub from_guest: FromGuestCredit,
}

impl Connection {
    /// Whether the direction to the guest is open.
    pub fn is_open_to_guest(&self) -> bool {
        let closed = self.guest_shutdown & SHUTDOWN_RCV != 0 || self.host_shutdown & SHUTDOWN_SEND != 0;
        self.state == State::Established && !closed
    }

    /// Whether there may be payload for the guest, credit aside.
    pub fn may_send(&self) -> bool {
        self.readable && self.is_open_to_guest()
    }

    /// Whether `bytes` and `packets`, the guest's credit, are enough to send something. What it has the beginning of is no
    /// further message for it, and cannot be read before the end is there: so the number of packets does not hold that up.
    pub fn has_credit(&self, bytes: u32, packets: u32) -> bool {
        bytes > 0 && (packets > 0 || self.in_message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rst_is_never_answered_in_any_state() {
        for state in [State::Connecting, State::Requested, State::Established, State::Closing] {
            assert_eq!(reaction(state, Some(Op::Rst)), Reaction::Forget);
        }
    }

    #[test]
    fn wants_leave_in_the_order_of_a_conversation() {
        let mut wants = Wants::default();
        for op in [Op::Shutdown, Op::CreditUpdate, Op::Response] {
            wants.insert(op);
        }
        assert_eq!(wants.pop(), Some(Op::Response));
        assert_eq!(wants.pop(), Some(Op::CreditUpdate));
        assert!(wants.is_only(Op::Shutdown));
        assert_eq!(wants.pop(), Some(Op::Shutdown));
        assert_eq!(wants.pop(), None);
        assert!(wants.is_empty());
    }
}
