//! The device's life: start, stop and go on, reset, unplug and plug, another QEMU.

use crate::rig::{
    Rig, assert_ended, assert_same, bytes, connect_from_guest, connect_from_host, open_from_guest, open_from_host,
};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;
use vhostvsock_native::device::Admission;
use vhostvsock_native::events::Kind;
use vsock_driver::deadline::Deadline;
use vsock_driver::front_end::FrontEnd;
use vsock_driver::front_end::message::{NEED_REPLY, VERSION, encode, feature, receive, request, send};
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::op;
use vsock_driver::host;

#[test]
fn stop_and_cont_in_mid_stream_keeps_connections_and_every_byte() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let (id, stream) = connect_from_host(&rig, &mut kernel, 80);
    let data = bytes(1_500_000, 1);
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let copy = data.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let reading = std::thread::spawn(move || {
        let mut all = vec![0; 1_500_000];
        reader.read_exact(&mut all).unwrap();
        all
    });
    let mut got = Vec::new();
    let mut sent = 0;
    let mut stops = 0;
    while got.len() < data.len() || sent < data.len() {
        kernel.pump();
        if let vsock_driver::linux::Received::Data(part) = kernel.recv(id, 50_000) {
            got.extend(part);
        }
        sent += kernel.send(id, &data[sent..data.len().min(sent + 50_000)]);
        if got.len() + sent > stops * 100_000 {
            stops += 1;
            let bases = kernel.guest.stop().unwrap();
            kernel.guest.start(bases).unwrap();
        }
        kernel.guest.wait(Deadline::after(Duration::from_millis(1)));
    }
    writing.join().unwrap();
    assert_same(&got, &data);
    assert_same(&reading.join().unwrap(), &data);
    assert!(stops > 10);
    assert_eq!(rig.stats().reset_device, 0);
}

#[test]
fn data_from_the_host_waits_while_the_guest_is_paused() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    let bases = guest.stop().unwrap();
    stream.write_all(b"waits").unwrap();
    let used = guest.rx.used_index();
    guest.front.sync().unwrap();
    assert_eq!(guest.rx.used_index(), used, "a stopped ring is not touched");
    guest.start(bases).unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"waits");
}

#[test]
fn packets_put_into_the_ring_while_it_was_stopped_are_handled_without_a_kick() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let bases = guest.stop().unwrap();
    let header = guest.header(op::RW, 1, 2);
    assert!(guest.put(&header, &[]));
    guest.tx.publish();
    guest.start(bases).unwrap();
    guest.expect(op::RST);
}

#[test]
fn restart_at_another_base_is_a_new_driver_and_resets_connections() {
    // QEMU 7.2 sends no RESET_DEVICE when the guest reboots.
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.protocol &= !feature::PROTOCOL_RESET_DEVICE);
    let listener = rig.listen(1000);
    let mut out = open_from_guest(&mut guest, &listener, 5000, 1000);
    let (mut into, port) = open_from_host(&rig, &mut guest, 80);
    guest.stop().unwrap();
    guest.renew().unwrap();
    assert_ended(&mut out);
    assert_ended(&mut into);
    assert_eq!(rig.stats().reset_device, 2);
    // What is left of the old ones in the guest is answered with RST, and all works again.
    guest.say_data(80, port, b"old");
    guest.expect(op::RST);
    let _out = open_from_guest(&mut guest, &listener, 5000, 1000);
    open_from_host(&rig, &mut guest, 80);
}

#[test]
fn reset_device_resets_connections() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    for _ in 0..5 {
        let mut out = open_from_guest(&mut guest, &listener, 5000, 1000);
        let (mut into, _) = open_from_host(&rig, &mut guest, 80);
        guest.stop().unwrap();
        guest.front.reset_device().unwrap();
        assert_ended(&mut out);
        assert_ended(&mut into);
        assert_eq!(rig.stats().connections, 0);
        guest.renew().unwrap();
    }
}

#[test]
fn reset_device_while_rings_run_stops_them() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut out = open_from_guest(&mut guest, &listener, 5000, 1000);
    guest.front.reset_device().unwrap();
    assert_ended(&mut out);
    let used = guest.tx.used_index();
    guest.say(op::RW, 1, 2);
    guest.front.sync().unwrap();
    assert_eq!(guest.tx.used_index(), used);
    guest.renew().unwrap();
    open_from_guest(&mut guest, &listener, 5000, 1000);
}

