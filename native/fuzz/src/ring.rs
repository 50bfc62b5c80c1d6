//! Job: a virtqueue in which a malicious driver writes what it likes, between any two looks of the device.
//! Before: a fuzzer.
//! After: each chain was judged as a second reading of the standard judges it, and its bytes are those that it names.
//! Rules: the second reading shares nothing with the device's. Only the used ring may have been written.

use crate::input::Input;
use std::cell::RefCell;
use std::fs::File;
use vhostvsock_native::virtio::memory::{GuestMemory, Segment};
use vhostvsock_native::virtio::queue::{Layout, Queue, RingError};
use vsock_driver::memory::{Memory, RegionSpec, Window};
use vsock_driver::ring::{INDIRECT, NEXT, Piece, Ring, WRITE};

/// Descriptors of the ring.
const SIZE: u16 = 8;
/// Regions: the first for the ring, two that touch, one apart.
const REGIONS: [(u64, usize); 4] =
    [(0x20_0000, 0x4000), (0x1_0000, 0x1_0000), (0x2_0000, 0x1_0000), (0x10_0000, 0x4000)];
/// The region with the indirect tables.
const DATA: usize = 1;
/// Where the two indirect tables are; the second ends at the end of its region.
const TABLES: [u64; 2] = [0x1_0000, 0x1_ffc0];
/// Descriptors of each that can be written.
const TABLE_LEN: [u16; 2] = [8, 4];
/// Pieces of memory that a chain of so small a queue may have.
const MAX_PIECES: usize = 1024;
/// The most steps of one run.
const STEPS: usize = 400;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
struct Desc {
    /// Guest address of the buffer.
    addr: u64,
    /// Its length in bytes.
    len: u32,
    /// What it is.
    flags: u16,
    /// The one behind it.
    next: u16,
}

impl Desc {
    /// More often sensible than not.
    fn new(input: &mut Input) -> Self {
        let (mut flags, mut addr, mut len) = match input.below(12) {
            0..3 => (0, 0, 0),
            3..7 => (NEXT, 0, 0),
            7..9 => (INDIRECT, input.pick(&TABLES), 16 * (1 + input.below(8) as u32)),
            9 => (WRITE, 0, 0),
            10 => (WRITE | NEXT, 0, 0),
            _ => (input.u16(), 0, 0),
        };
        // An indirect table stays as it is, or has one thing wrong.
        let odd = input.below(8);
        if addr == 0 || odd == 1 {
            addr = match input.below(12) {
                0..5 => 0x1_0000 + u64::from(input.u16()) * 2,
                5..8 => 0x1_ff00 + input.below(0x200) as u64,
                8..10 => 0x10_3f00 + input.below(0x200) as u64,
                10 => input.u64(),
                _ => u64::MAX - u64::from(input.u8()),
            };
        }
        if len == 0 || odd == 2 {
            len = match input.below(8) {
                0..6 => input.below(300) as u32,
                6 => u32::MAX,
                _ => input.u32(),
            };
        }
        if odd == 3 {
            flags ^= input.pick(&[NEXT, WRITE, INDIRECT]);
        }
        let next = if input.below(9) < 8 { input.below(SIZE.into()) as u16 } else { input.u16() };
        Self { addr, len, flags, next }
    }

    /// Out of a table.
    fn read(table: &[u8], index: usize) -> Option<Self> {
        let bytes = table.get(index * 16..)?.get(..16)?;
        Some(Self {
            addr: u64::from_le_bytes(bytes[..8].try_into().ok()?),
            len: u32::from_le_bytes(bytes[8..12].try_into().ok()?),
            flags: u16::from_le_bytes(bytes[12..14].try_into().ok()?),
            next: u16::from_le_bytes(bytes[14..].try_into().ok()?),
        })
    }

    /// Into a table.
    fn write(self, table: &Window, index: u16) {
        Ring::write_desc(table, index, Piece { addr: self.addr, len: self.len }, self.flags, self.next);
    }
}

/// The guest's memory on both sides, and its ring. Used again and again, as it takes long to make.
struct Bench {
    /// The driver's side.
    memory: Memory,
    /// The device's.
    theirs: GuestMemory,
    /// The ring.
    ring: Ring,
    /// The indirect tables.
    tables: [Window; 2],
}

