//! Job: messages of host applications into receive buffers, cut where a buffer ends.
//! Before: the mux names a message socket that may be read.
//! After: the packets are in buffers; what these, or the guest's credit, did not suffice for is kept by the socket.
//! Rules: a message is read in one call, since the kernel throws away what is not taken of it. Its last packet alone says
//! that it is whole. One that the guest could never take ends the connection: for EMSGSIZE it is too late.

use super::{ToGuestBatch, count};
use crate::device::Failure;
use crate::device::hosts::Hosts;
use crate::events::Level;
use crate::host::io::{Moved, receive_message};
use crate::host::stream::HostStream;
use crate::packet::spec::SEQ_EOM;
use crate::slab::Id;
use crate::virtio::memory::GuestMemory;
use crate::virtio::queue::Queue;

/// The most bytes of one message in one turn: Linux's messages have no more, unless windows were made larger.
const TURN: usize = 256 * 1024;
/// The longest message that is passed on, whatever the guest's window: one that no buffer is there for is kept in memory.
const LONGEST: usize = 1 << 20;

impl ToGuestBatch {
    /// One turn of a message socket: a message, or what is left of one. `limit` has the bytes that may go now, and the
    /// longest message that the guest takes.
    pub(super) fn message(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        hosts: &mut Hosts,
        (conn, host): (Id, Id),
        (bytes, longest): (usize, usize),
        now: u64,
    ) -> Result<(), Failure> {
        let Some(stream) = hosts.stream_mut(host) else {
            // As with streams: cannot be, but must not spin.
            self.put_back(queue, 0);
            hosts.mux.host_aborted(conn);
            return Ok(());
        };
        let (burst, rest) = (usize::from(stream.burst), stream.messages.as_ref().map_or(0, |messages| messages.rest()));
        if rest > 0 {
            let room = self.make_room(queue, memory, hosts, rest.min(bytes).min(TURN), usize::MAX)?;
            if let Some(messages) = hosts.stream_mut(host).and_then(|stream| stream.messages.as_mut()) {
                messages.take_rest(&self.payload);
            }
            self.send_part(queue, hosts, (conn, host), room, rest == room, now);
            return Ok(());
        }
        let room = self.make_room(queue, memory, hosts, bytes.min(TURN), burst)?;
        if self.overflow.is_empty() {
            if self.overflow.try_reserve_exact(LONGEST).is_err() {
                self.put_back(queue, 0);
                hosts.out_of_memory(conn, host, now);
                return Ok(());
            }
            self.overflow.resize(LONGEST, 0);
        }
        let Some(stream) = hosts.stream_mut(host) else { return Ok(()) };
        match receive_message(&stream.fd, &mut self.payload, &mut self.overflow) {
            Moved::Bytes(0) => {
                self.put_back(queue, 0);
                nothing_read(hosts, (conn, host), now);
            }
            Moved::Closed if note_closed(stream) => {
                self.put_back(queue, 0);
                hosts.mux.host_readable(conn, now);
            }
            Moved::Bytes(len) | Moved::Last(len) if len <= longest.min(LONGEST) => {
                let beyond = len.saturating_sub(room);
                let rest = &self.overflow[..beyond];
                if stream.messages.as_mut().is_none_or(|messages| messages.keep_rest(rest).is_err()) {
                    self.put_back(queue, 0);
                    hosts.out_of_memory(conn, host, now);
                    return Ok(());
                }
                self.send_part(queue, hosts, (conn, host), len - beyond, beyond == 0, now);
            }
            Moved::Bytes(len) | Moved::Last(len) => {
                self.put_back(queue, 0);
                hosts.stats.reset_too_long.add(1);
                hosts.log.limited(now, Level::Warning, || {
                    format!("a connection was reset: a message of {len} bytes is longer than the guest takes")
                });
                hosts.broke(conn, host);
            }
            failed @ (Moved::WouldBlock | Moved::NoMemory | Moved::Closed | Moved::BadMemory) => {
                return self.nothing_received(queue, hosts, (conn, host), failed, now);
            }
        }
        Ok(())
    }

    /// Makes packets of the first `len` bytes in the buffers, which end a message or not.
    fn send_part(
        &mut self,
        queue: &mut Queue,
        hosts: &mut Hosts,
        (conn, host): (Id, Id),
        len: usize,
        complete: bool,
        now: u64,
    ) {
        let Some(header) = hosts.mux.rw_header(conn) else { return self.put_back(queue, 0) };
        let flags = if complete { SEQ_EOM } else { 0 };
        let used = self.emit_payload(queue, hosts, host, header, len, flags);
        hosts.mux.message_sent(conn, count(len), count(used), complete, now);
    }
}

/// Notes that the application closed its socket with messages unread; whether that is news.
fn note_closed(stream: &mut HostStream) -> bool {
    stream.messages.as_mut().is_some_and(|messages| !std::mem::replace(&mut messages.closed, true))
}

/// A call that received no bytes: the end, or a message without any. Linux sends no such message over vsock, and neither
/// do we; so if more bytes wait there is something behind it, and if none do, nothing that would have to be sent.
fn nothing_read(hosts: &mut Hosts, (conn, host): (Id, Id), now: u64) {
    let Some(stream) = hosts.stream(host) else { return };
    if stream.unread() > 0 {
        hosts.mux.host_readable(conn, now);
    } else if stream.messages.as_ref().is_some_and(|messages| messages.closed) {
        hosts.stats.reset_by_host.add(1);
        hosts.broke(conn, host);
    } else if stream.sends_no_more {
        hosts.ended(conn, host, now);
    } else {
        hosts.mux.host_drained(conn, now);
    }
}
