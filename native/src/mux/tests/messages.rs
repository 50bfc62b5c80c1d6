//! Job: messages, rule by rule, and two random ends that exchange them; the oracle is the list of messages.
//! Before: proptest says what happens.
//! After: what came out is a prefix of what went in, message by message, and in the end all of it.
//! Rules: the guest's end is the driver's model of a Linux socket, which resets whoever sends more than it allows.

use super::{Bench, HOST};
use crate::mux::*;
use crate::packet::spec::SEQ_EOM;
use proptest::prelude::*;
use vsock_driver::linux::{Received, Rules};
use vsock_driver::{header as driver, linux::socket::Socket as GuestSocket, linux::socket::State as GuestState};

/// A header of a message socket of the guest.
fn header(op: Op) -> Header {
    Header { type_: Type::Seqpacket as u16, ..Bench::header(op) }
}

/// A mux of a guest with message sockets, and an open connection.
fn open(request: &Header) -> (Bench, Id) {
    let mut bench = Bench::new();
    bench.mux.set_seqpacket(true);
    let FromGuest::Connect { conn, kind: Type::Seqpacket, .. } = bench.packet(request) else { panic!() };
    bench.mux.set_host(conn, HOST);
    bench.mux.host_accepted(conn);
    (bench, conn)
}

#[test]
fn every_packet_of_a_connection_has_its_type() {
    let (mut bench, conn) = open(&header(Op::Request));
    assert_eq!(bench.control().type_, Type::Seqpacket as u16);
    assert_eq!(bench.mux.rw_header(conn).unwrap().type_, Type::Seqpacket as u16);
    bench.mux.host_aborted(conn);
    assert_eq!((bench.control().type_, bench.count()), (Type::Seqpacket as u16, 0));
}

#[test]
fn types_that_are_not_served_are_reset_and_counted() {
    let mut bench = Bench::new();
    for type_ in [0, Type::Seqpacket as u16, 3, u16::MAX] {
        assert_eq!(bench.packet(&Header { type_, ..Bench::header(Op::Request) }), FromGuest::Done);
        let rst = bench.control();
        assert_eq!((rst.op, rst.type_), (Op::Rst as u16, type_));
        assert_eq!(bench.packet(&Header { type_, ..Bench::header(Op::Rst) }), FromGuest::Done);
    }
    assert_eq!((bench.controls(), bench.stats.rst_type.get(), bench.count()), (vec![], 4, 0));
}

#[test]
fn message_without_end_to_a_host_that_does_not_receive_overflows_nothing() {
    let (mut bench, conn) = open(&header(Op::Request));
    let part = Header { len: MAX_PAYLOAD, ..header(Op::Rw) };
    bench.mux.host_deaf(conn, bench.now);
    // More than fit a number of 32 bits.
    for _ in 0..=u32::MAX / MAX_PAYLOAD {
        assert!(matches!(bench.packet(&part), FromGuest::Message { complete: false, .. }));
        bench.mux.delivered(conn, MAX_PAYLOAD);
        bench.controls();
    }
    assert_eq!(bench.stats.reset_overrun.get(), 0);
}

#[test]
fn window_is_no_longer_than_the_longest_message_that_the_host_takes() {
    let mut bench = Bench::new();
    bench.mux.set_seqpacket(true);
    let conn = bench.mux.host_connects(GuestPort(80), None, Type::Seqpacket, HOST, bench.now + SECOND).unwrap();
    bench.mux.limit_window(conn, 1000);
    assert_eq!(bench.control().buf_alloc, 1000);
}

#[test]
fn message_is_given_credit_for_when_it_is_taken_and_beginnings_hold_nothing_up() {
    let (mut bench, conn) = open(&header(Op::Request));
    bench.control();
    let part = |len, flags| Header { len, flags, ..header(Op::Rw) };
    let message = |complete| FromGuest::Message { conn, host: HOST, complete };
    // Less than a quarter of the window, which a guest is not told by itself.
    assert_eq!(bench.packet(&part(60_000, SEQ_EOM)), message(true));
    bench.mux.delivered(conn, 60_000);
    assert_eq!(bench.packet(&part(MAX_PAYLOAD, 0)), message(false));
    assert_eq!(bench.controls(), [], "there is room enough");
    // What uses the window up cannot be delivered without the rest, for which the guest needs what it was not told.
    assert_eq!(bench.packet(&part(MAX_PAYLOAD, 0)), message(false));
    let told = bench.control();
    assert_eq!((told.op, told.fwd_cnt), (Op::CreditUpdate as u16, 60_000));
    assert_eq!(bench.packet(&part(MAX_PAYLOAD, SEQ_EOM)), message(true));
}

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// The guest's application goes on with a message, or begins one of this length.
    GuestWrites(usize),
    /// It reads a message.
    GuestReads,
    /// So many packets of the guest reach the mux.
    Arrive(usize),
    /// The host's application writes one of this length.
    HostWrites(usize),
    /// It reads so many.
    HostReads(usize),
    /// So many receive buffers of this size are filled.
    Buffers(usize, usize),
    /// Time passes, in milliseconds.
    Pass(u64),
}

