//! Job: what the mux has for the guest into the guest's receive buffers, payload straight from the sockets.
//! Before: the guest put buffers into the RX queue; the mux has control packets, or connections with data and credit.
//! After: the filled buffers are given back, the others were never taken.
//! Rules: a buffer first, then the packet: nothing is read from a socket, or out of the mux, without a place for it. Each
//! turn of a connection is bounded, so that others have theirs.

mod messages;

use super::Failure;
use super::hosts::Hosts;
use crate::host::io::{MAX_PIECES, Moved, receive};
use crate::mux::ToGuest;
use crate::packet::Header;
use crate::packet::spec::{HEADER_LEN, MAX_PAYLOAD};
use crate::slab::Id;
use crate::virtio::memory::{GuestMemory, Segment};
use crate::virtio::queue::Queue;

/// The most bytes of one connection in one turn, and of all of them before they are published: the guest then works on the
/// first while we fetch the next, and gives credit back before we run out of it.
const QUANTUM: usize = 64 * 1024;
/// Buffers of no use given back before others have their turn: a guest can supply them as fast as they go back.
const USELESS: usize = 256;
/// Turns before the results are published and others have theirs.
const TURNS: usize = 64;

/// A receive buffer that was taken.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    /// Names it in the used ring.
    head: u16,
    /// Its pieces in the list of all.
    pieces: (usize, usize),
    /// How much payload it takes.
    room: usize,
}

/// Buffers at hand; kept for their memory.
#[derive(Debug, Default)]
pub struct ToGuestBatch {
    /// Pieces of all buffers taken.
    pieces: Vec<Segment>,
    /// The buffers.
    buffers: Vec<Buffer>,
    /// Where payload goes.
    payload: Vec<Segment>,
    /// Buffers of no use that were given back in this go.
    useless: usize,
    /// Payload of this go.
    bytes: usize,
    /// Where the end of a message goes for which the buffers are too few.
    overflow: Vec<u8>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Something was put into buffers, or found to be at its end.
    pub progress: bool,
    /// There was more, but no buffer.
    pub starved: bool,
}

impl ToGuestBatch {
    /// Fills buffers until there is nothing more to send, no buffer, or enough to be published.
    pub fn fill(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        hosts: &mut Hosts,
        now: u64,
    ) -> Result<Filled, Failure> {
        let mut filled = Filled::default();
        // Of interest only when there is none.
        queue.no_kicks();
        self.useless = 0;
        self.bytes = 0;
        for _ in 0..TURNS {
            if self.bytes >= QUANTUM || !hosts.mux.has_to_guest() {
                break;
            }
            self.pieces.clear();
            self.buffers.clear();
            if !self.take(queue, memory, hosts)? {
                // With more of no use to come, or without any.
                filled.progress |= self.useless >= USELESS;
                filled.starved = self.useless < USELESS;
                break;
            }
            match hosts.mux.next_to_guest() {
                None => queue.put_back(1),
                Some(ToGuest::Control(header)) => {
                    self.emit(queue, 0, header);
                    hosts.stats.to_guest_packets.add(1);
                    filled.progress = true;
                }
                Some(ToGuest::Data { conn, host, bytes, packets }) => {
                    self.data(queue, memory, hosts, (conn, host), (bytes as usize, packets as usize), now)?;
                    filled.progress = true;
                }
                Some(ToGuest::Message { conn, host, bytes, longest }) => {
                    self.message(queue, memory, hosts, (conn, host), (bytes as usize, longest as usize), now)?;
                    filled.progress = true;
                }
            }
        }
        Ok(filled)
    }

    /// Takes a buffer that can hold a packet; `false` if there is none. One that cannot goes back empty, where it is
    /// the first: the buffers taken have to lie next to each other in the ring, so that they can be put back.
    fn take(&mut self, queue: &mut Queue, memory: &GuestMemory, hosts: &Hosts) -> Result<bool, Failure> {
        while self.useless < USELESS {
            let start = self.pieces.len();
            let Some(chain) = queue.take(memory, &mut self.pieces)? else { return Ok(false) };
            self.pieces.truncate(start + MAX_PIECES / 2);
            let len: usize = self.pieces[start..].iter().map(Segment::len).sum();
            if chain.sound && len > HEADER_LEN {
                let room = (len - HEADER_LEN).min(MAX_PAYLOAD as usize);
                self.buffers.push(Buffer { head: chain.head, pieces: (start, self.pieces.len()), room });
                return Ok(true);
            }
            self.pieces.truncate(start);
            if !self.buffers.is_empty() {
                queue.put_back(1);
                return Ok(false);
            }
            let counter = if chain.sound { &hosts.stats.small_buffers } else { &hosts.stats.bad_chains };
            counter.add(1);
            queue.give_back(chain.head, 0);
            self.useless += 1;
        }
        Ok(false)
    }

