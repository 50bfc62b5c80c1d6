//! Job: numbers of the vhost-user protocol, and one message to and from the wire.
//! Before: `front_end` has a request and its payload.
//! After: it went out with its file descriptors, or a reply came in.
//! Rules: whatever a test asks for is sent, sense or not; nothing waits for ever.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

/// Requests of a front-end.
#[allow(missing_docs, reason = "the names are those of the protocol")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Features of virtio and of the protocol, as bit masks.
#[allow(missing_docs, reason = "the names are those of the standards")]
pub mod feature {
    pub const SEQPACKET: u64 = 1 << 1;
    pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const RING_RESET: u64 = 1 << 40;
    pub const PROTOCOL_MQ: u64 = 1;
    pub const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
    pub const PROTOCOL_BACKEND_REQ: u64 = 1 << 5;
    pub const PROTOCOL_CONFIG: u64 = 1 << 9;
    pub const PROTOCOL_RESET_DEVICE: u64 = 1 << 13;
    pub const PROTOCOL_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const PROTOCOL_STATUS: u64 = 1 << 16;
}

/// Flags of a request: version 1.
pub const VERSION: u32 = 1;
/// Flag of a reply.
pub const REPLY: u32 = 4;
/// Flag of a request that wants a reply though it has none of its own.
pub const NEED_REPLY: u32 = 8;

/// The bytes of a message.
pub fn encode(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("messages are short");
    [&number.to_ne_bytes()[..], &flags.to_ne_bytes(), &len.to_ne_bytes(), payload].concat()
}

/// Sends bytes with file descriptors.
pub fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many file descriptors");
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives the reply to `number`; its payload.
pub fn receive(mut socket: &UnixStream, number: u32) -> io::Result<Vec<u8>> {
    let mut header = [0; 12];
    socket.read_exact(&mut header)?;
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != number || word(4) & (3 | REPLY) != VERSION | REPLY || word(8) > 4096 {
        let what = format!(
            "request {number} was answered by message {} with flags {:#x}, {} bytes",
            word(0),
            word(4),
            word(8)
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut payload = vec![0; word(8) as usize];
    socket.read_exact(&mut payload)?;
    Ok(payload)
}
