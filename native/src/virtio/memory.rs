//! Job: the guest's memory as the front-end shared it: guest addresses to pointers, always within bounds.
//! Before: `vhost_user` receives regions and their file descriptors.
//! After: `queue` follows descriptors; `host::io` gives pieces to the kernel.
//! Rules: the only file that holds raw pointers to guest memory and reads or writes through them. No reference to guest
//! memory is ever made: the guest changes it at any time. Every pointer comes from a region that is mapped.
// UNSAFETY: guest memory is shared with another process; it can only be reached through raw pointers.
#![allow(unsafe_code)]

use super::sigbus::{Watched, times_broken};
use rustix::fs::fstatfs;
use std::fs::File;
use std::sync::atomic::{AtomicU16, Ordering};
use vm_memory::{FileOffset, MmapRegion};

/// The most memory of one guest, in bytes. Files without content cost a front-end nothing, but the address space that they
/// are mapped into is everybody's.
const MAX_MEMORY: u64 = 4 << 40;

/// A piece of mapped guest memory, in the form in which the kernel takes it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Segment(libc::iovec);

// SAFETY: a segment is an address; whoever uses it is on the device's thread, which owns the mapping.
unsafe impl Send for Segment {}

/// A number at an address of any kind. An array of bytes would do as well, but is read byte by byte.
#[repr(C, packed)]
struct Unaligned<N>(N);

impl Segment {
    /// A piece of `len` bytes at `ptr`, which must be mapped.
    fn new(ptr: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: ptr.cast(), iov_len: len })
    }

    /// A piece of memory of ours, for a call that fills it together with the guest's.
    ///
    /// # Safety
    ///
    /// The segment must be gone, with all its copies, before anybody else uses `bytes`.
    pub unsafe fn of_ours(bytes: &mut [u8]) -> Self {
        Self::new(bytes.as_mut_ptr(), bytes.len())
    }

    /// Its first byte.
    fn ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it starts at a multiple of `n`.
    pub fn is_aligned_to(&self, n: usize) -> bool {
        self.ptr() as usize % n == 0
    }

    /// Whether it holds nothing, as a descriptor of length 0 does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For the kernel's scatter-gather calls.
    pub fn iovecs(segments: &[Self]) -> *const libc::iovec {
        segments.as_ptr().cast()
    }

    /// Cuts it at `at`, which must not be beyond its end.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.len());
        // SAFETY: `at` is within the segment, which lies within one mapping.
        let tail = unsafe { self.ptr().add(at) };
        (Self::new(self.ptr(), at), Self::new(tail, self.len() - at))
    }

    /// Copies guest memory out, as much as both hold. Returns the bytes copied.
    pub fn read(&self, out: &mut [u8]) -> usize {
        let len = self.len().min(out.len());
        // SAFETY: `len` bytes are mapped at `ptr`, and `out` is our own memory. The guest may write meanwhile: then
        // the bytes are of no particular value, which every caller expects.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr(), out.as_mut_ptr(), len) };
        len
    }

    /// Copies into guest memory, as much as both hold. Returns the bytes copied.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let len = self.len().min(bytes.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr(), len) };
        len
    }

    /// Where a number of type `N` lies at `offset`, aligned or not.
    fn number<N>(&self, offset: usize) -> *mut Unaligned<N> {
        assert!(offset.checked_add(size_of::<N>()).is_some_and(|end| end <= self.len()));
        // SAFETY: the assertion keeps it within the mapping.
        unsafe { self.ptr().add(offset).cast() }
    }

    /// A little-endian u16.
    pub fn u16(&self, offset: usize) -> u16 {
        // SAFETY: `number` checks, and any bytes are a number.
        u16::from_le(unsafe { self.number::<u16>(offset).read_volatile() }.0)
    }

    /// A little-endian u128.
    pub fn u128(&self, offset: usize) -> u128 {
        // SAFETY: as in `u16`.
        u128::from_le(unsafe { self.number::<u128>(offset).read_volatile() }.0)
    }

    /// Writes a little-endian u64.
    pub fn set_u64(&self, offset: usize, value: u64) {
        // SAFETY: `number` checks.
        unsafe { self.number::<u64>(offset).write_volatile(Unaligned(value.to_le())) };
    }

    /// The 16-bit index at `offset`, shared with the guest's processors.
    fn index(&self, offset: usize) -> &AtomicU16 {
        assert!(offset + 2 <= self.len() && (self.ptr() as usize + offset) % 2 == 0);
        // SAFETY: within the mapping and aligned; other parties access it as an atomic of the same size. The
        // reference does not outlive this thread's use of the ring, which ends before the region is unmapped.
        unsafe { AtomicU16::from_ptr(self.ptr().add(offset).cast()) }
    }

    /// Reads an index that the guest publishes: what it wrote before is visible after.
    pub fn load_index(&self, offset: usize) -> u16 {
        u16::from_le(self.index(offset).load(Ordering::Acquire))
    }

    /// Publishes an index: what was written before is visible to whoever reads it.
    pub fn store_index(&self, offset: usize, value: u16) {
        self.index(offset).store(value.to_le(), Ordering::Release);
    }
}

/// One shared region.
struct Region {
    /// Guest physical address of its first byte.
    guest: u64,
    /// The same byte in the front-end's address space; ring addresses are given so.
    user: u64,
    /// Its length in bytes.
    len: u64,
    /// Tells if what is behind the mapping is not there (any more). Before the mapping, so that it ends first.
    watched: Watched,
    /// The mapping, which ends with the region.
    map: MmapRegion,
}

