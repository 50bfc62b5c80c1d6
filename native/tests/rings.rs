//! The device's side of a virtqueue against drivers of every kind, without a device around it: sound ones, whose buffers
//! come through and whose wishes for notifications are kept, and malicious ones, against a second reading of the standard.

use proptest::prelude::*;
use std::fs::File;
use vhostvsock_native::virtio::memory::{GuestMemory, Segment};
use vhostvsock_native::virtio::queue::{Layout, Queue, RingError};
use vsock_driver::memory::{Memory, RegionSpec, Window};
use vsock_driver::ring::{INDIRECT, NEXT, Piece, Ring, WRITE};

/// Descriptors of the malicious ring.
const SIZE: u16 = 8;
/// Regions: the first for the rings, two that touch, one apart.
const REGIONS: [(u64, usize); 4] =
    [(0x20_0000, 0x4_0000), (0x1_0000, 0x1_0000), (0x2_0000, 0x1_0000), (0x10_0000, 0x4000)];
/// The region with the indirect tables.
const DATA: usize = 1;

/// The guest's memory, on both sides.
fn memories() -> (Memory, GuestMemory) {
    let specs = REGIONS.map(|(guest, len)| RegionSpec::new(guest, len));
    let ours = Memory::new(&specs).unwrap();
    let mut theirs = GuestMemory::default();
    for region in ours.regions() {
        let file = File::from(region.file.try_clone().unwrap());
        theirs.add(region.spec.guest, region.user(), region.spec.len as u64, 0, file).unwrap();
    }
    for index in DATA..REGIONS.len() {
        let window = ours.whole(index);
        let bytes: Vec<u8> = (0..window.len()).map(|at| (at * 7 + at / 251 + index) as u8).collect();
        window.write(0, &bytes);
    }
    (ours, theirs)
}

/// The device's view of a ring.
fn queue(memory: &GuestMemory, ring: &Ring, event_idx: bool, to_guest: bool) -> Queue {
    let layout = Layout::resolve(memory, ring.size, ring.desc.user(), ring.avail.user(), ring.used.user()).unwrap();
    Queue::new(layout, 0, event_idx, to_guest)
}

/// All bytes of some segments.
fn contents(segments: &[Segment]) -> Vec<u8> {
    let mut all = Vec::new();
    for segment in segments {
        let start = all.len();
        all.resize(start + segment.len(), 0);
        segment.read(&mut all[start..]);
    }
    all
}

/// The bytes at a guest address, if all of them are there.
fn at(memory: &Memory, addr: u64, len: u32) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let (mut addr, mut left) = (addr, len as usize);
    while left > 0 {
        let index = REGIONS.iter().position(|(guest, size)| addr >= *guest && addr - guest < *size as u64)?;
        let window = memory.whole(index);
        let offset = usize::try_from(addr - REGIONS[index].0).unwrap();
        let part = left.min(window.len() - offset);
        let start = all.len();
        all.resize(start + part, 0);
        window.read(offset, &mut all[start..]);
        addr += part as u64;
        left -= part;
    }
    Some(all)
}

/// A descriptor as bytes in a table.
#[derive(Clone, Copy, Debug)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// Reads one out of a table.
fn desc(table: &[u8], index: usize) -> Desc {
    let bytes = &table[index * 16..][..16];
    Desc {
        addr: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
        len: u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
        flags: u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
        next: u16::from_le_bytes(bytes[14..].try_into().unwrap()),
    }
}

/// The bytes of a chain, by a second reading of virtio 1.3 section 2.7.5; `None` if it is broken.
fn follow(memory: &Memory, table: &[u8], head: u16, write: bool, nested: bool) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let mut index = usize::from(head);
    for _ in 0..table.len() / 16 {
        if index >= table.len() / 16 {
            return None;
        }
        let Desc { addr, len, flags, next } = desc(table, index);
        if flags & INDIRECT != 0 {
            if nested || flags & NEXT != 0 || len == 0 || len % 16 != 0 {
                return None;
            }
            // A table has to lie in one region.
            let region = REGIONS.iter().find(|(guest, size)| addr >= *guest && addr - guest < *size as u64)?;
            if addr + u64::from(len) > region.0 + region.1 as u64 {
                return None;
            }
            all.extend(follow(memory, &at(memory, addr, len)?, 0, write, true)?);
            return Some(all);
        }
        if (flags & WRITE != 0) != write {
            return None;
        }
        all.extend(at(memory, addr, len)?);
        if flags & NEXT == 0 {
            return Some(all);
        }
        index = usize::from(next);
    }
    None
}

/// What a malicious driver does.
#[derive(Clone, Debug)]
enum Step {
    /// Writes a descriptor, into the ring's table or one of two places that are used as indirect tables.
    Write(u8, u16, Desc),
    /// Offers a head.
    Offer(u16),
    /// Sets the available index.
    Jump(u16),
    /// The device takes a chain.
    Take,
    /// The device puts the last chain back.
    PutBack,
    /// The device gives chains back and publishes.
    Publish,
    /// The device asks for a kick.
    WantKick,
    /// The driver fills its used ring with rubbish.
    Scribble,
}