    /// One turn of a connection: as many bytes as its socket has, but not more than `limit` says (bytes, packets).
    fn data(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        hosts: &mut Hosts,
        (conn, host): (Id, Id),
        (bytes, packets): (usize, usize),
        now: u64,
    ) -> Result<(), Failure> {
        let Some(burst) = hosts.stream(host).map(|stream| usize::from(stream.burst)) else {
            // The socket is gone and the mux has not been told: cannot be, but must not spin either.
            self.put_back(queue, 0);
            hosts.mux.host_aborted(conn);
            return Ok(());
        };
        let room = self.make_room(queue, memory, hosts, bytes.min(QUANTUM), packets.min(burst))?;
        let Some(stream) = hosts.stream(host) else { return Ok(()) };
        match receive(&stream.fd, &self.payload, room) {
            Moved::Bytes(len @ 1..) => self.received(queue, hosts, (conn, host), len, now),
            Moved::Last(len) => {
                self.received(queue, hosts, (conn, host), len, now);
                // Where the application sends no more, the end of the stream is next.
                if hosts.stream(host).is_some_and(|stream| !stream.sends_no_more && !stream.urgent) {
                    hosts.mux.host_drained(conn, now);
                }
            }
            Moved::Bytes(_) => {
                self.put_back(queue, 0);
                hosts.ended(conn, host, now);
            }
            failed @ (Moved::WouldBlock | Moved::NoMemory | Moved::Closed | Moved::BadMemory) => {
                return self.nothing_received(queue, hosts, (conn, host), failed, now);
            }
        }
        Ok(())
    }

    /// A socket gave nothing: the buffers go back, and what it means for the connection is done.
    fn nothing_received(
        &self,
        queue: &mut Queue,
        hosts: &mut Hosts,
        (conn, host): (Id, Id),
        why: Moved,
        now: u64,
    ) -> Result<(), Failure> {
        self.put_back(queue, 0);
        match why {
            Moved::BadMemory => return Err(Failure::Memory),
            Moved::Closed => {
                hosts.stats.reset_by_host.add(1);
                hosts.broke(conn, host);
            }
            Moved::NoMemory => {
                hosts.mux.host_drained(conn, now);
                hosts.retry(host, now);
            }
            Moved::WouldBlock | Moved::Bytes(_) | Moved::Last(_) => hosts.mux.host_drained(conn, now),
        }
        Ok(())
    }

    /// Takes more buffers, until they hold `wanted` bytes or are `most`, and lays payload out in them; how much that can be.
    fn make_room(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        hosts: &Hosts,
        wanted: usize,
        most: usize,
    ) -> Result<usize, Failure> {
        let mut room = self.buffers[0].room;
        while room < wanted && self.buffers.len() < most && self.pieces.len() < MAX_PIECES / 2 {
            if !self.take(queue, memory, hosts)? {
                break;
            }
            room += self.buffers.last().map_or(0, |buffer| buffer.room);
        }
        room = room.min(wanted);
        self.lay_out_payload(room);
        Ok(room)
    }

    /// `len` bytes were received: makes packets of them.
    fn received(&mut self, queue: &mut Queue, hosts: &mut Hosts, (conn, host): (Id, Id), len: usize, now: u64) {
        let Some(header) = hosts.mux.rw_header(conn) else { return self.put_back(queue, 0) };
        let used = self.emit_payload(queue, hosts, host, header, len, 0);
        hosts.mux.sent_to_guest(conn, count(len), count(used), now);
    }

    /// Makes packets of `len` bytes that lie in the buffers, the last one with these flags, and puts back what is left of
    /// the buffers; how many packets that are.
    fn emit_payload(
        &mut self,
        queue: &mut Queue,
        hosts: &mut Hosts,
        host: Id,
        mut header: Header,
        len: usize,
        last_flags: u32,
    ) -> usize {
        let (mut left, mut used) = (len, 0);
        while left > 0 {
            let part = left.min(self.buffers[used].room);
            // At most MAX_PAYLOAD.
            header.len = u32::try_from(part).unwrap_or(MAX_PAYLOAD);
            left -= part;
            header.flags = if left == 0 { last_flags } else { 0 };
            self.emit(queue, used, header);
            used += 1;
        }
        if let Some(stream) = hosts.stream_mut(host) {
            let all = used == self.buffers.len();
            let next = if all { used * 4 } else { used + 1 };
            stream.burst = u16::try_from(next).unwrap_or(u16::MAX).clamp(1, 256);
        }
        self.put_back(queue, used);
        self.bytes += len;
        hosts.stats.to_guest_packets.add(used as u64);
        hosts.stats.to_guest_bytes.add(len as u64);
        used
    }

    /// Lists the places for `room` bytes of payload: each buffer behind its header.
    fn lay_out_payload(&mut self, mut room: usize) {
        self.payload.clear();
        for buffer in &self.buffers {
            let mut skip = HEADER_LEN;
            let mut left = buffer.room.min(room);
            room -= left;
            for piece in &self.pieces[buffer.pieces.0..buffer.pieces.1] {
                let passed = skip.min(piece.len());
                skip -= passed;
                let rest = piece.split_at(passed).1;
                let part = rest.split_at(left.min(rest.len())).0;
                left -= part.len();
                if !part.is_empty() {
                    self.payload.push(part);
                }
            }
        }
    }

    /// Writes a header into buffer `index` and gives it back.
    fn emit(&self, queue: &mut Queue, index: usize, header: Header) {
        let buffer = self.buffers[index];
        let bytes = header.to_bytes();
        let mut written = 0;
        for piece in &self.pieces[buffer.pieces.0..buffer.pieces.1] {
            written += piece.write(&bytes[written..]);
            if written == HEADER_LEN {
                break;
            }
        }
        // At most MAX_PAYLOAD more than a header.
        queue.give_back(buffer.head, HEADER_LEN as u32 + header.len);
    }

    /// Puts the buffers behind the first `used` ones back.
    fn put_back(&self, queue: &mut Queue, used: usize) {
        // No more than the queue has, so it fits.
        queue.put_back(u16::try_from(self.buffers.len() - used).unwrap_or(0));
    }
}

/// As the mux counts. What goes in one turn fits.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
