//! Job: one direction of a connection: what one end wrote, and what came out at the other.
//! Before: an application writes bytes, or messages.
//! After: it is known what has to come out next.
//! Rules: bytes of a stream may be cut and joined anywhere, messages nowhere; there is no other difference. What they say is
//! told by their place, so that lengths are all that is kept.

use std::collections::VecDeque;
use vhostvsock_native::packet::Type;

/// Bytes of a stream, or messages, that wait somewhere.
#[derive(Debug)]
pub struct Queue {
    /// What they are.
    kind: Type,
    /// Lengths of the messages. A stream is one that grows.
    lengths: VecDeque<u64>,
    /// All of them together.
    bytes: u64,
}

impl Queue {
    /// An empty one.
    pub fn new(kind: Type) -> Self {
        Self { kind, lengths: VecDeque::new(), bytes: 0 }
    }

    /// Bytes of all that waits.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing waits, not even a message without bytes.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Adds so many bytes, or a message of them.
    pub fn push(&mut self, len: u64) {
        self.bytes += len;
        match (self.kind, self.lengths.back_mut()) {
            (Type::Stream, Some(last)) => *last += len,
            (Type::Stream, None) if len == 0 => {}
            _ => self.lengths.push_back(len),
        }
    }

    /// Takes up to `most` bytes out, or the first message if it has no more; how many that were.
    pub fn pop(&mut self, most: u64) -> Option<u64> {
        let first = self.lengths.front_mut()?;
        let len = match self.kind {
            Type::Stream => most.min(*first),
            Type::Seqpacket => *first,
        };
        if most == 0 || len > most {
            return None;
        }
        *first -= len;
        if *first == 0 {
            self.lengths.pop_front();
        }
        self.bytes -= len;
        Some(len)
    }

    /// Forgets all; whether there was anything.
    pub fn clear(&mut self) -> bool {
        let any = !self.is_empty();
        *self = Self::new(self.kind);
        any
    }
}

/// One direction.
#[derive(Debug)]
pub struct Way {
    /// What was written, whole, and has not come out.
    pub unread: Queue,
    /// Bytes that left the end that wrote them, those of a message that is not whole among them.
    pub sent: u64,
    /// Bytes that came out.
    pub got: u64,
    /// The end came out.
    pub saw_end: bool,
}

impl Way {
    /// Nothing was written.
    pub fn new(kind: Type) -> Self {
        Self { unread: Queue::new(kind), sent: 0, got: 0, saw_end: false }
    }

    /// So many bytes, or a message of them, came out: they have to be what was written next.
    pub fn came(&mut self, len: u64) {
        let at = self.got;
        assert_eq!(self.unread.pop(len), Some(len), "{len} bytes that nobody wrote like that, at {at}: {self:?}");
        self.got += len;
    }
}
