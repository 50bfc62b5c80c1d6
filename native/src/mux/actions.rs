//! Job: what the mux says that is to be done, as closed sets.
//! Before: the mux has a packet of the guest, room for one to it, or a deadline.
//! After: `device` does it, and tells the mux what came of it.
//! Rules: connections and sockets are named by their ids; no payload in here.

use crate::ids::HostPort;
use crate::packet::{Header, Type};
use crate::slab::Id;

/// What to do about a packet from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// Nothing.
    Done,
    /// Reach the host application that listens on `port`, then call `Mux::host_accepted` or
    /// `Mux::host_refused`. The socket's id goes into `Mux::set_host`.
    Connect {
        /// The new connection.
        conn: Id,
        /// The port that the guest asked for.
        port: HostPort,
        /// What kind of socket it asked for.
        kind: Type,
    },
    /// The guest accepted what `host` asked for; tell it the port.
    Opened {
        /// The host application's socket.
        host: Id,
        /// The port that the host application got.
        port: HostPort,
    },
    /// The packet's payload is for `host`; call `Mux::delivered` when it is taken.
    Data {
        /// The connection.
        conn: Id,
        /// The host application's socket.
        host: Id,
    },
    /// The packet's payload is a message for `host`, or a part of one; call `Mux::delivered` once the whole message is
    /// taken.
    Message {
        /// The connection.
        conn: Id,
        /// The host application's socket.
        host: Id,
        /// The message ends with this packet.
        complete: bool,
    },
    /// The guest closes directions: deliver what is there, then close them on `host`.
    Shutdown {
        /// The host application's socket.
        host: Id,
        /// The bits of SHUTDOWN so far.
        flags: u32,
    },
    /// The connection is gone: deliver what is there, then close `host`.
    Gone {
        /// The host application's socket.
        host: Id,
    },
}

/// What to put into the guest's receive buffers next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// A packet without payload.
    Control(Header),
    /// Payload read from `host`, then `Mux::sent_to_guest`, `Mux::host_drained` or one of the ends.
    Data {
        /// The connection.
        conn: Id,
        /// The host application's socket.
        host: Id,
        /// The most bytes that the guest has credit for.
        bytes: u32,
        /// The most packets that the guest takes.
        packets: u32,
    },
    /// A message read from `host`, or what is left of one, then `Mux::message_sent`, `Mux::host_drained` or one of the
    /// ends.
    Message {
        /// The connection.
        conn: Id,
        /// The host application's socket.
        host: Id,
        /// The most bytes that the guest has credit for.
        bytes: u32,
        /// The longest message that the guest can take at all.
        longest: u32,
    },
}

/// Why a host application gets no connection to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are as many as there may be, or no port is free.
    Limit,
    /// Another connection to the same port of the guest has the port that it wants for its own end.
    PortTaken,
}

/// A connection that a deadline ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The host application's socket, to be closed.
    pub host: Id,
}