/// Where the two indirect tables are.
const TABLES: [u64; 2] = [0x1_0000, 0x1_ffc0];

/// Descriptors, more often sensible than not.
fn descs() -> impl Strategy<Value = Desc> {
    let places = prop_oneof![
        4 => 0x1_0000_u64..0x3_0000,
        2 => 0x1_ff00_u64..0x2_0100,
        1 => 0x10_3f00_u64..0x10_4100,
        1 => Just(TABLES[0]),
        1 => Just(TABLES[1]),
        1 => any::<u64>(),
        1 => u64::MAX - 4096..=u64::MAX,
    ];
    let lens =
        prop_oneof![4 => 0_u32..300, 2 => (1_u32..9).prop_map(|n| n * 16), 1 => Just(u32::MAX), 1 => any::<u32>()];
    let flags = prop_oneof![3 => Just(0), 4 => Just(NEXT), 2 => Just(INDIRECT), 1 => Just(WRITE), 1 => 0_u16..16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0_u16..SIZE, 1 => any::<u16>()];
    (places, lens, flags, next).prop_map(|(addr, len, flags, next)| Desc { addr, len, flags, next })
}

/// Steps.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0_u8..3, 0..SIZE, descs()).prop_map(|(table, index, desc)| Step::Write(table, index, desc)),
        6 => prop_oneof![20 => 0..SIZE, 1 => any::<u16>()].prop_map(Step::Offer),
        1 => prop_oneof![3 => 0_u16..12, 1 => any::<u16>()].prop_map(Step::Jump),
        8 => Just(Step::Take),
        1 => Just(Step::PutBack),
        2 => Just(Step::Publish),
        1 => Just(Step::WantKick),
        1 => Just(Step::Scribble),
    ];
    proptest::collection::vec(step, 1..80)
}

