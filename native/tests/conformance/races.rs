//! Guests that change their memory while the device uses it: what it does may be anything that some guest could have asked for,
//! and never more than that.

use crate::rig::{Rig, Stop, open_from_guest, open_from_host};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use vhostvsock_native::events::Kind;
use vsock_driver::deadline::Deadline;
use vsock_driver::guest::{Guest, piece};
use vsock_driver::header::{Header, op};
use vsock_driver::memory::Window;
use vsock_driver::ring::{INDIRECT, NEXT, Piece, Ring, WRITE};

/// Times that a guest offers its chain.
const OFFERS: usize = 3000;

/// Pseudo-random numbers, fast enough to be in time for a race.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[usize::try_from(self.roll() % among.len() as u64).unwrap()]
    }
}

/// Offers descriptor 0 again and again, which the device must give back each time, while `change` is called without a pause.
/// Ends early when the guest is thrown out, which it may be: whether it was.
fn race(rig: &Rig, guest: &mut Guest, mut change: impl FnMut(&mut Dice) + Send) -> bool {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&stop);
        scope.spawn(|| {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
            while !stop.0.load(Ordering::Relaxed) {
                change(&mut dice);
            }
        });
        for _ in 0..OFFERS {
            let used = guest.tx.used_index();
            guest.tx.offer(0);
            guest.tx.publish();
            guest.tx.kick();
            let deadline = Deadline::patient();
            while guest.tx.used_index() == used {
                if rig.stats().front_end_errors > 0 {
                    return true;
                }
                assert!(!deadline.is_over(), "the device keeps a chain");
                std::hint::spin_loop();
            }
            // What it answers is of no interest here, but takes buffers.
            while guest.take().is_some() {}
            guest.post_all();
        }
        false
    })
}

/// The device lives, and serves the next guest.
fn assert_served(rig: &Rig) {
    open_from_host(rig, &mut rig.boot(), 80);
    while let Some(event) = rig.events.pop() {
        assert_ne!(event.kind, Kind::Fault, "{event:?}");
    }
}

/// A packet with 1000 bytes of payload in descriptor 0: its header.
fn packet(guest: &mut Guest) -> Window {
    let whole = guest.memory.alloc(44 + 1000, 1);
    whole.fill(b'x');
    let header = Header { len: 1000, ..guest.header(op::RW, 5000, 1000) };
    whole.write(0, &header.to_bytes());
    Ring::write_desc(&guest.tx.desc, 0, piece(&whole), 0, 0);
    whole
}

#[test]
fn header_that_changes_while_it_is_used_never_yields_more_than_its_chain() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    let mut stream = open_from_guest(&mut guest, &rig.listen(1000), 5000, 1000);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        got
    });
    let header = packet(&mut guest);
    let thrown_out = race(&rig, &mut guest, |dice| {
        let len: u32 = dice.pick(&[0, 1, 999, 1000, 1001, 65_536, u32::MAX]);
        header.write(24, &len.to_le_bytes());
        header.write(30, &dice.pick(&[op::RW, op::RW, op::RW, op::CREDIT_REQUEST, 99]).to_le_bytes());
    });
    assert!(!thrown_out, "a header cannot break a ring");
    drop(guest);
    let got = reader.join().unwrap();
    assert!(got.len() <= OFFERS * 1000, "{} bytes", got.len());
    assert!(got.iter().all(|&byte| byte == b'x'), "bytes that the guest did not send as payload");
    assert_eq!(rig.stats().from_guest_bytes, got.len() as u64);
    assert!(rig.stats().dropped_malformed > 0);
    assert_served(&rig);
}

#[test]
fn descriptors_that_change_while_they_are_followed_cost_at_most_the_guest_its_device() {
    let rig = Rig::new();
    let mut guest = rig.boot();
    packet(&mut guest);
    let (table, sound) = (guest.tx.desc.clone(), guest.memory.alloc(4096, 16));
    let address = sound.guest();
    race(&rig, &mut guest, |dice| {
        let addr = dice.pick(&[address, address + 4000, u64::MAX, 1 << 50, 0]);
        let len = dice.pick(&[0, 16, 44, 1044, 4096, u32::MAX]);
        let flags = dice.pick(&[0, NEXT, INDIRECT, WRITE, NEXT | INDIRECT]);
        let next = dice.pick(&[0, 1, 2, 127, 128, u16::MAX]);
        Ring::write_desc(&table, dice.pick(&[0, 1, 2]), Piece { addr, len }, flags, next);
        // The same as an indirect table.
        Ring::write_desc(&sound, dice.pick(&[0, 1]), Piece { addr, len }, flags, next);
    });
    drop(guest);
    assert!(rig.stats().bad_chains > 0);
    assert_served(&rig);
}

#[test]
fn available_index_that_is_rewritten_at_random_costs_at_most_the_guest_its_device() {
    let mut thrown_out = 0;
    for round in 1..=20_u64 {
        let rig = Rig::new();
        let mut guest = rig.boot();
        packet(&mut guest);
        let mut dice = Dice(round);
        let mut index = 0_u16;
        for _ in 0..200 {
            // Mostly as far as it may go, and sometimes anywhere: back, too.
            index = index.wrapping_add(dice.pick(&[0, 1, 2, 127, 128]));
            let value = if dice.roll() % 64 == 0 { dice.roll().to_le_bytes()[0].into() } else { index };
            guest.tx.avail.store(2, value);
            guest.tx.kick();
        }
        rig.device.ping();
        rig.wait_stats("the thread comes round", |s| s.pongs == 1);
        thrown_out += rig.stats().front_end_errors;
        drop(guest);
        assert_served(&rig);
    }
    assert!(thrown_out > 0);
}
