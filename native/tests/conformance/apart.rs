//! Clients that are answered on a socket of their own, beside the one that becomes the connection.

use crate::rig::{Rig, assert_same, bytes};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;
use vhostvsock_native::device::{Client, Wish};
use vhostvsock_native::ids::GuestPort;
use vhostvsock_native::timers::{MILLISECOND, SECOND};
use vsock_driver::deadline::wait_until;
use vsock_driver::header::op;
use vsock_driver::host;

/// An application: its end of the connection, with a filler in it, and where it is answered.
struct Application {
    connection: UnixStream,
    answer: UnixStream,
}

/// Has an application ask for a port of the guest.
fn ask(rig: &Rig, port: u32, filler: &[u8], timeout: u64) -> Application {
    let (mut connection, socket) = UnixStream::pair().expect("socketpair");
    let (answer, told) = UnixStream::pair().expect("socketpair");
    connection.write_all(filler).expect("there is room");
    let client = Client { socket: socket.into(), answer: Some(told.into()), wish: Wish::new(GuestPort(port), timeout) };
    rig.device.connect(client);
    Application { connection, answer }
}

/// What an application is told before that socket is closed.
fn last_words(answer: &mut UnixStream) -> String {
    let mut text = String::new();
    answer.read_to_string(&mut text).expect("an end");
    text
}

#[test]
fn filler_is_no_payload_and_the_answer_comes_apart_from_the_connection() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.listen(80);
    let mut application = ask(&rig, 80, &[0; 50_000], 2 * SECOND);
    let id = kernel.accept(80);
    assert!(last_words(&mut application.answer).starts_with("OK "), "and nothing more is said there");
    let payload = bytes(100_000, 1);
    let mut writer = application.connection.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&payload).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        assert_same(&kernel.recv_to_end(id), &payload);
    });
    kernel.send_all(id, b"answer");
    kernel.close(id);
    assert_eq!(host::read_to_end(&mut application.connection).unwrap(), b"answer");
}

#[test]
fn who_waits_for_the_guest_is_told_whether_it_refused_or_went_away() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let mut refused = ask(&rig, 80, &[], 10 * SECOND);
    let port = guest.expect(op::REQUEST).header.src_port;
    guest.say(op::RST, 80, port);
    assert_eq!(
        last_words(&mut refused.answer),
        "ERR ECONNRESET the guest refused the connection: nobody listens on this port\n"
    );
    let mut left = ask(&rig, 80, &[], 10 * SECOND);
    guest.expect(op::REQUEST);
    drop(guest);
    assert_eq!(last_words(&mut left.answer), "ERR ECONNRESET the guest went away before it answered\n");
}

#[test]
fn refused_connection_is_as_it_was_and_can_be_tried_again() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (connection, kept) = UnixStream::pair().unwrap();
    let attempt = || {
        let (answer, told) = UnixStream::pair().unwrap();
        let socket = kept.try_clone().unwrap().into();
        rig.device.connect(Client { socket, answer: Some(told.into()), wish: Wish::new(GuestPort(80), 2 * SECOND) });
        answer
    };
    for refusals in 1..=3 {
        let mut answer = attempt();
        kernel.pump_until(|_| rig.stats().refused_by_guest == refusals);
        assert!(last_words(&mut answer).starts_with("ERR ECONNRESET "));
    }
    // Neither direction was shut down.
    connection.set_nonblocking(true).unwrap();
    assert_eq!((&connection).read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    kernel.listen(80);
    let mut answer = attempt();
    let id = kernel.accept(80);
    assert!(last_words(&mut answer).starts_with("OK "));
    (&connection).write_all(b"hello").unwrap();
    assert_eq!(kernel.recv_exact(id, 5), b"hello");
}

#[test]
fn guest_has_as_long_to_answer_as_the_client_gives_it() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let began = Instant::now();
    let mut application = ask(&rig, 80, b"", 50 * MILLISECOND);
    guest.expect(op::REQUEST);
    assert!(last_words(&mut application.answer).starts_with("ERR ETIMEDOUT "));
    assert!(began.elapsed().as_nanos() >= u128::from(50 * MILLISECOND));
}

#[test]
fn application_that_closes_before_the_guest_answers_is_forgotten() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let Application { connection, mut answer } = ask(&rig, 80, &[0; 50_000], 2 * SECOND);
    guest.expect(op::REQUEST);
    drop(connection);
    rig.wait_stats("forgotten", |s| s.handshake_left == 1 && s.connections == 0);
    assert_eq!(answer.read(&mut [0; 8]).unwrap(), 0, "nothing is said to nobody");
}

#[test]
fn nobody_to_hear_the_answer_means_no_connection() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let Application { connection, answer } = ask(&rig, 80, b"", 2 * SECOND);
    let request = guest.expect(op::REQUEST).header;
    drop(answer);
    guest.say(op::RESPONSE, 80, request.src_port);
    assert_eq!(guest.expect(op::RST).header.src_port, request.src_port);
    drop(connection);
}

/// Whether any poller of the process watches this socket (proc_pid_fdinfo(5)).
fn is_watched(socket: &UnixStream) -> bool {
    let inode = format!(" ino:{:x} ", rustix::fs::fstat(socket).unwrap().st_ino);
    let about = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.ok()?.path()).ok();
    std::fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(about).any(|about| about.contains(&inode))
}

#[test]
fn socket_that_its_client_keeps_is_watched_no_longer_than_it_is_a_connection() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.listen(80);
    let ask = |socket: &UnixStream, answer: Option<UnixStream>| {
        let (socket, answer) = (socket.try_clone().unwrap().into(), answer.map(Into::into));
        rig.device.connect(Client { socket, answer, wish: Wish::new(GuestPort(80), 2 * SECOND) });
    };
    for apart in [false, true] {
        let (_connection, kept) = UnixStream::pair().unwrap();
        let (_answer, told) = UnixStream::pair().unwrap();
        ask(&kept, apart.then_some(told));
        let id = kernel.accept(80);
        assert!(is_watched(&kept));
        kernel.close(id);
        wait_until("it is forgotten", || !is_watched(&kept));
    }
}
