//! What cannot be provoked from outside is injected: a mistake of ours, and a kernel or a process without memory.

use crate::rig::{Rig, assert_ended, assert_same, bytes, open_from_guest, open_from_host};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use vhostvsock_native::events::{Event, Kind, Level};
use vhostvsock_native::faults::Fault;
use vsock_driver::guest::Guest;
use vsock_driver::header::{Header, SEQ_EOM, SEQPACKET, SHUTDOWN_RCV, SHUTDOWN_SEND, op};
use vsock_driver::host::messages::{self, Messenger};

/// Has it happen, and waits until the thread knows.
fn inject(rig: &Rig, fault: Fault) {
    rig.device.inject(fault);
    let pongs = rig.stats().pongs;
    assert!(rig.device.ping());
    rig.wait_stats("the thread comes round", |s| s.pongs > pongs);
}

/// A connection of the guest to port 1000.
fn connected(rig: &Rig) -> (Guest, UnixStream) {
    let mut guest = rig.boot();
    let stream = open_from_guest(&mut guest, &rig.listen(1000), 5000, 1000);
    (guest, stream)
}

#[test]
fn panic_costs_its_own_vm_the_device_and_tells_the_reason() {
    let rig = Rig::new();
    let other = rig.another(2);
    let (mut neighbour, mut alive) = connected(&other);
    let (guest, mut stream) = connected(&rig);
    rig.device.inject(Fault::Panic);
    let Event { level, text, device, .. } = rig.wait_event(Kind::Fault);
    assert_eq!((level, device, text.as_str()), (Level::Error, 1, "fault in the device's thread: injected"));
    // Everyone who had to do with it is told.
    assert!(guest.front.is_thrown_out());
    assert_ended(&mut stream);
    alive.write_all(b"alive").unwrap();
    assert_eq!(neighbour.expect(op::RW).payload, b"alive");
    open_from_host(&other, &mut neighbour, 80);
}

#[test]
fn bytes_for_which_the_kernel_has_no_memory_are_tried_again() {
    let rig = Rig::new();
    let (mut guest, mut stream) = connected(&rig);
    for (failures, end) in [(1, false), (7, false), (5, true)] {
        inject(&rig, Fault::NoBuffers(failures));
        let before = rig.stats().no_buffers;
        let sent = bytes(3000, failures.into());
        guest.say_data(5000, 1000, &sent);
        if end {
            // Also what belongs to a connection that is over.
            let header = Header { flags: SHUTDOWN_RCV | SHUTDOWN_SEND, ..guest.header(op::SHUTDOWN, 5000, 1000) };
            guest.send(&header, &[]);
        }
        let mut got = vec![0; sent.len()];
        stream.read_exact(&mut got).unwrap();
        assert_same(&got, &sent);
        assert_eq!(rig.stats().no_buffers - before, u64::from(failures));
    }
    assert_ended(&mut stream);
    rig.wait_stats("it is gone", |s| s.connections == 0);
}

#[test]
fn bytes_for_the_guest_that_the_kernel_cannot_give_out_are_tried_again() {
    let rig = Rig::new();
    let (mut guest, mut stream) = connected(&rig);
    inject(&rig, Fault::NoBuffers(5));
    stream.write_all(b"patience").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"patience");
    assert_eq!(rig.stats().no_buffers, 5);
}

#[test]
fn connection_whose_backlog_finds_no_memory_is_reset_and_no_other() {
    let rig = Rig::new();
    let (mut guest, mut slow) = connected(&rig);
    let (mut other, port) = open_from_host(&rig, &mut guest, 80);
    inject(&rig, Fault::NoMemory(1));
    // More than a socket takes.
    let sent = bytes(1_000_000, 1);
    sent.chunks(50_000).for_each(|chunk| guest.say_data(5000, 1000, chunk));
    let mut reset = guest.recv().header;
    while reset.op == op::CREDIT_UPDATE {
        reset = guest.recv().header;
    }
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, 1000, 5000));
    assert_eq!((rig.stats().reset_memory, rig.stats().connections), (1, 1));
    // What it got was the beginning of what was sent.
    let mut got = Vec::new();
    let _ = slow.read_to_end(&mut got);
    assert_same(&got, &sent[..got.len()]);
    guest.say_data(80, port, b"alive");
    let mut alive = [0; 5];
    other.read_exact(&mut alive).unwrap();
    assert_eq!(&alive, b"alive");
}

/// A connection for messages of the guest to port 1000.
fn connected_for_messages(rig: &Rig) -> (Guest, Messenger) {
    let mut guest = rig.boot();
    let listener = messages::listen(&rig.listener_path(1000)).unwrap();
    guest.send(&of_messages(&guest, op::REQUEST), &[]);
    guest.expect(op::RESPONSE);
    (guest, messages::accept(&listener))
}

/// A header of it.
fn of_messages(guest: &Guest, op: u16) -> Header {
    Header { type_: SEQPACKET, ..guest.header(op, 5000, 1000) }
}

/// A part of a message on it.
fn say_part(guest: &mut Guest, payload: &[u8], flags: u32) {
    let len = u32::try_from(payload.len()).unwrap();
    guest.send(&Header { len, flags, ..of_messages(guest, op::RW) }, payload);
}

#[test]
fn messages_for_which_the_kernel_has_no_memory_are_tried_again_whole() {
    let rig = Rig::new();
    let (mut guest, socket) = connected_for_messages(&rig);
    for (failures, pieces) in [(1, 1), (7, 1), (3, 4)] {
        let before = rig.stats().no_buffers;
        inject(&rig, Fault::NoBuffers(failures));
        let message = bytes(40_000, failures.into());
        for (number, piece) in (1..).zip(message.chunks(message.len() / pieces)) {
            say_part(&mut guest, piece, if number == pieces { SEQ_EOM } else { 0 });
        }
        assert_same(&socket.recv().unwrap(), &message);
        assert_eq!(rig.stats().no_buffers - before, u64::from(failures));
    }
    inject(&rig, Fault::NoBuffers(5));
    socket.send(b"patience").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"patience");
}

#[test]
fn message_for_which_there_is_no_memory_ends_its_connection_and_no_part_of_it_arrives() {
    for from_guest in [true, false] {
        let rig = Rig::new();
        let (mut guest, socket) = connected_for_messages(&rig);
        let (mut other, port) = open_from_host(&rig, &mut guest, 80);
        if from_guest {
            say_part(&mut guest, b"before", SEQ_EOM);
            assert_eq!(socket.recv().unwrap(), b"before");
            inject(&rig, Fault::NoMemory(1));
            say_part(&mut guest, b"half of a message", 0);
            guest.flush();
        } else {
            inject(&rig, Fault::NoMemory(1));
            // More than the first guess at the number of buffers.
            socket.send(&bytes(20_000, 1)).unwrap();
        }
        guest.expect(op::RST);
        assert!(socket.recv().map_or(true, |end| end.is_empty()));
        assert_eq!((rig.stats().reset_memory, rig.stats().connections), (1, 1));
        guest.say_data(80, port, b"alive");
        let mut alive = [0; 5];
        other.read_exact(&mut alive).unwrap();
        assert_eq!(&alive, b"alive");
    }
}
