//! Interrupts and kicks: few, and none lost.

use crate::rig::{Rig, assert_same, bytes, open_from_guest, open_from_host};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::ioctl_fionbio;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use vhostvsock_native::events::Kind;
use vsock_driver::deadline::{Deadline, wait_until};
use vsock_driver::front_end::message::{feature, request};
use vsock_driver::guest::Guest;
use vsock_driver::header::{Header, op};
use vsock_driver::ring::Mode;

/// Puts packets into the TX ring of a stopped device, so that it finds all of them at once; the interrupts it makes.
fn interrupts_for_a_batch(guest: &mut Guest, packets: usize) -> u64 {
    let bases = guest.stop().unwrap();
    let header = guest.header(op::RST, 1, 2);
    for _ in 0..packets {
        assert!(guest.put(&header, &[]));
    }
    guest.tx.publish();
    guest.tx.arm();
    guest.tx.take_interrupts();
    let before = guest.tx.used_index();
    guest.start(bases).unwrap();
    let expected = before.wrapping_add(u16::try_from(packets).unwrap());
    let mut seen = Vec::new();
    wait_until("all packets are used", || {
        let index = guest.tx.used_index();
        if seen.last() != Some(&index) {
            seen.push(index);
        }
        index == expected
    });
    assert!(seen.len() <= 2, "the used index was published {} times: {seen:?}", seen.len());
    guest.front.sync().unwrap();
    // One came with the descriptor at the start, in case that one was lost in the old.
    guest.tx.take_interrupts() - 1
}

#[test]
fn batch_from_the_guest_costs_one_used_index_and_one_interrupt() {
    for features in [!0, !feature::EVENT_IDX] {
        let rig = Rig::new();
        let mut guest = rig.boot_with(|setup| setup.features &= features);
        for _ in 0..10 {
            assert_eq!(interrupts_for_a_batch(&mut guest, 100), 1);
            guest.reclaim();
        }
    }
}

#[test]
fn batch_to_the_guest_costs_one_interrupt() {
    for features in [!0, !feature::EVENT_IDX] {
        let rig = Rig::new();
        let mut guest = rig.boot_with(|setup| setup.features &= features);
        let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
        let data = bytes(60_000, 1);
        for _ in 0..3 {
            let bases = guest.stop().unwrap();
            stream.write_all(&data).unwrap();
            guest.rx.arm();
            guest.rx.take_interrupts();
            guest.start(bases).unwrap();
            let mut got = Vec::new();
            wait_until("all bytes are there", || {
                while let Some(packet) = guest.take() {
                    got.extend(packet.payload);
                }
                got.len() == data.len()
            });
            assert_same(&got, &data);
            guest.front.sync().unwrap();
            let interrupts = guest.rx.take_interrupts();
            // Buffers are filled in bursts that grow; without event indices each burst that is published tells of itself.
            // One more came with the descriptor.
            assert!(interrupts <= 1 + if features == !0 { 1 } else { 6 }, "{interrupts}");
            guest.post_all();
        }
    }
}

#[test]
fn guest_that_polls_is_never_interrupted() {
    for features in [!0, !feature::EVENT_IDX] {
        let rig = Rig::new();
        let mut guest = rig.boot_with(|setup| {
            setup.features &= features;
            setup.mode = Mode::Polling;
        });
        let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
        // Setting up sends what a driver asked for before it said that it polls.
        guest.rx.take_interrupts();
        guest.tx.take_interrupts();
        for _ in 0..100 {
            stream.write_all(b"ping").unwrap();
            assert_eq!(guest.expect(op::RW).payload, b"ping");
            guest.say_data(80, port, b"pong");
            stream.read_exact(&mut [0; 4]).unwrap();
        }
        guest.flush();
        assert_eq!((guest.rx.take_interrupts(), guest.tx.take_interrupts()), (0, 0), "features {features:#x}");
    }
}

#[test]
fn guest_that_waits_is_woken_each_time() {
    for features in [!0, !feature::EVENT_IDX] {
        let rig = Rig::new();
        let mut guest = rig.boot_with(|setup| setup.features &= features);
        let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
        for round in 1..=500 {
            stream.write_all(b"ping").unwrap();
            assert_eq!(guest.expect(op::RW).payload, b"ping");
            let header = Header { len: 4, fwd_cnt: round * 4, ..guest.header(op::RW, 80, port) };
            guest.send(&header, b"pong");
            stream.read_exact(&mut [0; 4]).unwrap();
        }
    }
}

