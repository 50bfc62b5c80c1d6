//! Open streams: data, half-close, ends of every kind.

use crate::rig::{
    Rig, assert_ended, assert_same, bytes, connect_from_guest, connect_from_host, open_from_guest, open_from_host,
};
use rustix::net::SendFlags;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vhostvsock_native::timers::MILLISECOND;
use vsock_driver::deadline::wait_until;
use vsock_driver::header::{Header, SHUTDOWN_RCV, SHUTDOWN_SEND, op};
use vsock_driver::host;
use vsock_driver::linux::{Received, State};

/// Reads exactly `len` bytes.
fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn request_and_response_in_both_directions() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (out, mut out_host) = connect_from_guest(&mut kernel, &listener, 1000);
    let (into, mut into_host) = connect_from_host(&rig, &mut kernel, 80);
    for (id, stream) in [(out, &mut out_host), (into, &mut into_host)] {
        for round in 0..50 {
            let message = bytes(round * 37 + 1, round as u64);
            kernel.send_all(id, &message);
            assert_same(&read(stream, message.len()), &message);
            stream.write_all(&message).unwrap();
            assert_same(&kernel.recv_exact(id, message.len()), &message);
        }
    }
    let stats = rig.stats();
    assert_eq!(stats.from_guest_bytes, stats.to_guest_bytes);
}

#[test]
fn half_close_by_the_host_keeps_the_other_direction_open() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
    stream.write_all(b"request").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(kernel.recv_to_end(id), b"request");
    assert_eq!(kernel.socket(id).peer_shutdown, SHUTDOWN_SEND, "the host still receives");
    let answer = bytes(500_000, 2);
    let reader = std::thread::spawn(move || host::read_to_end(&mut stream).unwrap());
    kernel.send_all(id, &answer);
    kernel.close(id);
    assert_same(&reader.join().unwrap(), &answer);
    kernel.wait_closed(id);
    rig.wait_stats("gone", |s| s.connections == 0);
}

#[test]
fn half_close_by_the_guest_keeps_the_other_direction_open() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (id, mut stream) = connect_from_guest(&mut kernel, &listener, 1000);
    kernel.send_all(id, b"request");
    kernel.shutdown(id, SHUTDOWN_SEND);
    assert_eq!(host::read_to_end(&mut stream).unwrap(), b"request");
    let answer = bytes(500_000, 3);
    let copy = answer.clone();
    let writer = std::thread::spawn(move || stream.write_all(&copy).unwrap());
    assert_same(&kernel.recv_to_end(id), &answer);
    writer.join().unwrap();
    kernel.close(id);
    rig.wait_stats("gone", |s| s.connections == 0);
}

#[test]
fn end_of_the_guest_follows_a_backlog_that_the_host_has_yet_to_take() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (id, mut stream) = connect_from_guest(&mut kernel, &listener, 1000);
    // As much as the credit allows: more than the host's socket holds.
    let data = bytes(256 * 1024, 4);
    let mut sent = 0;
    while sent < data.len() {
        kernel.pump();
        let part = kernel.send(id, &data[sent..]);
        if part == 0 && kernel.socket(id).credit() == 0 {
            break;
        }
        sent += part;
    }
    kernel.close(id);
    // The device is done with the connection, though not with its bytes.
    kernel.wait_closed(id);
    assert_same(&host::read_to_end(&mut stream).unwrap(), &data[..sent]);
    assert!(sent >= 200_000, "{sent}");
    assert_eq!(rig.stats().dropped_bytes, 0);
}

#[test]
fn unread_data_reaches_the_guest_before_the_end() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
    let data = bytes(150_000, 5);
    stream.write_all(&data).unwrap();
    drop(stream);
    assert_same(&kernel.recv_to_end(id), &data);
    kernel.close(id);
    rig.wait_stats("gone", |s| s.connections == 0);
}

#[test]
fn reset_by_the_guest_delivers_what_it_sent_before() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    guest.say_data(5000, 1000, b"last words");
    guest.say(op::RST, 5000, 1000);
    rig.wait_stats("gone", |s| s.connections == 0);
    assert_eq!(read(&mut stream, 10), b"last words");
    assert_ended(&mut stream);
}

