//! Job: packets out of the TX queue, to the mux, and their payload into sockets.
//! Before: the guest put chains into the queue.
//! After: the chains are given back, the payload is with the kernel or in a backlog.
//! Rules: every chain is given back, sound or not. A chain's memory is used until its payload is sent, so none is given
//! back before. Packets of one connection that follow each other go out in one call.

use super::Failure;
use super::hosts::Hosts;
use crate::host::io::MAX_PIECES;
use crate::mux::FromGuest;
use crate::packet::Header;
use crate::packet::spec::HEADER_LEN;
use crate::slab::Id;
use crate::virtio::memory::{GuestMemory, Segment};
use crate::virtio::queue::Queue;

/// Chains taken before the results are published and others have their turn.
const BATCH: usize = 256;
/// Bytes of payload that end a batch: about what a socket takes in one call (`net.core.wmem_default`). The guest then learns
/// of its credit while it still has some.
const BATCH_BYTES: usize = 128 * 1024;

/// What is gathered between the first packet taken and the publication; kept for its memory.
#[derive(Debug, Default)]
pub struct FromGuestBatch {
    /// The chain at hand.
    chain: Vec<Segment>,
    /// Heads of the chains to be given back.
    heads: Vec<u16>,
    /// Payload of one connection, and not of more than one message.
    pieces: Vec<Segment>,
    /// Its length.
    bytes: usize,
    /// The connection and its socket.
    target: Option<(Id, Id)>,
    /// Payload of the whole batch.
    total: usize,
    /// What the payload is.
    gathered: Gathered,
}

/// What payload that was gathered is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gathered {
    /// Bytes of a stream.
    #[default]
    Stream,
    /// A message, or a part of one.
    Message {
        /// The message ends with it.
        complete: bool,
    },
}

impl FromGuestBatch {
    /// Takes packets until the queue is empty or the batch is full; whether there were any.
    pub fn drain(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        hosts: &mut Hosts,
        now: u64,
    ) -> Result<bool, Failure> {
        queue.no_kicks();
        self.total = 0;
        while self.heads.len() < BATCH && self.total < BATCH_BYTES && !hosts.mux.replies_full() {
            self.chain.clear();
            let Some(chain) = queue.take(memory, &mut self.chain)? else { break };
            self.heads.push(chain.head);
            if chain.sound {
                self.packet(hosts, now)?;
            } else {
                hosts.stats.bad_chains.add(1);
            }
        }
        self.flush(hosts, now)?;
        for &head in &self.heads {
            queue.give_back(head, 0);
        }
        let progress = !self.heads.is_empty();
        self.heads.clear();
        Ok(progress)
    }

    /// One packet, in `self.chain`.
    fn packet(&mut self, hosts: &mut Hosts, now: u64) -> Result<(), Failure> {
        let Some((header, rest)) = take_header(&mut self.chain) else {
            hosts.stats.dropped_malformed.add(1);
            return Ok(());
        };
        let available = self.chain[rest..].iter().map(|piece| piece.len() as u64).sum();
        match hosts.mux.from_guest(&header, available, now) {
            FromGuest::Done => {}
            FromGuest::Data { conn, host } => {
                self.gather((conn, host), Gathered::Stream, rest, header.len as usize, hosts, now)?;
            }
            FromGuest::Message { conn, host, complete } => {
                self.gather((conn, host), Gathered::Message { complete }, rest, header.len as usize, hosts, now)?;
                if complete {
                    self.flush(hosts, now)?;
                }
            }
            other => {
                // What came before belongs to the time before.
                self.flush(hosts, now)?;
                hosts.act(other, now);
            }
        }
        Ok(())
    }

    /// Adds the payload of the chain, which starts at piece `rest` and has `len` bytes, to what is gathered. Each packet of a
    /// stream comes by here, and a call takes as many instructions as what it does.
    #[inline(always)]
    fn gather(
        &mut self,
        target: (Id, Id),
        gathered: Gathered,
        rest: usize,
        len: usize,
        hosts: &mut Hosts,
        now: u64,
    ) -> Result<(), Failure> {
        trim(&mut self.chain, rest, len);
        let payload = self.chain.len() - rest;
        if self.target != Some(target) || self.pieces.len() + payload > MAX_PIECES {
            self.flush(hosts, now)?;
            self.target = Some(target);
        }
        self.gathered = gathered;
        self.pieces.extend_from_slice(&self.chain[rest..]);
        self.bytes += len;
        self.total += len;
        Ok(())
    }

    /// Sends what is gathered.
    fn flush(&mut self, hosts: &mut Hosts, now: u64) -> Result<(), Failure> {
        let Some((conn, host)) = self.target.take() else { return Ok(()) };
        let result = match self.gathered {
            Gathered::Stream => hosts.deliver(conn, host, &self.pieces, self.bytes, now),
            Gathered::Message { complete } => {
                hosts.deliver_message((conn, host), &self.pieces, self.bytes, complete, now)
            }
        };
        self.pieces.clear();
        self.bytes = 0;
        result
    }
}

/// Copies the header out of a chain, once. What is left of the piece in which it ends stays in the chain, whose payload
/// starts at the index returned. `None` if the chain is shorter than a header.
fn take_header(chain: &mut [Segment]) -> Option<(Header, usize)> {
    let mut bytes = [0; HEADER_LEN];
    let mut have = 0;
    for (index, piece) in chain.iter_mut().enumerate() {
        let read = piece.read(&mut bytes[have..]);
        have += read;
        *piece = piece.split_at(read).1;
        if have == HEADER_LEN {
            return Some((Header::parse(&bytes), index));
        }
    }
    None
}

/// Cuts the payload, which starts at piece `start`, down to `len` bytes.
fn trim(chain: &mut Vec<Segment>, start: usize, mut len: usize) {
    let mut end = start;
    while len > 0 && end < chain.len() {
        let piece = &mut chain[end];
        let part = len.min(piece.len());
        *piece = piece.split_at(part).0;
        len -= part;
        end += 1;
    }
    chain.truncate(end);
}
