//! Job: one connection with the application at each end.
//! Rules: bytes are told apart by their place in their stream, and by their connection's ports.

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

/// One connection.
#[derive(Debug)]
pub struct Pair {
    /// The guest's port and the host's.
    pub ports: (u32, u32),
    /// Its name in the mux, as long as the mux knows it.
    pub conn: Option<Id>,
    /// A forged packet was sent on its ports.
    pub spoilt: bool,
    /// Somebody ended it, refused it, or does not read to the end: what arrives is only the beginning of what was sent.
    pub cut: bool,
    /// Its ports belonged to another one before.
    pub reused: bool,

    /// The guest's socket.
    pub guest: Option<Socket>,
    /// Somebody in the guest listens for it.
    pub guest_listens: bool,
    /// The guest's application closed it.
    pub guest_left: bool,
    /// Bytes that the guest's application wrote.
    pub guest_wrote: u64,
    /// Bytes that it read.
    pub guest_got: u64,
    /// It read the end.
    pub guest_saw_end: bool,

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
    /// Bytes that the host's application wrote.
    pub host_wrote: u64,
    /// Bytes of it that went to the guest.
    pub host_sent: u64,
    /// Bytes that wait in the device, and in the application's socket.
    pub backlog: u64,
    /// Bytes in the application's socket.
    pub socket: u64,
    /// Bytes that it read.
    pub host_got: u64,
    /// It read the end.
    pub host_saw_end: bool,
}

impl Pair {
    /// A connection on these ports, of which nobody knows.
    pub fn new(ports: (u32, u32)) -> Self {
        Self {
            ports,
            conn: None,
            spoilt: false,
            cut: false,
            reused: false,
            guest: None,
            guest_listens: false,
            guest_left: false,
            guest_wrote: 0,
            guest_got: 0,
            guest_saw_end: false,
            host: Host::Unasked,
            host_ended: false,
            host_left: false,
            host_broken: false,
            deaf: false,
            end_waits: false,
            guest_deaf: false,
            host_wrote: 0,
            host_sent: 0,
            backlog: 0,
            socket: 0,
            host_got: 0,
            host_saw_end: false,
        }
    }

    /// One that a forged REQUEST made.
    pub fn forged(ports: (u32, u32)) -> Self {
        Self { spoilt: true, ..Self::new(ports) }
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

    /// Bytes from place `from` of a stream.
    pub fn bytes(&self, from: u64, len: usize) -> Vec<u8> {
        let own = u64::from(self.ports.0) * 5 + u64::from(self.ports.1) * 3;
        (from..).take(len).map(|at| ((at + own) % 251).to_le_bytes()[0]).collect()
    }

    /// Nobody has anything more to say or to read: unless somebody cut it short, all that was written has arrived.
    pub fn check_bytes(&self) {
        if self.cut || self.spoilt {
            return;
        }
        let open =
            self.host == Host::Open && self.guest.as_ref().is_some_and(|guest| guest.state == State::Established);
        assert!(open, "gone without a reason: {self:#?}");
        assert_eq!(
            (self.guest_got, self.host_got),
            (self.host_wrote, self.guest_wrote),
            "bytes are missing: {self:#?}"
        );
    }

    /// Both ends said that they send no more: unless somebody cut it short, both know.
    pub fn check_ends(&self) {
        let both = self.guest_saw_end && self.host_saw_end;
        assert!(both || self.cut || self.spoilt, "an end did not come through: {self:#?}");
    }
}
