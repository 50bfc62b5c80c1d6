//! Host applications that connect into the guest: the CONNECT line and what can go wrong around it.

use crate::rig::{Rig, assert_ended, assert_same, bytes, connect_from_host, open_from_host};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;
use vhostvsock_native::timers::MILLISECOND;
use vsock_driver::deadline::Deadline;
use vsock_driver::header::{SHUTDOWN_RCV, SHUTDOWN_SEND, STREAM, op};
use vsock_driver::host;

#[test]
fn answer_to_connect_names_a_host_port_that_is_neither_privileged_nor_long() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let mut stream = rig.ask(80);
    let request = guest.expect(op::REQUEST).header;
    assert_eq!((request.dst_port, request.type_, request.len, request.fwd_cnt), (80, STREAM, 0, 0));
    assert!(request.buf_alloc > 0, "the guest must know our window");
    guest.say(op::RESPONSE, 80, request.src_port);
    let port = host::answer(&mut stream).unwrap();
    assert!((1024..=65535).contains(&port), "{port}");
    assert_eq!(port, request.src_port, "not the guest's port, but the host's");
    rig.wait_stats("counted", |s| (s.host_requests, s.established, s.connections) == (1, 1, 1));
}

#[test]
fn host_ports_of_connections_to_one_guest_port_differ() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (_a, first) = open_from_host(&rig, &mut guest, 80);
    let (_b, second) = open_from_host(&rig, &mut guest, 80);
    assert_ne!(first, second);
}

#[test]
fn bytes_right_behind_the_connect_line_arrive() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.listen(80);
    let payload = bytes(10_000, 1);
    let mut stream = rig.dial();
    stream.write_all(&[b"CONNECT 80\n", &payload[..]].concat()).unwrap();
    let id = kernel.accept(80);
    host::answer(&mut stream).unwrap();
    assert_same(&kernel.recv_exact(id, payload.len()), &payload);
}

#[test]
fn host_data_before_the_guests_response_waits_for_it() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let mut stream = rig.dial();
    stream.write_all(b"CONNECT 80\nhello").unwrap();
    let request = guest.expect(op::REQUEST).header;
    // Whatever else the device does, it must not send data or give up now. Its answer to a packet shows that it is idle.
    guest.say(op::RW, 1, 2);
    guest.expect(op::RST);
    guest.say(op::RESPONSE, 80, request.src_port);
    host::answer(&mut stream).unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"hello");
}

#[test]
fn connect_line_in_single_bytes_resumes() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.listen(4_294_967_294);
    let mut stream = rig.dial();
    for byte in b"connect 4294967294\r\n" {
        stream.write_all(&[*byte]).unwrap();
        std::thread::yield_now();
    }
    let id = kernel.accept(4_294_967_294);
    host::answer(&mut stream).unwrap();
    stream.write_all(b"x").unwrap();
    assert_eq!(kernel.recv_exact(id, 1), b"x");
}

#[test]
fn half_a_connect_line_then_the_rest_after_other_traffic() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let mut slow = rig.dial();
    slow.write_all(b"CONNE").unwrap();
    let (id, mut other) = connect_from_host(&rig, &mut kernel, 81);
    other.write_all(b"quick").unwrap();
    assert_eq!(kernel.recv_exact(id, 5), b"quick");
    kernel.listen(80);
    slow.write_all(b"CT 80\nslow").unwrap();
    let id = kernel.accept(80);
    assert_eq!(kernel.recv_exact(id, 4), b"slow");
}

#[test]
fn lines_that_are_no_connect_are_closed_and_counted() {
    let rig = Rig::new();
    let _guest = rig.boot();
    let bad: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n",
        b"CONNECT\n",
        b"CONNECT -1\n",
        b"CONNECT +22\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 1 2\n",
        b"\xff\xfe\n",
        &[b'A'; 100],
    ];
    for (line, count) in bad.iter().zip(1..) {
        let mut stream = rig.dial();
        stream.write_all(line).unwrap();
        // Closing with unread bytes makes the kernel say "reset" in place of the end.
        match stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{line:?}: {other:?}"),
        }
        rig.wait_stats("counted as bad", |s| s.handshake_bad == count);
    }
    assert_eq!(rig.stats().host_requests, 0);
}

#[test]
fn client_that_says_nothing_is_closed_in_time() {
    let rig = Rig::with(|settings| settings.handshake_timeout = 30 * MILLISECOND);
    let _guest = rig.boot();
    let mut silent = rig.dial();
    let mut half = rig.dial();
    half.write_all(b"CONNECT 8").unwrap();
    assert_eq!(silent.read(&mut [0; 8]).unwrap(), 0);
    assert_ended(&mut half);
    rig.wait_stats("both counted", |s| s.handshake_timeout == 2);
}

