//! Guests that break their rings: they lose their device, nobody else anything, and the next guest is served.

use crate::rig::{Rig, Stop, open_from_guest, open_from_host};
use std::sync::atomic::{AtomicBool, Ordering};
use vhostvsock_native::events::Kind;
use vsock_driver::deadline::{Deadline, wait_until};
use vsock_driver::guest::{Guest, piece};
use vsock_driver::header::{Header, op};
use vsock_driver::memory::RegionSpec;
use vsock_driver::ring::{INDIRECT, NEXT, Piece, Ring, WRITE};

/// A guest breaks its ring beyond repair: it is thrown out, and another one works.
#[track_caller]
fn assert_fatal(break_it: impl FnOnce(&mut Guest)) {
    let rig = Rig::new();
    let mut guest = rig.boot();
    break_it(&mut guest);
    assert!(guest.front.is_thrown_out());
    rig.wait_event(Kind::Detached);
    let mut guest = rig.boot();
    open_from_host(&rig, &mut guest, 80);
}

/// A guest offers a chain that cannot be followed: it gets it back, and everything else works.
#[track_caller]
fn assert_bad_chain(build: impl FnOnce(&mut Guest, u16)) {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let _stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    guest.flush();
    // Adds a sound chain, so that the ring knows its head, and spoils it before the device sees it.
    assert!(guest.tx.add(&[Piece { addr: 0, len: 44 }], false, 0));
    let slot = usize::from(guest.tx.avail_index() % guest.tx.size);
    let mut head = [0; 2];
    guest.tx.avail.read(4 + slot * 2, &mut head);
    build(&mut guest, u16::from_le_bytes(head));
    guest.tx.publish_and_kick();
    rig.wait_stats("counted", |s| s.bad_chains == 1);
    assert!(guest.tx.wait(Deadline::patient()));
    assert_eq!(guest.tx.pop().map(|used| used.len), Some(0));
    guest.say(op::CREDIT_REQUEST, 5000, 1000);
    guest.expect(op::CREDIT_UPDATE);
    open_from_host(&rig, &mut guest, 80);
}

/// A place in guest memory for an indirect table.
fn table(guest: &mut Guest, descriptors: usize) -> vsock_driver::memory::Window {
    guest.memory.alloc(descriptors * 16, 16)
}

#[test]
fn available_index_that_jumps_further_than_the_ring_is_long_is_fatal() {
    for jump in [129, 1000, 32_768, 65_535] {
        assert_fatal(|guest| {
            guest.tx.avail.store(2, guest.tx.avail_index().wrapping_add(jump));
            guest.tx.kick();
        });
    }
    assert_fatal(|guest| {
        guest.rx.avail.store(2, guest.rx.avail_index().wrapping_add(129));
        guest.rx.kick();
        guest.say(op::RW, 1, 2);
    });
}

#[test]
fn head_outside_of_the_table_is_fatal() {
    for head in [128, 1000, 65_535] {
        assert_fatal(|guest| {
            guest.tx.offer(head);
            guest.tx.publish();
            guest.tx.kick();
        });
    }
}

#[test]
fn what_was_under_way_when_a_guest_broke_its_ring_is_not_given_to_the_next_guest() {
    let rig = Rig::new();
    let listener = rig.listen(1000);
    let mut guest = rig.boot();
    let _stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    // Sound packets, then a head that is none, all found at once.
    let header = Header { len: 3, ..guest.header(op::RW, 5000, 1000) };
    for _ in 0..5 {
        assert!(guest.put(&header, b"old"));
    }
    guest.tx.offer(200);
    guest.tx.publish_and_kick();
    assert!(guest.front.is_thrown_out());
    drop(guest);
    let mut guest = rig.boot();
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    guest.say_data(5000, 1000, b"new");
    guest.flush();
    let mut got = [0; 3];
    std::io::Read::read_exact(&mut stream, &mut got).unwrap();
    assert_eq!(&got, b"new");
}

#[test]
fn chain_in_a_circle_is_returned() {
    assert_bad_chain(|guest, head| Ring::write_desc(&guest.tx.desc, head, Piece { addr: 0, len: 44 }, NEXT, head));
}

#[test]
fn chain_that_leaves_the_table_is_returned() {
    assert_bad_chain(|guest, head| Ring::write_desc(&guest.tx.desc, head, Piece { addr: 0, len: 44 }, NEXT, 128));
    assert_bad_chain(|guest, head| Ring::write_desc(&guest.tx.desc, head, Piece { addr: 0, len: 44 }, NEXT, 65_535));
}

