//! What applications of the bridge may wish for: a smaller window for the guest, and the port of their own end.

use crate::rig::{Rig, assert_same, bytes};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use vhostvsock_native::device::{Admission, Client, Wish};
use vhostvsock_native::events::Kind;
use vhostvsock_native::ids::{GuestPort, HostPort};
use vhostvsock_native::timers::SECOND;
use vsock_driver::front_end::FrontEnd;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::{Header, SEQPACKET, op};
use vsock_driver::host;
use vsock_driver::host::messages::{self, Messenger};
use vsock_driver::linux::{Kernel, Rules};

/// The window of a device if nothing else is said.
const WINDOW: u32 = 256 * 1024;

/// A wish for port 80 of the guest.
fn wish() -> Wish {
    Wish::new(GuestPort(80), 2 * SECOND)
}

/// One with a port of its own.
fn from(port: u32) -> Wish {
    Wish { from: Some(HostPort(port)), ..wish() }
}

/// An application that asked for this.
fn ask(rig: &Rig, wish: Wish) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    rig.device.connect(Client { socket: theirs.into(), answer: None, wish });
    ours
}

/// What it is told in the end.
fn refusal(mut application: UnixStream) -> String {
    String::from_utf8(host::read_to_end(&mut application).expect("an end")).expect("ASCII")
}

/// A front-end whose guest reaches applications that listen through the bridge.
fn plug(rig: &Rig) -> FrontEnd {
    rig.plug_as(Admission { asks: true, ..Admission::default() })
}

/// Accepts what the guest asked for, in the name of an application that listens and wants this window.
fn accept(rig: &Rig, window: u32) -> UnixStream {
    let event = rig.wait_event(Kind::Ask);
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    rig.device.answer(event.token, Some(theirs.into()), window);
    ours
}

#[test]
fn guest_is_told_the_window_that_an_application_wants_by_the_first_packet() {
    let rig = Rig::new();
    let mut guest = Guest::boot(plug(&rig), Setup::default()).unwrap();
    for (wanted, told) in [(4096, 4096), (1, 128), (0, 128), (WINDOW + 1, WINDOW), (u32::MAX, WINDOW)] {
        let asks = ask(&rig, Wish { window: wanted, ..wish() });
        assert_eq!(guest.expect(op::REQUEST).header.buf_alloc, told, "{wanted}");
        drop(asks);
        guest.expect(op::RST);
        guest.say(op::REQUEST, 5000 + wanted % 1000, 7777);
        let listens = accept(&rig, wanted);
        assert_eq!(guest.expect(op::RESPONSE).header.buf_alloc, told, "{wanted}");
        drop(listens);
        guest.expect(op::SHUTDOWN);
    }
}

#[test]
fn no_application_gets_a_larger_window_than_the_device_has() {
    let rig = Rig::with(|settings| settings.buf_alloc = 1000);
    let mut guest = rig.boot();
    let _asks = ask(&rig, Wish { window: WINDOW, ..wish() });
    assert_eq!(guest.expect(op::REQUEST).header.buf_alloc, 1000);
}

#[test]
fn guest_that_overruns_the_smaller_window_is_reset() {
    for (len, overruns) in [(4096, 0), (4097, 1)] {
        let rig = Rig::new();
        let mut guest = rig.boot();
        let mut application = ask(&rig, Wish { window: 4096, ..wish() });
        let port = guest.expect(op::REQUEST).header.src_port;
        guest.say(op::RESPONSE, 80, port);
        host::answer(&mut application).unwrap();
        guest.say_data(80, port, &bytes(len, 1));
        if overruns == 0 {
            let mut got = vec![0; len];
            application.read_exact(&mut got).unwrap();
            assert_same(&got, &bytes(len, 1));
        } else {
            assert_eq!(guest.expect(op::RST).header.src_port, port);
        }
        assert_eq!(rig.stats().reset_overrun, overruns);
    }
}

#[test]
fn megabyte_passes_through_a_window_of_128_bytes() {
    for rules in [Rules::linux_7(), Rules::linux_6_1()] {
        let rig = Rig::new();
        let mut kernel = Kernel::new(Guest::boot(plug(&rig), Setup::default()).unwrap(), rules);
        let data = bytes(1 << 20, 2);
        let reading = |mut application: UnixStream, len: usize| {
            std::thread::spawn(move || {
                let mut got = vec![0; len];
                application.read_exact(&mut got).map(|()| got).unwrap()
            })
        };
        kernel.listen(80);
        let mut application = ask(&rig, Wish { window: 128, ..wish() });
        let id = kernel.accept(80);
        host::answer(&mut application).unwrap();
        let read = reading(application, data.len());
        kernel.send_all(id, &data);
        assert_same(&read.join().unwrap(), &data);

        let id = kernel.start_connect(7777);
        kernel.pump();
        let read = reading(accept(&rig, 128), data.len());
        kernel.wait_connected(id).unwrap();
        kernel.send_all(id, &data);
        assert_same(&read.join().unwrap(), &data);
    }
}

