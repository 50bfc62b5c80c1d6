//! Who may send how much: windows in both directions, and the limit of Linux 7 on unread packets.

use crate::rig::{Rig, assert_same, bytes, connect_from_guest, connect_from_host, open_from_guest, open_from_host};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vsock_driver::deadline::{Deadline, wait_until};
use vsock_driver::header::{Header, op};
use vsock_driver::linux::{Kernel, Rules, SocketId};

/// Reads `len` bytes with pauses for the other side, as a busy application does.
fn read_slowly(mut stream: UnixStream, len: usize) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = vec![0; len];
        let mut at = 0;
        while at < len {
            std::thread::yield_now();
            let end = len.min(at + 5000);
            at += stream.read(&mut bytes[at..end]).unwrap();
        }
        bytes
    })
}

/// Sends what the guest has credit for, until no more comes for a while; how much that was.
fn send_until_stuck(kernel: &mut Kernel, id: SocketId, data: &[u8]) -> usize {
    let (mut sent, mut quiet) = (0, 0);
    while quiet < 20 && sent < data.len() {
        kernel.pump();
        let part = kernel.send(id, &data[sent..]);
        sent += part;
        let news = kernel.guest.wait(Deadline::after(Duration::from_millis(1)));
        quiet = if part == 0 && !news { quiet + 1 } else { 0 };
    }
    sent
}

#[test]
fn guest_with_a_window_smaller_than_ours_never_stalls_for_want_of_an_update() {
    for buf_alloc in [1000, 4096, 64 * 1024, 256 * 1024] {
        let rig = Rig::new();
        let rules = Rules { buf_alloc, ..Rules::linux_7() };
        let mut kernel = Kernel::new(rig.boot(), rules);
        let listener = rig.listen(1000);
        let (id, stream) = connect_from_guest(&mut kernel, &listener, 1000);
        let data = bytes((buf_alloc as usize * 12).min(2_000_000), 1);
        let reading = read_slowly(stream, data.len());
        kernel.send_all(id, &data);
        assert_same(&reading.join().unwrap(), &data);
    }
}

#[test]
fn guest_without_the_min_rule_uses_our_whole_window() {
    let rig = Rig::new();
    let rules = Rules { buf_alloc: 4096, ..Rules::linux_6_1() };
    let mut kernel = Kernel::new(rig.boot(), rules);
    let listener = rig.listen(1000);
    let (id, stream) = connect_from_guest(&mut kernel, &listener, 1000);
    let data = bytes(1_000_000, 2);
    let reading = read_slowly(stream, data.len());
    kernel.send_all(id, &data);
    assert_same(&reading.join().unwrap(), &data);
}

#[test]
fn device_never_sends_more_than_the_guests_window() {
    for buf_alloc in [1, 100, 3732, 4096, 100_000] {
        let rig = Rig::new();
        let rules = Rules { buf_alloc, packet_limit: false, ..Rules::linux_7() };
        let mut kernel = Kernel::new(rig.boot(), rules);
        let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
        let data = bytes((buf_alloc as usize * 20).min(300_000), 3);
        let copy = data.clone();
        let writing = std::thread::spawn(move || stream.write_all(&copy).map(|()| stream).unwrap());
        // The kernel resets what overruns its window, so that this would fail.
        assert_same(&kernel.recv_exact(id, data.len()), &data);
        writing.join().unwrap();
    }
}

#[test]
fn small_host_writes_to_a_guest_that_does_not_read_stay_below_the_packet_limit_of_linux_7() {
    for collapse in [false, true] {
        let rig = Rig::new();
        let mut kernel = Kernel::new(rig.boot(), Rules { collapse, ..Rules::linux_7() });
        let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
        let data = bytes(3000, 4);
        stream.set_nonblocking(true).unwrap();
        let mut sent = 0;
        // Each a packet of its own, until the guest has no room for another.
        while sent < data.len() && stream.write(&data[sent..=sent]).is_ok() {
            sent += 1;
            if !kernel.guest.wait(Deadline::after(Duration::from_millis(100))) {
                break;
            }
            kernel.pump();
        }
        // The guest's application wakes up late, and finds everything.
        stream.set_nonblocking(false).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| stream.write_all(&data[sent..]).unwrap());
            assert_same(&kernel.recv_exact(id, data.len()), &data);
        });
        assert!(kernel.socket(id).most_unread <= 455);
    }
}

