//! What is offered, and what happens to a front-end that takes more or says what makes no sense.

use crate::rig::{CID, Rig, open_from_host};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use vhostvsock_native::events::{Kind, Level};
use vsock_driver::front_end::message::{NEED_REPLY, REPLY, VERSION, encode, feature, request, send};
use vsock_driver::front_end::{FrontEnd, words};

/// Says something to a fresh device, which must throw the front-end out and go on with the next.
#[track_caller]
fn assert_thrown_out(what: &str, say: impl FnOnce(&FrontEnd)) {
    let rig = Rig::new();
    let front = rig.plug();
    say(&front);
    assert!(front.is_thrown_out(), "{what}");
    rig.wait_stats("counted", |s| s.front_end_errors == 1);
    let mut guest = rig.boot();
    open_from_host(&rig, &mut guest, 80);
}

#[test]
fn offered_are_the_features_that_qemu_passes_and_that_work() {
    let rig = Rig::new();
    let front = rig.plug();
    let features = feature::SEQPACKET
        | feature::VERSION_1
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX
        | feature::PROTOCOL_FEATURES;
    assert_eq!(front.ask_number(request::GET_FEATURES).unwrap(), features);
    let protocol = feature::PROTOCOL_MQ
        | feature::PROTOCOL_REPLY_ACK
        | feature::PROTOCOL_CONFIG
        | feature::PROTOCOL_RESET_DEVICE
        | feature::PROTOCOL_CONFIGURE_MEM_SLOTS;
    assert_eq!(front.ask_number(request::GET_PROTOCOL_FEATURES).unwrap(), protocol);
    assert_eq!(front.ask_number(request::GET_QUEUE_NUM).unwrap(), 3);
    assert_eq!(front.ask_number(request::GET_MAX_MEM_SLOTS).unwrap(), 509);
}

#[test]
fn cid_is_in_the_configuration_before_anything_was_set_up() {
    let rig = Rig::new();
    let front = rig.plug();
    assert_eq!(front.guest_cid().unwrap(), CID);
    assert_eq!(front.config(0, 4).unwrap(), [42, 0, 0, 0]);
    assert_eq!(front.config(4, 4).unwrap(), [0; 4]);
}

#[test]
fn configuration_ends_after_eight_bytes() {
    assert_thrown_out("9 bytes", |front| assert!(front.config(0, 9).is_err()));
    assert_thrown_out("at 8", |front| assert!(front.config(8, 1).is_err()));
    assert_thrown_out("overflow", |front| {
        let _ = front.tell(request::GET_CONFIG, &words(&[u32::MAX, u32::MAX, 0]), &[]);
    });
}

#[test]
fn features_that_were_not_offered_are_refused() {
    // QEMU 7.2 with packed=on sends bit 34 whether it is offered or not.
    for bit in [feature::RING_PACKED, feature::ACCESS_PLATFORM, feature::RING_RESET, 1 << 2, 1 << 26, 1 << 63] {
        assert_thrown_out(&format!("{bit:#x}"), |front| {
            let features = feature::VERSION_1 | bit;
            front.tell(request::SET_FEATURES, &features.to_ne_bytes(), &[]).unwrap();
        });
    }
}

#[test]
fn refusal_of_features_names_them_in_the_log() {
    let rig = Rig::new();
    let front = rig.plug();
    front.tell(request::SET_FEATURES, &(1_u64 << 34).to_ne_bytes(), &[]).unwrap();
    let event = rig.wait_event_with(Kind::Log, "0x400000000");
    assert!(event.level >= Level::Warning);
}

#[test]
fn protocol_features_that_were_not_offered_are_refused() {
    for bit in [feature::PROTOCOL_BACKEND_REQ, feature::PROTOCOL_STATUS, 1 << 1, 1 << 12] {
        assert_thrown_out(&format!("{bit:#x}"), |front| {
            front.tell(request::SET_PROTOCOL_FEATURES, &bit.to_ne_bytes(), &[]).unwrap();
        });
    }
}