/// Writes a descriptor.
fn write_desc(window: &Window, index: u16, desc: Desc) {
    Ring::write_desc(window, index, Piece { addr: desc.addr, len: desc.len }, desc.flags, desc.next);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 400 / 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever stands in the ring: no panic, no byte outside of memory, and each chain is judged as the standard has it.
    #[test]
    fn malicious_rings_are_followed_as_far_as_the_standard_goes(steps in steps(), event_idx in any::<bool>(), to_guest in any::<bool>()) {
        let (mut memory, device_memory) = memories();
        let driver = Ring::new(&mut memory, SIZE);
        let mut device = queue(&device_memory, &driver, event_idx, to_guest);
        let (mut next, mut seen, mut avail) = (0_u16, 0_u16, 0_u16);
        let mut taken: Vec<u16> = Vec::new();
        for step in steps {
            match step {
                Step::Write(0, index, desc) => write_desc(&driver.desc, index, desc),
                Step::Write(table, index, desc) => {
                    let offset = usize::try_from(TABLES[usize::from(table) - 1] - REGIONS[DATA].0).unwrap();
                    // The second table ends at the end of its region; a longer one does not lie in one region.
                    let room = REGIONS[DATA].1 - offset;
                    if usize::from(index) * 16 + 16 <= room {
                        write_desc(&memory.whole(DATA).part(offset, room), index, desc);
                    }
                }
                Step::Offer(head) => {
                    driver.avail.write(4 + usize::from(avail % SIZE) * 2, &head.to_le_bytes());
                    avail = avail.wrapping_add(1);
                    driver.avail.store(2, avail);
                }
                Step::Jump(to) => {
                    avail = to;
                    driver.avail.store(2, avail);
                }
                Step::Take => {
                    let mut segments = Vec::new();
                    let result = device.take(&device_memory, &mut segments);
                    if seen == next {
                        if avail.wrapping_sub(next) > SIZE {
                            prop_assert_eq!(result, Err(RingError::AvailableIndex));
                            return Ok(());
                        }
                        seen = avail;
                    }
                    if seen == next {
                        prop_assert_eq!(result, Ok(None));
                        continue;
                    }
                    let mut head = [0; 2];
                    driver.avail.read(4 + usize::from(next % SIZE) * 2, &mut head);
                    let head = u16::from_le_bytes(head);
                    if head >= SIZE {
                        prop_assert_eq!(result, Err(RingError::Head));
                        return Ok(());
                    }
                    next = next.wrapping_add(1);
                    let chain = result.unwrap().unwrap();
                    prop_assert_eq!(chain.head, head);
                    let mut table = vec![0; usize::from(SIZE) * 16];
                    driver.desc.read(0, &mut table);
                    match follow(&memory, &table, head, to_guest, false) {
                        Some(expected) => {
                            prop_assert!(chain.sound);
                            prop_assert_eq!(contents(&segments), expected);
                        }
                        None => {
                            prop_assert!(!chain.sound);
                            prop_assert!(segments.is_empty());
                        }
                    }
                    taken.push(head);
                }
                Step::PutBack => {
                    if taken.pop().is_some() {
                        device.put_back(1);
                        next = next.wrapping_sub(1);
                    }
                }
                Step::Publish => {
                    for head in taken.drain(..) {
                        device.give_back(head, 0);
                    }
                    device.publish();
                }
                Step::WantKick => {
                    let result = device.want_kick();
                    if avail.wrapping_sub(next) > SIZE {
                        prop_assert_eq!(result, Err(RingError::AvailableIndex));
                        return Ok(());
                    }
                    prop_assert_eq!(result, Ok(avail != seen));
                    seen = avail;
                }
                Step::Scribble => driver.used.fill(0x5a),
            }
        }
    }

    /// A sound driver gets every buffer back once, with what was written, and is woken whenever it asked for it; the device
    /// is kicked whenever it asked for it.
    #[test]
    fn sound_drivers_get_their_buffers_back_and_their_notifications(
        steps in proptest::collection::vec((0_u8..5, 1_usize..6), 1..300),
        event_idx in any::<bool>(),
        indirect in any::<bool>(),
    ) {
        let (mut memory, device_memory) = memories();
        let mut driver = Ring::new(&mut memory, 16);
        driver.set_features(event_idx, indirect);
        let mut device = queue(&device_memory, &driver, event_idx, false);
        let (mut offered, mut returned, mut token) = (0_u32, 0_u32, 0_u32);
        let (mut driver_sleeps, mut device_sleeps) = (false, false);
        for (what, count) in steps {
            match what {
                // The driver offers buffers.
                0 => {
                    let pieces: Vec<Piece> = (0..count).map(|i| Piece { addr: 0x1_0000 + i as u64 * 100, len: 50 }).collect();
                    if driver.add(&pieces, false, token) {
                        token += 1;
                        offered += 1;
                        let kick = driver.publish();
                        prop_assert!(kick || !device_sleeps, "a device that sleeps must be kicked");
                        device_sleeps &= !kick;
                    }
                }
                // The device works through what there is, and sleeps.
                1 => {
                    device_sleeps = false;
                    device.no_kicks();
                    let mut segments = Vec::new();
                    for _ in 0..count {
                        segments.clear();
                        match device.take(&device_memory, &mut segments).unwrap() {
                            Some(chain) => {
                                prop_assert!(chain.sound);
                                device.give_back(chain.head, 0);
                            }
                            None => break,
                        }
                    }
                    let had_sleeper = driver_sleeps && !driver.has_used();
                    let interrupt = device.publish();
                    prop_assert!(!(had_sleeper && driver.has_used() && !interrupt), "a driver that sleeps must be woken");
                    if device.available().unwrap() == 0 && !device.want_kick().unwrap() {
                        device_sleeps = true;
                    }
                }
                // The driver takes some back.
                2 | 3 => {
                    driver.disarm();
                    driver_sleeps = false;
                    for _ in 0..count {
                        if driver.pop().is_some() {
                            returned += 1;
                        }
                    }
                }
                // The driver sleeps if there is nothing.
                _ => driver_sleeps = !driver.arm(),
            }
        }
        prop_assert!(returned <= offered);
        let mut segments = Vec::new();
        while let Some(chain) = device.take(&device_memory, &mut segments).unwrap() {
            device.give_back(chain.head, 0);
        }
        device.publish();
        while driver.pop().is_some() {
            returned += 1;
        }
        prop_assert_eq!(returned, offered);
        prop_assert_eq!(driver.room(), 16);
    }
}

#[test]
fn layouts_that_are_crooked_or_outside_of_memory_are_refused() {
    let (mut memory, device_memory) = memories();
    let driver = Ring::new(&mut memory, 16);
    let (desc, avail, used) = (driver.desc.user(), driver.avail.user(), driver.used.user());
    let resolve = |size, desc, avail, used| Layout::resolve(&device_memory, size, desc, avail, used).is_some();
    assert!(resolve(16, desc, avail, used));
    for size in [0, 3, 17, 65_535] {
        assert!(!resolve(size, desc, avail, used), "size {size}");
    }
    assert!(!resolve(16, desc + 8, avail, used));
    assert!(!resolve(16, desc, avail + 1, used));
    assert!(!resolve(16, desc, avail, used + 2));
    for nowhere in [0, 16, u64::MAX - 15] {
        assert!(!resolve(16, nowhere, avail, used));
        assert!(!resolve(16, desc, nowhere & !1, used));
        assert!(!resolve(16, desc, avail, nowhere & !3));
    }
    // A ring that begins in a region and ends behind it.
    let end = memory.whole(0).user() + REGIONS[0].1 as u64;
    assert!(!resolve(16, end - 128, avail, used));
    assert!(resolve(8, end - 128, avail, used));
}
