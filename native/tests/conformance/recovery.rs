//! A guest whose back-end died goes on at the next one, by what QEMU says to it on a chardev that reconnects.

use crate::rig::{Rig, assert_ended, bytes, connect_from_guest, connect_from_host, open_from_guest, open_from_host};
use std::io::Write;
use vhostvsock_native::events::Kind;
use vsock_driver::front_end::message::{feature, request};
use vsock_driver::front_end::words;
use vsock_driver::guest::{Guest, RX, TX};
use vsock_driver::header::op;
use vsock_driver::linux::{Kernel, Rules};

/// A back-end for front-ends that reconnect.
fn rig() -> Rig {
    Rig::with(|settings| settings.reconnect = true)
}

/// `stop` in QEMU after it reconnected to `rig`: it learns nothing and takes the used indices.
fn stop_after_reconnecting(guest: &mut Guest, rig: &Rig) -> [u16; 2] {
    guest.front.reconnect(rig.plug().socket).unwrap();
    for index in [RX, TX] {
        guest.front.enable_ring(index, false).unwrap();
        let reply = guest.front.ask(request::GET_VRING_BASE, &words(&[index, 0])).unwrap();
        assert_eq!(reply, b"", "the new back-end cannot know where ring {index} is");
    }
    [guest.rx.used_index(), guest.tx.used_index()]
}

/// `cont`: the memory as a table, the rings, and neither SET_OWNER nor protocol features before.
fn cont(guest: &mut Guest, bases: [u16; 2]) {
    guest.front.share_table(&guest.memory.regions().map(|region| &**region).collect::<Vec<_>>()).unwrap();
    guest.start(bases).unwrap();
}

#[test]
fn a_guest_works_at_the_next_back_end_after_stop_and_cont() {
    let first = rig();
    let mut guest = first.boot();
    drop(first);
    for _ in 0..3 {
        let next = rig();
        let listener = next.listen(1000);
        let bases = stop_after_reconnecting(&mut guest, &next);
        cont(&mut guest, bases);
        let _out = open_from_guest(&mut guest, &listener, 5001, 1000);
        let (mut stream, _) = open_from_host(&next, &mut guest, 80);
        stream.write_all(b"x").unwrap();
        assert_eq!(guest.expect(op::RW).payload, b"x");
        assert_eq!(next.stats().front_end_errors, 0);
        // While the connections are open: it has no time to tell the guest anything.
        drop(next);
    }
}

#[test]
fn a_guest_that_stopped_before_the_reconnect_works_as_well() {
    let first = rig();
    let mut guest = first.boot();
    drop(first);
    let bases = [guest.rx.used_index(), guest.tx.used_index()];
    let next = rig();
    guest.front.reconnect(next.plug().socket).unwrap();
    cont(&mut guest, bases);
    open_from_host(&next, &mut guest, 80);
}

#[test]
fn packets_in_the_rings_when_the_back_end_died_are_handled_by_the_next() {
    let first = rig();
    let mut guest = first.boot();
    drop(first);
    for port in 0..100 {
        let header = guest.header(op::REQUEST, 6000 + port, 1000);
        assert!(guest.put(&header, &[]));
    }
    guest.tx.publish();
    let next = rig();
    let _listener = next.listen(1000);
    let bases = stop_after_reconnecting(&mut guest, &next);
    cont(&mut guest, bases);
    for port in 0..100 {
        assert_eq!(guest.expect(op::RESPONSE).header.dst_port, 6000 + port);
    }
    guest.flush();
}

#[test]
fn connections_of_the_dead_back_end_are_reset_when_the_guest_uses_them() {
    let first = rig();
    let listener = first.listen(1000);
    let mut kernel = Kernel::new(first.boot(), Rules::linux_7());
    let (from_guest, mut out) = connect_from_guest(&mut kernel, &listener, 1000);
    let (from_host, mut into) = connect_from_host(&first, &mut kernel, 80);
    drop(first);
    assert_ended(&mut out);
    assert_ended(&mut into);
    let next = rig();
    let bases = stop_after_reconnecting(&mut kernel.guest, &next);
    cont(&mut kernel.guest, bases);
    for id in [from_guest, from_host] {
        kernel.send(id, &bytes(100, 1));
        kernel.wait_closed(id);
    }
    assert_eq!(kernel.open(), 0);
}

#[test]
fn a_restart_of_the_driver_works_in_place_of_stop_and_cont() {
    let first = rig();
    let mut guest = first.boot();
    drop(first);
    let next = rig();
    stop_after_reconnecting(&mut guest, &next);
    guest.front.reset_device().unwrap();
    guest.front.share_table(&guest.memory.regions().map(|region| &**region).collect::<Vec<_>>()).unwrap();
    guest.renew().unwrap();
    open_from_host(&next, &mut guest, 80);
}

#[test]
fn memory_slots_are_offered_where_nobody_reconnects() {
    for reconnect in [false, true] {
        let rig = Rig::with(|settings| settings.reconnect = reconnect);
        let offered = rig.plug().ask_number(request::GET_PROTOCOL_FEATURES).unwrap();
        assert_eq!(offered & feature::PROTOCOL_CONFIGURE_MEM_SLOTS == 0, reconnect);
    }
}

#[test]
fn a_front_end_that_did_not_share_its_memory_again_is_told_what_is_missing() {
    let first = Rig::new();
    let mut guest = first.boot();
    drop(first);
    let next = Rig::new();
    guest.front.reconnect(next.plug().socket).unwrap();
    let bases = [guest.rx.used_index(), guest.tx.used_index()];
    assert!(guest.start(bases).is_err());
    assert!(guest.front.is_thrown_out());
    next.wait_event_with(Kind::Detached, "--reconnect");
}
