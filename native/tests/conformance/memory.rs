//! Guest memory: regions that come and go, and memory that is not shared.

use crate::rig::{Rig, assert_same, bytes, open_from_guest, open_from_host};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use vhostvsock_native::events::{Kind, Level};
use vsock_driver::front_end::FrontEnd;
use vsock_driver::front_end::message::{feature, request};
use vsock_driver::guest::{Guest, Setup, piece};
use vsock_driver::header::{Header, op};
use vsock_driver::memory::RegionSpec;

#[test]
fn memory_as_one_table_works_as_well_as_region_by_region() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.protocol &= !feature::PROTOCOL_CONFIGURE_MEM_SLOTS);
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    stream.write_all(b"x").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"x");
}

#[test]
fn regions_may_begin_in_the_middle_of_their_files() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.regions[1].offset = 1 << 21);
    open_from_host(&rig, &mut guest, 80);
}

#[test]
fn memory_added_while_running_is_used_and_can_be_taken_away() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    for round in 0..5 {
        let region = guest.memory.add(RegionSpec::new((2 << 32) + (round << 24), 1 << 20)).unwrap();
        guest.front.add_region(&region).unwrap();
        let payload = bytes(1000, round);
        let window = guest.memory.alloc_in(2, 44 + 1000, 1).unwrap();
        let header = Header { len: 1000, ..guest.header(op::RW, 5000, 1000) };
        window.write(0, &header.to_bytes());
        window.write(44, &payload);
        // Token 0 is an arena of the guest: it comes back to the list of free ones, as if it had been used.
        guest.flush();
        assert!(guest.tx.add(&[piece(&window)], false, 0));
        guest.tx.publish_and_kick();
        let mut got = vec![0; 1000];
        stream.read_exact(&mut got).unwrap();
        assert_same(&got, &payload);
        assert!(guest.tx.wait(vsock_driver::deadline::Deadline::patient()));
        assert!(guest.tx.pop().is_some());
        let region = guest.memory.remove_last().unwrap();
        guest.front.remove_region(&region).unwrap();
        guest.say_data(5000, 1000, b"!");
        stream.read_exact(&mut [0; 1]).unwrap();
    }
}

#[test]
fn descriptor_into_memory_that_is_gone_is_a_broken_chain() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let region = guest.memory.add(RegionSpec::new(2 << 32, 1 << 20)).unwrap();
    guest.front.add_region(&region).unwrap();
    let window = guest.memory.alloc_in(2, 44, 1).unwrap();
    guest.memory.remove_last().unwrap();
    guest.front.remove_region(&region).unwrap();
    assert!(guest.tx.add(&[piece(&window)], false, 0));
    guest.tx.publish_and_kick();
    rig.wait_stats("counted", |s| s.bad_chains == 1);
    open_from_host(&rig, &mut guest, 80);
}

#[test]
fn many_regions_are_accepted() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| {
        for slot in 0..60 {
            setup.regions.push(RegionSpec::new((2 << 32) + (slot << 20), 1 << 16));
        }
    });
    open_from_host(&rig, &mut guest, 80);
}

#[test]
fn region_that_overlaps_another_ends_the_session() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let region = guest.memory.add(RegionSpec::new(0, 1 << 16)).unwrap();
    assert!(guest.front.add_region(&region).is_err());
    assert!(guest.front.is_thrown_out());
    rig.wait_event_with(Kind::Log, "overlap");
}

#[test]
fn region_that_nobody_shared_cannot_be_taken_away() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let region = guest.memory.add(RegionSpec::new(3 << 32, 1 << 16)).unwrap();
    assert!(guest.front.remove_region(&region).is_err());
    assert!(guest.front.is_thrown_out());
}

#[test]
fn table_with_too_few_descriptors_ends_the_session() {
    let rig = Rig::new();
    let guest = rig.boot();
    let mut payload = vec![1, 0, 0, 0, 0, 0, 0, 0];
    payload.resize(40, 0);
    assert!(guest.front.set(request::SET_MEM_TABLE, &payload, &[]).is_err());
    assert!(guest.front.is_thrown_out());
}