#[test]
fn replug_on_the_same_socket_repeats_owner_and_memory() {
    // device_del and device_add on one chardev: SET_OWNER again, ADD_MEM_REG again without REM_MEM_REG.
    let rig = Rig::new();
    let listener = rig.listen(1000);
    let mut guest = rig.boot();
    for _ in 0..5 {
        let mut out = open_from_guest(&mut guest, &listener, 5000, 1000);
        guest.stop().unwrap();
        let socket = guest.front.socket.try_clone().unwrap();
        guest = Guest::boot(FrontEnd::from_stream(socket).unwrap(), Setup::default()).unwrap();
        assert_ended(&mut out);
    }
    open_from_guest(&mut guest, &listener, 5000, 1000);
    assert_eq!(rig.stats().attached, 1);
}

#[test]
fn front_end_may_vanish_after_any_message() {
    let rig = Rig::new();
    let steps: [fn(&Guest) -> std::io::Result<()>; 11] = [
        |guest| guest.front.set_features(),
        |guest| guest.memory.regions().try_for_each(|region| guest.front.add_region(region)),
        |guest| guest.front.set_ring(request::SET_VRING_NUM, 0, 128),
        |guest| guest.front.set_ring(request::SET_VRING_BASE, 0, 0),
        |guest| {
            let (desc, avail, used) = (guest.rx.desc.user(), guest.rx.avail.user(), guest.rx.used.user());
            guest.front.set_ring_addresses(0, desc, avail, used)
        },
        |guest| guest.front.set_ring_fd(request::SET_VRING_KICK, 0, Some(guest.rx.kick.as_fd())),
        |guest| guest.front.set_ring_fd(request::SET_VRING_CALL, 0, Some(guest.rx.call.as_fd())),
        |guest| guest.front.enable_ring(0, true),
        |guest| guest.front.start_ring(1, &guest.tx, 0),
        |guest| guest.front.enable_ring(1, true),
        |guest| guest.front.stop_ring(0).map(drop),
    ];
    for count in 0..=steps.len() {
        let guest = Guest::prepare(rig.plug(), Setup::default()).unwrap();
        steps[..count].iter().try_for_each(|step| step(&guest)).unwrap();
        // One more of which nobody hears the answer.
        let _ = guest.front.tell(request::GET_FEATURES, &[], &[]);
        drop(guest);
        rig.wait_event(Kind::Detached);
    }
    open_from_host(&rig, &mut rig.boot(), 80);
}

#[test]
fn qemu_leaves_and_another_attaches_again_and_again() {
    let rig = Rig::new();
    let listener = rig.listen(1000);
    for round in 1..=10 {
        let mut guest = rig.boot();
        let mut out = open_from_guest(&mut guest, &listener, 5000, 1000);
        let (mut into, _) = open_from_host(&rig, &mut guest, 80);
        into.write_all(b"x").unwrap();
        assert_eq!(guest.expect(op::RW).payload, b"x");
        drop(guest);
        assert_ended(&mut out);
        assert_ended(&mut into);
        rig.wait_stats("counted", |s| s.attached == round && s.connections == 0);
    }
    assert_eq!(rig.stats().front_end_errors, 0);
}

#[test]
fn host_listener_and_waiting_clients_survive_the_front_end() {
    let rig = Rig::new();
    let guest = rig.boot();
    let inode = std::fs::metadata(&rig.uds).unwrap();
    // A client that has not said its line yet is nobody's loss.
    let mut early = rig.dial();
    early.write_all(b"CONNECT 8").unwrap();
    drop(guest);
    rig.wait_event(Kind::Detached);
    let mut refused = rig.ask(80);
    assert_ended(&mut refused);
    let mut guest = rig.boot();
    early.write_all(b"0\n").unwrap();
    let request = guest.expect(op::REQUEST).header;
    guest.say(op::RESPONSE, 80, request.src_port);
    host::answer(&mut early).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(&rig.uds).unwrap().ino(), inode.ino(), "the socket was not bound anew");
}

#[test]
fn life_is_told_as_events() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    rig.wait_event(Kind::Attached);
    rig.wait_event(Kind::Started);
    let bases = guest.stop().unwrap();
    rig.wait_event(Kind::Stopped);
    guest.start(bases).unwrap();
    rig.wait_event(Kind::Started);
    drop(guest);
    rig.wait_event(Kind::Detached);
}

#[test]
fn three_queues_are_accepted_and_the_event_queue_is_left_alone() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.queues = 3);
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    let event = guest.event.as_mut().unwrap();
    event.kick();
    stream.write_all(b"x").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"x");
    assert_eq!(guest.event.as_ref().unwrap().used_index(), 0);
    let bases = guest.stop().unwrap();
    guest.start(bases).unwrap();
    stream.write_all(b"y").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"y");
}

