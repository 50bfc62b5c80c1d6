//! Descriptor layouts: the standard promises nothing about where a header ends (virtio 1.3 section 2.7.4.3).

use crate::rig::{Rig, assert_same, bytes, open_from_guest, open_from_host};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use vsock_driver::front_end::message::feature;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::{Header, LEN, op};
use vsock_driver::layout::{RxLayout, TxLayout};
use vsock_driver::memory::RegionSpec;

/// Sends payloads of several sizes in one layout and looks whether they arrive, and all descriptors come back.
#[track_caller]
fn check_tx(layout: TxLayout, change: impl Fn(&mut Setup)) {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| {
        setup.tx = layout;
        change(setup);
    });
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    for (len, seed) in [1, 2, 43, 44, 45, 1000, 4096, 32_768, 40_000, 65_536].into_iter().zip(1..) {
        let payload = bytes(len, seed);
        guest.say_data(5000, 1000, &payload);
        guest.flush();
        let mut got = vec![0; len];
        stream.read_exact(&mut got).unwrap();
        assert_same(&got, &payload);
        while guest.take().is_some() {}
        guest.post_all();
        let header = Header { fwd_cnt: 0, ..guest.header(op::CREDIT_REQUEST, 5000, 1000) };
        guest.send(&header, &[]);
    }
    assert_eq!((rig.stats().bad_chains, rig.stats().dropped_malformed), (0, 0));
}

/// No indirect descriptors.
fn direct(setup: &mut Setup) {
    setup.features &= !feature::INDIRECT_DESC;
}

/// Flags in place of event indices.
fn flags(setup: &mut Setup) {
    setup.features &= !feature::EVENT_IDX;
}

#[test]
fn header_and_payload_in_two_descriptors() {
    check_tx(TxLayout::HeaderAndPayload, |_| {});
    check_tx(TxLayout::HeaderAndPayload, direct);
    check_tx(TxLayout::HeaderAndPayload, flags);
}

#[test]
fn sixty_four_kib_in_two_pages_as_linux_sends_them() {
    check_tx(TxLayout::linux(), |_| {});
    check_tx(TxLayout::linux(), direct);
}

#[test]
fn chain_with_eighteen_payload_descriptors_arrives_whole_and_is_returned() {
    check_tx(TxLayout::HeaderAndPieces(65_536 / 18 + 1), |_| {});
    check_tx(TxLayout::HeaderAndPieces(65_536 / 18 + 1), direct);
}

#[test]
fn chain_with_forty_six_payload_descriptors_arrives_whole() {
    check_tx(TxLayout::HeaderAndPieces(65_536 / 46 + 1), |_| {});
    check_tx(TxLayout::HeaderAndPieces(65_536 / 46 + 1), direct);
}

#[test]
fn chain_as_long_as_the_ring_arrives_whole() {
    check_tx(TxLayout::HeaderAndPieces(65_536 / 127 + 1), |setup| {
        direct(setup);
        flags(setup);
    });
}

#[test]
fn header_and_payload_in_one_descriptor() {
    check_tx(TxLayout::OnePiece, |_| {});
}

#[test]
fn header_cut_over_descriptors() {
    check_tx(TxLayout::Cuts(vec![1, 2, 3, 5, 8, 13, 100_000]), |_| {});
    check_tx(TxLayout::Cuts(vec![43, 2, 100_000]), direct);
    check_tx(TxLayout::Cuts(vec![20, 50, 100_000]), flags);
}

#[test]
fn rings_of_other_sizes() {
    for size in [4, 256, 1024] {
        check_tx(TxLayout::linux(), |setup| {
            setup.ring_size = size;
            setup.regions[1].len = 160 << 20;
        });
    }
}

#[test]
fn descriptors_across_two_regions_without_a_gap_between_them() {
    // A ring of 1024 arenas crosses many borders: the device resolves pieces over regions that touch each other.
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| {
        setup.regions = vec![RegionSpec::new(0, 64 << 20), RegionSpec::new(64 << 20, 1 << 20)];
    });
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let payload = bytes(60_000, 1);
    let header = Header { len: 60_000, ..guest.header(op::RW, 5000, 1000) };
    let all = [&header.to_bytes()[..], &payload].concat();
    let (end, start) = (guest.memory.whole(0), guest.memory.whole(1));
    let before = 10_000;
    end.write(end.len() - before, &all[..before]);
    start.write(0, &all[before..]);
    let piece = vsock_driver::ring::Piece { addr: (64 << 20) - before as u64, len: u32::try_from(all.len()).unwrap() };
    assert!(guest.tx.add(&[piece], false, 0));
    guest.tx.publish_and_kick();
    let mut got = vec![0; payload.len()];
    stream.read_exact(&mut got).unwrap();
    assert_same(&got, &payload);
}

#[test]
fn bytes_behind_the_payload_are_not_part_of_it() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let header = Header { len: 5, ..guest.header(op::RW, 5000, 1000) };
    guest.send_as(&header, b"12345 and more", &[LEN, 14, 70]);
    guest.say_data(5000, 1000, b"67890");
    let mut got = [0; 10];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"1234567890");
    guest.flush();
}

