//! Job: one socket of a Linux guest, for a stream or for messages: its queue of packets, its windows, its state.
//! Before: `kernel` found it by the ports of a packet, or an application reads and writes.
//! After: `kernel` sends what this says is due.
//! Rules: numbers are counted as Linux counts them: `fwd_cnt` by whole packets, unread packets by pieces of memory.

use super::messages::Message;
use crate::header::{Header, MAX_PAYLOAD, SEQ_EOM, SEQ_EOR, SHUTDOWN_RCV, SHUTDOWN_SEND};
use std::collections::VecDeque;

/// What Linux charges for each unread packet at least (`SKB_TRUESIZE(0)` on x86-64).
const PACKET_COST: u64 = 576;
/// Packets up to this length may be appended to the one before.
const SMALL: usize = 128;
/// Room in the memory of one packet: a receive buffer without its header.
const ROOM: usize = 3776 - crate::header::LEN;

/// Which kernel it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Sends no more than its own window is large, whatever the peer's (since 6.1.192, 7.0).
    pub min_window: bool,
    /// Limits the number of unread packets (since 7.0).
    pub packet_limit: bool,
    /// Puts small packets together.
    pub collapse: bool,
    /// The window of new sockets, in bytes.
    pub buf_alloc: u32,
}

impl Rules {
    /// A kernel of today.
    pub fn linux_7() -> Self {
        Self { min_window: true, packet_limit: true, collapse: true, buf_alloc: 256 * 1024 }
    }

    /// Debian 12's kernel before its stable updates.
    pub fn linux_6_1() -> Self {
        Self { min_window: false, packet_limit: false, ..Self::linux_7() }
    }
}

/// How far a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// REQUEST was sent.
    Connecting,
    /// Both ends agreed.
    Established,
    /// Closed by its application; RST is awaited.
    Closing,
    /// No packet belongs to it any more.
    Closed,
}

/// Why a socket does not work any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// `ECONNRESET`.
    Reset,
    /// `ENOBUFS`: the peer sent more than was allowed.
    NoBuffers,
    /// `EPROTO`: the peer sent something else than an answer.
    Protocol,
    /// `ETIMEDOUT`.
    TimedOut,
}

/// The result of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes.
    Data(Vec<u8>),
    /// Nothing now.
    Nothing,
    /// The end of the stream.
    End,
    /// A fault of the connection.
    Fault(Ended),
}

/// An unread packet, or several small ones.
#[derive(Debug)]
struct Unread {
    /// The payload.
    bytes: Vec<u8>,
    /// How much of it was read.
    read: usize,
    /// What its packets said of the end of a message.
    flags: u32,
}

/// A socket.
#[derive(Debug)]
pub struct Socket {
    /// What it is: [`STREAM`](crate::header::STREAM) or [`SEQPACKET`](crate::header::SEQPACKET).
    pub kind: u16,
    /// The guest's port.
    pub local: u32,
    /// The host's port.
    pub peer: u32,
    /// How far it is.
    pub state: State,
    /// What went wrong.
    pub fault: Option<Ended>,
    /// Its application has no more interest in it.
    pub released: bool,
    /// Directions that the peer closed.
    pub peer_shutdown: u32,
    /// Directions that the application closed.
    pub own_shutdown: u32,
    /// Its window.
    pub buf_alloc: u32,
    /// Bytes of whole packets that the application read.
    pub fwd_cnt: u32,
    /// The `fwd_cnt` that the peer was told.
    told: u32,
    /// Bytes of packets that are not wholly read.
    used: u32,
    /// Bytes sent.
    pub tx_cnt: u32,
    /// The peer's window.
    pub peer_buf_alloc: u32,
    /// What the peer has read.
    pub peer_fwd_cnt: u32,
    /// The largest number of unread packets so far.
    pub most_unread: usize,
    /// Unread packets.
    queue: VecDeque<Unread>,
    /// Which kernel it is.
    rules: Rules,
}

impl Socket {
    /// A fresh one.
    pub fn new(kind: u16, local: u32, peer: u32, state: State, rules: Rules) -> Self {
        Self {
            kind,
            local,
            peer,
            state,
            fault: None,
            released: false,
            peer_shutdown: 0,
            own_shutdown: 0,
            buf_alloc: rules.buf_alloc,
            fwd_cnt: 0,
            told: 0,
            used: 0,
            tx_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            most_unread: 0,
            queue: VecDeque::new(),
            rules,
        }
    }