#[test]
fn packets_that_wait_one_by_one_stop_below_the_limit_and_go_on_after_a_credit_request() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
    let mut packets = 0;
    let mut count = 0_u32;
    // Each byte is a packet of its own, as it is sent only after the one before has arrived.
    let request = loop {
        stream.write_all(&[1]).unwrap();
        let packet = guest.recv();
        if packet.header.op == op::CREDIT_REQUEST {
            break packet;
        }
        assert_eq!(packet.header.op, op::RW);
        packets += 1;
        count += packet.header.len;
        assert!(packets < 455, "a guest of Linux 7 resets the connection now");
    };
    assert!(packets >= 200, "only {packets}");
    assert_eq!(request.header.len, 0);
    let header = Header { fwd_cnt: count, ..guest.header(op::CREDIT_UPDATE, 80, port) };
    guest.send(&header, &[]);
    // It may have asked again before the answer reached it.
    let next = std::iter::repeat_with(|| guest.recv()).find(|packet| packet.header.op != op::CREDIT_REQUEST).unwrap();
    assert_eq!((next.header.op, next.payload), (op::RW, vec![1]));
}

#[test]
fn many_small_host_writes_are_put_together() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
    let bases = guest.stop().unwrap();
    for _ in 0..200 {
        stream.write_all(&[7; 50]).unwrap();
    }
    guest.start(bases).unwrap();
    let mut lens = Vec::new();
    while lens.iter().sum::<usize>() < 10_000 {
        let packet = guest.expect(op::RW);
        assert_eq!(packet.header.src_port, port);
        lens.push(packet.payload.len());
    }
    assert!(lens.len() <= 3, "{lens:?}");
    assert_eq!(lens[0], 3776 - 44);
}

#[test]
fn guest_application_that_does_not_read_stops_only_its_own_peer() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (stuck, mut writer) = connect_from_host(&rig, &mut kernel, 80);
    let (id, mut other) = connect_from_host(&rig, &mut kernel, 81);
    writer.set_nonblocking(true).unwrap();
    let chunk = bytes(10_000, 5);
    let mut written = 0;
    let mut quiet = 0;
    while quiet < 50 {
        match writer.write(&chunk) {
            Ok(part) => (written, quiet) = (written + part, 0),
            Err(_) => quiet += 1,
        }
        kernel.guest.wait(Deadline::after(Duration::from_micros(100)));
        kernel.pump();
    }
    assert!(written < 2_000_000, "the host's socket is never full: {written}");
    other.write_all(b"alive").unwrap();
    assert_eq!(kernel.recv_exact(id, 5), b"alive");
    kernel.send_all(stuck, b"and its other direction");
    writer.set_nonblocking(false).unwrap();
    let mut bytes = [0; 23];
    writer.read_exact(&mut bytes).unwrap();
    // It reads at last, and nothing is lost.
    assert_eq!(kernel.recv_exact(stuck, written).len(), written);
}

#[test]
fn host_application_that_does_not_read_stops_only_its_own_peer() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (stuck, mut reader) = connect_from_guest(&mut kernel, &listener, 1000);
    let (id, mut other) = connect_from_guest(&mut kernel, &listener, 1000);
    let data = bytes(1_000_000, 6);
    let sent = send_until_stuck(&mut kernel, stuck, &data);
    assert!(sent < data.len(), "the guest never ran out of credit");
    kernel.send_all(id, b"alive");
    let mut alive = [0; 5];
    other.read_exact(&mut alive).unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = vec![0; 1_000_000];
        reader.read_exact(&mut all).unwrap();
        all
    });
    kernel.send_all(stuck, &data[sent..]);
    assert_same(&reading.join().unwrap(), &data);
}

#[test]
fn guest_of_a_slow_application_has_credit_for_what_the_socket_has_room_for() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (id, mut reader) = connect_from_guest(&mut kernel, &listener, 1000);
    let data = bytes(8_000_000, 9);
    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < data.len() {
        sent += send_until_stuck(&mut kernel, id, &data[sent..]);
        let mut part = vec![0; 150_000.min(sent - got.len())];
        reader.read_exact(&mut part).unwrap();
        got.extend(part);
    }
    assert_same(&got, &data);
    // A window each time that the socket gets full after the application had caught up, and not half of everything.
    let waited = rig.stats().backlog_bytes;
    assert!(0 < waited && waited < 1_000_000, "{waited} bytes were copied");
}