#[test]
fn client_that_sends_its_line_byte_by_byte_gets_no_more_time_for_it() {
    let rig = Rig::with(|settings| settings.handshake_timeout = 50 * MILLISECOND);
    let mut client = rig.dial();
    let mut line = b"CONNECT                       80\n".chunks(1);
    while line.next().is_some_and(|byte| client.write_all(byte).is_ok()) {
        std::thread::sleep(Duration::from_millis(25));
    }
    assert_ended(&mut client);
    assert_eq!(rig.stats().handshake_timeout, 1);
}

#[test]
fn client_that_connects_and_closes_at_once_is_forgotten() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    for _ in 0..50 {
        drop(rig.dial());
    }
    let mut stream = rig.dial();
    stream.write_all(b"CONN").unwrap();
    drop(stream);
    rig.wait_stats("left", |s| s.handshake_left == 51);
    let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
    stream.write_all(b"alive").unwrap();
    assert_eq!(kernel.recv_exact(id, 5), b"alive");
}

#[test]
fn client_that_leaves_before_the_guest_answers_hurts_nobody() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (mut other, other_port) = open_from_host(&rig, &mut guest, 81);
    let stream = rig.ask(80);
    let request = guest.expect(op::REQUEST).header;
    drop(stream);
    // The guest hears of the end, before or after its answer.
    rig.wait_stats("forgotten", |s| s.handshake_left == 1);
    guest.say(op::RESPONSE, 80, request.src_port);
    let end = guest.recv().header;
    assert_eq!((end.src_port, end.op), (request.src_port, op::RST));
    other.write_all(b"x").unwrap();
    let data = loop {
        let packet = guest.recv();
        if packet.header.op != op::RST {
            break packet;
        }
    };
    assert_eq!((data.header.src_port, &data.payload[..]), (other_port, &b"x"[..]));
}

#[test]
fn client_that_sends_a_request_and_its_end_gets_it_delivered() {
    // `printf 'CONNECT 80\nhello' | nc -N`: the end of the stream follows the line at once.
    let rig = Rig::new();
    let mut kernel = rig.linux();
    kernel.listen(80);
    let mut stream = rig.dial();
    stream.write_all(b"CONNECT 80\nhello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let id = kernel.accept(80);
    assert_eq!(kernel.recv_to_end(id), b"hello");
    kernel.send_all(id, b"answer");
    kernel.close(id);
    host::answer(&mut stream).unwrap();
    assert_eq!(host::read_to_end(&mut stream).unwrap(), b"answer");
}

#[test]
fn refused_by_the_guest_closes_the_client_without_an_answer() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let mut stream = rig.ask(80);
    kernel.pump_until(|_| rig.stats().refused_by_guest == 1);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(rig.stats().connections, 0);
}

#[test]
fn guest_that_does_not_answer_has_the_client_closed_in_time() {
    let rig = Rig::with(|settings| settings.connect_timeout = 30 * MILLISECOND);
    let mut guest = rig.boot();
    let mut stream = rig.ask(80);
    let request = guest.expect(op::REQUEST).header;
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    let rst = guest.expect(op::RST).header;
    assert_eq!((rst.src_port, rst.dst_port), (request.src_port, 80));
    assert_eq!(rig.stats().timeout_guest, 1);
}

#[test]
fn without_a_running_guest_the_client_is_closed_at_once() {
    let rig = Rig::new();
    let mut stream = rig.ask(80);
    assert_ended(&mut stream);
    rig.wait_stats("counted", |s| s.refused_not_running == 1);
    // The socket stays where it is.
    let mut guest = rig.boot();
    open_from_host(&rig, &mut guest, 80);
}

#[test]
fn hundred_connections_reset_in_one_batch_with_news_on_each_do_no_harm() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let mut streams: Vec<_> = (0..100).map(|_| open_from_host(&rig, &mut guest, 80)).collect();
    // So that socket news and resets meet in the same turns of the device's loop.
    for round in 0..4 {
        for (stream, _) in &mut streams[round * 25..(round + 1) * 25] {
            stream.write_all(b"news").unwrap();
        }
        for (_, port) in &streams[round * 25..(round + 1) * 25] {
            let header = guest.header(op::RST, 80, *port);
            guest.put(&header, &[]);
        }
        guest.tx.publish_and_kick();
    }
    rig.wait_stats("all gone", |s| s.connections == 0);
    while guest.recv_by(Deadline::after(std::time::Duration::from_millis(5))).is_some() {}
    let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
    guest.say_data(80, port, b"alive");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"alive");
}

#[test]
fn closing_the_client_tells_the_guest_the_end_of_both_directions() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (stream, port) = open_from_host(&rig, &mut guest, 80);
    drop(stream);
    let mut flags = 0;
    while flags != SHUTDOWN_RCV | SHUTDOWN_SEND {
        flags |= guest.expect(op::SHUTDOWN).header.flags;
    }
    guest.say(op::RST, 80, port);
    rig.wait_stats("gone", |s| s.connections == 0);
}
