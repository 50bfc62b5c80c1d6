//! Message sockets (SOCK_SEQPACKET): boundaries, sizes, types, ends, in both directions.

use crate::rig::{Rig, assert_same, bytes};
use rustix::net::Shutdown;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use vhostvsock_native::device::{Admission, BRIDGE_TIMEOUT, Client, Wish};
use vhostvsock_native::events::Kind;
use vhostvsock_native::ids::GuestPort;
use vsock_driver::front_end::message::feature;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::{Header, SEQ_EOM, SEQPACKET, SHUTDOWN_RCV, SHUTDOWN_SEND, STREAM, op};
use vsock_driver::host::messages::{self as host, Messenger};
use vsock_driver::linux::{Ended, Kernel, Message, Received, SocketId, TooLong};

/// Lengths at which something changes: buffers, packets, windows.
const LENGTHS: [usize; 14] = [1, 2, 127, 128, 129, 3731, 3732, 3733, 4096, 65535, 65536, 65537, 200_000, 256 * 1024];

/// Opens a connection from a socket of the guest: both ends.
#[track_caller]
fn connect_from_guest(rig: &Rig, kernel: &mut Kernel, port: u32) -> (SocketId, Messenger) {
    let listener = listen(rig, port);
    let id = kernel.connect_as(SEQPACKET, port).expect("the guest connects");
    let _ = std::fs::remove_file(rig.listener_path(port));
    (id, host::accept(&listener))
}

/// Opens a connection from a host application to a socket of the guest: both ends.
#[track_caller]
fn connect_from_host(rig: &Rig, kernel: &mut Kernel, port: u32) -> (SocketId, Messenger) {
    kernel.listen_as(SEQPACKET, port);
    let client = host::ask(&rig.uds, port).expect("CONNECT");
    let id = kernel.accept(port);
    host::answer(&client).expect("OK");
    (id, client)
}

/// A listener for guests.
fn listen(rig: &Rig, port: u32) -> OwnedFd {
    host::listen(&rig.listener_path(port)).expect("listen")
}

/// A header of a guest without sockets.
fn header(guest: &Guest, op: u16, src: u32, dst: u32) -> Header {
    Header { type_: SEQPACKET, ..guest.header(op, src, dst) }
}

/// Opens a connection below the guest's sockets.
fn open(rig: &Rig, guest: &mut Guest, src: u32, dst: u32) -> Messenger {
    let listener = listen(rig, dst);
    guest.send(&header(guest, op::REQUEST, src, dst), &[]);
    let response = guest.expect(op::RESPONSE).header;
    assert_eq!((response.type_, response.buf_alloc), (SEQPACKET, 256 * 1024));
    host::accept(&listener)
}

/// Sends a part of a message below the guest's sockets.
fn say_part(guest: &mut Guest, src: u32, dst: u32, payload: &[u8], flags: u32) {
    let len = u32::try_from(payload.len()).unwrap();
    guest.send(&Header { len, flags, ..header(guest, op::RW, src, dst) }, payload);
}

#[test]
fn messages_of_every_length_keep_their_boundaries_both_ways() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let from_guest = connect_from_guest(&rig, &mut kernel, 1000);
    let from_host = connect_from_host(&rig, &mut kernel, 80);
    for (id, socket) in [from_guest, from_host] {
        for (seed, len) in (1..).zip(LENGTHS) {
            let message = bytes(len, seed);
            kernel.send_message(id, &message).unwrap();
            assert_same(&socket.recv().unwrap(), &message);
            socket.send(&message).unwrap();
            assert_same(&kernel.recv_message(id).unwrap().bytes, &message);
        }
        // Many that are there at once are as many in the end.
        for len in 1..=100 {
            kernel.send_message(id, &bytes(len, len as u64)).unwrap();
            socket.send(&bytes(len, len as u64)).unwrap();
        }
        for len in 1..=100 {
            assert_same(&socket.recv().unwrap(), &bytes(len, len as u64));
            assert_same(&kernel.recv_message(id).unwrap().bytes, &bytes(len, len as u64));
        }
    }
    let stats = rig.stats();
    assert_eq!((stats.dropped_bytes, stats.reset_too_long, stats.from_guest_bytes), (0, 0, stats.to_guest_bytes));
}

