//! A device that looks for news before it sleeps: what it gives back late, and what it may not.
//!
//! Before: a device that may look for long, and a guest that kept it awake.
//! After: sent packets are the guest's again.
//! Rules: a moment of the machine's may end the device's patience, so what happens only while it is awake is tried again.

use crate::rig::{Rig, open_from_host};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vsock_driver::deadline::wait_until;
use vsock_driver::guest::{Guest, TX};
use vsock_driver::header::op;

/// How long the device looks, once it has learned to.
const LONG: Duration = Duration::from_millis(300);

/// A device that looks for long, and a guest with a connection to port 80.
fn rig() -> (Rig, Guest, UnixStream, u32) {
    let rig = Rig::with(|settings| settings.poll = u64::try_from(LONG.as_nanos()).unwrap());
    let mut guest = rig.boot();
    let (stream, port) = open_from_host(&rig, &mut guest, 80);
    (rig, guest, stream, port)
}

/// Has the device sleep for ever longer times, so that it learns to look for [`LONG`], and wakes it.
fn awaken(guest: &mut Guest, stream: &mut UnixStream, port: u32) {
    let mut pause = Duration::from_micros(10);
    while pause < LONG {
        std::thread::sleep(pause * 2);
        guest.say_data(80, port, b"x");
        stream.read_exact(&mut [0]).unwrap();
        pause *= 2;
    }
    guest.flush();
    guest.say_data(80, port, b"x");
    stream.read_exact(&mut [0]).unwrap();
}

/// Sends a byte that its host application has by the end; how far the used index of the TX ring has moved by then.
fn send_one(guest: &mut Guest, stream: &mut UnixStream, port: u32) -> u16 {
    guest.reclaim();
    let before = guest.tx.used_index();
    guest.say_data(80, port, b"y");
    stream.read_exact(&mut [0]).unwrap();
    guest.tx.used_index().wrapping_sub(before)
}

#[test]
fn packet_comes_back_together_with_its_answer() {
    let (_rig, mut guest, mut stream, port) = rig();
    let together = (0..5).any(|_| {
        awaken(&mut guest, &mut stream, port);
        guest.flush();
        let held_back = send_one(&mut guest, &mut stream, port) == 0;
        let before = guest.tx.used_index();
        stream.write_all(b"z").unwrap();
        assert_eq!(guest.expect(op::RW).payload, b"z");
        held_back && guest.tx.used_index().wrapping_sub(before) == 1
    });
    assert!(together, "the packet never waited for its answer");
}

#[test]
fn packet_without_an_answer_comes_back_before_the_device_sleeps() {
    let (_rig, mut guest, mut stream, port) = rig();
    awaken(&mut guest, &mut stream, port);
    send_one(&mut guest, &mut stream, port);
    // Longer than the device looks, and a guest that waits for nothing else.
    guest.flush();
}

#[test]
fn ring_that_is_stopped_has_everything_back() {
    let (_rig, mut guest, mut stream, port) = rig();
    for _ in 0..3 {
        awaken(&mut guest, &mut stream, port);
        send_one(&mut guest, &mut stream, port);
        let bases = guest.stop().unwrap();
        assert_eq!(guest.tx.used_index(), bases[TX as usize], "a packet taken would be sent twice, or never come back");
        guest.start(bases).unwrap();
    }
}

#[test]
fn front_end_that_loses_its_device_finds_everything_in_the_used_ring() {
    let (rig, mut guest, mut stream, port) = rig();
    awaken(&mut guest, &mut stream, port);
    let before = guest.tx.used_index().wrapping_add(guest.tx.outstanding().try_into().unwrap());
    send_one(&mut guest, &mut stream, port);
    drop(rig);
    // QEMU goes on at the used index when it finds another daemon at the socket.
    wait_until("the packet is in the used ring", || guest.tx.used_index() == before.wrapping_add(1));
}