#[test]
fn buffer_outside_of_memory_is_returned() {
    let nowhere = [(1 << 50, 44), (u64::MAX - 10, 44), (u64::MAX, 1), ((1 << 20) - 10, 44), (0, u32::MAX)];
    for (addr, len) in nowhere {
        assert_bad_chain(|guest, head| Ring::write_desc(&guest.tx.desc, head, Piece { addr, len }, 0, 0));
    }
}

#[test]
fn buffer_for_writing_in_the_transmit_queue_is_returned() {
    assert_bad_chain(|guest, head| Ring::write_desc(&guest.tx.desc, head, Piece { addr: 0, len: 44 }, WRITE, 0));
}

#[test]
fn indirect_table_within_an_indirect_table_is_returned() {
    assert_bad_chain(|guest, head| {
        let table = table(guest, 1);
        let piece = Piece { addr: table.guest(), len: 16 };
        Ring::write_desc(&table, 0, piece, INDIRECT, 0);
        Ring::write_desc(&guest.tx.desc, head, piece, INDIRECT, 0);
    });
}

#[test]
fn indirect_table_that_is_crooked_empty_or_nowhere_is_returned() {
    for (addr, len) in [(0, 0), (0, 15), (0, 17), (1 << 50, 16), ((1 << 20) - 16, 32), (0, u32::MAX - 15)] {
        assert_bad_chain(|guest, head| Ring::write_desc(&guest.tx.desc, head, Piece { addr, len }, INDIRECT, 0));
    }
}

#[test]
fn indirect_table_that_goes_on_behind_itself_is_returned() {
    assert_bad_chain(|guest, head| {
        let table = table(guest, 2);
        let piece = Piece { addr: table.guest(), len: 32 };
        Ring::write_desc(&table, 0, Piece { addr: 0, len: 44 }, NEXT, 2);
        Ring::write_desc(&guest.tx.desc, head, piece, INDIRECT, 0);
    });
    assert_bad_chain(|guest, head| {
        let table = table(guest, 1);
        let piece = Piece { addr: table.guest(), len: 16 };
        Ring::write_desc(&table, 0, Piece { addr: 0, len: 44 }, 0, 0);
        Ring::write_desc(&guest.tx.desc, head, piece, INDIRECT | NEXT, head);
    });
}

#[test]
fn receive_buffer_that_cannot_be_written_is_skipped() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.rx_buffers = 2);
    // The first buffer is for reading, the second one is as it should be.
    let mut head = [0; 2];
    guest.rx.avail.read(4, &mut head);
    Ring::write_desc(&guest.rx.desc, u16::from_le_bytes(head), Piece { addr: 0, len: 4096 }, 0, 0);
    guest.say(op::RW, 1, 2);
    rig.wait_stats("counted", |s| s.bad_chains == 1);
    assert!(guest.rx.wait(Deadline::patient()));
    assert_eq!(guest.rx.pop().map(|used| used.len), Some(0));
    assert!(guest.rx.wait(Deadline::patient()));
    assert_eq!(guest.take().map(|packet| packet.header.op), Some(op::RST));
}

#[test]
fn guest_that_rewrites_its_used_ring_confuses_only_itself() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let header = guest.header(op::REQUEST, 5000, 1000);
    assert!(guest.put(&header, &[]));
    guest.tx.used.fill(0xff);
    guest.rx.used.fill(0xff);
    guest.tx.publish();
    guest.tx.kick();
    rig.wait_stats("the packet was read", |s| s.guest_requests == 1);
    drop(listener);
    drop(guest);
    rig.wait_event(Kind::Detached);
    let mut guest = rig.boot();
    open_from_host(&rig, &mut guest, 80);
}

/// An indirect table of so many descriptors, each with one byte, but for the first with the header of a packet on ports
/// without a connection.
fn packet_in_pieces(guest: &mut Guest, pieces: u16) -> Piece {
    let header = guest.memory.alloc(44, 1);
    header.write(0, &guest.header(op::RW, 9, 1000).to_bytes());
    let table = table(guest, pieces.into());
    for index in 0..pieces {
        let place = if index == 0 { piece(&header) } else { Piece { addr: 0, len: 1 } };
        Ring::write_desc(&table, index, place, if index + 1 == pieces { 0 } else { NEXT }, index + 1);
    }
    piece(&table)
}

