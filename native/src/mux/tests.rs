//! Job: conversations with the mux in simulated time, rule by rule; `messages` has random ones with an oracle, as
//! `fuzz/src/conversation` has for streams; `credit` and `queues` those where something was to be left unsaid or to pile up.
//! Before, after: nothing.
//! Rules: no clock, no socket: what the device would do is written out.

mod credit;
mod messages;
mod queues;

use super::*;

/// The guest's CID.
const CID: u64 = 42;
/// The window that the guest offers, if a test has no other wish.
const WINDOW: u32 = 256 * 1024;
/// A host application's socket.
const HOST: Id = Id { index: 7, generation: 1 };

/// A mux, and what tests ask of it.
struct Bench {
    /// The mux.
    mux: Mux,
    /// Its counters.
    stats: Arc<Stats>,
    /// The simulated time.
    now: u64,
}

impl Bench {
    /// A mux with the defaults.
    fn new() -> Self {
        Self::with_limit(usize::MAX)
    }

    /// A mux with a limit of connections.
    fn with_limit(max_connections: usize) -> Self {
        let stats = Arc::new(Stats::default());
        let config =
            Config { guest_cid: GuestCid::new(CID).unwrap(), buf_alloc: WINDOW, max_connections, first_port: 0 };
        Self { mux: Mux::new(config, Arc::clone(&stats)), stats, now: SECOND }
    }

    /// A header of the guest from port 5000 to port 1000.
    fn header(op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: 5000,
            dst_port: 1000,
            type_: Type::Stream as u16,
            op: op as u16,
            buf_alloc: WINDOW,
            ..Header::default()
        }
    }

    /// A packet of the guest.
    fn packet(&mut self, header: &Header) -> FromGuest {
        self.mux.from_guest(header, u64::from(header.len), self.now)
    }

    /// A packet of the guest from port 5000 to port 1000.
    fn say(&mut self, op: Op) -> FromGuest {
        self.packet(&Self::header(op))
    }

    /// A SHUTDOWN.
    fn say_shutdown(&mut self, flags: u32) -> FromGuest {
        self.packet(&Header { flags, ..Self::header(Op::Shutdown) })
    }

    /// Payload of `len` bytes.
    fn say_data(&mut self, len: u32) -> FromGuest {
        self.packet(&Header { len, ..Self::header(Op::Rw) })
    }

    /// The next control packet, which must be there.
    fn control(&mut self) -> Header {
        match self.mux.next_to_guest() {
            Some(ToGuest::Control(header)) => header,
            other => panic!("{other:?}"),
        }
    }

    /// The operations of all control packets that wait.
    fn controls(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        while let Some(ToGuest::Control(header)) = self.mux.next_to_guest() {
            ops.push(Op::from_wire(header.op).unwrap());
        }
        ops
    }

    /// A connection that the guest asked for, in state `Connecting`.
    fn connecting(&mut self) -> Id {
        let FromGuest::Connect { conn, port: HostPort(1000), .. } = self.say(Op::Request) else {
            panic!("no connection")
        };
        self.mux.set_host(conn, HOST);
        conn
    }

    /// A connection that the guest asked for, open, everything said.
    fn open(&mut self) -> Id {
        let conn = self.connecting();
        self.mux.host_accepted(conn);
        assert_eq!(self.controls(), [Op::Response]);
        conn
    }

    /// A connection that a host application asked for, in state `Requested`, with its port.
    fn requested(&mut self) -> (Id, u32) {
        let conn = self.mux.host_connects(GuestPort(80), None, Type::Stream, HOST, self.now + 2 * SECOND).unwrap();
        let request = self.control();
        assert_eq!((request.op, request.dst_port), (Op::Request as u16, 80));
        (conn, request.src_port)
    }

    /// Lets time pass; the sockets to be closed.
    fn pass(&mut self, time: u64) -> Vec<Id> {
        self.now += time;
        let mut closed = Vec::new();
        while let Some(expired) = self.mux.expire(self.now) {
            closed.extend(expired.map(|expired| expired.host));
        }
        closed
    }

    /// Connections there are.
    fn count(&self) -> u64 {
        self.stats.connections.get()
    }
}

// ---- connections begin ----