#[test]
fn guest_that_stops_receiving_stops_the_hosts_writer_only() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let header = Header { flags: SHUTDOWN_RCV, ..guest.header(op::SHUTDOWN, 5000, 1000) };
    guest.send(&header, &[]);
    wait_until(
        "the host's writer is told",
        || matches!(stream.write(b"x"), Err(error) if error.kind() == ErrorKind::BrokenPipe),
    );
    guest.say_data(5000, 1000, b"still sent");
    assert_eq!(read(&mut stream, 10), b"still sent");
}

#[test]
fn shutdown_bits_add_up_over_packets() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    for flags in [[SHUTDOWN_SEND, SHUTDOWN_RCV], [SHUTDOWN_RCV, SHUTDOWN_SEND]] {
        let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
        for bit in flags {
            let header = Header { flags: bit, ..guest.header(op::SHUTDOWN, 5000, 1000) };
            guest.send(&header, &[]);
        }
        guest.expect(op::RST);
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn host_that_closed_ends_the_connection_instead_of_losing_bytes_in_silence() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    drop(stream);
    guest.say_data(5000, 1000, b"to nobody");
    let mut flags = 0;
    loop {
        let packet = guest.recv().header;
        flags |= if packet.op == op::SHUTDOWN { packet.flags } else { 0 };
        if packet.op == op::RST || flags == 3 {
            break;
        }
    }
    guest.say(op::RST, 5000, 1000);
    rig.wait_stats("gone", |s| s.connections == 0);
}

#[test]
fn host_that_does_not_receive_any_more_is_told_to_the_guest() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    stream.shutdown(Shutdown::Read).unwrap();
    guest.say_data(5000, 1000, b"unwanted");
    let told = guest.recv().header;
    assert!(told.op == op::RST || (told.op == op::SHUTDOWN && told.flags & SHUTDOWN_RCV != 0), "{told:?}");
    if told.op == op::SHUTDOWN && told.flags == SHUTDOWN_RCV {
        stream.write_all(b"still sent").unwrap();
        assert_eq!(guest.expect(op::RW).payload, b"still sent");
    }
}

#[test]
fn close_that_the_guest_never_confirms_ends_with_rst() {
    // Linux gives eight seconds; the mux has a test with a clock of its own. Here: nothing is left of a connection that
    // the guest confirms late.
    let rig = Rig::with(|settings| settings.connect_timeout = 50 * MILLISECOND);
    let mut guest = rig.boot();
    let (stream, port) = open_from_host(&rig, &mut guest, 80);
    drop(stream);
    let mut flags = 0;
    while flags != 3 {
        flags |= guest.expect(op::SHUTDOWN).header.flags;
    }
    guest.say_data(80, port, b"into the void");
    guest.say(op::CREDIT_UPDATE, 80, port);
    let header = Header { flags: 3, ..guest.header(op::SHUTDOWN, 80, port) };
    guest.send(&header, &[]);
    guest.expect(op::RST);
    rig.wait_stats("gone", |s| s.connections == 0);
}

#[test]
fn redundant_rsts_of_linux_are_never_answered() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.log = Some(Vec::new());
    for _ in 0..10 {
        let (id, stream) = connect_from_host(&rig, &mut kernel, 80);
        drop(stream);
        kernel.wait_closed(id);
        kernel.close(id);
    }
    rig.wait_stats("gone", |s| s.connections == 0);
    kernel.guest.flush();
    kernel.pump();
    let rsts = kernel.log.as_ref().unwrap().iter().filter(|header| header.op == op::RST).count();
    assert_eq!(rsts, 0);
    assert_eq!(rig.stats().rst_unknown, 0);
}

