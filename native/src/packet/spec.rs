//! Job: constants of the socket device, virtio 1.3 section 5.10 (Linux: include/uapi/linux/virtio_vsock.h).
//! Before, after: nothing; everybody reads them.
//! Rules: no logic but the mapping of wire values to closed sets.

/// Size of `struct virtio_vsock_hdr` in bytes (section 5.10.6).
pub const HEADER_LEN: usize = 44;

/// The largest payload that Linux puts into one packet, in bytes
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`, include/linux/virtio_vsock.h).
pub const MAX_PAYLOAD: u32 = 64 * 1024;

/// Index of the queue with the buffers that the device fills (section 5.10.2).
pub const RX_QUEUE: usize = 0;
/// Index of the queue with the packets that the guest sends (section 5.10.2).
pub const TX_QUEUE: usize = 1;
/// Index of the event queue (section 5.10.2).
pub const EVENT_QUEUE: usize = 2;

/// `flags` of SHUTDOWN: the sender will not receive any more (section 5.10.6.6).
pub const SHUTDOWN_RCV: u32 = 1;
/// `flags` of SHUTDOWN: the sender will not send any more (section 5.10.6.6).
pub const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

/// `flags` of RW on a message socket: the packet ends a message (section 5.10.6.6.1).
pub const SEQ_EOM: u32 = 1;

/// What a packet is about (`op`, section 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Ends one, or says that there is none.
    Rst = 3,
    /// The sender closes one or both directions.
    Shutdown = 4,
    /// Carries payload.
    Rw = 5,
    /// Tells the sender's `buf_alloc` and `fwd_cnt`.
    CreditUpdate = 6,
    /// Asks for a `CreditUpdate`.
    CreditRequest = 7,
}

impl Op {
    /// `None` for a value that the standard does not have.
    pub fn from_wire(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The kind of a socket (`type`, section 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Type {
    /// A stream of bytes.
    Stream = 1,
    /// Messages with boundaries; needs `VIRTIO_VSOCK_F_SEQPACKET`.
    Seqpacket = 2,
}

impl Type {
    /// `None` for a value that the standard does not have.
    pub fn from_wire(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Stream,
            2 => Self::Seqpacket,
            _ => return None,
        })
    }
}