#[test]
fn front_end_without_protocol_features_needs_no_enable() {
    let rig = Rig::new();
    let front = rig.plug();
    let mut guest = {
        let mut front = front;
        front.offered = front.ask_number(request::GET_FEATURES).unwrap();
        let setup = Setup { protocol: 0, ..Setup::default() };
        let mut guest = Guest::prepare(front, setup).unwrap();
        guest.front.features &= !feature::PROTOCOL_FEATURES;
        guest.front.share(&guest.memory.regions().map(|region| &**region).collect::<Vec<_>>()).unwrap();
        guest.start([0; 2]).unwrap();
        guest.post_all();
        guest
    };
    open_from_host(&rig, &mut guest, 80);
}

#[test]
fn switched_off_ring_rests_until_it_is_switched_on() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    guest.front.enable_ring(0, false).unwrap();
    let used = guest.rx.used_index();
    stream.write_all(b"waits").unwrap();
    guest.front.sync().unwrap();
    assert_eq!(guest.rx.used_index(), used);
    guest.front.enable_ring(0, true).unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"waits");
}

#[test]
fn new_kick_and_call_descriptors_are_taken_while_running() {
    use rustix::event::{EventfdFlags, eventfd};
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
    // QEMU changes descriptors when a guest masks or unmasks its interrupts.
    for (index, ring) in [(0, &mut guest.rx), (1, &mut guest.tx)] {
        ring.call = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        guest.front.set_ring_fd(request::SET_VRING_CALL, index, Some(ring.call.as_fd())).unwrap();
    }
    stream.write_all(b"x").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"x");
    guest.front.set_ring_fd(request::SET_VRING_CALL, 0, None).unwrap();
    guest.say_data(80, port, b"y");
    stream.read_exact(&mut [0; 1]).unwrap();
}

#[test]
fn replies_are_given_where_they_are_asked_for_though_nothing_was_negotiated() {
    // A QEMU that reconnects goes straight on with SET_FEATURES and the rings.
    let rig = Rig::new();
    let mut guest = rig.boot();
    let socket = rig_socket(&rig, &mut guest);
    let features = guest.front.features.to_ne_bytes();
    send(&socket, &encode(request::SET_FEATURES, VERSION | NEED_REPLY, &features), &[]).unwrap();
    assert_eq!(receive(&socket, request::SET_FEATURES).unwrap(), [0; 8]);
}

/// Detaches the guest's front-end and attaches another that says nothing by itself.
fn rig_socket(rig: &Rig, guest: &mut Guest) -> std::os::unix::net::UnixStream {
    guest.front.socket.shutdown(std::net::Shutdown::Both).unwrap();
    rig.wait_event(Kind::Detached);
    rig.plug().socket
}

#[test]
fn reconnecting_front_end_goes_on_without_owner_and_protocol_features() {
    let rig = Rig::new();
    let listener = rig.listen(1000);
    let mut guest = rig.boot_with(|setup| setup.protocol &= !feature::PROTOCOL_CONFIGURE_MEM_SLOTS);
    let _stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let socket = rig_socket(&rig, &mut guest);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    guest.front.socket = socket;
    // QEMU goes on at the used index.
    guest.flush();
    let bases = [guest.rx.used_index(), guest.tx.used_index()];
    guest.front.share_table(&guest.memory.regions().map(|region| &**region).collect::<Vec<_>>()).unwrap();
    guest.start(bases).unwrap();
    guest.say_data(5000, 1000, b"of a connection that is gone");
    guest.expect(op::RST);
    open_from_guest(&mut guest, &listener, 5001, 1000);
}

#[test]
fn second_front_end_does_not_disturb_the_first() {
    use std::os::unix::net::UnixStream;
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let second = rig.device.attach(theirs.into(), Admission::default());
    let first = open_from_host_if_alive(&rig, &mut guest);
    assert!(second.is_err() && first, "two front-ends at once: {second:?}, first alive: {first}");
}

/// Whether the guest can still be reached.
fn open_from_host_if_alive(rig: &Rig, guest: &mut Guest) -> bool {
    let _stream = rig.ask(80);
    guest.recv_by(Deadline::after(Duration::from_secs(2))).is_some()
}

#[test]
fn device_that_is_dropped_closes_all_its_sockets() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let (_, mut out) = connect_from_guest(&mut kernel, &listener, 1000);
    let (_, mut into) = connect_from_host(&rig, &mut kernel, 80);
    let Rig { device, .. } = rig;
    drop(device);
    assert_ended(&mut out);
    assert_ended(&mut into);
    assert!(kernel.guest.front.is_thrown_out());
}
