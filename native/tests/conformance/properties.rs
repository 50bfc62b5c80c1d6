//! Whole streams in random sizes and random layouts, both directions at once: what goes in comes out.

use crate::rig::{Rig, assert_same, bytes, connect_from_guest, connect_from_host};
use proptest::prelude::*;
use std::io::{Read, Write};
use vsock_driver::front_end::message::feature;
use vsock_driver::layout::{RxLayout, TxLayout};
use vsock_driver::linux::{Kernel, Received, Rules};
use vsock_driver::ring::Mode;

/// How guests cut their packets.
fn tx_layout() -> impl Strategy<Value = TxLayout> {
    prop_oneof![
        Just(TxLayout::linux()),
        Just(TxLayout::HeaderAndPayload),
        Just(TxLayout::OnePiece),
        (1500_usize..40_000).prop_map(TxLayout::HeaderAndPieces),
        proptest::collection::vec(1_usize..60, 1..12).prop_map(|mut lens| {
            // The rest in few enough pieces for a direct chain.
            lens.push(5000);
            TxLayout::Cuts(lens)
        }),
    ]
}

/// How guests make their receive buffers.
fn rx_layout() -> impl Strategy<Value = RxLayout> {
    prop_oneof![
        Just(RxLayout::linux()),
        (60_usize..70_000).prop_map(RxLayout::OnePiece),
        (20_usize..5000).prop_map(RxLayout::header_and),
        proptest::collection::vec(1_usize..3000, 1..8).prop_map(|mut lens| {
            lens.insert(0, 30);
            lens.push(100);
            RxLayout::Pieces(lens)
        }),
    ]
}

/// Which kernel runs in the guest.
fn rules() -> impl Strategy<Value = Rules> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 600_u32..300_000).prop_map(
        |(min_window, packet_limit, collapse, buf_alloc)| Rules { min_window, packet_limit, collapse, buf_alloc },
    )
}

/// Sizes of reads and writes.
fn sizes() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![1_usize..100, 1_usize..5000, 1_usize..100_000], 1..12)
}

/// One case.
#[derive(Debug)]
struct Case {
    tx: TxLayout,
    rx: RxLayout,
    rules: Rules,
    ring: u16,
    features: u64,
    polling: bool,
    device_polls: bool,
    guest_connects: bool,
    guest_sizes: Vec<usize>,
    host_sizes: Vec<usize>,
    lens: (usize, usize),
}

/// All cases.
fn cases() -> impl Strategy<Value = Case> {
    let ring = prop_oneof![Just(64_u16), Just(128), Just(256)];
    let features = prop_oneof![Just(!0), Just(!feature::EVENT_IDX), Just(!feature::INDIRECT_DESC)];
    let ways = (any::<bool>(), any::<bool>(), any::<bool>());
    let lens = (0_usize..200_000, 0_usize..200_000);
    ((tx_layout(), rx_layout(), rules()), (ring, features, ways), (sizes(), sizes(), lens)).prop_map(
        |(
            (tx, rx, rules),
            (ring, features, (polling, device_polls, guest_connects)),
            (guest_sizes, host_sizes, lens),
        )| Case {
            tx,
            rx,
            rules,
            ring,
            features,
            polling,
            device_polls,
            guest_connects,
            guest_sizes,
            host_sizes,
            lens,
        },
    )
}

/// Sends both ways at once, ends both ways, compares.
fn run(case: &Case) {
    let rig = Rig::with(|settings| settings.poll = if case.device_polls { 50_000 } else { 0 });
    let guest = rig.boot_with(|setup| {
        setup.tx = case.tx.clone();
        setup.rx = case.rx.clone();
        setup.ring_size = case.ring;
        setup.features &= case.features;
        setup.mode = if case.polling { Mode::Polling } else { Mode::Waiting };
    });
    let mut kernel = Kernel::new(guest, case.rules);
    let listener = rig.listen(1000);
    let (id, stream) = if case.guest_connects {
        connect_from_guest(&mut kernel, &listener, 1000)
    } else {
        connect_from_host(&rig, &mut kernel, 80)
    };
    let (from_guest, from_host) = (bytes(case.lens.0, 1), bytes(case.lens.1, 2));
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let got = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut sizes = case.host_sizes.iter().cycle();
            let mut rest = &from_host[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                writer.write_all(now).unwrap();
                rest = later;
            }
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let reading = scope.spawn(|| {
            let mut sizes = case.host_sizes.iter().cycle();
            let mut all = Vec::new();
            let mut buffer = vec![0; 100_000];
            loop {
                match reader.read(&mut buffer[..*sizes.next().unwrap()]).unwrap() {
                    0 => return all,
                    len => all.extend_from_slice(&buffer[..len]),
                }
            }
        });
        let mut sizes = case.guest_sizes.iter().cycle();
        let (mut sent, mut got, mut ended) = (0, Vec::new(), false);
        let deadline = vsock_driver::deadline::Deadline::patient();
        while sent < from_guest.len() || !ended {
            assert!(!deadline.is_over(), "stuck: sent {sent}, got {}: {:?}", got.len(), kernel.socket(id));
            kernel.pump();
            let size = *sizes.next().unwrap();
            let part = kernel.send(id, &from_guest[sent..from_guest.len().min(sent + size)]);
            sent += part;
            match kernel.recv(id, size) {
                Received::Data(bytes) => got.extend(bytes),
                Received::End => ended = true,
                Received::Fault(fault) => panic!("{fault:?} after {} bytes", got.len()),
                Received::Nothing if part == 0 => {
                    kernel.guest.wait(vsock_driver::deadline::Deadline::after(std::time::Duration::from_millis(5)));
                }
                Received::Nothing => {}
            }
        }
        kernel.shutdown(id, vsock_driver::header::SHUTDOWN_SEND);
        // It may still wait for room in the ring.
        kernel.pump_until(|_| reading.is_finished());
        writing.join().unwrap();
        assert_same(&reading.join().unwrap(), &from_guest);
        got
    });
    assert_same(&got, &from_host);
    kernel.close(id);
    rig.wait_stats("gone", |s| s.connections == 0);
    let stats = rig.stats();
    assert_eq!((stats.bad_chains, stats.dropped_malformed, stats.dropped_bytes, stats.small_buffers), (0, 0, 0, 0));
    assert_eq!((stats.from_guest_bytes, stats.to_guest_bytes), (from_guest.len() as u64, from_host.len() as u64));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 48 / 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_and_in_order_whatever_the_sizes_and_layouts(case in cases()) {
        run(&case);
    }
}
