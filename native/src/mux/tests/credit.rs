//! Job: credit that the guest cannot do without is told, whatever happens to the packet that was to tell it.
//! Before, after: nothing.
//! Rules: as of all conversations.

use super::{Bench, WINDOW};
use crate::mux::*;

/// A connection of another socket of the guest, open, everything said.
fn open_another(bench: &mut Bench) -> Id {
    let request = Header { src_port: 6000, ..Bench::header(Op::Request) };
    let FromGuest::Connect { conn, .. } = bench.packet(&request) else { panic!("no connection") };
    bench.mux.set_host(conn, Id { index: 8, generation: 0 });
    bench.mux.host_accepted(conn);
    assert_eq!(bench.controls(), [Op::Response]);
    conn
}

#[test]
fn credit_is_told_when_the_guest_makes_its_window_smaller_than_what_it_has_not_been_told() {
    const TAKEN: u32 = 100 * 1024;
    let mut bench = Bench::new();
    let conn = bench.open();
    for _ in 0..2 {
        bench.say_data(TAKEN / 2);
        bench.mux.delivered(conn, TAKEN / 2);
    }
    assert_eq!(bench.mux.next_to_guest(), None, "more than half of the window is left");
    // Linux sends no more than its own receive window, so now it waits for news of the 100 KiB.
    let smaller = Header { buf_alloc: 64 * 1024, ..Bench::header(Op::CreditUpdate) };
    assert_eq!(bench.packet(&smaller), FromGuest::Done);
    let told = bench.control();
    assert_eq!((told.op, told.dst_port, told.fwd_cnt), (Op::CreditUpdate as u16, 5000, TAKEN));
    // Once is enough.
    assert_eq!(bench.packet(&smaller), FromGuest::Done);
    assert_eq!((bench.controls(), bench.stats.reset_overrun.get()), (vec![], 0));
}

#[test]
fn credit_that_was_to_ride_on_data_is_told_when_the_guest_takes_no_more_data() {
    let mut bench = Bench::new();
    let conn = bench.open();
    let other = open_another(&mut bench);
    bench.mux.host_readable(other, bench.now);
    bench.mux.host_readable(conn, bench.now);
    // The guest uses up its window, and the host takes all of it.
    for _ in 0..4 {
        bench.say_data(MAX_PAYLOAD);
    }
    bench.mux.delivered(conn, WINDOW);
    // Payload of the connection will tell, but it is another's turn.
    assert!(matches!(bench.mux.next_to_guest(), Some(ToGuest::Data { conn, .. }) if conn == other));
    bench.mux.sent_to_guest(other, 3732, 1, bench.now);
    bench.mux.host_drained(other, bench.now);
    // The guest ends that direction before it comes to it, and goes on writing.
    let shut = FromGuest::Shutdown { host: super::HOST, flags: SHUTDOWN_RCV };
    assert_eq!(bench.say_shutdown(SHUTDOWN_RCV), shut);
    // As the device does: for as long as there may be something.
    let mux = &mut bench.mux;
    let told: Vec<_> = std::iter::from_fn(|| mux.has_to_guest().then(|| mux.next_to_guest())).flatten().collect();
    let [ToGuest::Control(told)] = told[..] else { panic!("{told:?}") };
    assert_eq!((told.op, told.dst_port, told.fwd_cnt), (Op::CreditUpdate as u16, 5000, WINDOW));
    assert!(matches!(bench.say_data(MAX_PAYLOAD), FromGuest::Data { .. }));
}

#[test]
fn question_whose_answer_was_to_ride_on_data_is_answered_when_no_data_comes() {
    let mut bench = Bench::new();
    let conn = bench.open();
    bench.say_data(1000);
    bench.mux.delivered(conn, 1000);
    // Far from used up, so that the guest is told nothing unasked.
    assert_eq!(bench.controls(), []);
    bench.mux.host_readable(conn, bench.now);
    bench.say(Op::CreditRequest);
    assert!(matches!(bench.mux.next_to_guest(), Some(ToGuest::Data { .. })), "its packet is the answer");
    // But the socket was empty.
    bench.mux.host_drained(conn, bench.now);
    let told = bench.control();
    assert_eq!((told.op, told.fwd_cnt), (Op::CreditUpdate as u16, 1000));
    assert_eq!(bench.controls(), []);
}
