//! Job: the device's side of a split virtqueue (virtio 1.3 section 2.7).
//! Before: `vhost_user` sets it up; the guest puts descriptor chains into it.
//! After: `device` takes chains, uses their memory, and gives them back.
//! Rules: nothing that stands in a ring is trusted: indices, lengths and addresses are checked before use, a descriptor is
//! read once. A broken chain is the guest's loss; a broken ring ends the device.

use super::memory::{GuestMemory, Segment};
use std::sync::atomic::{Ordering, fence};

/// Size of a descriptor in bytes.
const DESC_LEN: usize = 16;
/// The chain continues at `next`.
const DESC_NEXT: u16 = 1;
/// The device writes the buffer.
const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const DESC_INDIRECT: u16 = 4;
/// The driver wants no interrupt (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// The device wants no kick (`VIRTQ_USED_F_NO_NOTIFY`).
const USED_NO_NOTIFY: u16 = 1;
/// Pieces of memory that a chain may consist of in a queue that is shorter; else as many as the queue is long (section
/// 2.7.5.3.1). Linux makes chains of 46 at the most; a guest with tables of tens of thousands of descriptors would keep the
/// device busy for seconds with each.
const MAX_PIECES: usize = 1024;
/// The largest queue (section 2.7).
pub const MAX_SIZE: u16 = 32768;

/// Where the three parts of a ring lie, and its size.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Number of descriptors.
    pub size: u16,
    /// The descriptor table.
    pub desc: Segment,
    /// The available ring.
    pub avail: Segment,
    /// The used ring.
    pub used: Segment,
}

impl Layout {
    /// Finds the parts, whose addresses are the front-end's, in `memory`.
    pub fn resolve(memory: &GuestMemory, size: u16, desc: u64, avail: u64, used: u64) -> Option<Self> {
        if size == 0 || size > MAX_SIZE || !size.is_power_of_two() || desc % 16 != 0 || avail % 2 != 0 || used % 4 != 0
        {
            return None;
        }
        let n = usize::from(size);
        let layout = Self {
            size,
            desc: memory.at_user_address(desc, n * DESC_LEN)?,
            avail: memory.at_user_address(avail, 6 + n * 2)?,
            used: memory.at_user_address(used, 6 + n * 8)?,
        };
        // The front-end's addresses need not be aligned as ours are: it chooses where its regions start.
        let aligned = layout.avail.is_aligned_to(2) && layout.used.is_aligned_to(2);
        aligned.then_some(layout)
    }

    /// The entry of a ring that belongs to an index, which counts on beyond the size, a power of two.
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }
}

/// What is wrong with a ring or a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The available index is further ahead than the ring is long. The ring cannot be used any more.
    AvailableIndex,
    /// The head of a chain is not a descriptor. The ring cannot be used any more.
    Head,
}

/// A chain taken from the ring. Its segments lie in the queue's caller's vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Names it in the used ring.
    pub head: u16,
    /// Whether it could be followed to its end, all of it mapped, in the queue's direction.
    pub sound: bool,
}

/// A descriptor (section 2.7.5), read once.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    /// Guest address of the buffer.
    addr: u64,
    /// Its length in bytes.
    len: u32,
    /// What it is.
    flags: u16,
    /// The descriptor behind it, if the flags say so.
    next: u16,
}

impl Descriptor {
    /// Reads one out of a table, which must have it.
    fn read(table: &Segment, index: u16) -> Self {
        let bits = table.u128(usize::from(index) * DESC_LEN);
        Self { addr: bits as u64, len: (bits >> 64) as u32, flags: (bits >> 96) as u16, next: (bits >> 112) as u16 }
    }
}

/// A running queue.
#[derive(Debug)]
pub struct Queue {
    /// Where it lies.
    layout: Layout,
    /// Whether both sides tell by index when they want to be notified (`VIRTIO_F_EVENT_IDX`).
    event_idx: bool,
    /// Whether the device writes the buffers of this queue.
    to_guest: bool,
    /// Next entry of the available ring to take.
    next_avail: u16,
    /// Available index as read last.
    seen_avail: u16,
    /// Next entry of the used ring to write.
    next_used: u16,
    /// Used index as published last.
    published_used: u16,
}

impl Queue {
    /// A queue that goes on at `base`, the index that it had when it was stopped last.
    pub fn new(layout: Layout, base: u16, event_idx: bool, to_guest: bool) -> Self {
        // What is in the used ring stays there: its index is where a stopped device left it.
        let used = layout.used.load_index(2);
        Self { layout, event_idx, to_guest, next_avail: base, seen_avail: base, next_used: used, published_used: used }
    }

    /// The index to give back when the queue is stopped.
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    /// Whether the driver never made anything available, as far as can be seen.
    pub fn never_used(&self) -> bool {
        self.next_avail == 0 && self.layout.avail.load_index(2) == 0
    }

