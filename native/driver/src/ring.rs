//! Job: the driver's side of a split virtqueue (virtio 1.3 section 2.7), as Linux's drivers use it.
//! Before: `guest` offers buffers.
//! After: the device used them, and `guest` gets them back.
//! Rules: a device that returns what it does not have, or twice, ends the test. Raw access is open to tests that misbehave.

use crate::deadline::Deadline;
use crate::memory::{Memory, Window};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

/// The chain continues.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table.
pub const INDIRECT: u16 = 4;
/// Descriptors of each indirect table.
const TABLE: usize = 64;
/// Bytes of a descriptor.
const DESC: usize = 16;

/// One descriptor's worth of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A buffer that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What it was offered as.
    pub token: u32,
    /// How many bytes the device wrote.
    pub len: u32,
}

/// When the driver wants to hear from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It sleeps until an interrupt.
    Waiting,
    /// It looks all the time and wants no interrupt.
    Polling,
}

/// A virtqueue.
#[derive(Debug)]
pub struct Ring {
    /// Number of descriptors.
    pub size: u16,
    /// The descriptor table.
    pub desc: Window,
    /// The available ring.
    pub avail: Window,
    /// The used ring.
    pub used: Window,
    /// Indirect tables, one for each descriptor.
    tables: Vec<Window>,
    /// The guest kicks by it.
    pub kick: OwnedFd,
    /// The device interrupts by it.
    pub call: OwnedFd,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated and is to be used.
    pub indirect: bool,
    /// How it waits.
    pub mode: Mode,
    /// Kicks sent.
    pub kicks: u64,
    /// Free descriptors.
    free: Vec<u16>,
    /// The descriptor after each one in its chain.
    next: Vec<u16>,
    /// What each head was offered as, and how many descriptors it has; 0 for none.
    chains: Vec<(u32, u16)>,
    /// The next entry of the available ring.
    next_avail: u16,
    /// The available index that the device sees.
    published: u16,
    /// The next entry of the used ring to look at.
    next_used: u16,
}

impl Ring {
    /// A ring in `memory` with nothing in it.
    pub fn new(memory: &mut Memory, size: u16) -> Self {
        let n = usize::from(size);
        let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("eventfd");
        let mut ring = Self {
            size,
            desc: memory.alloc(n * DESC, 16),
            avail: memory.alloc(6 + n * 2, 2),
            used: memory.alloc(6 + n * 8, 4),
            tables: (0..n).map(|_| memory.alloc(TABLE * DESC, 16)).collect(),
            kick: event(),
            call: event(),
            event_idx: false,
            indirect: false,
            mode: Mode::Waiting,
            kicks: 0,
            free: Vec::new(),
            next: vec![0; n],
            chains: vec![(0, 0); n],
            next_avail: 0,
            published: 0,
            next_used: 0,
        };
        ring.clear();
        ring
    }

    /// Starts from nothing, as a driver does that was loaded anew.
    pub fn clear(&mut self) {
        for part in [&self.desc, &self.avail, &self.used] {
            part.fill(0);
        }
        self.free = (0..self.size).rev().collect();
        self.chains.fill((0, 0));
        (self.next_avail, self.published, self.next_used) = (0, 0, 0);
        let _ = rustix::io::read(&self.call, &mut [0; 8]);
    }

    /// Takes the features that were negotiated.
    pub fn set_features(&mut self, event_idx: bool, indirect: bool) {
        (self.event_idx, self.indirect) = (event_idx, indirect);
        self.want_interrupts(self.mode == Mode::Waiting);
    }

    /// Free descriptors.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Buffers that the device has.
    pub fn outstanding(&self) -> usize {
        self.chains.iter().filter(|(_, len)| *len > 0).count()
    }

    /// Whether a chain of `pieces` fits now.
    pub fn fits(&self, pieces: usize) -> bool {
        let wanted = if self.indirect && pieces > 1 && pieces <= TABLE { 1 } else { pieces };
        self.free.len() >= wanted
    }

