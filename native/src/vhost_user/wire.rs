//! Job: messages of the vhost-user socket, out of a stream that may deliver them in pieces, and replies into it.
//! Before: the event loop says that the socket is readable.
//! After: `session` acts on each whole message.
//! Rules: never blocks; a message is bounded; descriptors that no message wants are closed. The layouts of payloads are those
//! of the `vhost` crate; its own reader blocks on half a message, which a device thread cannot afford.

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// Bytes of request, flags and size in front of each payload.
const HEADER_LEN: usize = 12;
/// The largest payload accepted. The largest that any request of ours has is SET_MEM_TABLE with 8 regions (264 bytes).
const MAX_PAYLOAD: usize = 4096;
/// Descriptors that one message may carry (`VHOST_USER_MAX_RAM_SLOTS` as QEMU sends them at once is 8).
const MAX_FDS: usize = 32;
/// Version 1 of the protocol, in the lowest bits of the flags.
const VERSION: u32 = 1;
/// The bits of the version.
const VERSION_MASK: u32 = 3;
/// The message is a reply.
const REPLY: u32 = 4;
/// The sender waits for a reply to any message.
const NEED_REPLY: u32 = 8;

/// One whole request.
#[derive(Debug)]
pub struct Message {
    /// Number of the request.
    pub request: u32,
    /// Whether the front-end waits for an answer to a request that has none of its own.
    pub need_reply: bool,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: VecDeque<OwnedFd>,
}

/// Why no more messages come.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The front-end closed the socket.
    Closed,
    /// The front-end broke the protocol, or the socket failed.
    Broken(String),
}

/// The socket with what was read of the next message.
#[derive(Debug)]
pub struct Wire {
    /// The socket, connected, non-blocking.
    socket: OwnedFd,
    /// Bytes of the message that is incomplete.
    bytes: Vec<u8>,
    /// Descriptors that came with them.
    fds: VecDeque<OwnedFd>,
}

impl Wire {
    /// Wraps a connected, non-blocking socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, bytes: Vec::new(), fds: VecDeque::new() }
    }

    /// The socket, for the event loop.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The next whole message, or `None` if it has not arrived.
    pub fn receive(&mut self) -> Result<Option<Message>, End> {
        loop {
            let wanted = match self.payload_len()? {
                Some(len) if self.bytes.len() == HEADER_LEN + len => return Ok(Some(self.take())),
                Some(len) => HEADER_LEN + len,
                None => HEADER_LEN,
            };
            if !self.read(wanted - self.bytes.len())? {
                return Ok(None);
            }
        }
    }

    /// The length of the payload, once the header is there.
    fn payload_len(&self) -> Result<Option<usize>, End> {
        if self.bytes.len() < HEADER_LEN {
            return Ok(None);
        }
        let (flags, len) = (self.word(4), self.word(8) as usize);
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(End::Broken(format!("message {} with flags {flags:#x}", self.word(0))));
        }
        if len > MAX_PAYLOAD {
            return Err(End::Broken(format!("message {} of {len} bytes, more than {MAX_PAYLOAD}", self.word(0))));
        }
        Ok(Some(len))
    }

    /// A field of the header.
    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    /// Takes the whole message out.
    fn take(&mut self) -> Message {
        let message = Message {
            request: self.word(0),
            need_reply: self.word(4) & NEED_REPLY != 0,
            payload: self.bytes.split_off(HEADER_LEN),
            fds: std::mem::take(&mut self.fds),
        };
        self.bytes.clear();
        message
    }

    /// Reads up to `len` bytes and the descriptors with them; `false` if there is nothing now.
    fn read(&mut self, len: usize) -> Result<bool, End> {
        let mut buffer = [0; HEADER_LEN + MAX_PAYLOAD];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer[..len])], &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::CONNRESET) => return Err(End::Closed),
                Err(error) => return Err(End::Broken(format!("reading the vhost-user socket: {error}"))),
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // Closing a TCP socket may wait for its other end; whoever sends it says how long. Anything else has no such
                // option.
                self.fds.extend(fds.inspect(|fd| set_socket_linger(fd, None).unwrap_or_default()));
            }
        }
        if self.fds.len() > MAX_FDS {
            return Err(End::Broken(format!("more than {MAX_FDS} file descriptors with one message")));
        }
        if received.bytes == 0 {
            return Err(if self.bytes.is_empty() {
                End::Closed
            } else {
                End::Broken("the socket closed within a message".into())
            });
        }
        self.bytes.extend_from_slice(&buffer[..received.bytes]);
        Ok(true)
    }

    /// Sends the reply to `request`.
    pub fn reply(&mut self, request: u32, payload: &[u8]) -> Result<(), End> {
        let len = u32::try_from(payload.len()).map_err(|_| End::Broken("reply too long".into()))?;
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        for word in [request, VERSION | REPLY, len] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        // A front-end that does not read its replies fills the socket; a device that waited for it would hang.
        match send(&self.socket, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) | Err(Errno::AGAIN) => Err(End::Broken("the front-end does not read its replies".into())),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(End::Closed),
            Err(error) => Err(End::Broken(format!("writing to the vhost-user socket: {error}"))),
        }
    }
}