#[test]
fn record_of_the_guest_is_a_message_of_the_host() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, socket) = connect_from_guest(&rig, &mut kernel, 1000);
    for record in [true, false] {
        let message = Message { bytes: b"the end of a record".to_vec(), record };
        assert_eq!(kernel.send_some(id, &message, 0), Ok(message.bytes.len()));
        assert_eq!(socket.recv().unwrap(), message.bytes);
    }
    // A UNIX socket has no records, so none can come from there.
    socket.send(b"answer").unwrap();
    assert_eq!(kernel.recv_message(id), Ok(Message { bytes: b"answer".to_vec(), record: false }));
}

#[test]
fn message_longer_than_the_window_is_refused_to_the_guest() {
    let rig = Rig::with(|settings| settings.buf_alloc = 100_000);
    let mut kernel = rig.linux();
    let (id, socket) = connect_from_guest(&rig, &mut kernel, 1000);
    assert_eq!(kernel.send_message(id, &bytes(100_001, 1)), Err(TooLong));
    kernel.send_message(id, &bytes(100_000, 2)).unwrap();
    assert_same(&socket.recv().unwrap(), &bytes(100_000, 2));
}

#[test]
fn message_longer_than_the_guest_takes_ends_the_connection_and_no_part_of_it_arrives() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.log = Some(Vec::new());
    let (id, socket) = connect_from_host(&rig, &mut kernel, 80);
    // An application that asks for more room than a message may have.
    rustix::net::sockopt::set_socket_send_buffer_size(&socket.0, 1 << 20).unwrap();
    socket.send(b"before").unwrap();
    socket.send(&bytes(256 * 1024 + 1, 1)).unwrap();
    rig.wait_stats("reset", |s| s.reset_too_long == 1);
    assert_eq!(kernel.recv_message(id).unwrap().bytes, b"before");
    assert_eq!(kernel.recv_message(id), Err(Received::End));
    assert!(socket.recv().map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |end| end.is_empty()));
    let sent = kernel.log.unwrap().iter().filter(|header| header.op == op::RW).count();
    assert_eq!(sent, 1, "nothing of the long one was sent");
    rig.wait_event_with(Kind::Log, "262145 bytes is longer than the guest takes");
}

#[test]
fn messages_without_bytes_are_none() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, socket) = connect_from_host(&rig, &mut kernel, 80);
    for message in [&b""[..], b"one", b"", b"", b"two", b""] {
        socket.send(message).unwrap();
    }
    socket.shutdown(Shutdown::Write);
    assert_eq!(kernel.recv_message(id).unwrap().bytes, b"one");
    assert_eq!(kernel.recv_message(id).unwrap().bytes, b"two");
    assert_eq!(kernel.recv_message(id), Err(Received::End));
    assert_eq!(kernel.socket(id).peer_shutdown, SHUTDOWN_SEND, "the host still receives");
    kernel.send_message(id, b"three").unwrap();
    assert_eq!(socket.recv().unwrap(), b"three");

    let mut guest = kernel.guest;
    let socket = open(&rig, &mut guest, 5000, 1000);
    for (payload, flags) in [(&b""[..], SEQ_EOM), (b"", 0), (b"first ", 0), (b"", 0), (b"half", 0), (b"", SEQ_EOM)] {
        say_part(&mut guest, 5000, 1000, payload, flags);
    }
    assert_eq!(socket.recv().unwrap(), b"first half");
}

#[test]
fn reset_in_the_middle_of_a_message_delivers_those_before_and_nothing_of_it() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    for last in [op::RST, op::SHUTDOWN] {
        let _ = std::fs::remove_file(rig.listener_path(1000));
        let dropped = rig.stats().dropped_bytes;
        let socket = open(&rig, &mut guest, 5000, 1000);
        say_part(&mut guest, 5000, 1000, b"whole", SEQ_EOM);
        say_part(&mut guest, 5000, 1000, b"half of", 0);
        let flags = if last == op::SHUTDOWN { SHUTDOWN_RCV | SHUTDOWN_SEND } else { 0 };
        guest.send(&Header { flags, ..header(&guest, last, 5000, 1000) }, &[]);
        rig.wait_stats("gone", |s| s.connections == 0);
        assert_eq!(socket.recv().unwrap(), b"whole");
        assert_eq!(socket.recv().unwrap(), b"", "the end");
        rig.wait_stats("dropped", |s| s.dropped_bytes == dropped + 7);
        if last == op::SHUTDOWN {
            assert_eq!(guest.expect(op::RST).header.type_, SEQPACKET);
        }
    }
}