#[test]
fn device_that_sleeps_is_kicked_and_one_that_works_is_not() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    guest.flush();
    let before = guest.tx.kicks;
    // Far apart: each needs its kick.
    for _ in 0..5 {
        guest.say_data(5000, 1000, b"x");
        stream.read_exact(&mut [0; 1]).unwrap();
        guest.flush();
        guest.front.sync().unwrap();
    }
    assert!(guest.tx.kicks >= before + 4, "the device cannot know of a packet without a kick");
    // One published batch needs one.
    let before = guest.tx.kicks;
    let header = guest.header(op::RST, 1, 2);
    for _ in 0..50 {
        assert!(guest.put(&header, &[]));
    }
    guest.tx.publish_and_kick();
    guest.flush();
    assert!(guest.tx.kicks <= before + 1);
}

#[test]
fn indices_that_wrap_around_lose_nothing() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let header = guest.header(op::RST, 1, 2);
    // More than 65536 chains through a ring of 128.
    for _ in 0..700 {
        for _ in 0..100 {
            assert!(guest.put(&header, &[]));
        }
        guest.tx.publish_and_kick();
        guest.flush();
    }
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    stream.write_all(b"x").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"x");
}

#[test]
fn spurious_kicks_do_no_harm() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    for _ in 0..1000 {
        guest.tx.kick();
        guest.rx.kick();
    }
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    stream.write_all(b"x").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"x");
}

#[test]
fn data_waits_for_receive_buffers_and_goes_on_when_they_come() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.rx_buffers = 3);
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    let data = bytes(50_000, 2);
    stream.write_all(&data).unwrap();
    let mut got = Vec::new();
    while got.len() < data.len() {
        // All three are used before any is posted again.
        wait_until("the device fills what it has", || guest.rx.has_used());
        assert!(guest.rx.wait(Deadline::patient()));
        while let Some(packet) = guest.take() {
            got.extend(packet.payload);
        }
        guest.post_all();
    }
    assert_same(&got, &data);
}

#[test]
fn answers_that_find_no_receive_buffer_stop_the_guests_packets_but_lose_none() {
    let rig = Rig::with(|settings| settings.max_connections = 16);
    let mut guest = rig.boot_with(|setup| setup.rx_buffers = 1);
    // 3000 packets that each need an answer, and one buffer for all answers.
    let mut sent = 0_u32;
    let mut answered = 0_u32;
    let deadline = Deadline::patient();
    while answered < 3000 {
        assert!(!deadline.is_over(), "stuck after {answered} answers to {sent} packets");
        guest.reclaim();
        let header = guest.header(op::RW, sent, 9);
        if sent < 3000 && guest.put(&header, &[]) {
            sent += 1;
            guest.tx.publish_and_kick();
            continue;
        }
        if let Some(packet) = guest.take() {
            assert_eq!((packet.header.op, packet.header.dst_port), (op::RST, answered));
            answered += 1;
            guest.post_all();
        }
    }
}

/// An eventfd as full as it can be.
fn full_eventfd() -> OwnedFd {
    let full = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    full
}

#[test]
fn interrupts_that_nobody_takes_do_not_hold_the_device_up() {
    let rig = Rig::new();
    let mut guest = rig.boot_with(|setup| setup.features &= !feature::EVENT_IDX);
    // It would block, if it were left as it is.
    let full = full_eventfd();
    ioctl_fionbio(&full, false).unwrap();
    guest.front.set_ring_fd(request::SET_VRING_CALL, 0, Some(full.as_fd())).unwrap();
    guest.front.set_ring_fd(request::SET_VRING_CALL, 1, Some(full.as_fd())).unwrap();
    let mut stream = rig.ask(80);
    wait_until("the request is there", || guest.rx.has_used());
    let request = guest.take().unwrap().header;
    guest.say(op::RESPONSE, 80, request.src_port);
    vsock_driver::host::answer(&mut stream).unwrap();
}

/// A guest whose front-end has seen to it that the next interrupt blocks, and that interrupt.
fn blocked(rig: &Rig) -> Guest {
    let mut guest = rig.boot_with(|setup| setup.features &= !feature::EVENT_IDX);
    let full = full_eventfd();
    guest.front.set_ring_fd(request::SET_VRING_CALL, 1, Some(full.as_fd())).unwrap();
    // The device has made it non-blocking, but it is not the device's alone.
    ioctl_fionbio(&full, false).unwrap();
    let header = guest.header(op::RST, 1, 2);
    assert!(guest.put(&header, &[]));
    guest.tx.publish();
    guest.tx.kick();
    wait_until("the packet is used", || guest.tx.has_used());
    guest
}