#[test]
fn messages_are_no_longer_than_the_window_that_an_application_wants() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.listen_as(SEQPACKET, 80);
    let kind = rustix::net::SocketType::SEQPACKET;
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None).unwrap();
    rig.device.connect(Client { socket: theirs, answer: None, wish: Wish { window: 128, ..wish() } });
    let application = Messenger::new(ours).unwrap();
    let id = kernel.accept(80);
    messages::answer(&application).unwrap();
    assert!(kernel.send_message(id, &bytes(129, 1)).is_err());
    for seed in 0..100 {
        kernel.send_message(id, &bytes(128, seed)).unwrap();
        assert_same(&application.recv().unwrap(), &bytes(128, seed));
    }
}

#[test]
fn guest_sees_the_port_that_an_application_has() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.listen(80);
    kernel.listen(81);
    // Whatever the port: who may have it was decided elsewhere. Towards another port of the guest it is another connection.
    for (wish, port) in [(from(5555), 5555), (from(0), 0), (from(22), 22), (from(u32::MAX - 1), u32::MAX - 1)] {
        let mut application = ask(&rig, wish);
        let id = kernel.accept(80);
        assert_eq!(host::answer(&mut application).unwrap(), port);
        assert_eq!(kernel.socket(id).peer, port);
        let mut other = ask(&rig, Wish { port: GuestPort(81), ..wish });
        kernel.accept(81);
        assert_eq!(host::answer(&mut other).unwrap(), port);
        application.write_all(b"hello").unwrap();
        assert_eq!(kernel.recv_exact(id, 5), b"hello");
    }
    assert_eq!(rig.stats().refused_port, 0);
}

#[test]
fn port_in_use_towards_the_same_port_of_the_guest_is_refused_and_free_once_that_connection_is_over() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.listen(80);
    let mut first = ask(&rig, from(5555));
    let id = kernel.accept(80);
    host::answer(&mut first).unwrap();
    for count in 1..=2 {
        assert!(refusal(ask(&rig, from(5555))).starts_with("ERR EADDRINUSE "));
        assert_eq!(rig.stats().refused_port, count);
    }
    first.write_all(b"still there").unwrap();
    assert_eq!(kernel.recv_exact(id, 11), b"still there");
    drop(first);
    kernel.recv_to_end(id);
    kernel.close(id);
    // Linux resets it when it is told the end, and once more when its application closes: that must not meet the next one.
    rig.wait_stats("over", |s| s.connections == 0 && s.ignored == 1);
    let mut next = ask(&rig, from(5555));
    kernel.accept(80);
    assert_eq!(host::answer(&mut next).unwrap(), 5555);
}

#[test]
fn ports_that_are_given_out_pass_over_one_that_an_application_has() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let _first = ask(&rig, wish());
    let next = guest.expect(op::REQUEST).header.src_port + 1;
    let _has = ask(&rig, from(next));
    assert_eq!(guest.expect(op::REQUEST).header.src_port, next);
    let _second = ask(&rig, wish());
    assert_ne!(guest.expect(op::REQUEST).header.src_port, next);
}

/// An application with a port of its own that is answered apart: its connection, and where it is answered.
fn ask_apart(rig: &Rig, wish: Wish) -> (UnixStream, UnixStream) {
    let (connection, socket) = UnixStream::pair().expect("socketpair");
    let (answer, told) = UnixStream::pair().expect("socketpair");
    rig.device.connect(Client { socket: socket.into(), answer: Some(told.into()), wish });
    (connection, answer)
}

#[test]
fn who_has_a_port_learns_the_end_of_the_connection_where_it_was_answered() {
    for guest_ends in [false, true] {
        let rig = Rig::new();
        let mut kernel = rig.linux();
        kernel.listen(80);
        let (mut connection, mut answer) = ask_apart(&rig, from(5555));
        let id = kernel.accept(80);
        assert_eq!(host::answer(&mut answer).unwrap(), 5555);
        connection.write_all(b"hello").unwrap();
        assert_eq!(kernel.recv_exact(id, 5), b"hello");
        kernel.send_all(id, b"hello");
        connection.read_exact(&mut [0; 5]).unwrap();
        answer.set_nonblocking(true).unwrap();
        assert_eq!(answer.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it lives");
        answer.set_nonblocking(false).unwrap();
        if guest_ends {
            kernel.close(id);
        } else {
            drop(connection);
        }
        // Waits for the end, with the time limit of all such sockets.
        let read = std::thread::spawn(move || answer.read(&mut [0; 8]).unwrap());
        assert!(kernel.pump_until(|_| read.is_finished()));
        assert_eq!(read.join().unwrap(), 0);
    }
}

#[test]
fn who_has_a_port_and_is_refused_may_try_again_with_the_same_one() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    for _ in 0..3 {
        let (_connection, mut answer) = ask_apart(&rig, from(5555));
        let request = guest.expect(op::REQUEST).header;
        assert_eq!(request.src_port, 5555);
        guest.send(&Header { buf_alloc: 0, ..guest.header(op::RST, 80, 5555) }, &[]);
        let mut text = String::new();
        answer.read_to_string(&mut text).expect("an end");
        assert!(text.starts_with("ERR ECONNRESET "));
    }
}
