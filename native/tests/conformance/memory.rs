//! Guest memory: regions that come and go, and memory that is not shared.

use crate::rig::{Rig, assert_same, bytes, open_from_guest, open_from_host};
use std::io::{Read, Write};
use vhostvsock_native::events::{Kind, Level};
use vsock_driver::front_end::message::{feature, request};
use vsock_driver::guest::piece;
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
    rustix::fs::ftruncate(&region.file, 1 << 12).unwrap();
    assert!(guest.front.add_region(&region).is_err());
    assert!(guest.front.is_thrown_out());
}

#[test]
fn file_that_shrinks_costs_its_own_guest_the_device_and_nobody_else() {
    let (rig, other) = (Rig::new(), Rig::new());
    let mut guest = rig.boot();
    let mut neighbour = other.boot();
    for region in guest.memory.regions() {
        rustix::fs::ftruncate(&region.file, 0).unwrap();
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
