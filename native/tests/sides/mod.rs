//! The two sides of a ring and its memory, without a device around them: the driver's and the device's.

use std::fs::File;
use vhostvsock_native::virtio::memory::GuestMemory;
use vhostvsock_native::virtio::queue::{Layout, Queue};
use vsock_driver::memory::{Memory, RegionSpec};
use vsock_driver::ring::Ring;

/// Memory of these regions (guest address, length), as the driver and as the device see it.
pub fn memories(regions: &[(u64, usize)]) -> (Memory, GuestMemory) {
    let specs: Vec<_> = regions.iter().map(|&(guest, len)| RegionSpec::new(guest, len)).collect();
    let ours = Memory::new(&specs).unwrap();
    let mut theirs = GuestMemory::default();
    for region in ours.regions() {
        let file = File::from(region.file.try_clone().unwrap());
        theirs.add(region.spec.guest, region.user(), region.spec.len as u64, 0, file).unwrap();
    }
    (ours, theirs)
}

/// The device's view of a ring that goes on at `base`.
pub fn queue(memory: &GuestMemory, ring: &Ring, base: u16, event_idx: bool, to_guest: bool) -> Queue {
    let layout = Layout::resolve(memory, ring.size, ring.desc.user(), ring.avail.user(), ring.used.user()).unwrap();
    Queue::new(layout, base, event_idx, to_guest)
}
