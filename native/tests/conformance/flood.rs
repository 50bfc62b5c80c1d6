//! Guests that ask for as much as they can, as fast as they can: what they hold is bounded, and others have their share.

use crate::rig::{Rig, Stop, full_listener, open_from_guest, open_from_host};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use vsock_driver::deadline::Deadline;
use vsock_driver::guest::{Guest, Packet};
use vsock_driver::header::{Header, op};

/// Puts packets into the ring as fast as the device takes them, and looks at all that it says meanwhile.
fn pour(guest: &mut Guest, headers: impl Iterator<Item = Header>, mut seen: impl FnMut(&Packet)) {
    for header in headers {
        let deadline = Deadline::patient();
        while !guest.put(&header, &[]) {
            guest.tx.publish_and_kick();
            while let Some(packet) = guest.take() {
                seen(&packet);
            }
            guest.post_all();
            guest.reclaim();
            assert!(guest.tx.room() > 0 || guest.wait(deadline), "the device takes no packets");
        }
    }
    guest.tx.publish_and_kick();
}

/// Takes what the device says until `enough`.
fn drain(guest: &mut Guest, mut enough: impl FnMut(&Packet) -> bool) {
    loop {
        let packet = guest.recv();
        if enough(&packet) {
            return;
        }
    }
}

#[test]
fn half_open_connections_are_bounded_and_end_in_time() {
    const MOST: usize = 100;
    const ASKED: u32 = 5000;
    let rig = Rig::with(|settings| settings.max_connections = MOST);
    let (_listener, _waiting) = full_listener(&rig.listener_path(1000));
    let mut guest = rig.boot();
    let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
    let model = guest.header(op::REQUEST, 0, 1000);
    let mut refused = 0_u32;
    let headers = (0..ASKED).map(|src_port| Header { src_port, ..model });
    pour(&mut guest, headers, |packet| refused += u32::from(packet.header.op == op::RST));
    // Who is beyond the bound is refused at once, the others when the listener's time is over.
    while refused < ASKED {
        drain(&mut guest, |packet| packet.header.op == op::RST);
        refused += 1;
        assert!(rig.stats().connections <= MOST as u64);
    }
    rig.wait_stats("all ended", |s| s.connections == 1);
    let stats = rig.stats();
    assert_eq!(stats.refused_limit + stats.refused_backlog, u64::from(ASKED));
    assert!(stats.refused_backlog >= MOST as u64 - 1);
    guest.say_data(80, port, b"alive");
    stream.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn requests_and_resets_on_the_same_ports_at_full_speed_leave_nothing() {
    const ROUNDS: u64 = 20_000;
    let rig = Rig::new();
    let listener = rig.listen(1000);
    listener.set_nonblocking(true).unwrap();
    let stop = AtomicBool::new(false);
    let mut guest = rig.boot();
    let (request, reset) = (guest.header(op::REQUEST, 5000, 1000), guest.header(op::RST, 5000, 1000));
    std::thread::scope(|scope| {
        scope.spawn(|| take_all(&listener, &stop));
        let _stop = Stop(&stop);
        pour(&mut guest, (0..ROUNDS).flat_map(|_| [request, reset]), |_| {});
        rig.wait_stats("all are gone", |s| (s.guest_requests, s.connections) == (ROUNDS, 0));
    });
    // Behind all that is still said of them.
    guest.say(op::RW, 9, 9);
    drain(&mut guest, |packet| packet.header.dst_port == 9);
    open_from_guest(&mut guest, &rig.listen(1001), 5000, 1001);
}

/// Accepts and closes whatever comes, until told to stop.
fn take_all(listener: &UnixListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if listener.accept().is_err() {
            std::thread::yield_now();
        }
    }
}

/// The fastest that a guest can be a nuisance by: what it does once.
#[derive(Clone, Copy, Debug)]
enum Nuisance {
    /// Requests for ports where nobody listens.
    Requests,
    /// Kicks without anything in the ring.
    Kicks,
    /// Packets of one byte.
    Bytes,
}

/// Is one until told to stop.
fn be(nuisance: Nuisance, guest: &mut Guest, stop: &AtomicBool) {
    let model = guest.header(op::REQUEST, 0, 7777);
    let byte = Header { len: 1, ..guest.header(op::RW, 5000, 1000) };
    let mut port = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        match nuisance {
            Nuisance::Kicks => guest.tx.kick(),
            Nuisance::Requests => {
                port = port.wrapping_add(100);
                pour(guest, (port..port + 100).map(|src_port| Header { src_port, ..model }), |_| {});
            }
            Nuisance::Bytes => {
                while guest.put(&byte, b"x") {}
                guest.tx.publish_and_kick();
                while guest.take().is_some() {}
                guest.post_all();
            }
        }
    }
}

#[test]
fn flood_of_one_vm_does_not_keep_another_vm_waiting() {
    for nuisance in [Nuisance::Requests, Nuisance::Kicks, Nuisance::Bytes] {
        let (rig, other) = (Rig::new(), Rig::new());
        let mut guest = rig.boot();
        let mut sink = open_from_guest(&mut guest, &rig.listen(1000), 5000, 1000);
        let mut neighbour = other.boot();
        let (mut stream, port) = open_from_host(&other, &mut neighbour, 80);
        let stop = AtomicBool::new(false);
        let moved = || rig.stats().kicks + rig.stats().from_guest_packets;
        std::thread::scope(|scope| {
            scope.spawn(|| while sink.read(&mut [0; 65536]).is_ok_and(|len| len > 0) {});
            let flood = scope.spawn(|| {
                be(nuisance, &mut guest, &stop);
                drop(guest);
            });
            let _stop = Stop(&stop);
            let before = moved();
            // Each answer within the driver's patience, and the flood goes on all the time.
            for round in 0..100_u8 {
                stream.write_all(&[round]).unwrap();
                assert_eq!(neighbour.expect(op::RW).payload, [round]);
                neighbour.say_data(80, port, &[round]);
                let mut answer = [0];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [round]);
                assert!(!flood.is_finished(), "{nuisance:?}");
            }
            rig.wait_stats("the flood is one", |_| moved() - before > 10_000);
        });
    }
}