#[test]
fn packets_without_a_connection_get_rst_but_rst_does_not() {
    let mut bench = Bench::new();
    for op in [Op::Response, Op::Shutdown, Op::Rw, Op::CreditUpdate, Op::CreditRequest] {
        assert_eq!(bench.say(op), FromGuest::Done);
        let rst = bench.control();
        assert_eq!((rst.op, rst.src_port, rst.dst_port), (Op::Rst as u16, 1000, 5000));
        assert_eq!((rst.buf_alloc, rst.fwd_cnt, rst.src_cid, rst.dst_cid), (0, 0, HOST_CID, CID));
    }
    assert_eq!(bench.say(Op::Rst), FromGuest::Done);
    assert_eq!(bench.controls(), []);
    assert_eq!(bench.stats.rst_unknown.get(), 5);
}

#[test]
fn forged_and_malformed_packets_are_dropped_and_counted() {
    let mut bench = Bench::new();
    let good = Bench::header(Op::Request);
    for forged in [Header { src_cid: 43, ..good }, Header { dst_cid: 1, ..good }, Header { dst_cid: CID, ..good }] {
        assert_eq!(bench.packet(&forged), FromGuest::Done);
    }
    let long = Header { len: 10, ..good };
    assert_eq!(bench.mux.from_guest(&long, 9, 0), FromGuest::Done);
    let huge = Header { len: MAX_PAYLOAD + 1, ..good };
    assert_eq!(bench.mux.from_guest(&huge, u64::MAX, 0), FromGuest::Done);
    assert_eq!(bench.controls(), []);
    assert_eq!((bench.stats.dropped_forged.get(), bench.stats.dropped_malformed.get()), (3, 2));
}

#[test]
fn guest_connects_and_the_host_accepts_or_refuses() {
    let mut bench = Bench::new();
    let conn = bench.connecting();
    assert_eq!(bench.controls(), [], "nothing is said before the host has answered");
    bench.mux.host_accepted(conn);
    let response = bench.control();
    assert_eq!((response.op, response.buf_alloc, response.fwd_cnt), (Op::Response as u16, WINDOW, 0));

    let mut bench = Bench::new();
    let conn = bench.connecting();
    bench.mux.host_refused(conn);
    assert_eq!(bench.controls(), [Op::Rst]);
    assert_eq!(bench.count(), 0);
}

#[test]
fn guest_that_gives_up_while_connecting_hears_nothing_more() {
    let mut bench = Bench::new();
    let conn = bench.connecting();
    assert_eq!(bench.say(Op::Rst), FromGuest::Gone { host: HOST });
    // The listener answers too late.
    bench.mux.host_accepted(conn);
    bench.mux.host_readable(conn, bench.now);
    bench.mux.host_ended(conn, bench.now);
    assert_eq!(bench.controls(), []);
    assert!(!bench.mux.has_to_guest());
}

#[test]
fn host_connects_and_the_guest_accepts_or_refuses() {
    let mut bench = Bench::new();
    let (_, port) = bench.requested();
    let answer = |op| Header { src_port: 80, dst_port: port, ..Bench::header(op) };
    assert_eq!(bench.packet(&answer(Op::Response)), FromGuest::Opened { host: HOST, port: HostPort(port) });
    assert_eq!(bench.mux.next_deadline(), None, "an open connection has no deadline");

    let mut bench = Bench::new();
    let (_, port) = bench.requested();
    let answer = |op| Header { src_port: 80, dst_port: port, ..Bench::header(op) };
    assert_eq!(bench.packet(&answer(Op::Rst)), FromGuest::Gone { host: HOST });
    assert_eq!((bench.controls(), bench.stats.refused_by_guest.get()), (vec![], 1));
}

#[test]
fn request_that_the_guest_does_not_answer_expires_with_rst() {
    let mut bench = Bench::new();
    bench.requested();
    assert_eq!(bench.pass(2 * SECOND - 1), []);
    assert_eq!(bench.pass(1), [HOST]);
    assert_eq!((bench.controls(), bench.count()), (vec![Op::Rst], 0));
}

#[test]
fn request_that_never_went_out_is_taken_back_in_silence() {
    let mut bench = Bench::new();
    let conn = bench.mux.host_connects(GuestPort(80), None, Type::Stream, HOST, bench.now + 2 * SECOND).unwrap();
    bench.mux.host_aborted(conn);
    assert_eq!((bench.controls(), bench.count()), (vec![], 0));
}