/// All memory of the guest that the front-end shared.
#[derive(Default)]
pub struct GuestMemory {
    /// The regions, without overlap, by guest address.
    regions: Vec<Region>,
    /// The region found last: mostly the next one, too.
    last: std::cell::Cell<usize>,
    /// How often regions of any guest had broken when it was asked last.
    times_broken: std::cell::Cell<u32>,
}

impl GuestMemory {
    /// Maps a region. The error names what is wrong with it.
    pub fn add(&mut self, guest: u64, user: u64, len: u64, offset: u64, file: File) -> Result<(), String> {
        let described = format!("memory region of {len:#x} bytes at guest address {guest:#x}");
        let (Some(guest_end), Some(_), Ok(size)) =
            (guest.checked_add(len), user.checked_add(len), usize::try_from(len))
        else {
            return Err(format!("{described}: its end is beyond the address space"));
        };
        if len == 0 {
            return Err(format!("{described}: it is empty"));
        }
        if let Some(other) = self.regions.iter().find(|r| guest < r.guest + r.len && r.guest < guest_end) {
            return Err(format!("{described}: it overlaps the one at {:#x}", other.guest));
        }
        if self.regions.iter().map(|region| region.len).sum::<u64>().saturating_add(len) > MAX_MEMORY {
            return Err(format!("{described}: one guest can have {MAX_MEMORY:#x} bytes at the most"));
        }
        // Mapping more than there is works, and the first access behind the end kills the process.
        let about = file.metadata().map_err(|error| format!("{described}: its file: {error}"))?;
        let there = about.len();
        // The length of a device is not told.
        if about.is_file() && offset.checked_add(len).is_none_or(|end| end > there) {
            return Err(format!("{described}: its file has only {there:#x} bytes, and it starts at {offset:#x}"));
        }
        let Some(mapped) = size.checked_next_multiple_of(page(&file)) else {
            return Err(format!("{described}: its end is beyond the address space"));
        };
        let map = MmapRegion::from_file(FileOffset::new(file, offset), mapped)
            .map_err(|error| format!("{described}: cannot be mapped at file offset {offset:#x}: {error}"))?;
        let watched = Watched::new(map.as_ptr(), mapped).map_err(|error| format!("{described}: {error}"))?;
        let at = self.regions.partition_point(|r| r.guest < guest);
        self.regions.insert(at, Region { guest, user, len, watched, map });
        Ok(())
    }

    /// Unmaps the region that starts at these two addresses and has this length; whether there was one.
    pub fn remove(&mut self, guest: u64, user: u64, len: u64) -> bool {
        let before = self.regions.len();
        self.regions.retain(|r| (r.guest, r.user, r.len) != (guest, user, len));
        self.regions.len() != before
    }

    /// Unmaps everything.
    pub fn clear(&mut self) {
        self.regions.clear();
    }

    /// Whether a file shrank, so that what we saw of the guest's memory since is not the guest's.
    pub fn is_broken(&self) -> bool {
        let times = times_broken();
        // Mostly nothing broke anywhere since it was asked last.
        self.times_broken.replace(times) != times && self.regions.iter().any(|region| region.watched.is_broken())
    }

    /// Number of regions.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// `len` bytes at `user`, an address of the front-end, if they lie in one region.
    pub fn at_user_address(&self, user: u64, len: usize) -> Option<Segment> {
        let region = self.regions.iter().find(|r| user >= r.user && user - r.user < r.len)?;
        region.segment(user - region.user, len as u64).filter(|segment| segment.len() == len)
    }

    /// `len` bytes at guest address `guest`, if they lie in one region.
    pub fn at_guest_address(&self, guest: u64, len: usize) -> Option<Segment> {
        let region = self.find(guest)?;
        region.segment(guest - region.guest, len as u64).filter(|segment| segment.len() == len)
    }

    /// Appends the pieces that `len` bytes at guest address `guest` consist of; `false` if some are not mapped, or if
    /// `out` would get longer than `most`.
    #[inline]
    pub fn resolve(&self, mut guest: u64, mut len: u64, out: &mut Vec<Segment>, most: usize) -> bool {
        while len > 0 {
            if out.len() >= most {
                return false;
            }
            let Some(region) = self.find(guest) else { return false };
            let Some(segment) = region.segment(guest - region.guest, len) else { return false };
            out.push(segment);
            len -= segment.len() as u64;
            // A region's end is within the address space, so this does not overflow while bytes are left in it.
            let Some(next) = guest.checked_add(segment.len() as u64) else { return len == 0 };
            guest = next;
        }
        true
    }

    /// The region with this guest address.
    fn find(&self, guest: u64) -> Option<&Region> {
        let holds = |region: &&Region| guest >= region.guest && guest - region.guest < region.len;
        if let Some(region) = self.regions.get(self.last.get()).filter(holds) {
            return Some(region);
        }
        // They are in order, without overlap.
        let at = self.regions.partition_point(|region| region.guest <= guest).checked_sub(1)?;
        self.last.set(at);
        self.regions.get(at).filter(holds)
    }
}

/// The pages in which a file is mapped, if they are huge, else 1. The kernel maps whole ones of these, whatever length it is
/// told, but unmaps and replaces nothing less.
fn page(file: &File) -> usize {
    match fstatfs(file) {
        Ok(about) if about.f_type == libc::HUGETLBFS_MAGIC => usize::try_from(about.f_bsize).unwrap_or(1).max(1),
        _ => 1,
    }
}

impl Region {
    /// Up to `len` bytes at `offset`, which must lie in the region.
    fn segment(&self, offset: u64, len: u64) -> Option<Segment> {
        let len = len.min(self.len.checked_sub(offset)?);
        // SAFETY: `offset` is not beyond the mapping's length.
        let ptr = unsafe { self.map.as_ptr().add(usize::try_from(offset).ok()?) };
        Some(Segment::new(ptr, usize::try_from(len).ok()?))
    }
}
