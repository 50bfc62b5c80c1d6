//! The bounds of the ring, case by case: every small queue at every position of its indices around their wrap, and every chain
//! of bounded length over a tiny memory, against a second reading of the standard (virtio 1.3 section 2.7).

mod sides;

use sides::{memories, queue};
use vhostvsock_native::virtio::memory::Segment;
use vhostvsock_native::virtio::queue::{Layout, Queue, RingError};
use vsock_driver::ring::{INDIRECT, NEXT, Piece, Ring, WRITE};

/// The region with the rings, and one of three pages' length that starts right behind a hole.
const REGIONS: [(u64, usize); 2] = [(0x10_0000, 0x1_0000), (0x1000, 0x3000)];

/// Places where an index can be next to something that matters: zero, the wrap, the middle.
fn positions(size: u16) -> impl Iterator<Item = u16> {
    let around = |at: u16| (0..=4 * size + 2).map(move |off| at.wrapping_sub(2 * size + 1).wrapping_add(off));
    around(0).chain(around(0x8000))
}

#[test]
fn every_small_queue_takes_exactly_what_is_available_at_every_position() {
    let (mut memory, theirs) = memories(&REGIONS);
    let rings: Vec<Ring> = [1, 2, 4, 8].map(|size| Ring::new(&mut memory, size)).into();
    for ring in &rings {
        for index in 0..ring.size {
            Ring::write_desc(&ring.desc, index, Piece { addr: 0x1000 + u64::from(index), len: 1 }, 0, 0);
        }
        for base in positions(ring.size) {
            for ahead in 0..=u16::MAX {
                // All distances near the bounds, and a sample of those far from them.
                if ahead > 2 * ring.size && ahead < u16::MAX - 2 * ring.size && ahead % 509 != 0 {
                    continue;
                }
                for slot in 0..ring.size {
                    let head = slot ^ (ring.size - 1);
                    ring.avail.write(4 + usize::from(slot) * 2, &head.to_le_bytes());
                }
                ring.avail.store(2, base.wrapping_add(ahead));
                ring.used.store(2, base);
                let mut device = queue(&theirs, ring, base, false, false);
                if ahead > ring.size {
                    assert_eq!(device.available(), Err(RingError::AvailableIndex), "{ahead} ahead of {}", ring.size);
                    assert_eq!(device.want_kick(), Err(RingError::AvailableIndex));
                    assert_eq!(device.base(), base);
                    continue;
                }
                let mut segments = Vec::new();
                for taken in 0..ahead {
                    assert_eq!(device.available(), Ok(ahead - taken));
                    let chain = device.take(&theirs, &mut segments).unwrap().unwrap();
                    let slot = base.wrapping_add(taken) % ring.size;
                    assert_eq!((chain.head, chain.sound), (slot ^ (ring.size - 1), true));
                    device.give_back(chain.head, taken.into());
                }
                assert_eq!(device.take(&theirs, &mut segments), Ok(None));
                assert_eq!(device.base(), base.wrapping_add(ahead));
                assert_eq!(segments.len(), usize::from(ahead));
                device.publish();
                assert_eq!(ring.used_index(), base.wrapping_add(ahead));
                for taken in 0..ahead {
                    let slot = base.wrapping_add(taken) % ring.size;
                    let at = 4 + usize::from(slot) * 8;
                    assert_eq!(
                        (ring.used.u32(at), ring.used.u32(at + 4)),
                        ((slot ^ (ring.size - 1)).into(), taken.into())
                    );
                }
            }
        }
    }
}

#[test]
fn every_head_that_is_no_descriptor_ends_the_ring_and_every_other_does_not() {
    let (mut memory, theirs) = memories(&REGIONS);
    let rings: Vec<Ring> = [1, 2, 4, 8].map(|size| Ring::new(&mut memory, size)).into();
    for ring in &rings {
        ring.avail.store(2, 1);
        for head in 0..=u16::MAX {
            ring.avail.write(4, &head.to_le_bytes());
            let result = queue(&theirs, ring, 0, false, false).take(&theirs, &mut Vec::new());
            assert_eq!(result.is_err(), head >= ring.size, "head {head} of {}", ring.size);
        }
    }
}

#[test]
fn every_position_of_the_event_index_interrupts_exactly_when_it_was_passed() {
    let (mut memory, theirs) = memories(&REGIONS);
    let ring = Ring::new(&mut memory, 4);
    for old in positions(4) {
        for news in 1..=4_u16 {
            for event in (0..12).map(|off| old.wrapping_sub(4).wrapping_add(off)) {
                ring.used.store(2, old);
                ring.avail.store(4 + 4 * 2, event);
                let layout =
                    Layout::resolve(&theirs, 4, ring.desc.user(), ring.avail.user(), ring.used.user()).unwrap();
                let mut device = Queue::new(layout, 0, true, false);
                for _ in 0..news {
                    device.give_back(0, 0);
                }
                // The standard: the entry at the event index is among those that were just published.
                let passed = (0..news).any(|entry| old.wrapping_add(entry) == event);
                assert_eq!(device.publish(), passed, "{old} + {news}, event {event}");
            }
        }
    }
}