#[test]
fn chain_of_1024_pieces_is_followed_and_one_of_more_returned() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let table = packet_in_pieces(&mut guest, 1024);
    Ring::write_desc(&guest.tx.desc, 0, table, INDIRECT, 0);
    guest.tx.offer(0);
    guest.tx.publish_and_kick();
    assert!(guest.rx.wait(Deadline::patient()));
    assert_eq!(guest.take().map(|packet| (packet.header.op, packet.header.dst_port)), Some((op::RST, 9)));
    assert_eq!((rig.stats().rst_unknown, rig.stats().bad_chains), (1, 0));
    for pieces in [1025, 32_768] {
        assert_bad_chain(|guest, head| {
            let table = packet_in_pieces(guest, pieces);
            Ring::write_desc(&guest.tx.desc, head, table, INDIRECT, 0);
        });
    }
}

#[test]
fn buffer_that_spans_more_regions_than_a_chain_may_have_pieces_is_returned() {
    const BASE: u64 = 1 << 44;
    const REGIONS: u16 = 500;
    assert_bad_chain(|guest, head| {
        for index in 0..u64::from(REGIONS) {
            let region = guest.memory.add(RegionSpec::new(BASE + index, 1)).unwrap();
            guest.front.add_region(&region).unwrap();
        }
        // Each of few descriptors goes through all regions.
        let table = table(guest, 3);
        for index in 0..3 {
            let all = Piece { addr: BASE, len: REGIONS.into() };
            Ring::write_desc(&table, index, all, if index < 2 { NEXT } else { 0 }, index + 1);
        }
        Ring::write_desc(&guest.tx.desc, head, piece(&table), INDIRECT, 0);
    });
}

#[test]
fn receive_buffers_of_no_use_do_not_keep_the_thread() {
    /// Long enough for the guest to be faster.
    const PIECES: u16 = 32_768;
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.rx_buffers = 0);
    // A chain for writing, but for its last piece.
    let table = table(&mut guest, PIECES.into());
    for index in 0..PIECES {
        let flags = if index + 1 == PIECES { 0 } else { WRITE | NEXT };
        Ring::write_desc(&table, index, Piece { addr: 0, len: 1 }, flags, index + 1);
    }
    Ring::write_desc(&guest.rx.desc, 0, piece(&table), INDIRECT, 0);
    let size = guest.rx.size;
    (0..size).for_each(|_| guest.rx.offer(0));
    guest.rx.used.fill(0xff);
    guest.rx.used.store(2, 0);
    guest.rx.publish();
    // The guest offers the chain again as soon as the device has written it into the used ring.
    let stop = AtomicBool::new(false);
    let (avail, used) = (guest.rx.avail.clone(), guest.rx.used.clone());
    let offer_again = || {
        let mut again = 0_u16;
        while !stop.load(Ordering::Relaxed) {
            let at = 4 + usize::from(again % size) * 8;
            if used.u32(at) == u32::MAX {
                std::hint::spin_loop();
                continue;
            }
            used.write(at, &[0xff; 8]);
            again = again.wrapping_add(1);
            avail.store(2, again.wrapping_add(size));
        }
        again.wrapping_add(size)
    };
    let offered = std::thread::scope(|scope| {
        let guest_side = scope.spawn(offer_again);
        let stop = Stop(&stop);
        // An answer needs a buffer.
        guest.say(op::RW, 1, 2);
        wait_until("the device goes through its buffers", || {
            // If it was faster after all, it sleeps.
            guest.rx.kick();
            rig.stats().bad_chains >= 2 * u64::from(size)
        });
        rig.device.ping();
        rig.wait_stats("the thread comes round", |s| s.pongs == 1);
        drop(stop);
        guest_side.join().unwrap()
    });
    // All go back, and the answer goes out with the first buffer of use.
    guest.rx.kick();
    rig.wait_stats("all are returned", |s| s.bad_chains % (1 << 16) == u64::from(offered));
    let buffer = guest.memory.alloc(4096, 1);
    Ring::write_desc(&guest.rx.desc, 0, piece(&buffer), WRITE, 0);
    guest.rx.avail.store(2, offered.wrapping_add(1));
    guest.rx.kick();
    rig.wait_stats("the answer is sent", |s| s.to_guest_packets == 1);
    let mut header = [0; 44];
    buffer.read(0, &mut header);
    assert_eq!(Header::from_bytes(&header).op, op::RST);
}
