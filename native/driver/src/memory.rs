//! Job: the guest's memory: memfd regions, mapped here and shared with the device.
//! Before: `guest` says which regions there are.
//! After: `front_end` passes their descriptors on; `ring` and `guest` read and write through windows.
//! Rules: every access is checked against its window, every window against its region. A window keeps its mapping alive.
// UNSAFETY: the device writes this memory at the same time, so it is only reached through raw pointers.
#![allow(unsafe_code)]

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// What a region is to be.
#[derive(Clone, Copy, Debug)]
pub struct RegionSpec {
    /// Its guest physical address.
    pub guest: u64,
    /// Its length in bytes.
    pub len: usize,
    /// Where it begins in its memfd.
    pub offset: u64,
    /// Mapped shared here; otherwise privately, as QEMU does with `share=off`, so that the device sees nothing of it.
    pub shared: bool,
}

impl RegionSpec {
    /// A shared region at the beginning of its file.
    pub fn new(guest: u64, len: usize) -> Self {
        Self { guest, len, offset: 0, shared: true }
    }
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    /// What it was asked to be.
    pub spec: RegionSpec,
    /// The file to be passed to the device.
    pub file: OwnedFd,
    /// The mapping.
    ptr: *mut u8,
}

// SAFETY: the pointer names a mapping that lives as long as the region; all access is volatile, atomic or a plain copy of
// bytes that the device may change at any time anyway.
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

impl Region {
    /// Makes and maps one.
    fn new(spec: RegionSpec) -> io::Result<Self> {
        let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, spec.offset + spec.len as u64)?;
        let flags = if spec.shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let ptr = unsafe {
            mmap(std::ptr::null_mut(), spec.len, ProtFlags::READ | ProtFlags::WRITE, flags, &file, spec.offset)
        }?;
        Ok(Self { spec, file, ptr: ptr.cast() })
    }

    /// Its address in this process, which the protocol calls the user address.
    pub fn user(&self) -> u64 {
        self.ptr as u64
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no window is left, as each holds the region.
        let _ = unsafe { munmap(self.ptr.cast(), self.spec.len) };
    }
}

/// A piece of guest memory.
#[derive(Clone, Debug)]
pub struct Window {
    /// The region that it lies in.
    region: Arc<Region>,
    /// Where it begins there.
    at: usize,
    /// Its length in bytes.
    len: usize,
}

impl Window {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its guest physical address.
    pub fn guest(&self) -> u64 {
        self.region.spec.guest + self.at as u64
    }

    /// Its address in this process.
    pub fn user(&self) -> u64 {
        self.region.user() + self.at as u64
    }

    /// A part of it.
    pub fn part(&self, at: usize, len: usize) -> Self {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "{at} + {len} is outside of {} bytes",
            self.len
        );
        Self { region: Arc::clone(&self.region), at: self.at + at, len }
    }

    /// A pointer to `len` bytes at `at`.
    fn pointer(&self, at: usize, len: usize) -> *mut u8 {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "{at} + {len} is outside of {} bytes",
            self.len
        );
        // SAFETY: within the window, which is within the mapping.
        unsafe { self.region.ptr.add(self.at + at) }
    }

    /// Copies out.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        let from = self.pointer(at, out.len());
        // SAFETY: checked by `pointer`; `out` is not guest memory.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
    }

    /// Copies in.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.pointer(at, bytes.len());
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Sets all bytes to `value`.
    pub fn fill(&self, value: u8) {
        let to = self.pointer(0, self.len);
        // SAFETY: as in `read`.
        unsafe { std::ptr::write_bytes(to, value, self.len) };
    }

    /// The 16-bit index at `at`, shared with the device.
    fn index(&self, at: usize) -> &AtomicU16 {
        let pointer = self.pointer(at, 2);
        assert!(pointer.addr() % 2 == 0);
        // SAFETY: mapped as long as `self` lives, aligned, and accessed as an atomic by the device, too.
        unsafe { AtomicU16::from_ptr(pointer.cast()) }
    }

    /// Reads an index; what the device wrote before is visible after.
    pub fn load(&self, at: usize) -> u16 {
        u16::from_le(self.index(at).load(Ordering::Acquire))
    }

    /// Publishes an index and all that was written before.
    pub fn store(&self, at: usize, value: u16) {
        self.index(at).store(value.to_le(), Ordering::Release);
    }

    /// A 32-bit value.
    pub fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// For the kernel's scatter-gather calls and for messages that point to it.
    pub fn address(&self) -> *mut u8 {
        self.pointer(0, self.len)
    }
}

/// All regions of a guest, each with the mark up to which it is given out.
#[derive(Debug, Default)]
pub struct Memory {
    /// The regions.
    regions: Vec<(Arc<Region>, usize)>,
}

impl Memory {
    /// Makes and maps the regions.
    pub fn new(specs: &[RegionSpec]) -> io::Result<Self> {
        let mut memory = Self::default();
        for spec in specs {
            memory.add(*spec)?;
        }
        Ok(memory)
    }

    /// Adds one.
    pub fn add(&mut self, spec: RegionSpec) -> io::Result<Arc<Region>> {
        let region = Arc::new(Region::new(spec)?);
        self.regions.push((Arc::clone(&region), 0));
        Ok(region)
    }

    /// Takes the last one out; windows into it stay valid here.
    pub fn remove_last(&mut self) -> Option<Arc<Region>> {
        self.regions.pop().map(|(region, _)| region)
    }

    /// The regions.
    pub fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.regions.iter().map(|(region, _)| region)
    }

    /// Gives out memory, from the first region that has as much.
    pub fn alloc(&mut self, len: usize, align: usize) -> Window {
        for index in 0..self.regions.len() {
            if let Some(window) = self.alloc_in(index, len, align) {
                return window;
            }
        }
        panic!("the guest has no {len} bytes of memory left");
    }

    /// Gives out memory of one region.
    pub fn alloc_in(&mut self, region: usize, len: usize, align: usize) -> Option<Window> {
        let (region, next) = self.regions.get_mut(region)?;
        let at = next.next_multiple_of(align);
        let end = at.checked_add(len).filter(|&end| end <= region.spec.len)?;
        *next = end;
        Some(Window { region: Arc::clone(region), at, len })
    }

    /// The whole of one region, given out or not.
    pub fn whole(&self, region: usize) -> Window {
        let region = &self.regions[region].0;
        Window { region: Arc::clone(region), at: 0, len: region.spec.len }
    }
}
