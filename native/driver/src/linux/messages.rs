//! Job: message sockets (SOCK_SEQPACKET) of a Linux guest: what differs from streams for an application.
//! Before: a test has whole messages.
//! After: `kernel` sends their packets, and those of the host are whole again.
//! Rules: as `virtio_transport_seqpacket_enqueue` and `virtio_transport_seqpacket_do_dequeue` have it: no message without
//! bytes, none longer than the window, credit told after each one that was read.

use super::kernel::{Kernel, SocketId};
use super::socket::{Received, State};
use crate::deadline::Deadline;
use crate::header::{SEQ_EOM, SEQ_EOR, op};

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub bytes: Vec<u8>,
    /// It ends a record (`MSG_EOR`).
    pub record: bool,
}

/// `EMSGSIZE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl Kernel {
    /// Sends what goes now of a message of which `sent` bytes went before; how many bytes it is now.
    pub fn send_some(&mut self, id: SocketId, message: &Message, sent: usize) -> Result<usize, TooLong> {
        let rest = &message.bytes[sent..];
        if rest.len() > self.socket(id).longest() {
            return Err(TooLong);
        }
        let flags = if message.record { SEQ_EOM | SEQ_EOR } else { SEQ_EOM };
        Ok(sent + self.send_part(id, rest, flags))
    }

    /// Sends a whole message, waiting as needed.
    #[track_caller]
    pub fn send_message(&mut self, id: SocketId, bytes: &[u8]) -> Result<(), TooLong> {
        let message = Message { bytes: bytes.to_vec(), record: false };
        let (mut sent, mut deadline) = (0, Deadline::patient());
        while sent < bytes.len() {
            self.pump();
            let now = self.send_some(id, &message, sent)?;
            if now == sent {
                assert!(self.socket(id).may_send(), "the connection ended while sending: {:?}", self.socket(id));
                assert!(self.guest.wait(deadline), "stuck after {sent} bytes: {:?}", self.socket(id));
            } else {
                (sent, deadline) = (now, Deadline::patient());
            }
        }
        Ok(())
    }

    /// Reads one message, if there is a whole one.
    pub fn try_recv_message(&mut self, id: SocketId) -> Result<Message, Received> {
        let message = self.socket_mut(id).read_message()?;
        if self.socket(id).state == State::Established {
            self.send_op(id, op::CREDIT_UPDATE, 0);
            self.flush();
        }
        Ok(message)
    }

    /// Reads one message, waiting for it; or what comes instead.
    #[track_caller]
    pub fn recv_message(&mut self, id: SocketId) -> Result<Message, Received> {
        let deadline = Deadline::patient();
        loop {
            self.pump();
            match self.try_recv_message(id) {
                Err(Received::Nothing) => {
                    assert!(self.guest.wait(deadline), "nothing came: {:?}", self.socket(id));
                }
                other => return other,
            }
        }
    }
}