/// A byte of a data region, before anybody wrote there.
fn pattern(region: usize, at: usize) -> u8 {
    (at * 7 + at / 251 + region).to_le_bytes()[0]
}

impl Bench {
    /// Makes and fills the memory.
    fn new() -> Self {
        let mut memory = Memory::new(&REGIONS.map(|(guest, len)| RegionSpec::new(guest, len))).expect("memfd");
        let mut theirs = GuestMemory::default();
        for region in memory.regions() {
            let file = File::from(region.file.try_clone().expect("dup"));
            theirs.add(region.spec.guest, region.user(), region.spec.len as u64, 0, file).expect("mmap");
        }
        for index in DATA..REGIONS.len() {
            let window = memory.whole(index);
            let bytes: Vec<u8> = (0..window.len()).map(|at| pattern(index, at)).collect();
            window.write(0, &bytes);
        }
        let ring = Ring::new(&mut memory, SIZE);
        let tables = [0, 1].map(|table| {
            let at = usize::try_from(TABLES[table] - REGIONS[DATA].0).expect("an offset");
            memory.whole(DATA).part(at, usize::from(TABLE_LEN[table]) * 16)
        });
        Self { memory, theirs, ring, tables }
    }

    /// As it was in the beginning.
    fn clear(&mut self) {
        self.ring.clear();
        for (table, base) in self.tables.iter().zip(TABLES) {
            let start = usize::try_from(base - REGIONS[DATA].0).expect("an offset");
            let bytes: Vec<u8> = (start..start + table.len()).map(|at| pattern(DATA, at)).collect();
            table.write(0, &bytes);
        }
    }

    /// Up to `len` bytes at a guest address that lie in one region.
    fn part(&self, addr: u64, len: usize) -> Option<Window> {
        let index = REGIONS.iter().position(|(guest, size)| addr >= *guest && addr - guest < *size as u64)?;
        let window = self.memory.whole(index);
        let at = usize::try_from(addr - REGIONS[index].0).ok()?;
        Some(window.part(at, len.min(window.len() - at)))
    }

    /// Appends the pieces of a chain, by a second reading of virtio 1.3 section 2.7.5; `None` if it is broken.
    fn follow(&self, table: &[u8], head: u16, write: bool, nested: bool, pieces: &mut Vec<Window>) -> Option<()> {
        let mut index = usize::from(head);
        for _ in 0..table.len() / 16 {
            let Desc { addr, len, flags, next } = Desc::read(table, index)?;
            if flags & INDIRECT != 0 {
                if nested || flags & NEXT != 0 || len == 0 || len % 16 != 0 {
                    return None;
                }
                // A table lies in one region, and has no more descriptors than the largest queue.
                let lies = self.part(addr, len as usize).filter(|part| part.len() == len as usize)?;
                let mut inner = vec![0; lies.len()];
                lies.read(0, &mut inner);
                return self.follow(&inner, 0, write, true, pieces);
            }
            if (flags & WRITE != 0) != write {
                return None;
            }
            let (mut addr, mut left) = (addr, len as usize);
            while left > 0 {
                let part = self.part(addr, left).filter(|_| pieces.len() < MAX_PIECES)?;
                addr += part.len() as u64;
                left -= part.len();
                pieces.push(part);
            }
            if flags & NEXT == 0 {
                return Some(());
            }
            index = usize::from(next);
        }
        None
    }

    /// Compares a chain that the device took with what stands in the ring.
    fn check(&self, head: u16, to_guest: bool, sound: bool, segments: &[Segment]) {
        let mut table = vec![0; usize::from(SIZE) * 16];
        self.ring.desc.read(0, &mut table);
        let mut pieces = Vec::new();
        let followed = self.follow(&table, head, to_guest, false, &mut pieces);
        assert_eq!(sound, followed.is_some(), "chain {head} of {table:x?}");
        if !sound {
            assert!(segments.is_empty());
            return;
        }
        let lens = |lens: &[usize]| lens.iter().sum::<usize>();
        let ours = lens(&pieces.iter().map(Window::len).collect::<Vec<_>>());
        assert_eq!(lens(&segments.iter().map(Segment::len).collect::<Vec<_>>()), ours);
        // The same place shows in the bytes: they repeat nowhere nearby. Of long chains the beginnings will do.
        let (mut expected, mut found) = (vec![0; 4096], vec![0; 4096]);
        let mut at = 0;
        for piece in &pieces {
            let part = piece.len().min(expected.len() - at);
            piece.read(0, &mut expected[at..at + part]);
            at += part;
        }
        let mut at = 0;
        for segment in segments {
            at += segment.read(&mut found[at..]);
        }
        assert_eq!(found, expected);
    }
}