#[test]
fn credit_that_was_held_back_is_given_though_the_application_leaves_some_bytes_unread() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (id, mut reader) = connect_from_guest(&mut kernel, &listener, 1000);
    let data = bytes(4_000_000, 10);
    let mut sent = send_until_stuck(&mut kernel, id, &data);
    // What was sent came in whole windows and more, or nothing would be left unread.
    let leave = 40_000;
    let mut got = vec![0; sent - leave];
    reader.read_exact(&mut got).unwrap();
    let more = send_until_stuck(&mut kernel, id, &data[sent..]);
    assert!(more >= 256 * 1024, "only {more} bytes of credit");
    sent += more;
    let mut rest = vec![0; sent - got.len()];
    reader.read_exact(&mut rest).unwrap();
    got.extend(rest);
    assert_same(&got, &data[..sent]);
}

#[test]
fn guest_that_sends_more_than_its_credit_is_reset() {
    let rig = Rig::with(|settings| settings.buf_alloc = 64 * 1024);
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let mut sent = 0;
    while rig.stats().reset_overrun == 0 {
        guest.say_data(5000, 1000, &[0; 60_000]);
        guest.flush();
        sent += 60_000;
        assert!(sent < 10_000_000, "no credit is that large");
    }
    while guest.recv().header.op != op::RST {}
    drop(stream);
    assert_eq!(rig.stats().connections, 0);
}

#[test]
fn window_that_shrinks_to_nothing_stops_the_device_until_it_grows() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
    let window = |guest: &vsock_driver::guest::Guest, buf_alloc, fwd_cnt| Header {
        buf_alloc,
        fwd_cnt,
        ..guest.header(op::CREDIT_UPDATE, 80, port)
    };
    let none = window(&guest, 0, 0);
    guest.send(&none, &[]);
    guest.flush();
    stream.write_all(b"waits").unwrap();
    assert!(guest.recv_by(Deadline::after(Duration::from_millis(20))).is_none());
    let three = window(&guest, 3, 0);
    guest.send(&three, &[]);
    assert_eq!(guest.expect(op::RW).payload, b"wai");
    // Shrinking below what is in flight is no negative credit, and no endless one either.
    let two = window(&guest, 2, 0);
    guest.send(&two, &[]);
    guest.flush();
    assert!(guest.recv_by(Deadline::after(Duration::from_millis(20))).is_none());
    let rest = window(&guest, 100, 3);
    guest.send(&rest, &[]);
    assert_eq!(guest.expect(op::RW).payload, b"ts");
}

#[test]
fn credit_rides_on_data_to_the_guest() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    guest.say_data(5000, 1000, b"12345");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    guest.flush();
    stream.write_all(b"back").unwrap();
    assert_eq!(guest.expect(op::RW).header.fwd_cnt, 5);
}

#[test]
fn credit_updates_are_far_fewer_than_packets() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.log = Some(Vec::new());
    let listener = rig.listen(1000);
    let (id, stream) = connect_from_guest(&mut kernel, &listener, 1000);
    let data = bytes(2_000_000, 7);
    let reading = read_slowly(stream, data.len());
    for piece in data.chunks(1000) {
        kernel.send_all(id, piece);
    }
    reading.join().unwrap();
    kernel.pump();
    let updates = kernel.log.unwrap().iter().filter(|header| header.op == op::CREDIT_UPDATE).count();
    assert!(updates < 500, "{updates} updates for 2000 packets");
}

#[test]
fn fwd_cnt_tells_what_the_hosts_socket_took_and_no_more() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let ask = |guest: &mut vsock_driver::guest::Guest| {
        guest.say(op::CREDIT_REQUEST, 5000, 1000);
        guest.expect(op::CREDIT_UPDATE).header.fwd_cnt
    };
    // More than its socket holds; within our window at any time.
    let (mut sent, mut told) = (0, 0);
    while sent - told < 150_000 {
        guest.say_data(5000, 1000, &[1; 50_000]);
        guest.flush();
        sent += 50_000;
        while guest.take().is_some() {}
        guest.post_all();
        let now = ask(&mut guest);
        assert!((told..=sent).contains(&now), "{now} of {sent}");
        told = now;
    }
    let mut all = vec![0; sent as usize];
    stream.read_exact(&mut all).unwrap();
    wait_until("the rest is in the socket", || ask(&mut guest) == sent);
}

#[test]
fn window_for_an_application_that_does_not_read_fits_into_its_socket() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let window = bytes(256 * 1024, 9);
    for packet in window.chunks(64 * 1024) {
        guest.say_data(5000, 1000, packet);
    }
    rig.wait_stats("all arrived", |s| s.from_guest_bytes == window.len() as u64);
    assert_eq!(rig.stats().backlog_bytes, 0);
    let mut received = vec![0; window.len()];
    stream.read_exact(&mut received).unwrap();
    assert_same(&received, &window);
}