#[test]
fn half_close_by_either_side_keeps_the_other_direction_open() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, socket) = connect_from_guest(&rig, &mut kernel, 1000);
    kernel.send_message(id, b"request").unwrap();
    kernel.shutdown(id, SHUTDOWN_SEND);
    assert_eq!(socket.recv().unwrap(), b"request");
    assert_eq!(socket.recv().unwrap(), b"", "the end");
    for seed in 0..20 {
        socket.send(&bytes(50_000, seed)).unwrap();
        assert_same(&kernel.recv_message(id).unwrap().bytes, &bytes(50_000, seed));
    }
    drop(socket);
    assert_eq!(kernel.recv_message(id), Err(Received::End));
    kernel.close(id);
    rig.wait_stats("gone", |s| s.connections == 0);
}

#[test]
fn message_that_waits_is_counted_whole_however_many_packets_it_came_in() {
    const PART: usize = 60_000;
    let rig = Rig::new();
    let mut guest = rig.boot();
    let _socket = open(&rig, &mut guest, 5000, 1000);
    for _ in 0..100 {
        for flags in [0, 0, SEQ_EOM] {
            say_part(&mut guest, 5000, 1000, &bytes(PART, 1), flags);
            guest.flush();
        }
        match rig.stats().backlog_bytes {
            0 => {}
            waiting => return assert_eq!(waiting, 3 * PART as u64),
        }
    }
    panic!("the socket is never full");
}

#[test]
fn what_the_host_sent_before_it_closed_arrives() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, socket) = connect_from_host(&rig, &mut kernel, 80);
    let messages = [bytes(100_000, 1), bytes(10, 2), bytes(90_000, 3)];
    for message in &messages {
        socket.send(message).unwrap();
    }
    drop(socket);
    for message in &messages {
        assert_same(&kernel.recv_message(id).unwrap().bytes, message);
    }
    assert_eq!(kernel.recv_message(id), Err(Received::End));
    kernel.close(id);
    rig.wait_stats("gone", |s| s.connections == 0);
}

#[test]
fn what_the_host_sent_before_it_closed_with_messages_unread_arrives() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    for round in 1..=3 {
        let _ = std::fs::remove_file(rig.listener_path(1000));
        let (id, socket) = connect_from_guest(&rig, &mut kernel, 1000);
        kernel.send_message(id, b"never read").unwrap();
        rig.wait_stats("it is there", |s| s.from_guest_bytes == round * 10);
        for message in [&b"one"[..], b"two"] {
            socket.send(message).unwrap();
        }
        drop(socket);
        assert_eq!(kernel.recv_message(id).unwrap().bytes, b"one");
        assert_eq!(kernel.recv_message(id).unwrap().bytes, b"two");
        assert_eq!(kernel.recv_message(id), Err(Received::End));
        rig.wait_stats("reset", |s| (s.reset_by_host, s.connections) == (round, 0));
    }
}

#[test]
fn types_have_to_match() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let _streams = rig.listen(1000);
    let _messages = listen(&rig, 2000);
    assert_eq!(kernel.connect_as(SEQPACKET, 1000), Err(Ended::Reset));
    assert_eq!(kernel.connect_as(STREAM, 2000), Err(Ended::Reset));
    assert_eq!(rig.stats().refused_type, 2);
    assert_eq!(kernel.connect_as(SEQPACKET, 3000), Err(Ended::Reset));
    assert_eq!(rig.stats().refused_no_listener, 1);
    kernel.listen_as(SEQPACKET, 80);
    kernel.listen_as(STREAM, 81);
    let client = host::ask(&rig.uds, 81).unwrap();
    kernel.pump_until(|_| rig.stats().refused_by_guest == 1);
    assert_eq!(client.recv().unwrap(), b"", "closed as for a port where nobody listens");
    let mut stream = rig.ask(80);
    kernel.pump_until(|_| rig.stats().refused_by_guest == 2);
    crate::rig::assert_ended(&mut stream);
}