/// What may happen.
fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let happens = prop_oneof![
        6 => (1_usize..90_000).prop_map(Happens::GuestWrites),
        3 => (1_usize..200).prop_map(Happens::GuestWrites),
        6 => Just(Happens::GuestReads),
        6 => (1_usize..6).prop_map(Happens::Arrive),
        6 => (1_usize..200).prop_map(Happens::HostWrites),
        3 => (1_usize..90_000).prop_map(Happens::HostWrites),
        6 => (1_usize..6).prop_map(Happens::HostReads),
        6 => (1_usize..20, prop_oneof![Just(2400_usize), Just(3732), Just(65_536)]).prop_map(|(n, size)| Happens::Buffers(n, size)),
        2 => (1_u64..3000).prop_map(Happens::Pass),
    ];
    proptest::collection::vec(happens, 1..250)
}

/// A message is its length, and its bytes are its number modulo 251.
fn message(number: usize, len: usize) -> Vec<u8> {
    vec![(number % 251) as u8; len]
}

/// Two ends with a mux between them.
struct World {
    bench: Bench,
    conn: Id,
    guest: GuestSocket,
    wire: VecDeque<(Header, Vec<u8>)>,
    /// Lengths of the guest's messages so far, and how much of the last one was sent.
    guest_wrote: Vec<usize>,
    guest_sent: usize,
    /// Messages of the guest that the device joined, that wait for the host, and that it has.
    joining: Vec<u8>,
    backlog: VecDeque<Vec<u8>>,
    host_got: usize,
    /// Lengths of the host's messages so far, how many of them were sent, and how much of the next.
    host_wrote: Vec<usize>,
    host_sent: usize,
    part_sent: usize,
    guest_got: usize,
}

impl World {
    /// An open connection.
    fn new(rules: Rules) -> Self {
        let (mut bench, conn) = open(&Header { buf_alloc: rules.buf_alloc, ..header(Op::Request) });
        let response = bench.control();
        let mut guest = GuestSocket::new(driver::SEQPACKET, 5000, 1000, GuestState::Established, rules);
        guest.learn(&driver::Header::from_bytes(&response.to_bytes()));
        Self {
            bench,
            conn,
            guest,
            wire: VecDeque::new(),
            guest_wrote: Vec::new(),
            guest_sent: 0,
            joining: Vec::new(),
            backlog: VecDeque::new(),
            host_got: 0,
            host_wrote: Vec::new(),
            host_sent: 0,
            part_sent: 0,
            guest_got: 0,
        }
    }

    /// The guest puts a packet on the wire.
    fn guest_says(&mut self, op: Op, payload: Vec<u8>, flags: u32) {
        let (buf_alloc, fwd_cnt) = self.guest.tell();
        let len = u32::try_from(payload.len()).unwrap();
        self.wire.push_back((Header { len, flags, buf_alloc, fwd_cnt, ..header(op) }, payload));
    }

    /// The guest's application writes as much as goes.
    fn guest_writes(&mut self, len: Option<usize>) {
        if self.guest_wrote.last().is_none_or(|&last| last == self.guest_sent) {
            let Some(len) = len else { return };
            self.guest_wrote.push(len.min(self.guest.longest()));
            self.guest_sent = 0;
        }
        let (number, len) = (self.guest_wrote.len() - 1, self.guest_wrote[self.guest_wrote.len() - 1]);
        let part = self.guest.credit().min(len - self.guest_sent).min(MAX_PAYLOAD as usize);
        if part > 0 {
            self.guest_sent += part;
            let flags = if self.guest_sent == len { SEQ_EOM } else { 0 };
            self.guest_says(Op::Rw, message(number, part), flags);
            self.guest.tx_cnt = self.guest.tx_cnt.wrapping_add(u32::try_from(part).unwrap());
        }
    }