#[test]
fn front_end_that_makes_an_interrupt_block_is_thrown_out_once_the_thread_is_missed() {
    let rig = Rig::new();
    let guest = blocked(&rig);
    assert!(rig.device.ping());
    assert_eq!(rig.stats().pongs, 0);
    wait_until("it is missed", || {
        // Once the thread has come round, this asks for another pong.
        rig.device.ping();
        rig.stats().front_end_errors == 1
    });
    assert!(guest.front.is_thrown_out());
    rig.wait_event_with(Kind::Detached, "blocks");
    rig.wait_stats("it comes round", |s| s.pongs > 0);
    open_from_host(&rig, &mut rig.boot(), 80);
}

#[test]
fn device_whose_interrupt_blocks_can_be_ended() {
    let rig = Rig::new();
    let guest = blocked(&rig);
    let Rig { device, .. } = rig;
    drop(device);
    assert!(guest.front.is_thrown_out());
}

#[test]
fn descriptors_of_rings_that_are_no_eventfds_are_refused() {
    let pipe = rustix::pipe::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let memory = rustix::fs::memfd_create("anon_inode:[eventfd]", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    for number in [request::SET_VRING_CALL, request::SET_VRING_KICK, request::SET_VRING_ERR] {
        for fd in [pipe.1.as_fd(), socket.as_fd(), file.as_fd(), memory.as_fd()] {
            let rig = Rig::new();
            let guest = rig.boot();
            assert!(guest.front.set_ring_fd(number, 0, Some(fd)).is_err());
            rig.wait_event_with(Kind::Detached, "no eventfd");
            assert_eq!(rig.stats().front_end_errors, 1);
            open_from_host(&rig, &mut rig.boot(), 80);
        }
    }
}

#[test]
fn call_descriptor_that_is_set_begins_with_one_notification() {
    let rig = Rig::new();
    let guest = rig.boot();
    let call = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    for index in [0, 1, 0] {
        guest.front.set_ring_fd(request::SET_VRING_CALL, index, Some(call.as_fd())).unwrap();
        let mut count = [0; 8];
        rustix::io::read(&call, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1, "queue {index}");
    }
    guest.front.set_ring_fd(request::SET_VRING_CALL, 0, None).unwrap();
    assert!(rustix::io::read(&call, &mut [0; 8]).is_err(), "nothing goes into a descriptor that was taken away");
    // None of them was caused by a buffer.
    assert_eq!(rig.stats().interrupts, 0);
}

#[test]
fn interrupt_that_went_into_the_old_call_descriptor_is_made_up_for_in_the_new_one() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    // The guest masks its interrupts: QEMU has them go into a descriptor that only it looks at.
    let masked = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    guest.front.set_ring_fd(request::SET_VRING_CALL, 0, Some(masked.as_fd())).unwrap();
    let _ = rustix::io::read(&masked, &mut [0; 8]);
    guest.rx.take_interrupts();
    assert!(!guest.rx.arm());
    // QEMU looks there, finds nothing, and goes back to the guest's descriptor; a buffer is used in between.
    stream.write_all(b"x").unwrap();
    wait_until("an interrupt goes into the old descriptor", || rustix::io::read(&masked, &mut [0; 8]).is_ok());
    guest.front.set_ring_fd(request::SET_VRING_CALL, 0, Some(guest.rx.call.as_fd())).unwrap();
    // With event indices no other would follow, as the guest has not seen the first buffer.
    assert_eq!(guest.rx.take_interrupts(), 1);
    assert_eq!(guest.take().map(|packet| packet.payload), Some(b"x".to_vec()));
}

#[test]
fn connections_that_come_and_go_while_there_is_no_receive_buffer_are_not_told_of_afterwards() {
    const MANY: u64 = 2000;
    let rig = Rig::new();
    let listener = rig.listen(1000);
    let mut guest = rig.boot_with(|setup| setup.rx_buffers = 1);
    // The only buffer is used, and not posted again.
    guest.say(op::RW, 9, 1000);
    wait_until("the buffer is used", || guest.rx.has_used());
    for _ in 0..MANY {
        guest.say(op::REQUEST, 5000, 1000);
        vsock_driver::host::accept(&listener);
        guest.say(op::RST, 5000, 1000);
    }
    rig.wait_stats("all are gone", |s| (s.established, s.connections) == (MANY, 0));
    assert_eq!(guest.expect(op::RST).header.dst_port, 9);
    let _stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    assert_eq!((rig.stats().to_guest_packets, rig.stats().connections), (2, 1));
}