thread_local! {
    /// This thread's.
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

/// Plays steps of the driver and of the device, in any order.
pub fn run(data: &[u8]) {
    BENCH.with_borrow_mut(|bench| {
        bench.clear();
        play(bench, Input::new(data));
    });
}

/// The same, with a clean ring.
fn play(bench: &Bench, mut input: Input) {
    let (event_idx, to_guest) = (input.flag(), input.flag());
    // Where a driver goes on after a stop, near the wrap of the indices as well as anywhere.
    let base = if input.flag() { 0_u16.wrapping_sub(input.below(16) as u16) } else { 0 };
    let ring = &bench.ring;
    ring.avail.store(2, base);
    ring.used.store(2, base);
    let layout = Layout::resolve(&bench.theirs, SIZE, ring.desc.user(), ring.avail.user(), ring.used.user());
    let mut device = Queue::new(layout.expect("it is in memory"), base, event_idx, to_guest);
    let (mut next, mut seen, mut avail, mut used) = (base, base, base, base);
    let mut taken: Vec<u16> = Vec::new();
    let mut segments = Vec::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            return;
        }
        match input.below(32) {
            0..9 => match input.below(3) {
                0 => Desc::new(&mut input).write(&ring.desc, input.below(SIZE.into()) as u16),
                table => {
                    let index = input.below(TABLE_LEN[table - 1].into()) as u16;
                    Desc::new(&mut input).write(&bench.tables[table - 1], index);
                }
            },
            9..15 => {
                let head = if input.below(24) > 0 { input.below(SIZE.into()) as u16 } else { input.u16() };
                ring.avail.write(4 + usize::from(avail % SIZE) * 2, &head.to_le_bytes());
                avail = avail.wrapping_add(1);
                ring.avail.store(2, avail);
            }
            15 => {
                avail = if input.flag() { next.wrapping_add(input.below(10) as u16) } else { input.u16() };
                ring.avail.store(2, avail);
            }
            16..25 => {
                segments.clear();
                let result = device.take(&bench.theirs, &mut segments);
                if seen == next {
                    if avail.wrapping_sub(next) > SIZE {
                        return assert_eq!(result, Err(RingError::AvailableIndex));
                    }
                    seen = avail;
                }
                if seen == next {
                    assert_eq!(result, Ok(None));
                    continue;
                }
                let mut head = [0; 2];
                ring.avail.read(4 + usize::from(next % SIZE) * 2, &mut head);
                let head = u16::from_le_bytes(head);
                if head >= SIZE {
                    return assert_eq!(result, Err(RingError::Head));
                }
                next = next.wrapping_add(1);
                let chain = result.ok().flatten().expect("a chain");
                assert_eq!(chain.head, head);
                bench.check(head, to_guest, chain.sound, &segments);
                taken.push(head);
            }
            25..27 => {
                if taken.pop().is_some() {
                    device.put_back(1);
                    next = next.wrapping_sub(1);
                }
            }
            27..29 => {
                for head in taken.drain(..) {
                    let len = input.u8().into();
                    device.give_back(head, len);
                    let at = 4 + usize::from(used % SIZE) * 8;
                    assert_eq!((ring.used.u32(at), ring.used.u32(at + 4)), (head.into(), len));
                    used = used.wrapping_add(1);
                }
                device.publish();
                assert_eq!(ring.used_index(), used);
            }
            29 => {
                let result = device.want_kick();
                if avail.wrapping_sub(next) > SIZE {
                    return assert_eq!(result, Err(RingError::AvailableIndex));
                }
                assert_eq!(result, Ok(avail != seen));
                seen = avail;
            }
            30 => device.no_kicks(),
            _ => {
                // The driver writes into the ring of the device. What stands there is nobody's but the driver's loss.
                ring.used.fill(input.u8());
                ring.used.store(2, used);
            }
        }
        assert_eq!(device.base(), next);
    }
}