/// What a descriptor of a chain may be: its address and length, at the edges of the region and of the address space.
const BUFFERS: [(u64, u32); 10] = [
    (0x1000, 0),
    (0x1000, 1),
    (0x0fff, 1),
    (0x0fff, 0),
    (0x3fff, 1),
    (0x3fff, 2),
    (0x4000, 1),
    (0x1000, 0x3000),
    (0x1000, 0x3001),
    (u64::MAX, 2),
];

/// Whether all of a buffer is memory, and how many bytes it has.
fn judge((addr, len): (u64, u32)) -> Option<usize> {
    let inside = addr >= 0x1000 && addr.checked_add(len.into()).is_some_and(|end| end <= 0x4000);
    (inside || len == 0).then_some(len as usize)
}

/// Follows a chain of three descriptors; its length in bytes, or `None` if it is broken.
fn follow(chain: &[((u64, u32), u16, u16)], to_guest: bool) -> Option<usize> {
    let (mut total, mut index) = (0, 0);
    for _ in 0..chain.len() {
        let (buffer, flags, next) = *chain.get(index)?;
        if flags & INDIRECT != 0 || (flags & WRITE != 0) != to_guest {
            return None;
        }
        total += judge(buffer)?;
        if flags & NEXT == 0 {
            return Some(total);
        }
        index = usize::from(next);
    }
    None
}

/// All chains of three descriptors in one table: every buffer, every flag, every successor, in and outside of the table.
fn every_chain(mut check: impl FnMut(&[((u64, u32), u16, u16)])) {
    let mut descs = Vec::new();
    for buffer in BUFFERS {
        for flags in [0, NEXT, WRITE, WRITE | NEXT] {
            // Where it does not go on, what stands there is of no meaning.
            let nexts: &[u16] = if flags & NEXT != 0 { &[0, 1, 2, 3, u16::MAX] } else { &[3] };
            descs.extend(nexts.iter().map(|&next| (buffer, flags, next)));
        }
    }
    for &first in &descs {
        if first.1 & NEXT == 0 {
            check(&[first, descs[0], descs[0]]);
            continue;
        }
        for &second in &descs {
            // The third is reached through the second or directly: a few of each kind will do.
            for &third in descs.iter().step_by(7) {
                check(&[first, second, third]);
            }
        }
    }
}

/// Bytes of all segments.
fn len_of(segments: &[Segment]) -> usize {
    segments.iter().map(Segment::len).sum()
}

#[test]
fn every_short_chain_is_followed_as_the_standard_has_it_in_the_ring_and_in_an_indirect_table() {
    let (mut memory, theirs) = memories(&REGIONS);
    let (direct, indirect) = (Ring::new(&mut memory, 4), Ring::new(&mut memory, 4));
    let table = memory.alloc_in(0, 3 * 16, 16).unwrap();
    Ring::write_desc(&indirect.desc, 0, Piece { addr: table.guest(), len: 3 * 16 }, INDIRECT, 0);
    // The ring has one descriptor more than the chain; it ends nowhere.
    Ring::write_desc(&direct.desc, 3, Piece { addr: 0, len: 0 }, INDIRECT, 0);
    for ring in [&direct, &indirect] {
        ring.avail.store(2, 1);
    }
    let mut count = 0_u32;
    every_chain(|chain| {
        for (index, &((addr, len), flags, next)) in (0..).zip(chain) {
            for window in [&direct.desc, &table] {
                Ring::write_desc(window, index, Piece { addr, len }, flags, next);
            }
        }
        for to_guest in [false, true] {
            let expected = follow(chain, to_guest);
            for ring in [&direct, &indirect] {
                let mut segments = Vec::new();
                let taken = queue(&theirs, ring, 0, false, to_guest).take(&theirs, &mut segments).unwrap().unwrap();
                assert_eq!(taken.sound, expected.is_some(), "{chain:x?}");
                assert_eq!(len_of(&segments), expected.unwrap_or(0), "{chain:x?}");
                count += 1;
            }
        }
    });
    assert!(count > 100_000, "{count}");
}

#[test]
fn every_length_of_an_indirect_table_is_whole_descriptors_within_one_region_or_is_refused() {
    let (mut memory, theirs) = memories(&REGIONS);
    let ring = Ring::new(&mut memory, 4);
    ring.avail.store(2, 1);
    // Descriptors of nothing, each the last of its chain: a table is sound if it is a table.
    memory.whole(1).fill(0);
    for (addr, most) in [(0x1000_u64, 0x3000_u32), (0x3fc0, 0x40), (0x4000 - 16, 16), (0x4000, 0), (0x0ff0, 0)] {
        for len in (0..0x3100).chain([u32::MAX, u32::MAX - 15, 0x8_0000, 0x8_0010]) {
            Ring::write_desc(&ring.desc, 0, Piece { addr, len }, INDIRECT, 0);
            let chain = queue(&theirs, &ring, 0, false, false).take(&theirs, &mut Vec::new()).unwrap().unwrap();
            assert_eq!(chain.sound, len > 0 && len % 16 == 0 && len <= most, "{len:#x} bytes at {addr:#x}");
        }
    }
}