#[test]
fn both_directions_full_come_loose_when_the_host_reads() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
    let to_guest = bytes(2_000_000, 6);
    let copy = to_guest.clone();
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    // Until neither side can send any more.
    let from_guest = bytes(1_000_000, 7);
    let mut sent = 0;
    let mut quiet = 0;
    while quiet < 20 {
        kernel.pump();
        let part = kernel.send(id, &from_guest[sent..]);
        sent += part;
        let news = kernel.guest.wait(vsock_driver::deadline::Deadline::after(Duration::from_millis(1)));
        quiet = if part == 0 && !news { quiet + 1 } else { 0 };
    }
    assert!(sent < from_guest.len() && kernel.socket(id).credit() == 0, "{sent}");
    assert!(kernel.socket(id).has_unread());
    // Now only the host reads: what waits for it must go on although the guest takes nothing.
    let (got, expected) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(&mut stream, from_guest.len()));
        kernel.send_all(id, &from_guest[sent..]);
        (reading.join().unwrap(), &from_guest)
    });
    assert_same(&got, expected);
    assert_same(&kernel.recv_exact(id, to_guest.len()), &to_guest);
    writing.join().unwrap();
}

#[test]
fn no_packet_without_operation_or_payload_reaches_the_guest() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.log = Some(Vec::new());
    let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
    let data = bytes(400_000, 8);
    let copy = data.clone();
    let writing = std::thread::spawn(move || {
        for piece in copy.chunks(1777) {
            stream.write_all(piece).unwrap();
        }
        stream
    });
    assert_same(&kernel.recv_exact(id, data.len()), &data);
    writing.join().unwrap();
    for header in kernel.log.unwrap() {
        assert!((op::REQUEST..=op::CREDIT_REQUEST).contains(&header.op), "{header:?}");
        assert_eq!(header.op == op::RW, header.len > 0, "{header:?}");
    }
}

#[test]
fn hundred_and_fifty_connections_carry_data_at_once() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let mut pairs = Vec::new();
    for i in 0..150 {
        let (id, mut stream) = if i % 2 == 0 {
            connect_from_guest(&mut kernel, &listener, 1000)
        } else {
            connect_from_host(&rig, &mut kernel, 80)
        };
        stream.write_all(&bytes(3000, i)).unwrap();
        kernel.send_all(id, &bytes(4000, i + 1000));
        pairs.push((id, stream));
    }
    for ((id, stream), i) in pairs.iter_mut().zip(0..) {
        assert_same(&kernel.recv_exact(*id, 3000), &bytes(3000, i));
        assert_same(&read(stream, 4000), &bytes(4000, i + 1000));
    }
    assert_eq!(rig.stats().connections, 150);
    for (id, _) in &pairs {
        kernel.close(*id);
    }
    kernel.pump_until(|_| rig.stats().connections == 0);
    assert_eq!(rig.stats().connections, 0);
    assert!(
        pairs
            .iter()
            .all(|(id, _)| kernel.socket(*id).state == State::Closed || kernel.socket(*id).state == State::Closing)
    );
}

#[test]
fn byte_sent_out_of_band_is_dropped_and_those_behind_it_arrive() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
    for round in 0..20_u8 {
        // All of it is there when the device looks.
        let bases = kernel.guest.stop().unwrap();
        stream.write_all(&[round; 10]).unwrap();
        rustix::net::send(&stream, b"!", SendFlags::OOB).unwrap();
        stream.write_all(&[round; 10]).unwrap();
        kernel.guest.start(bases).unwrap();
        assert_eq!(kernel.recv_exact(id, 20), [round; 20]);
    }
    // One that nothing follows, then the end.
    rustix::net::send(&stream, b"!", SendFlags::OOB).unwrap();
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(kernel.recv_exact(id, 4), b"last");
    assert!(kernel.pump_until(|kernel| kernel.recv(id, 1) == Received::End));
}

#[test]
fn broken_guest_of_one_device_leaves_another_device_alone() {
    let broken = Rig::new();
    let sound = Rig::new();
    let mut kernel = sound.linux();
    let (id, mut stream) = connect_from_host(&sound, &mut kernel, 80);
    let mut guest = broken.boot();
    guest.tx.avail.store(2, guest.tx.avail_index().wrapping_add(5000));
    guest.tx.kick();
    assert!(guest.front.is_thrown_out());
    stream.write_all(b"alive").unwrap();
    assert_eq!(kernel.recv_exact(id, 5), b"alive");
}