#[test]
fn packet_of_another_type_gets_rst_of_its_type_and_the_connection_lives() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let socket = open(&rig, &mut guest, 5000, 1000);
    for type_ in [STREAM, 0, 9] {
        guest.send(&Header { type_, ..header(&guest, op::CREDIT_REQUEST, 5000, 1000) }, &[]);
        assert_eq!(guest.expect(op::RST).header.type_, type_);
    }
    assert_eq!(rig.stats().rst_type, 3);
    say_part(&mut guest, 5000, 1000, b"alive", SEQ_EOM);
    assert_eq!(socket.recv().unwrap(), b"alive");
}

#[test]
fn guest_without_the_feature_neither_sees_nor_sends_a_message_socket() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.features &= !feature::SEQPACKET);
    let client = host::ask(&rig.uds, 80).unwrap();
    assert_eq!(client.recv().unwrap(), b"");
    assert_eq!(rig.stats().refused_no_seqpacket, 1);
    let _listener = listen(&rig, 1000);
    guest.send(&header(&guest, op::REQUEST, 5000, 1000), &[]);
    let rst = guest.expect(op::RST).header;
    assert_eq!((rst.type_, rst.src_port, rst.dst_port), (SEQPACKET, 1000, 5000));
    assert_eq!(rig.stats().rst_type, 1);
    // Nothing else was sent: the next packet is the answer to the next question.
    guest.say(op::CREDIT_REQUEST, 1, 2);
    assert_eq!(guest.expect(op::RST).header.type_, STREAM);
}

#[test]
fn client_of_the_bridge_is_told_that_there_are_no_message_sockets() {
    let rig = Rig::new();
    let connect = || {
        let kind = rustix::net::SocketType::SEQPACKET;
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None).unwrap();
        rig.device.connect(Client { socket: theirs, answer: None, wish: Wish::new(GuestPort(80), BRIDGE_TIMEOUT) });
        Messenger::new(ours).unwrap()
    };
    let refused = |client: &Messenger| String::from_utf8(client.recv().unwrap()).unwrap();
    assert!(refused(&connect()).starts_with("ERR ESOCKTNOSUPPORT "), "nobody has agreed on features");
    let mut setup = Setup::default();
    setup.features &= !feature::SEQPACKET;
    let guest = Guest::boot(rig.plug_as(Admission::default()), setup).unwrap();
    assert!(refused(&connect()).starts_with("ERR ESOCKTNOSUPPORT "));
    drop(guest);
    rig.wait_event(Kind::Detached);
    let mut kernel = rig.linux();
    kernel.listen_as(SEQPACKET, 80);
    let client = connect();
    let id = kernel.accept(80);
    host::answer(&client).unwrap();
    client.send(b"hello").unwrap();
    assert_eq!(kernel.recv_message(id).unwrap().bytes, b"hello");
    kernel.guest.stop().unwrap();
    rig.wait_event(Kind::Stopped);
    assert!(refused(&connect()).starts_with("ERR EHOSTUNREACH "), "what the driver took is still known");
}

#[test]
fn what_is_not_one_line_in_one_message_is_turned_away() {
    let rig = Rig::new();
    let _guest = rig.boot();
    for (count, bad) in (1..).zip([&b"CONNECT 80"[..], b"CONNECT 80\nhello", b"CONNECT 80\n\n", &[b'A'; 5000]]) {
        let client = host::dial(&rig.uds).unwrap();
        client.send(bad).unwrap();
        assert_eq!(client.recv().map_or(0, |bytes| bytes.len()), 0);
        rig.wait_stats("turned away", |s| s.handshake_bad == count);
    }
    let client = host::dial(&rig.uds).unwrap();
    client.send(b"").unwrap();
    rig.wait_stats("turned away", |s| s.handshake_left == 1);
}
