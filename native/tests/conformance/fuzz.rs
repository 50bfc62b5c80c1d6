//! Random messages, lines and rings: whoever sends them may lose their session, and everybody else nothing.

use crate::rig::{Rig, open_from_host};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use vhostvsock_native::events::Kind;
use vsock_driver::deadline::Deadline;
use vsock_driver::front_end::message::{VERSION, encode, send};
use vsock_driver::memory::{Memory, RegionSpec};
use vsock_driver::ring::{Piece, Ring};

/// A descriptor that a message may carry.
fn descriptor(kind: u8, memory: &Memory) -> OwnedFd {
    match kind {
        0 => eventfd(1, EventfdFlags::CLOEXEC).unwrap(),
        1 => memory.regions().next().unwrap().file.try_clone().unwrap(),
        2 => rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap(),
        3 => rustix::fs::open("/proc/self/status", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap(),
        _ => std::os::unix::net::UnixStream::pair().unwrap().0.into(),
    }
}

/// No fault, and a new guest can be reached.
fn assert_alive(rig: &Rig) {
    let mut guest = rig.boot();
    open_from_host(rig, &mut guest, 80);
    while let Some(event) = rig.events.pop() {
        assert_ne!(event.kind, Kind::Fault, "{event:?}");
    }
}

/// Payloads: small numbers in 32 and 64 bits, as most messages have, or anything.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![5 => 0_u32..4, 2 => Just(128), 1 => Just(256), 1 => 0_u32..70_000, 1 => any::<u32>()];
    prop_oneof![
        6 => proptest::collection::vec(number, 0..12)
            .prop_map(|numbers| numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()),
        1 => proptest::collection::vec(any::<u8>(), 0..300),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 60 / 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_messages_of_a_front_end_do_no_harm(
        messages in proptest::collection::vec(
            (prop_oneof![8 => 1_u32..45, 1 => any::<u32>()], payloads(), proptest::collection::vec(0_u8..5, 0..3), any::<bool>()),
            1..40,
        ),
        negotiated in any::<bool>(),
    ) {
        let rig = Rig::new();
        let memory = Memory::new(&[RegionSpec::new(0, 1 << 16)]).unwrap();
        let mut front = rig.plug();
        if negotiated {
            front.negotiate(!0, !0).unwrap();
        }
        for (number, payload, kinds, need_reply) in messages {
            let fds: Vec<OwnedFd> = kinds.into_iter().map(|kind| descriptor(kind, &memory)).collect();
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let flags = VERSION | if need_reply { 8 } else { 0 };
            if send(&front.socket, &encode(number, flags, &payload), &borrowed).is_err() {
                break;
            }
        }
        drop(front);
        assert_alive(&rig);
    }

    #[test]
    fn random_rings_of_a_guest_do_no_harm(
        descs in proptest::collection::vec((0_u16..128, 0_u64..0x1_2000, prop_oneof![0_u32..200, any::<u32>()], 0_u16..8, 0_u16..130), 1..60),
        heads in proptest::collection::vec(prop_oneof![60 => 0_u16..128, 1 => any::<u16>()], 1..120),
        both in any::<bool>(),
    ) {
        let rig = Rig::new();
        let mut guest = rig.boot_with(|setup| setup.rx_buffers = 16);
        // Something for the chains to point to: headers of a kind.
        let header = guest.header(1, 5000, 1000).to_bytes();
        let place = guest.memory.alloc(0x2000, 16);
        for at in (0..place.len() - 44).step_by(50) {
            place.write(at, &header);
        }
        let (base, _) = (place.guest(), place.len());
        for (index, addr, len, flags, next) in descs {
            let addr = if addr < 0x2000 { base + addr } else { addr };
            Ring::write_desc(&guest.tx.desc, index, Piece { addr, len }, flags, next);
            if both {
                Ring::write_desc(&guest.rx.desc, index, Piece { addr, len }, flags, next);
            }
        }
        for head in heads {
            guest.tx.offer(head);
            if both {
                guest.rx.offer(head);
            }
        }
        guest.tx.publish();
        guest.rx.publish();
        guest.tx.kick();
        guest.rx.kick();
        // Stopping shows that the device is through with it, if it has not thrown the guest out.
        let _ = guest.front.stop_ring(1);
        drop(guest);
        assert_alive(&rig);
    }

    #[test]
    fn random_lines_of_clients_do_no_harm(
        clients in proptest::collection::vec(
            proptest::collection::vec(
                prop_oneof![
                    3 => Just(b"CONNECT 80\n".to_vec()),
                    2 => Just(b"CONNECT ".to_vec()),
                    2 => Just(b"80\n".to_vec()),
                    2 => proptest::collection::vec(any::<u8>(), 0..40),
                    1 => Just(vec![b'x'; 5000]),
                ],
                0..4,
            ),
            1..20,
        ),
    ) {
        let rig = Rig::new();
        let mut guest = rig.boot();
        let mut kept = Vec::new();
        for (pieces, index) in clients.into_iter().zip(0..) {
            let mut client = rig.dial();
            for piece in pieces {
                if client.write_all(&piece).is_err() {
                    break;
                }
            }
            if index % 2 == 0 {
                kept.push(client);
            }
        }
        // A guest that answers nothing.
        while guest.recv_by(Deadline::after(Duration::from_millis(2))).is_some() {}
        drop(kept);
        drop(guest);
        assert_alive(&rig);
    }
}