    /// The guest's application reads.
    fn guest_reads(&mut self) {
        match self.guest.read_message() {
            Ok(got) => {
                assert_eq!(got.bytes, message(self.guest_got, self.host_wrote[self.guest_got]));
                self.guest_got += 1;
                self.guest_says(Op::CreditUpdate, Vec::new(), 0);
            }
            Err(Received::Nothing) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    /// A packet of the guest reaches the mux.
    fn arrive(&mut self) {
        let Some((header, payload)) = self.wire.pop_front() else { return };
        match self.bench.packet(&header) {
            FromGuest::Message { complete, .. } => {
                self.joining.extend(payload);
                if complete {
                    self.backlog.push_back(std::mem::take(&mut self.joining));
                }
            }
            FromGuest::Done => {}
            other => panic!("{other:?} for {header:?}"),
        }
    }

    /// The host's application reads.
    fn host_reads(&mut self) {
        let Some(got) = self.backlog.pop_front() else { return };
        assert_eq!(got, message(self.host_got, self.guest_wrote[self.host_got]));
        self.host_got += 1;
        self.bench.mux.delivered(self.conn, u32::try_from(got.len()).unwrap());
    }

    /// Fills receive buffers with `room` for payload, up to three of them; whether there was anything.
    fn fill(&mut self, room: usize) -> bool {
        match self.bench.mux.next_to_guest() {
            None => return false,
            Some(ToGuest::Control(header)) => self.guest_hears(&header, Vec::new()),
            Some(ToGuest::Message { conn, bytes, longest, .. }) => {
                assert!(bytes > 0 && longest == self.guest.buf_alloc);
                let Some(&len) = self.host_wrote.get(self.host_sent) else {
                    self.bench.mux.host_drained(conn, self.bench.now);
                    return true;
                };
                let part = (len - self.part_sent).min(bytes as usize).min(3 * room);
                self.part_sent += part;
                let complete = self.part_sent == len;
                let payload = message(self.host_sent, part);
                let mut header = self.bench.mux.rw_header(conn).unwrap();
                let packets = payload.chunks(room).len();
                for (piece, number) in payload.chunks(room).zip(1..) {
                    header.len = u32::try_from(piece.len()).unwrap();
                    header.flags = if complete && number == packets { SEQ_EOM } else { 0 };
                    self.guest_hears(&header, piece.to_vec());
                }
                if complete {
                    (self.host_sent, self.part_sent) = (self.host_sent + 1, 0);
                }
                let count = |n: usize| u32::try_from(n).unwrap();
                self.bench.mux.message_sent(conn, count(part), count(packets), complete, self.bench.now);
            }
            Some(other @ ToGuest::Data { .. }) => panic!("{other:?}"),
        }
        true
    }

    /// The guest gets a packet.
    fn guest_hears(&mut self, header: &Header, payload: Vec<u8>) {
        self.guest.learn(&driver::Header::from_bytes(&header.to_bytes()));
        match Op::from_wire(header.op).unwrap() {
            Op::Rw => assert!(self.guest.enqueue(payload, header.flags), "more than allowed: {:?}", self.guest),
            Op::CreditRequest => self.guest_says(Op::CreditUpdate, Vec::new(), 0),
            Op::CreditUpdate => {}
            other => panic!("{other:?}"),
        }
    }

    /// One thing happens.
    fn happen(&mut self, what: Happens) {
        match what {
            Happens::GuestWrites(len) => self.guest_writes(Some(len)),
            Happens::GuestReads => self.guest_reads(),
            Happens::Arrive(count) => (0..count).for_each(|_| self.arrive()),
            Happens::HostWrites(len) => {
                self.host_wrote.push(len.min(self.guest.buf_alloc as usize));
                self.bench.mux.host_readable(self.conn, self.bench.now);
            }
            Happens::HostReads(count) => (0..count).for_each(|_| self.host_reads()),
            Happens::Buffers(count, room) => {
                for _ in 0..count {
                    if !self.fill(room) {
                        break;
                    }
                }
            }
            Happens::Pass(time) => assert_eq!(self.bench.pass(time * MILLISECOND), []),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 300 / 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever two ends do with whatever windows: each message comes out once, whole and in order; nothing overruns the
    /// guest; and once both read again, everything comes through with no time passing but that of a credit request.
    #[test]
    fn messages_out_are_messages_in(
        happenings in happenings(),
        buf_alloc in prop_oneof![2000_u32..9000, 9000_u32..600_000],
        (min_window, packet_limit, collapse) in any::<(bool, bool, bool)>(),
    ) {
        let mut world = World::new(Rules { min_window, packet_limit, collapse, buf_alloc });
        for what in happenings {
            world.happen(what);
        }
        let (mut got, mut idle) = (0, 0);
        while idle < 100 {
            world.guest_writes(None);
            world.happen(Happens::Arrive(10));
            world.happen(Happens::HostReads(1000));
            world.happen(Happens::Buffers(20, 3732));
            world.guest_reads();
            if world.guest_got == world.host_wrote.len() && world.host_got == world.guest_wrote.len() {
                break;
            }
            if !world.bench.mux.has_to_guest() && world.wire.is_empty() {
                world.happen(Happens::Pass(64_000));
            }
            let now = (world.guest_got + world.host_got, world.guest_sent, world.part_sent);
            idle = if now == (got, world.guest_sent, world.part_sent) { idle + 1 } else { 0 };
            got = now.0;
        }
        prop_assert_eq!(world.guest_got, world.host_wrote.len());
        prop_assert_eq!(world.host_got, world.guest_wrote.len());
    }
}
