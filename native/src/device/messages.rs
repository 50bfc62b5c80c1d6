//! Job: messages of the guest into the sockets of host applications, whole, however many packets each came in.
//! Before: `from_guest` has gathered the packets of one message, or some of them.
//! After: the message is with the kernel, or in the backlog of its socket.
//! Rules: an application never sees a part. Only what came in several batches, or comes too fast, is copied.

use super::Failure;
use super::hosts::Hosts;
use crate::host::io::{MAX_PIECES, Moved, send};
use crate::host::stream::HostStream;
use crate::slab::Id;
use crate::virtio::memory::Segment;

impl Hosts {
    /// Passes `len` bytes of a message on, which they end or not.
    pub(super) fn deliver_message(
        &mut self,
        (conn, host): (Id, Id),
        pieces: &[Segment],
        len: usize,
        complete: bool,
        now: u64,
    ) -> Result<(), Failure> {
        self.stats.from_guest_bytes.add(len as u64);
        let Some(stream) = self.streams.get_mut(host) else { return Ok(()) };
        let Some(messages) = &mut stream.messages else { return Ok(()) };
        if stream.deaf {
            self.stats.dropped_bytes.add(len as u64);
            self.took(conn, len);
            return Ok(());
        }
        let behind_others = messages.has_backlog();
        let at_once = complete && !behind_others && !messages.has_part() && pieces.len() <= MAX_PIECES;
        let moved = if at_once { send(&stream.fd, pieces) } else { Moved::WouldBlock };
        match moved {
            Moved::Bytes(_) | Moved::Last(_) => self.took(conn, len),
            Moved::WouldBlock | Moved::NoMemory => {
                if messages.join(pieces).is_err() {
                    self.out_of_memory(conn, host, now);
                    return Ok(());
                }
                if moved == Moved::NoMemory {
                    self.retry(host, now);
                }
                let Some(messages) = self.streams.get_mut(host).and_then(|stream| stream.messages.as_mut()) else {
                    return Ok(());
                };
                if complete {
                    let length = messages.complete();
                    // Where others wait, or it was just tried, there is no room.
                    if !at_once && !behind_others {
                        self.flush(host, now);
                    }
                    if self.streams.get(host).is_some_and(HostStream::has_backlog) {
                        self.stats.backlog_bytes.add(length as u64);
                        self.watch_room(host, true);
                    }
                }
            }
            Moved::Closed => {
                self.stats.dropped_bytes.add(len as u64);
                self.took(conn, len);
                self.became_deaf(conn, host, now);
            }
            Moved::BadMemory => return Err(Failure::Memory),
        }
        Ok(())
    }
}