    /// Writes a descriptor into `table`.
    pub fn write_desc(table: &Window, index: u16, piece: Piece, flags: u16, next: u16) {
        let mut bytes = [0; DESC];
        bytes[..8].copy_from_slice(&piece.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&piece.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        table.write(usize::from(index) * DESC, &bytes);
    }

    /// Offers a buffer; the device sees it after [`publish`](Self::publish). `false` if there is no room.
    pub fn add(&mut self, pieces: &[Piece], write: bool, token: u32) -> bool {
        assert!(!pieces.is_empty());
        if !self.fits(pieces.len()) {
            return false;
        }
        let flag = if write { WRITE } else { 0 };
        let head;
        if self.indirect && pieces.len() > 1 && pieces.len() <= TABLE {
            head = self.take();
            let table = &self.tables[usize::from(head)];
            for (piece, index) in pieces.iter().zip(0_u16..) {
                let last = usize::from(index) + 1 == pieces.len();
                Self::write_desc(table, index, *piece, flag | if last { 0 } else { NEXT }, index + 1);
            }
            let len = u32::try_from(pieces.len() * DESC).expect("checked above");
            Self::write_desc(&self.desc, head, Piece { addr: table.guest(), len }, INDIRECT, 0);
            self.chains[usize::from(head)] = (token, 1);
        } else {
            // From the end, so that each knows its successor.
            let mut index = self.take();
            for (i, piece) in pieces.iter().enumerate().rev() {
                let last = i + 1 == pieces.len();
                let next = self.next[usize::from(index)];
                Self::write_desc(
                    &self.desc,
                    index,
                    *piece,
                    flag | if last { 0 } else { NEXT },
                    if last { 0 } else { next },
                );
                if i > 0 {
                    let before = self.take();
                    self.next[usize::from(before)] = index;
                    index = before;
                }
            }
            head = index;
            self.chains[usize::from(head)] = (token, u16::try_from(pieces.len()).expect("fits in the ring"));
        }
        self.offer(head);
        true
    }

    /// A free descriptor; there must be one.
    fn take(&mut self) -> u16 {
        self.free.pop().expect("room was checked")
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let slot = usize::from(self.next_avail % self.size);
        self.avail.write(4 + slot * 2, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Lets the device see what was added; whether it wants a kick for it.
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.next_avail);
        self.avail.store(2, self.next_avail);
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.used.load(4 + usize::from(self.size) * 8);
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(old)
        } else {
            self.used.load(0) & 1 == 0
        }
    }

    /// Lets the device see what was added, and kicks if it wants that.
    pub fn publish_and_kick(&mut self) {
        if self.publish() {
            self.kick();
        }
    }

    /// Kicks, wanted or not.
    pub fn kick(&mut self) {
        self.kicks += 1;
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).expect("kick");
    }

    /// The device's used index.
    pub fn used_index(&self) -> u16 {
        self.used.load(2)
    }

    /// The available index as published last.
    pub fn avail_index(&self) -> u16 {
        self.published
    }

    /// The next buffer that the device used.
    pub fn pop(&mut self) -> Option<Used> {
        if self.used_index() == self.next_used {
            return None;
        }
        let at = 4 + usize::from(self.next_used % self.size) * 8;
        let (head, len) = (self.used.u32(at), self.used.u32(at + 4));
        self.next_used = self.next_used.wrapping_add(1);
        let place = usize::try_from(head).expect("u32");
        assert!(place < self.chains.len(), "the device returned descriptor {head} of a ring of {}", self.size);
        let (token, count) = std::mem::take(&mut self.chains[place]);
        assert!(count > 0, "the device returned descriptor {head}, which it did not have");
        let mut index = u16::try_from(head).expect("checked");
        for _ in 0..count {
            self.free.push(index);
            index = self.next[usize::from(index)];
        }
        Some(Used { token, len })
    }

    /// Asks for an interrupt when the next buffer is used, or for none.
    fn want_interrupts(&self, wanted: bool) {
        if self.event_idx {
            let event = if wanted { self.next_used } else { self.next_used.wrapping_sub(1) };
            self.avail.store(4 + usize::from(self.size) * 2, event);
        } else {
            self.avail.store(0, u16::from(!wanted));
        }
    }

    /// Before sleeping: asks for an interrupt and looks once more; whether a buffer was used meanwhile.
    pub fn arm(&mut self) -> bool {
        if self.mode == Mode::Polling {
            return self.has_used();
        }
        self.want_interrupts(true);
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// After waking up: no more interrupts while the driver looks anyway. Takes the pending one; whether there was one.
    pub fn disarm(&mut self) -> bool {
        if self.mode == Mode::Waiting {
            self.want_interrupts(false);
        }
        self.take_interrupts() > 0
    }

    /// Takes pending interrupts; how many there were.
    pub fn take_interrupts(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.call, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    /// Whether there is a buffer to pop.
    pub fn has_used(&self) -> bool {
        self.used_index() != self.next_used
    }

    /// Waits for a used buffer; `false` if the deadline comes first.
    pub fn wait(&mut self, deadline: Deadline) -> bool {
        match self.mode {
            Mode::Polling => spin(deadline, || self.has_used()),
            Mode::Waiting => loop {
                if self.arm() {
                    self.disarm();
                    return true;
                }
                if !deadline.wait_readable(&[self.call.as_fd()]) {
                    return self.has_used();
                }
                self.disarm();
            },
        }
    }
}

/// Looks again and again until `condition` holds; `false` if the deadline comes first.
pub fn spin(deadline: Deadline, mut condition: impl FnMut() -> bool) -> bool {
    let mut turns = 0_u32;
    loop {
        if condition() {
            return true;
        }
        turns += 1;
        if turns % 64 == 0 {
            // Where there are fewer cores than threads that spin, the others must get their turn.
            std::thread::yield_now();
            if turns % 4096 == 0 && deadline.is_over() {
                return false;
            }
        }
        std::hint::spin_loop();
    }
}