#[test]
fn memory_that_is_not_shared_is_found_out_and_the_log_names_the_remedy() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.regions.iter_mut().for_each(|region| region.shared = false));
    guest.rx.kick();
    let event = rig.wait_event_with(Kind::Log, "share=on");
    assert!(event.level >= Level::Warning, "{event:?}");
}

#[test]
fn front_end_that_shares_no_memory_at_all_is_thrown_out_and_told_the_remedy() {
    // As QEMU does without a memory backend: none of its memory is in a file, so there is nothing to be passed.
    let rig = Rig::new();
    let mut guest = Guest::prepare(rig.plug(), Setup::default()).unwrap();
    assert!(guest.start([0; 2]).is_err());
    assert!(guest.front.is_thrown_out());
    rig.wait_event_with(Kind::Detached, "share=on");
}

#[test]
fn shared_memory_causes_no_such_warning() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let _stream = open_from_host(&rig, &mut guest, 80);
    let bases = guest.stop().unwrap();
    guest.start(bases).unwrap();
    open_from_host(&rig, &mut guest, 80);
    while let Some(event) = rig.events.pop() {
        assert!(!event.text.contains("share=on"), "{event:?}");
    }
}

#[test]
fn region_longer_than_its_file_ends_the_session() {
    // Touching what is behind the end of a file would end the process.
    let rig = Rig::new();
    let mut guest = rig.boot();
    let region = guest.memory.add(RegionSpec::new(3 << 32, 1 << 16)).unwrap();
    ftruncate(&region.file, 1 << 12).unwrap();
    assert!(guest.front.add_region(&region).is_err());
    assert!(guest.front.is_thrown_out());
}

#[test]
fn file_that_shrinks_costs_its_own_guest_the_device_and_nobody_else() {
    let (rig, other) = (Rig::new(), Rig::new());
    let mut guest = rig.boot();
    let mut neighbour = other.boot();
    for region in guest.memory.regions() {
        ftruncate(&region.file, 0).unwrap();
    }
    // Nothing of the guest's memory may be touched here: it is mapped in this process as well.
    guest.tx.kick();
    rig.wait_event_with(Kind::Detached, "its file shrank");
    assert_eq!(rig.stats().front_end_errors, 1);
    drop(guest);
    open_from_host(&other, &mut neighbour, 80);
    let mut next = rig.boot();
    open_from_host(&rig, &mut next, 80);
}

/// A front-end that may share memory.
fn negotiated(rig: &Rig) -> FrontEnd {
    let mut front = rig.plug();
    let Setup { features, protocol, .. } = Setup::default();
    front.negotiate(features, protocol).unwrap();
    front
}

/// A file of memory without content.
fn file(len: u64) -> OwnedFd {
    let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

/// ADD_MEM_REG of the beginning of `file`, which needs no mapping of ours.
fn add(front: &FrontEnd, guest: u64, user: u64, len: u64, file: &OwnedFd) -> std::io::Result<()> {
    let mut payload = vec![0; 8];
    payload.extend([guest, len, user, 0].iter().flat_map(|value| value.to_ne_bytes()));
    front.set(request::ADD_MEM_REG, &payload, &[file.as_fd()])
}

#[test]
fn descriptors_that_are_no_memory_end_the_session() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let open = |path| OwnedFd::from(std::fs::File::open(path).unwrap());
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    // /proc stands for file systems whose files are made by somebody who may take any time for it.
    let wrong = [socket.into(), rustix::pipe::pipe().unwrap().0, event, open("/"), open("/proc/self/status")];
    for fd in wrong.into_iter().chain([open("/dev/null")]) {
        let rig = Rig::new();
        let front = negotiated(&rig);
        assert!(add(&front, 0, 0, 4096, &fd).is_err(), "{fd:?}");
        assert!(front.is_thrown_out());
        rig.wait_event_with(Kind::Detached, "memory region of 0x1000 bytes");
        assert_eq!(rig.stats().front_end_errors, 1);
        open_from_host(&rig, &mut rig.boot(), 80);
    }
}