#[test]
fn messages_that_make_no_sense_end_the_session() {
    let tell = |number: u32, payload: Vec<u8>| move |front: &FrontEnd| front.tell(number, &payload, &[]).unwrap();
    assert_thrown_out("unknown request", tell(99, vec![]));
    assert_thrown_out("request 0", tell(0, vec![]));
    assert_thrown_out("SET_CONFIG", tell(request::SET_CONFIG, vec![0; 20]));
    assert_thrown_out("short SET_FEATURES", tell(request::SET_FEATURES, vec![0; 7]));
    assert_thrown_out("queue 3", tell(request::SET_VRING_NUM, words(&[3, 128])));
    for size in [0, 3, 127, 65_536, u32::MAX] {
        assert_thrown_out("queue size", tell(request::SET_VRING_NUM, words(&[0, size])));
    }
    assert_thrown_out("base", tell(request::SET_VRING_BASE, words(&[0, 65_536])));
    assert_thrown_out("kick without a descriptor", tell(request::SET_VRING_KICK, 0_u64.to_ne_bytes().to_vec()));
    assert_thrown_out("polled queue", tell(request::SET_VRING_KICK, (1_u64 << 8).to_ne_bytes().to_vec()));
    assert_thrown_out("long", |front| {
        let _ = front.tell(request::SET_FEATURES, &vec![0; 100_000], &[]);
    });
    assert_thrown_out("a reply", |front| {
        send(&front.socket, &encode(request::GET_FEATURES, VERSION | REPLY, &[]), &[]).unwrap();
    });
    assert_thrown_out("version 2", |front| {
        send(&front.socket, &encode(request::GET_FEATURES, 2 | NEED_REPLY, &[]), &[]).unwrap();
    });
}

#[test]
fn front_end_that_does_not_read_its_replies_is_thrown_out() {
    let rig = Rig::new();
    let front = rig.plug();
    while front.tell(request::GET_FEATURES, &[], &[]).is_ok() {}
    rig.wait_event_with(Kind::Detached, "does not read its replies");
    assert_eq!(rig.stats().front_end_errors, 1);
    open_from_host(&rig, &mut rig.boot(), 80);
}

#[test]
fn more_descriptors_than_a_message_may_have_end_the_session() {
    let rig = Rig::new();
    let front = rig.plug();
    let passed = rig.dial();
    // A header in pieces, each with as many as one call takes.
    let mut pieces = encode(request::GET_FEATURES, VERSION, &[]).into_iter();
    while pieces.next().is_some_and(|byte| send(&front.socket, &[byte], &[passed.as_fd(); 32]).is_ok()) {}
    assert!(front.is_thrown_out());
    rig.wait_event_with(Kind::Detached, "more than 32 file descriptors");
    open_from_host(&rig, &mut rig.boot(), 80);
}

#[test]
fn half_a_message_then_the_end_is_an_error_and_half_a_message_then_the_rest_is_not() {
    let rig = Rig::new();
    let front = rig.plug();
    let message = encode(request::GET_FEATURES, VERSION, &[]);
    send(&front.socket, &message[..5], &[]).unwrap();
    std::thread::yield_now();
    send(&front.socket, &message[5..], &[]).unwrap();
    assert!(vsock_driver::front_end::message::receive(&front.socket, request::GET_FEATURES).is_ok());
    send(&front.socket, &message[..5], &[]).unwrap();
    drop(front);
    rig.wait_stats("counted", |s| s.front_end_errors == 1);
}

#[test]
fn rings_outside_of_memory_end_the_session() {
    let rig = Rig::new();
    let guest = rig.boot();
    // It runs, so it is looked for at once.
    assert!(guest.front.set_ring_addresses(0, 16, 32, 64).is_err());
    assert!(guest.front.is_thrown_out());
    rig.wait_event(Kind::Detached);
    let mut guest = rig.boot();
    open_from_host(&rig, &mut guest, 80);
}

#[test]
fn message_with_descriptors_that_nobody_wants_leaks_none() {
    let rig = Rig::new();
    let guest = rig.boot();
    let fd = guest.rx.kick.as_fd();
    for _ in 0..2000 {
        guest.front.tell(request::GET_FEATURES, &[], &[fd, fd, fd]).unwrap();
        vsock_driver::front_end::message::receive(&guest.front.socket, request::GET_FEATURES).unwrap();
    }
    // 6000 descriptors would have been too many.
    guest.front.sync().unwrap();
}

#[test]
fn descriptor_whose_end_takes_its_time_does_not_hold_the_device_up() {
    const LINGER: Duration = Duration::from_secs(20);
    let rig = Rig::new();
    let front = rig.plug();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // It never reads, and so the socket waits for it in the end.
    let (_other, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&socket, Some(LINGER)).unwrap();
    let message = encode(request::SET_VRING_CALL, VERSION, &words(&[0, 0]));
    // It comes with the beginning of a message, so that the device is the last that has it.
    send(&front.socket, &message[..1], &[socket.as_fd()]).unwrap();
    drop(socket);
    let before = Instant::now();
    (&front.socket).write_all(&message[1..]).unwrap();
    assert!(front.is_thrown_out());
    open_from_host(&rig, &mut rig.boot(), 80);
    assert!(before.elapsed() < LINGER / 2, "{:?}", before.elapsed());
}