    /// Whether there is a chain to take. Looks at the ring only if the chains known of are used up.
    pub fn available(&mut self) -> Result<u16, RingError> {
        if self.seen_avail == self.next_avail {
            let seen = self.layout.avail.load_index(2);
            if seen.wrapping_sub(self.next_avail) > self.layout.size {
                return Err(RingError::AvailableIndex);
            }
            self.seen_avail = seen;
        }
        Ok(self.seen_avail.wrapping_sub(self.next_avail))
    }

    /// Takes the next chain and appends its memory to `segments`; `None` if there is none.
    pub fn take(&mut self, memory: &GuestMemory, segments: &mut Vec<Segment>) -> Result<Option<Chain>, RingError> {
        if self.available()? == 0 {
            return Ok(None);
        }
        let slot = self.layout.slot(self.next_avail);
        let head = self.layout.avail.u16(4 + slot * 2);
        if head >= self.layout.size {
            return Err(RingError::Head);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        let start = segments.len();
        let sound = self.follow(memory, head, segments).is_some();
        if !sound {
            segments.truncate(start);
        }
        Ok(Some(Chain { head, sound }))
    }

    /// Puts the last `count` chains taken back, as if they had not been.
    pub fn put_back(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    /// Follows a chain; `None` if it is broken.
    fn follow(&self, memory: &GuestMemory, head: u16, segments: &mut Vec<Segment>) -> Option<()> {
        let mut table = self.layout.desc;
        let mut entries = self.layout.size;
        let mut indirect = false;
        let mut index = head;
        // A chain that is longer than its table runs in a circle.
        let mut left = entries;
        let most = segments.len() + MAX_PIECES.max(self.layout.size.into());
        loop {
            if index >= entries || left == 0 {
                return None;
            }
            left -= 1;
            let Descriptor { addr, len, flags, next } = Descriptor::read(&table, index);
            if flags & DESC_INDIRECT != 0 {
                // Neither nested nor continued (section 2.7.5.3.1).
                if indirect || flags & DESC_NEXT != 0 || len == 0 || len as usize % DESC_LEN != 0 {
                    return None;
                }
                table = memory.at_guest_address(addr, len as usize)?;
                entries = u16::try_from(len as usize / DESC_LEN).ok().filter(|&n| n <= MAX_SIZE)?;
                (indirect, index, left) = (true, 0, entries);
                continue;
            }
            if (flags & DESC_WRITE != 0) != self.to_guest || !memory.resolve(addr, u64::from(len), segments, most) {
                return None;
            }
            if flags & DESC_NEXT == 0 {
                return Some(());
            }
            index = next;
        }
    }

    /// Gives a chain back with `len` bytes written into it. The guest sees it after [`publish`](Self::publish).
    pub fn give_back(&mut self, head: u16, len: u32) {
        let slot = self.layout.slot(self.next_used);
        self.layout.used.set_u64(4 + slot * 8, u64::from(len) << 32 | u64::from(head));
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Chains given back that the guest does not see yet.
    pub fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published_used)
    }

    /// Publishes all chains given back; whether the driver wants an interrupt for them.
    pub fn publish(&mut self) -> bool {
        if self.unpublished() == 0 {
            return false;
        }
        self.layout.used.store_index(2, self.next_used);
        let old = std::mem::replace(&mut self.published_used, self.next_used);
        // The index must be out before the driver's wish is read (section 2.7.7.2).
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.layout.avail.load_index(0) & AVAIL_NO_INTERRUPT == 0;
        }
        let event = self.layout.avail.load_index(4 + usize::from(self.layout.size) * 2);
        // `vring_need_event`: the event index lies among what was just published.
        self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(old)
    }

    /// Asks the driver not to kick while the device looks at the ring anyway. With event indices there is nothing to
    /// do: the driver does not kick before the index that was asked for last.
    pub fn no_kicks(&mut self) {
        if !self.event_idx {
            self.layout.used.store_index(0, USED_NO_NOTIFY);
        }
    }

    /// Asks the driver to kick when it adds a chain, and looks once more: whether one came meanwhile.
    pub fn want_kick(&mut self) -> Result<bool, RingError> {
        // Chains that were looked at and put back are no news: only what comes after them.
        let seen = self.seen_avail;
        if self.event_idx {
            self.layout.used.store_index(4 + usize::from(self.layout.size) * 8, seen);
        } else {
            self.layout.used.store_index(0, 0);
        }
        fence(Ordering::SeqCst);
        let now = self.layout.avail.load_index(2);
        if now.wrapping_sub(self.next_avail) > self.layout.size {
            return Err(RingError::AvailableIndex);
        }
        let news = now != seen;
        self.seen_avail = now;
        Ok(news)
    }
}