#[test]
fn empty_descriptors_in_a_chain_do_no_harm() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let header = Header { len: 5, ..guest.header(op::RW, 5000, 1000) };
    guest.send_as(&header, b"12345", &[0, 40, 0, 4, 0, 2, 0, 0, 3, 0]);
    guest.flush();
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"12345");
}

#[test]
fn packets_that_do_not_fit_their_chain_are_dropped_and_returned_and_the_ring_lives_on() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let header = guest.header(op::RW, 5000, 1000);
    // More rounds than the ring has descriptors: one that is not returned would be missed.
    for _ in 0..50 {
        guest.send_as(&header, &[], &[43]);
        guest.send_as(&header, &[], &[1]);
        guest.send_as(&Header { len: 11, ..header }, &[0; 10], &[LEN, 10]);
        guest.send_as(&Header { len: u32::MAX, ..header }, &[0; 10], &[LEN, 10]);
        guest.send_as(&Header { len: 65_537, ..header }, &[0; 65_537], &[LEN, 65_537]);
    }
    guest.flush();
    let stats = rig.stats();
    assert_eq!(stats.dropped_malformed + stats.bad_chains, 250);
    guest.say_data(5000, 1000, b"alive");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"alive");
}

/// Writes much into the guest through receive buffers of one layout.
#[track_caller]
fn check_rx(layout: RxLayout, change: impl Fn(&mut Setup)) {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| {
        setup.rx = layout;
        change(setup);
    });
    let (stream, port) = open_from_host(&rig, &mut guest, 80);
    check_stream_to(&mut guest, stream, port, 200_000);
}

/// Writes `len` bytes into the guest and looks whether they arrive.
#[track_caller]
fn check_stream_to(guest: &mut Guest, mut stream: UnixStream, port: u32, len: usize) {
    let payload = bytes(len, 9);
    let copy = payload.clone();
    let writing = std::thread::spawn(move || {
        let mut sizes = [1, 7, 300, 5000, 65_536].iter().cycle();
        let mut rest = &copy[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            stream.write_all(now).unwrap();
            rest = later;
        }
        stream
    });
    let mut got = Vec::new();
    let mut told = 0;
    while got.len() < len {
        let packet = guest.recv();
        if packet.header.op == op::RW {
            got.extend(packet.payload);
        }
        if got.len() - told > 50 || packet.header.op == op::CREDIT_REQUEST {
            told = got.len();
            let fwd_cnt = u32::try_from(told).unwrap();
            let header = Header { fwd_cnt, ..guest.header(op::CREDIT_UPDATE, 80, port) };
            guest.send(&header, &[]);
        }
    }
    assert_same(&got, &payload);
    writing.join().unwrap();
}

#[test]
fn receive_buffers_as_linux_posts_them() {
    check_rx(RxLayout::linux(), |_| {});
    check_rx(RxLayout::linux(), flags);
    check_rx(RxLayout::linux(), direct);
}

#[test]
fn receive_buffers_with_a_header_of_their_own() {
    check_rx(RxLayout::header_and(4096), |_| {});
    check_rx(RxLayout::header_and(4096), direct);
}

#[test]
fn receive_buffers_of_sixty_four_kib() {
    check_rx(RxLayout::OnePiece(65_536), |_| {});
    check_rx(RxLayout::header_and(65_536), |_| {});
}

#[test]
fn receive_buffers_of_many_small_pieces() {
    check_rx(RxLayout::Pieces(vec![7; 60]), |_| {});
    check_rx(RxLayout::Pieces(vec![1, 2, 3, 30, 60, 100]), direct);
}

#[test]
fn data_larger_than_a_receive_buffer_is_split_and_no_header_claims_more_than_was_written() {
    check_rx(RxLayout::OnePiece(LEN + 100), |_| {});
    check_rx(RxLayout::OnePiece(65_536 + 3), |_| {});
}

#[test]
fn single_receive_buffer_at_a_time_is_enough() {
    check_rx(RxLayout::linux(), |setup| setup.rx_buffers = 1);
}

#[test]
fn receive_buffers_without_room_are_counted_and_do_not_stop_the_device() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| {
        setup.rx = RxLayout::OnePiece(20);
        setup.rx_buffers = 4;
    });
    guest.say(op::RW, 1, 2);
    rig.wait_stats("a buffer was too small", |s| s.small_buffers > 0);
    guest.flush();
}

#[test]
fn chain_with_more_pieces_than_one_system_call_takes_arrives_whole() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| {
        setup.ring_size = 2048;
        setup.rx_buffers = 64;
        setup.regions[0].len = 4 << 20;
        setup.regions[1].len = 256 << 20;
    });
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let payload = bytes(1500 * 20, 3);
    let header = Header { len: 30_000, ..guest.header(op::RW, 5000, 1000) };
    let lengths: Vec<usize> = std::iter::once(LEN).chain(std::iter::repeat_n(20, 1500)).collect();
    for _ in 0..3 {
        guest.send_as(&header, &payload, &lengths);
        let mut got = vec![0; payload.len()];
        stream.read_exact(&mut got).unwrap();
        assert_same(&got, &payload);
    }
    guest.flush();
}