#[test]
fn limit_of_connections_holds_for_both_sides() {
    let mut bench = Bench::with_limit(1);
    let conn = bench.open();
    assert_eq!(
        bench.mux.host_connects(GuestPort(80), None, Type::Stream, HOST, bench.now + 2 * SECOND),
        Err(Refused::Limit)
    );
    let other = Header { src_port: 5001, ..Bench::header(Op::Request) };
    assert_eq!(bench.packet(&other), FromGuest::Done);
    assert_eq!((bench.controls(), bench.stats.refused_limit.get()), (vec![Op::Rst], 2));
    bench.mux.host_aborted(conn);
    assert!(matches!(bench.packet(&other), FromGuest::Connect { .. }));
}

#[test]
fn no_more_packets_are_to_be_taken_while_too_many_answers_wait() {
    let mut bench = Bench::with_limit(5);
    for _ in 0..MAX_REPLIES + 5 {
        assert!(!bench.mux.replies_full());
        bench.say(Op::Rw);
    }
    assert!(bench.mux.replies_full());
    bench.control();
    assert!(!bench.mux.replies_full());
}

// ---- what each packet means in each state ----

#[test]
fn every_operation_in_every_state_has_its_row() {
    let gone = FromGuest::Gone { host: HOST };
    let ops = [0, 1, 2, 3, 4, 5, 6, 7, 8];
    // State, then for each operation: what the device is told, what the guest is told.
    let done = |tells: &'static [Op]| (FromGuest::Done, tells);
    let reset: (FromGuest, &[Op]) = (gone, &[Op::Rst]);
    let open = |bench: &mut Bench| bench.open();
    let connecting = |bench: &mut Bench| bench.connecting();
    type Row = [(FromGuest, &'static [Op]); 9];
    type Rows = [(&'static str, fn(&mut Bench) -> Id, Row); 2];
    let rows: Rows = [
        (
            "connecting",
            connecting,
            [done(&[]), done(&[]), reset, (gone, &[]), reset, reset, done(&[]), done(&[]), done(&[])],
        ),
        (
            "established",
            open,
            [
                done(&[]),
                done(&[]),
                done(&[]),
                (gone, &[]),
                (FromGuest::Shutdown { host: HOST, flags: 0 }, &[]),
                (FromGuest::Data { conn: Id { index: 0, generation: 0 }, host: HOST }, &[]),
                done(&[]),
                done(&[Op::CreditUpdate]),
                done(&[]),
            ],
        ),
    ];
    for (state, begin, row) in rows {
        for (op, (told, tells)) in ops.into_iter().zip(row) {
            let mut bench = Bench::new();
            begin(&mut bench);
            let header = Header { op, ..Bench::header(Op::Rst) };
            assert_eq!(bench.packet(&header), told, "operation {op} while {state}");
            assert_eq!(bench.controls(), tells, "operation {op} while {state}");
        }
    }
}

#[test]
fn other_types_leave_a_connection_alone() {
    let mut bench = Bench::new();
    bench.open();
    for type_ in [0, Type::Seqpacket as u16, 9] {
        for op in [Op::Rw, Op::Request] {
            assert_eq!(bench.packet(&Header { type_, ..Bench::header(op) }), FromGuest::Done);
            assert_eq!(bench.control().type_, type_);
        }
        bench.packet(&Header { type_, ..Bench::header(Op::Rst) });
    }
    assert_eq!((bench.count(), bench.controls()), (1, vec![]));
}

#[test]
fn ids_of_connections_that_are_gone_do_nothing() {
    let mut bench = Bench::new();
    let old = bench.open();
    bench.say(Op::Rst);
    let new = bench.open();
    assert_ne!(old, new);
    bench.mux.host_readable(old, 0);
    bench.mux.host_drained(old, 0);
    bench.mux.host_ended(old, 0);
    bench.mux.host_closed(old, 0);
    bench.mux.host_aborted(old);
    bench.mux.host_accepted(old);
    bench.mux.delivered(old, 5);
    bench.mux.sent_to_guest(old, 5, 1, 0);
    assert!(bench.mux.rw_header(old).is_none());
    assert_eq!((bench.count(), bench.mux.has_to_guest()), (1, false));
}

// ---- connections end ----

#[test]
fn shutdown_bits_of_the_guest_add_up_and_both_free_the_ports() {
    let mut bench = Bench::new();
    bench.open();
    assert_eq!(bench.say_shutdown(SHUTDOWN_SEND), FromGuest::Shutdown { host: HOST, flags: SHUTDOWN_SEND });
    assert_eq!(bench.controls(), []);
    assert_eq!(bench.say_shutdown(SHUTDOWN_RCV), FromGuest::Gone { host: HOST });
    assert_eq!((bench.controls(), bench.count()), (vec![Op::Rst], 0));
    bench.open();
}

#[test]
fn end_of_the_host_is_half_a_shutdown_and_its_close_a_whole_one() {
    let mut bench = Bench::new();
    let conn = bench.open();
    bench.mux.host_ended(conn, bench.now);
    let told = bench.control();
    assert_eq!((told.op, told.flags), (Op::Shutdown as u16, SHUTDOWN_SEND));
    bench.mux.host_ended(conn, bench.now);
    assert_eq!(bench.controls(), [], "once is enough");
    assert!(matches!(bench.say_data(5), FromGuest::Data { .. }), "the other direction is open");
    bench.mux.host_closed(conn, bench.now);
    assert_eq!(bench.control().flags, SHUTDOWN_BOTH);
    assert!(bench.mux.is_closing(conn));
    assert_eq!(bench.say_data(5), FromGuest::Done, "nobody is there to take it");
    assert!(matches!(bench.say(Op::Rst), FromGuest::Gone { .. }));
    assert_eq!((bench.controls(), bench.count()), (vec![], 0));
}

#[test]
fn close_without_confirmation_ends_after_eight_seconds_with_rst() {
    let mut bench = Bench::new();
    let conn = bench.open();
    bench.mux.host_closed(conn, bench.now);
    assert_eq!(bench.controls(), [Op::Shutdown]);
    assert_eq!(bench.pass(8 * SECOND - 1), []);
    bench.pass(1);
    assert_eq!((bench.controls(), bench.count()), (vec![Op::Rst], 0));
    assert_eq!(bench.stats.timeout_close.get(), 1);
}

#[test]
fn request_on_closing_ports_begins_a_new_connection() {
    let mut bench = Bench::new();
    let old = bench.open();
    bench.mux.host_closed(old, bench.now);
    assert_eq!(bench.controls(), [Op::Shutdown]);
    let new = bench.connecting();
    assert_ne!(old, new);
    assert_eq!(bench.count(), 1);
    assert_eq!(bench.pass(20 * SECOND), [], "the deadline of the old one is gone with it");
}

#[test]
fn reset_of_the_device_forgets_everything() {
    let mut bench = Bench::new();
    let conn = bench.open();
    bench.mux.host_readable(conn, bench.now);
    bench.mux.host_connects(GuestPort(80), None, Type::Stream, HOST, bench.now + 2 * SECOND).unwrap();
    bench.packet(&Header { src_port: 9, ..Bench::header(Op::Rw) });
    let mut closed = 0;
    bench.mux.reset_all(|_| closed += 1);
    assert_eq!((closed, bench.count(), bench.mux.has_to_guest(), bench.mux.next_deadline()), (2, 0, false, None));
    assert_eq!(bench.mux.next_to_guest(), None);
}

// ---- data and credit ----

#[test]
fn response_goes_out_before_data() {
    let mut bench = Bench::new();
    let conn = bench.connecting();
    bench.mux.host_accepted(conn);
    bench.mux.host_readable(conn, bench.now);
    assert_eq!(bench.control().op, Op::Response as u16);
    assert!(matches!(bench.mux.next_to_guest(), Some(ToGuest::Data { bytes: WINDOW, .. })));
}

#[test]
fn connections_with_data_take_turns() {
    let mut bench = Bench::new();
    let mut conns = Vec::new();
    for port in 0..3 {
        let FromGuest::Connect { conn, .. } = bench.packet(&Header { src_port: port, ..Bench::header(Op::Request) })
        else {
            panic!()
        };
        bench.mux.host_accepted(conn);
        bench.mux.host_readable(conn, bench.now);
        conns.push(conn);
    }
    assert_eq!(bench.control().op, Op::Response as u16);
    bench.control();
    bench.control();
    for turn in 0..9 {
        let Some(ToGuest::Data { conn, .. }) = bench.mux.next_to_guest() else { panic!() };
        assert_eq!(conn, conns[turn % 3]);
        bench.mux.sent_to_guest(conn, 100, 1, bench.now);
    }
}

#[test]
fn data_stops_at_the_guests_window_and_a_credit_request_asks_less_and_less_often() {
    let mut bench = Bench::new();
    let conn = bench.open();
    bench.mux.host_readable(conn, bench.now);
    assert!(matches!(bench.mux.next_to_guest(), Some(ToGuest::Data { bytes: WINDOW, .. })));
    bench.mux.sent_to_guest(conn, WINDOW, 70, bench.now);
    assert_eq!(bench.mux.next_to_guest(), None);
    for wait in [1, 2, 4, 8, 16, 32, 64, 64] {
        bench.pass(wait * SECOND - 1);
        assert_eq!(bench.controls(), []);
        bench.pass(1);
        assert_eq!(bench.controls(), [Op::CreditRequest], "after {wait} s");
    }
    bench.packet(&Header { fwd_cnt: 1000, ..Bench::header(Op::CreditUpdate) });
    assert!(matches!(bench.mux.next_to_guest(), Some(ToGuest::Data { bytes: 1000, .. })));
    assert_eq!(bench.mux.next_deadline(), None);
}

#[test]
fn number_of_unread_packets_stops_data_and_is_asked_about_soon() {
    let mut bench = Bench::new();
    let conn = bench.open();
    let mut sent = 0;
    loop {
        bench.mux.host_readable(conn, bench.now);
        let Some(ToGuest::Data { packets, .. }) = bench.mux.next_to_guest() else { break };
        assert!(packets >= 1);
        bench.mux.sent_to_guest(conn, 1, 1, bench.now);
        sent += 1;
        assert!(sent < 455, "Linux 7 resets the connection now");
    }
    assert!(sent > 200, "{sent}");
    bench.pass(MILLISECOND);
    assert_eq!(bench.controls(), [Op::CreditRequest]);
    bench.packet(&Header { fwd_cnt: sent, ..Bench::header(Op::CreditUpdate) });
    assert!(matches!(bench.mux.next_to_guest(), Some(ToGuest::Data { .. })));
}

#[test]
fn guest_that_overruns_its_credit_is_reset() {
    let mut bench = Bench::new();
    bench.open();
    for _ in 0..4 {
        assert!(matches!(bench.say_data(MAX_PAYLOAD), FromGuest::Data { .. }));
    }
    assert_eq!(bench.say_data(1), FromGuest::Gone { host: HOST });
    assert_eq!((bench.controls(), bench.stats.reset_overrun.get()), (vec![Op::Rst], 1));
}

#[test]
fn credit_is_told_on_data_rather_than_in_a_packet_of_its_own() {
    let mut bench = Bench::new();
    let conn = bench.open();
    for _ in 0..3 {
        bench.say_data(MAX_PAYLOAD);
    }
    bench.mux.host_readable(conn, bench.now);
    bench.mux.delivered(conn, 3 * MAX_PAYLOAD);
    assert!(matches!(bench.mux.next_to_guest(), Some(ToGuest::Data { .. })));
    assert_eq!(bench.mux.rw_header(conn).unwrap().fwd_cnt, 3 * MAX_PAYLOAD);
    bench.mux.sent_to_guest(conn, 10, 1, bench.now);
    bench.mux.host_drained(conn, bench.now);
    assert_eq!(bench.controls(), []);
}

#[test]
fn credit_that_was_to_ride_on_data_is_told_when_no_data_comes() {
    let mut bench = Bench::new();
    let conn = bench.open();
    for _ in 0..4 {
        bench.say_data(MAX_PAYLOAD);
    }
    bench.mux.host_readable(conn, bench.now);
    bench.mux.delivered(conn, 4 * MAX_PAYLOAD);
    assert!(matches!(bench.mux.next_to_guest(), Some(ToGuest::Data { .. })));
    bench.mux.host_drained(conn, bench.now);
    assert_eq!(bench.controls(), [Op::CreditUpdate]);
}

#[test]
fn guest_that_receives_no_more_gets_no_data() {
    let mut bench = Bench::new();
    let conn = bench.open();
    bench.mux.host_readable(conn, bench.now);
    bench.say_shutdown(SHUTDOWN_RCV);
    assert_eq!(bench.mux.next_to_guest(), None);
    bench.mux.host_readable(conn, bench.now);
    assert_eq!((bench.mux.next_to_guest(), bench.mux.next_deadline()), (None, None));
}
