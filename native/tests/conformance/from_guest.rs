//! Guest applications that connect to host listeners, and packets that belong to no connection.

use crate::rig::{Rig, assert_ended, connect_from_guest, full_listener, open_from_guest};
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use vhostvsock_native::timers::{MILLISECOND, SECOND};
use vsock_driver::deadline::Deadline;
use vsock_driver::header::{Header, SEQPACKET, STREAM, op};
use vsock_driver::host;
use vsock_driver::linux::Ended;

#[test]
fn guest_reaches_the_listener_of_its_port() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (a, b) = (rig.listen(1000), rig.listen(1001));
    guest.say(op::REQUEST, 5000, 1001);
    let response = guest.expect(op::RESPONSE).header;
    assert_eq!((response.src_port, response.dst_port, response.type_), (1001, 5000, STREAM));
    assert!(response.buf_alloc > 0);
    host::accept(&b);
    assert!(a.accept().is_err());
    rig.wait_stats("counted", |s| (s.guest_requests, s.established) == (1, 1));
}

#[test]
fn listener_behind_a_symbolic_link_is_reached() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    std::os::unix::fs::symlink(rig.listener_path(1000), rig.listener_path(1001)).unwrap();
    guest.say(op::REQUEST, 5000, 1001);
    let response = guest.expect(op::RESPONSE).header;
    assert_eq!((response.src_port, response.dst_port), (1001, 5000));
    host::accept(&listener);
}

#[test]
fn guest_connect_to_closed_port_gets_rst_at_once() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let start = Instant::now();
    assert_eq!(kernel.connect(1234), Err(Ended::Reset));
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(rig.stats().refused_no_listener, 1);
}

#[test]
fn guest_connect_to_a_socket_file_that_nobody_serves_gets_rst() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    drop(rig.listen(1000));
    assert_eq!(kernel.connect(1000), Err(Ended::Reset));
    std::fs::write(rig.listener_path(1001), "not a socket").unwrap();
    assert_eq!(kernel.connect(1001), Err(Ended::Reset));
    assert_eq!(rig.stats().refused_no_listener, 2);
}

#[test]
fn rst_without_a_connection_carries_no_credit() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    guest.say(op::REQUEST, 5000, 1234);
    let rst = guest.expect(op::RST).header;
    let expected = Header {
        src_cid: 2,
        dst_cid: guest.cid,
        src_port: 1234,
        dst_port: 5000,
        type_: STREAM,
        op: op::RST,
        ..Header::default()
    };
    assert_eq!(rst, expected);
}

#[test]
fn every_packet_of_an_unknown_connection_gets_rst_except_rst() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, 0xffff] {
        guest.say(op, u32::from(op) + 1, 9);
        let rst = guest.expect(op::RST).header;
        assert_eq!((rst.src_port, rst.dst_port), (9, u32::from(op) + 1));
    }
    assert_eq!(rig.stats().rst_unknown, 8);
    guest.say(op::RST, 77, 9);
    // The next answer is to the packet after: none to the RST.
    guest.say(op::RW, 78, 9);
    assert_eq!(guest.expect(op::RST).header.dst_port, 78);
}

#[test]
fn other_types_get_rst_of_their_type_and_leave_the_connection_alone() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    for type_ in [0, SEQPACKET, 3, 0xffff] {
        for (op, port) in [(op::REQUEST, 5001), (op::RW, 5000)] {
            let header = Header { type_, ..guest.header(op, port, 1000) };
            guest.send(&header, &[]);
            let rst = guest.expect(op::RST).header;
            assert_eq!((rst.type_, rst.dst_port), (type_, port));
        }
        let header = Header { type_, ..guest.header(op::RST, 5000, 1000) };
        guest.send(&header, &[]);
    }
    guest.say_data(5000, 1000, b"alive");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"alive");
}

#[test]
fn forged_source_and_wrong_destination_are_dropped_in_silence() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let _listener = rig.listen(1000);
    let own = guest.cid;
    for (src, dst) in [(43, 2), (2, 2), (own | 1 << 32, 2), (own, 1), (own, 0), (own, 77), (own, u64::MAX)] {
        let header = Header { src_cid: src, dst_cid: dst, ..guest.header(op::REQUEST, 5000, 1000) };
        guest.send(&header, &[]);
    }
    guest.say(op::RW, 1, 2);
    let rst = guest.expect(op::RST).header;
    assert_eq!((rst.dst_port, rst.src_port), (1, 2), "the first answer is to the packet that was not forged");
    assert_eq!((rig.stats().dropped_forged, rig.stats().guest_requests), (7, 0));
    guest.flush();
}

