//! Job: queues stay short while the guest supplies no receive buffers, though connections come and go.
//! Before, after: nothing.
//! Rules: as of all conversations.

use super::{Bench, HOST};
use crate::mux::*;

/// Connections that come and go.
const MANY: usize = 10 * MAX_REPLIES;
/// Entries that may wait when there is one connection at the most.
const SHORT: usize = MAX_REPLIES + 4;

#[test]
fn connections_of_the_guest_that_come_and_go_do_not_fill_the_queues() {
    let mut bench = Bench::new();
    for _ in 0..MANY {
        let conn = bench.connecting();
        bench.mux.host_accepted(conn);
        bench.mux.host_readable(conn, bench.now);
        assert_eq!(bench.say(Op::Rst), FromGuest::Gone { host: HOST });
        let (control, data) = (bench.mux.control_queue.len(), bench.mux.data_queue.len());
        assert!(control <= SHORT && data <= SHORT, "{control} and {data} entries, no connection");
    }
    assert!(!bench.mux.replies_full());
    // The guest hears of none of them, but of the next one.
    let conn = bench.connecting();
    bench.mux.host_accepted(conn);
    assert_eq!((bench.controls(), bench.count()), (vec![Op::Response], 1));
    assert_eq!(bench.stats.established.get(), MANY as u64 + 1);
}

#[test]
fn clients_that_come_and_go_do_not_fill_the_queues() {
    let mut bench = Bench::new();
    for _ in 0..MANY {
        let conn = bench.mux.host_connects(GuestPort(80), None, Type::Stream, HOST, bench.now + SECOND).unwrap();
        bench.mux.host_aborted(conn);
        let control = bench.mux.control_queue.len();
        assert!(control <= SHORT, "{control} entries, no connection");
    }
    bench.requested();
    assert_eq!((bench.controls(), bench.count()), (vec![], 1));
    assert_eq!(bench.stats.host_requests.get(), MANY as u64 + 1);
}

#[test]
fn guest_that_closes_all_connections_at_once_is_heard_to_the_end_though_it_takes_no_answer() {
    let many = u32::try_from(MANY).unwrap();
    let mut bench = Bench::with_limit(MANY);
    let from = |port, op| Header { src_port: port, ..Bench::header(op) };
    for port in 0..many {
        let FromGuest::Connect { conn, .. } = bench.packet(&from(port, Op::Request)) else { panic!("no connection") };
        bench.mux.set_host(conn, HOST);
        bench.mux.host_accepted(conn);
        assert_eq!(bench.controls(), [Op::Response]);
    }
    for port in 0..many {
        assert!(!bench.mux.replies_full(), "nothing is taken any more after {port} of {many}");
        bench.packet(&Header { flags: SHUTDOWN_RCV | SHUTDOWN_SEND, ..from(port, Op::Shutdown) });
    }
    assert_eq!(bench.controls(), vec![Op::Rst; MANY]);
}

#[test]
fn connections_that_stay_keep_their_place_when_those_that_are_gone_are_cleared_out() {
    let mut bench = Bench::new();
    let mut ports = Vec::new();
    for round in 0..MANY {
        let conn = bench.mux.host_connects(GuestPort(80), None, Type::Stream, HOST, bench.now + SECOND).unwrap();
        if round % 1000 == 0 {
            ports.push(bench.mux.conns.get(conn).unwrap().key.host.0);
        } else {
            bench.mux.host_aborted(conn);
        }
    }
    for port in ports {
        let request = bench.control();
        assert_eq!((request.op, request.src_port), (Op::Request as u16, port));
    }
    assert_eq!(bench.controls(), []);
}
