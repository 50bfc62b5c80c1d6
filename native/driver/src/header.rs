//! Job: the 44 bytes in front of every packet of virtio-vsock (virtio 1.3 section 5.10.6), in the guest's view.
//! Before: `guest` has the bytes of a buffer, or a test the values.
//! After: tests compare values, `guest` writes bytes.
//! Rules: written independently of the device's parser, so that a slip there is not repeated here.

/// Bytes of a header.
pub const LEN: usize = 44;
/// The most payload that Linux puts behind one.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// The host's CID.
pub const HOST_CID: u64 = 2;
/// `type` of stream sockets.
pub const STREAM: u16 = 1;
/// `type` of message sockets.
pub const SEQPACKET: u16 = 2;
/// `flags` of SHUTDOWN: no more receiving.
pub const SHUTDOWN_RCV: u32 = 1;
/// `flags` of SHUTDOWN: no more sending.
pub const SHUTDOWN_SEND: u32 = 2;

/// `flags` of RW: the packet ends a message.
pub const SEQ_EOM: u32 = 1;
/// `flags` of RW: the message ends a record.
pub const SEQ_EOR: u32 = 2;

/// Operations of packets.
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Ends one.
    pub const RST: u16 = 3;
    /// Closes directions.
    pub const SHUTDOWN: u16 = 4;
    /// Payload.
    pub const RW: u16 = 5;
    /// Tells credit.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for credit.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A header in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender's CID.
    pub src_cid: u64,
    /// Receiver's CID.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Kind of socket.
    pub type_: u16,
    /// Operation.
    pub op: u16,
    /// Depends on the operation.
    pub flags: u32,
    /// Sender's receive window.
    pub buf_alloc: u32,
    /// What the sender's application has read.
    pub fwd_cnt: u32,
}

impl Header {
    /// From the wire.
    pub fn from_bytes(bytes: &[u8; LEN]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            type_: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// To the wire.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.type_.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}