#[test]
fn full_backlog_delays_only_its_own_connection_and_ends_with_rst() {
    let rig = Rig::with(|settings| settings.connect_timeout = 200 * MILLISECOND);
    let mut kernel = rig.linux();
    let (_listener, _waiting) = full_listener(&rig.listener_path(1000));
    let other = rig.listen(1001);
    let start = Instant::now();
    let stuck = kernel.start_connect(1000);
    let (id, mut stream) = connect_from_guest(&mut kernel, &other, 1001);
    kernel.send_all(id, b"while the other one waits");
    let mut bytes = [0; 25];
    stream.read_exact(&mut bytes).unwrap();
    stream.write_all(b"and back").unwrap();
    assert_eq!(kernel.recv_exact(id, 8), b"and back");
    assert_eq!(kernel.wait_connected(stuck), Err(Ended::Reset));
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(rig.stats().refused_backlog, 1);
}

#[test]
fn full_backlog_that_empties_in_time_lets_the_connection_through() {
    let rig = Rig::with(|settings| settings.connect_timeout = 10 * SECOND);
    let mut kernel = rig.linux();
    let (listener, waiting) = full_listener(&rig.listener_path(1000));
    let stuck = kernel.start_connect(1000);
    rig.wait_stats("asked", |s| s.guest_requests == 1);
    for _ in &waiting {
        host::accept(&listener);
    }
    kernel.wait_connected(stuck).unwrap();
    kernel.send_all(stuck, b"through");
    let mut bytes = [0; 7];
    host::accept(&listener).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"through");
}

#[test]
fn guest_that_gives_up_while_the_backlog_is_full_leaves_nothing_behind() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (_listener, _waiting) = full_listener(&rig.listener_path(1000));
    guest.say(op::REQUEST, 5000, 1000);
    guest.say(op::RST, 5000, 1000);
    rig.wait_stats("forgotten", |s| s.guest_requests == 1 && s.connections == 0);
    assert!(guest.recv_by(Deadline::after(Duration::from_millis(20))).is_none());
}

#[test]
fn duplicate_request_and_unknown_operations_on_a_live_connection_are_ignored() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    for op in [op::REQUEST, op::RESPONSE, 0, 8, 99] {
        guest.say(op, 5000, 1000);
    }
    guest.say_data(5000, 1000, b"alive");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    guest.say(op::CREDIT_REQUEST, 5000, 1000);
    let update = guest.expect(op::CREDIT_UPDATE).header;
    assert_eq!((update.fwd_cnt, update.src_port, update.dst_port), (5, 1000, 5000));
    assert!(listener.accept().is_err(), "the second REQUEST made no second connection");
}

#[test]
fn ports_are_usable_again_right_after_both_directions_were_closed() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    for round in 0..20_u8 {
        let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
        guest.say_data(5000, 1000, &[round]);
        let header = Header { flags: 3, ..guest.header(op::SHUTDOWN, 5000, 1000) };
        guest.send(&header, &[]);
        guest.expect(op::RST);
        assert_eq!(host::read_to_end(&mut stream).unwrap(), [round]);
        // Linux says it once more at close(2).
        guest.say(op::RST, 5000, 1000);
    }
    rig.wait_stats("gone", |s| s.connections == 0);
}

#[test]
fn request_on_ports_that_wait_for_an_rst_opens_a_new_connection() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    drop(open_from_guest(&mut guest, &listener, 5000, 1000));
    let mut flags = 0;
    while flags != 3 {
        flags |= guest.expect(op::SHUTDOWN).header.flags;
    }
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    stream.write_all(b"new").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"new");
}

#[test]
fn limit_of_connections_refuses_newcomers_of_both_sides_and_nobody_else() {
    let rig = Rig::with(|settings| settings.max_connections = 3);
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (a, _a) = connect_from_guest(&mut kernel, &listener, 1000);
    let (_b, _b_host) = connect_from_guest(&mut kernel, &listener, 1000);
    let (_c, _c_host) = connect_from_guest(&mut kernel, &listener, 1000);
    assert_eq!(kernel.connect(1000), Err(Ended::Reset));
    let mut refused = rig.dial();
    let _ = refused.write_all(b"CONNECT 80\n");
    assert_ended(&mut refused);
    rig.wait_stats("both counted", |s| s.refused_limit == 2 && s.connections == 3);
    kernel.close(a);
    kernel.wait_closed(a);
    connect_from_guest(&mut kernel, &listener, 1000);
}