#[test]
fn rings_at_odd_addresses_end_the_session_and_not_the_device() {
    let rig = Rig::new();
    let front = negotiated(&rig);
    // The addresses are even for the front-end, but its region begins at an odd one.
    add(&front, 0, 0x10_0001, 1 << 20, &file(1 << 20)).unwrap();
    front.set_features().unwrap();
    front.set_ring(request::SET_VRING_NUM, 0, 128).unwrap();
    front.set_ring(request::SET_VRING_BASE, 0, 0).unwrap();
    front.set_ring_addresses(0, 0x10_1000, 0x10_3000, 0x10_5000).unwrap();
    let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    front.set_ring_fd(request::SET_VRING_KICK, 0, Some(kick.as_fd())).unwrap();
    assert!(front.enable_ring(0, true).is_err());
    assert!(front.is_thrown_out());
    let event = rig.wait_event(Kind::Detached);
    assert!(event.text.contains("queue 0"), "{event:?}");
    assert_eq!(rig.stats().front_end_errors, 1);
    open_from_host(&rig, &mut rig.boot(), 80);
}

#[test]
fn more_than_four_tib_of_one_guest_are_refused_with_a_reason() {
    const MOST: u64 = 4 << 40;
    let rig = Rig::new();
    let other = rig.another(2);
    let mut neighbour = other.boot();
    let file = file(MOST + 4096);
    // As a whole and in parts; what is just allowed is mapped.
    for parts in [&[MOST + 4096][..], &[MOST, 4096], &[MOST / 2, MOST / 4, MOST / 2]] {
        let front = negotiated(&rig);
        let mut at = 0;
        let (last, allowed) = parts.split_last().unwrap();
        for len in allowed {
            add(&front, at, at, *len, &file).unwrap();
            at += len;
        }
        assert!(add(&front, at, at, *last, &file).is_err(), "{parts:x?}");
        assert!(front.is_thrown_out());
        let event = rig.wait_event(Kind::Detached);
        assert!(event.text.contains("one guest can have 0x40000000000 bytes at the most"), "{event:?}");
    }
    assert_eq!((rig.stats().front_end_errors, other.stats().front_end_errors), (3, 0));
    // The limit is each guest's own, and holds nobody up who stays below it.
    open_from_host(&rig, &mut rig.boot(), 80);
    open_from_host(&other, &mut neighbour, 80);
}

/// The front-end shares so many bytes of a file of huge pages, which mostly are not there, and has its rings in them.
fn share_huge_pages(front: &FrontEnd, len: u64) -> std::io::Result<()> {
    const USER: u64 = 1 << 32;
    let file = memfd_create(HUGE, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)?;
    ftruncate(&file, 2 << 20)?;
    let region = [0, len, USER, 0].into_iter().flat_map(|word: u64| word.to_ne_bytes());
    let table: Vec<u8> = [1, 0, 0, 0, 0, 0, 0, 0].into_iter().chain(region).collect();
    front.set(request::SET_MEM_TABLE, &table, &[file.as_fd()])?;
    let kick = eventfd(0, EventfdFlags::NONBLOCK)?;
    for index in 0..2 {
        front.set_ring(request::SET_VRING_NUM, index, 16)?;
        front.set_ring_addresses(index, USER, USER + 0x1000, USER + 0x2000)?;
        front.set_ring_fd(request::SET_VRING_KICK, index.into(), Some(kick.as_fd()))?;
        front.enable_ring(index, true)?;
    }
    Ok(())
}

/// What the files of huge pages are called.
const HUGE: &str = "huge pages of a test";

/// How many of them are mapped in this process.
fn mapped_huge_pages() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(HUGE)).count()
}

#[test]
fn part_of_a_huge_page_is_unmapped_with_its_session_and_costs_at_most_the_device_where_there_are_none() {
    let rig = Rig::new();
    for len in [0x4000, (2 << 20) - 4096, 2 << 20] {
        let mut front = rig.plug();
        front.negotiate(Setup::default().features, Setup::default().protocol).unwrap();
        // Refused or not: where the system has no such pages, the first access finds that out.
        let _ = share_huge_pages(&front, len);
        drop(front);
        drop(rig.plug());
        assert_eq!(mapped_huge_pages(), 0, "{len:#x} bytes");
    }
    open_from_host(&rig, &mut rig.boot(), 80);
}
