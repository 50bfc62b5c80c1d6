//! Job: one connection with the application at each end.
//! Rules: bytes are told apart by their place in their direction, and by their connection's ports.

use super::way::{Queue, Way};
use vhostvsock_native::packet::Type;
use vhostvsock_native::slab::Id;
use vsock_driver::linux::socket::{Socket, State};

/// How far the host's end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The guest's REQUEST has not arrived.
    Unasked,
    /// The listener is being reached.
    Waiting,
    /// The guest was asked.
    Requested,
    /// Bytes flow.
    Open,
    /// The connection is gone, and bytes wait for the application.
    Draining,
    /// The socket is closed.
    Closed,
}

/// A message that the guest's application is sending: the rest waits for credit.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Its length.
    pub len: u64,
    /// How much of it was not sent.
    pub left: u64,
    /// It ends a record.
    pub record: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Pair {
    /// The guest's port and the host's.
    pub ports: (u32, u32),
    /// What both ends are.
    pub kind: Type,
    /// Its name in the mux, as long as the mux knows it.
    pub conn: Option<Id>,
    /// A forged packet was sent on its ports.
    pub spoilt: bool,
    /// Somebody ended it, refused it, or does not read to the end: what arrives is only the beginning of what was sent.
    pub cut: bool,
    /// Its ports belonged to another one before.
    pub reused: bool,
    /// From the guest to the host.
    pub from_guest: Way,
    /// From the host to the guest.
    pub to_guest: Way,

    /// The guest's socket.
    pub guest: Option<Socket>,
    /// What listens for it in the guest.
    pub guest_listens: Option<Type>,
    /// The guest's application closed it.
    pub guest_left: bool,
    /// A message of which it has sent the beginning, or nothing.
    pub sending: Option<Sending>,

    /// How far the host's end is.
    pub host: Host,
    /// The host's application sends no more.
    pub host_ended: bool,
    /// It closed its socket.
    pub host_left: bool,
    /// It closed its socket with bytes unread in it.
    pub host_broken: bool,
    /// What the guest sends is dropped.
    pub deaf: bool,
    /// The guest sends no more: to be told behind the bytes that wait.
    pub end_waits: bool,
    /// The guest receives no more.
    pub guest_deaf: bool,
    /// What the host's application wrote and nobody took out of its socket.
    pub outbox: Queue,
    /// Bytes in the device of a message of which the guest has the beginning.
    pub rest: u64,
    /// Bytes in the device of a message of the guest that is not whole.
    pub part: u64,
    /// What waits in the device for the application.
    pub backlog: Queue,
    /// What waits for it in its socket.
    pub socket: Queue,
}

impl Pair {
    /// A connection on these ports, of which nobody knows.
    pub fn new(ports: (u32, u32), kind: Type) -> Self {
        Self {
            ports,
            kind,
            conn: None,
            spoilt: false,
            cut: false,
            reused: false,
            from_guest: Way::new(kind),
            to_guest: Way::new(kind),
            guest: None,
            guest_listens: None,
            guest_left: false,
            sending: None,
            host: Host::Unasked,
            host_ended: false,
            host_left: false,
            host_broken: false,
            deaf: false,
            end_waits: false,
            guest_deaf: false,
            outbox: Queue::new(kind),
            rest: 0,
            part: 0,
            backlog: Queue::new(kind),
            socket: Queue::new(kind),
        }
    }

    /// One that a forged REQUEST made.
    pub fn forged(ports: (u32, u32), kind: Type) -> Self {
        Self { spoilt: true, ..Self::new(ports, kind) }
    }

    /// Whether the guest sent a REQUEST for it that has not arrived.
    pub fn is_asking(&self) -> bool {
        self.host == Host::Unasked && self.guest.is_some()
    }

    /// The guest's socket, while packets find it.
    pub fn live_guest(&mut self) -> Option<&mut Socket> {
        self.guest.as_mut().filter(|socket| socket.state != State::Closed)
    }

    /// The guest's driver starts anew.
    pub fn forget_guest(&mut self) {
        self.guest = None;
        self.cut = true;
    }

    /// A deadline ends it.
    pub fn expire(&mut self) {
        assert_ne!(self.host, Host::Open, "a deadline ended an open connection: {self:?}");
        self.cut = true;
    }

    /// The host's application gets so many bytes, or a message of them.
    pub fn host_gets(&mut self, len: u64) {
        if self.spoilt {
            self.from_guest.got += len;
        } else {
            self.from_guest.came(len);
        }
    }

    /// Bytes from place `from` of a direction.
    pub fn bytes(&self, from: u64, len: usize) -> Vec<u8> {
        const PERIOD: u64 = 251;
        let own = u64::from(self.ports.0) * 5 + u64::from(self.ports.1) * 3 + from;
        let period: Vec<u8> = (own..own + PERIOD).take(len).map(|at| (at % PERIOD).to_le_bytes()[0]).collect();
        let mut bytes = period.repeat(len.div_ceil(period.len().max(1)));
        bytes.truncate(len);
        bytes
    }

    /// Nobody has anything more to say or to read: unless somebody cut it short, all that was written has arrived.
    pub fn check_bytes(&self) {
        if self.cut || self.spoilt {
            return;
        }
        let open =
            self.host == Host::Open && self.guest.as_ref().is_some_and(|guest| guest.state == State::Established);
        assert!(open, "gone without a reason: {self:#?}");
        assert!(self.sending.is_none(), "a message waits for credit for ever: {self:#?}");
        let arrived = self.from_guest.unread.is_empty() && self.to_guest.unread.is_empty();
        assert!(arrived, "bytes are missing: {self:#?}");
    }

    /// Both ends said that they send no more: unless somebody cut it short, both know.
    pub fn check_ends(&self) {
        let both = self.from_guest.saw_end && self.to_guest.saw_end;
        assert!(both || self.cut || self.spoilt, "an end did not come through: {self:#?}");
    }
}