    /// Takes the peer's credit from any packet.
    pub fn learn(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
    }

    /// Our credit for a packet; the peer knows it then.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.fwd_cnt;
        (self.buf_alloc, self.fwd_cnt)
    }

    /// How much may be sent.
    pub fn credit(&self) -> usize {
        #[allow(clippy::cast_possible_wrap, reason = "a difference modulo 2^32, of either sign")]
        let in_flight = i64::from(self.tx_cnt.wrapping_sub(self.peer_fwd_cnt) as i32);
        usize::try_from(i64::try_from(self.longest()).expect("32 bits") - in_flight).unwrap_or(0)
    }

    /// Takes payload in; `false` if it is more than the window or the limit of packets allows.
    pub fn enqueue(&mut self, payload: Vec<u8>, flags: u32) -> bool {
        let len = u32::try_from(payload.len()).expect("a packet");
        let fits = u64::from(self.used) + u64::from(len) <= u64::from(self.buf_alloc);
        let few = (self.queue.len() as u64 + 1) * PACKET_COST <= u64::from(self.buf_alloc);
        if !fits || (self.rules.packet_limit && !few) {
            return false;
        }
        self.used += len;
        if self.rules.collapse && payload.len() <= SMALL {
            let fits = |last: &&mut Unread| last.bytes.len() + payload.len() < ROOM && last.flags & SEQ_EOM == 0;
            if let Some(last) = self.queue.back_mut().filter(fits) {
                last.bytes.extend(payload);
                last.flags |= flags;
                return true;
            }
        }
        self.queue.push_back(Unread { bytes: payload, read: 0, flags });
        self.most_unread = self.most_unread.max(self.queue.len());
        true
    }

    /// Whether there are unread bytes.
    pub fn has_unread(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Reads up to `max` bytes; the second value says whether the peer is to be told our credit.
    pub fn read(&mut self, max: usize) -> (Received, bool) {
        let mut bytes = Vec::new();
        while bytes.len() < max {
            let Some(first) = self.queue.front_mut() else { break };
            let part = (max - bytes.len()).min(first.bytes.len() - first.read);
            bytes.extend_from_slice(&first.bytes[first.read..first.read + part]);
            first.read += part;
            if first.read == first.bytes.len() {
                let len = u32::try_from(first.bytes.len()).expect("within the window");
                self.queue.pop_front();
                self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
                self.used -= len;
            }
        }
        if !bytes.is_empty() {
            let news = self.fwd_cnt.wrapping_sub(self.told);
            let left = self.buf_alloc.saturating_sub(news) as usize;
            let due = news > 0 && (left < MAX_PAYLOAD || self.queue.is_empty());
            return (Received::Data(bytes), due && self.state == State::Established);
        }
        (self.nothing(), false)
    }

    /// What a read says that found nothing.
    fn nothing(&self) -> Received {
        match self.fault {
            Some(fault) => Received::Fault(fault),
            None if self.peer_shutdown & SHUTDOWN_SEND != 0 || self.state == State::Closed => Received::End,
            None => Received::Nothing,
        }
    }

    /// Reads one message, if there is a whole one; else what there is instead.
    pub fn read_message(&mut self) -> Result<Message, Received> {
        let Some(last) = self.queue.iter().position(|unread| unread.flags & SEQ_EOM != 0) else {
            return Err(self.nothing());
        };
        let mut message = Message::default();
        for unread in self.queue.drain(..=last) {
            let len = u32::try_from(unread.bytes.len()).expect("within the window");
            self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
            self.used -= len;
            message.record |= unread.flags & SEQ_EOR != 0;
            message.bytes.extend(unread.bytes);
        }
        Ok(message)
    }

    /// The longest message that can be sent (`virtio_transport_seqpacket_enqueue`).
    pub fn longest(&self) -> usize {
        let window = if self.rules.min_window { self.peer_buf_alloc.min(self.buf_alloc) } else { self.peer_buf_alloc };
        window as usize
    }

    /// Whether the application may send, credit aside.
    pub fn may_send(&self) -> bool {
        self.state == State::Established
            && self.own_shutdown & SHUTDOWN_SEND == 0
            && self.peer_shutdown & SHUTDOWN_RCV == 0
    }
}
