//! Job: two random ends with a mux between them; the oracle is that bytes out are bytes in.
//! Before: proptest says what happens.
//! After: every byte was compared, and nothing is stuck.
//! Rules: the guest's end is the driver's model of a Linux socket, which resets whoever sends more than it allows.

use super::{Bench, HOST};
use crate::mux::*;
use proptest::prelude::*;
use vsock_driver::linux::{Received, Rules};
use vsock_driver::{header as driver, linux::socket::Socket as GuestSocket, linux::socket::State as GuestState};

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// The guest's application writes.
    GuestWrites(u32),
    /// It reads.
    GuestReads(usize),
    /// So many packets of the guest reach the mux.
    Arrive(usize),
    /// The host's application writes.
    HostWrites(usize),
    /// It reads.
    HostReads(usize),
    /// So many receive buffers of this size are filled.
    Buffers(usize, usize),
    /// Time passes, in milliseconds.
    Pass(u64),
    /// The guest sends no more.
    GuestEnds,
    /// The host sends no more.
    HostEnds,
}

/// What may happen.
fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let happens = prop_oneof![
        6 => (1_u32..90_000).prop_map(Happens::GuestWrites),
        6 => (1_usize..90_000).prop_map(Happens::GuestReads),
        6 => (1_usize..6).prop_map(Happens::Arrive),
        3 => (1_usize..200).prop_map(Happens::HostWrites),
        3 => (1_usize..90_000).prop_map(Happens::HostWrites),
        6 => (1_usize..90_000).prop_map(Happens::HostReads),
        6 => (1_usize..20, prop_oneof![1_usize..200, Just(3732), Just(65_536)]).prop_map(|(n, size)| Happens::Buffers(n, size)),
        2 => (1_u64..3000).prop_map(Happens::Pass),
        1 => Just(Happens::GuestEnds),
        1 => Just(Happens::HostEnds),
    ];
    proptest::collection::vec(happens, 1..250)
}

/// Two ends with a mux between them. Bytes are the positions in their stream, modulo 251.
struct World {
    bench: Bench,
    conn: Id,
    guest: GuestSocket,
    /// Packets on their way to the mux, with the place of their payload in the stream.
    wire: VecDeque<(Header, u64)>,
    guest_wrote: u64,
    guest_ended: bool,
    guest_got: u64,
    guest_saw_end: bool,
    host_wrote: u64,
    host_ended: bool,
    /// What the mux has taken of it.
    host_sent: u64,
    /// Bytes of the guest that wait in the device, and in the host's socket.
    backlog: u64,
    host_socket: u64,
    host_got: u64,
    host_saw_end: bool,
}

/// What the host's socket holds.
const HOST_SOCKET: u64 = 100_000;

impl World {
    /// An open connection.
    fn new(rules: Rules) -> Self {
        let mut bench = Bench::new();
        let first = Header { buf_alloc: rules.buf_alloc, ..Bench::header(Op::Request) };
        let FromGuest::Connect { conn, .. } = bench.packet(&first) else { panic!() };
        bench.mux.set_host(conn, HOST);
        bench.mux.host_accepted(conn);
        let response = bench.control();
        let mut guest = GuestSocket::new(driver::STREAM, 5000, 1000, GuestState::Established, rules);
        guest.learn(&driver::Header::from_bytes(&response.to_bytes()));
        Self {
            bench,
            conn,
            guest,
            wire: VecDeque::new(),
            guest_wrote: 0,
            guest_ended: false,
            guest_got: 0,
            guest_saw_end: false,
            host_wrote: 0,
            host_ended: false,
            host_sent: 0,
            backlog: 0,
            host_socket: 0,
            host_got: 0,
            host_saw_end: false,
        }
    }

    /// The guest puts a packet on the wire.
    fn guest_says(&mut self, op: Op, len: u32, flags: u32) {
        let (buf_alloc, fwd_cnt) = self.guest.tell();
        self.wire.push_back((Header { len, flags, buf_alloc, fwd_cnt, ..Bench::header(op) }, self.guest_wrote));
    }

    /// The bytes at a place of a stream.
    fn bytes(from: u64, len: usize) -> Vec<u8> {
        (from..).take(len).map(|at| (at % 251) as u8).collect()
    }

    /// The host's socket takes what waits.
    fn flush(&mut self) {
        let part = self.backlog.min(HOST_SOCKET - self.host_socket);
        if part > 0 {
            self.backlog -= part;
            self.host_socket += part;
            self.bench.mux.delivered(self.conn, u32::try_from(part).unwrap());
        }
    }

    /// A packet of the guest reaches the mux.
    fn arrive(&mut self) {
        let Some((header, at)) = self.wire.pop_front() else { return };
        match self.bench.packet(&header) {
            FromGuest::Data { .. } => {
                assert_eq!(at, self.host_got + self.host_socket + self.backlog, "payload out of order");
                self.backlog += u64::from(header.len);
                self.flush();
            }
            FromGuest::Shutdown { flags, .. } => self.host_saw_end |= flags & SHUTDOWN_SEND != 0,
            FromGuest::Done => {}
            other => panic!("{other:?} for {header:?}"),
        }
    }

    /// Fills one receive buffer with `room` for payload, or more if it is payload; whether there was anything.
    fn fill(&mut self, room: usize) -> bool {
        match self.bench.mux.next_to_guest() {
            None => return false,
            Some(ToGuest::Control(header)) => self.guest_hears(&header, Vec::new()),
            Some(ToGuest::Data { conn, bytes, packets, .. }) => {
                assert!(bytes > 0 && packets > 0);
                let there = usize::try_from(self.host_wrote - self.host_sent).unwrap();
                let len = there.min(bytes as usize).min(room * (packets as usize).min(3));
                if len == 0 {
                    if self.host_ended {
                        self.bench.mux.host_ended(conn, self.bench.now);
                    } else {
                        self.bench.mux.host_drained(conn, self.bench.now);
                    }
                    return true;
                }
                let mut header = self.bench.mux.rw_header(conn).unwrap();
                for piece in Self::bytes(self.host_sent, len).chunks(room) {
                    header.len = u32::try_from(piece.len()).unwrap();
                    self.guest_hears(&header, piece.to_vec());
                }
                self.host_sent += len as u64;
                let packets = u32::try_from(len.div_ceil(room)).unwrap();
                self.bench.mux.sent_to_guest(conn, u32::try_from(len).unwrap(), packets, self.bench.now);
            }
            Some(other @ ToGuest::Message { .. }) => panic!("{other:?}"),
        }
        true
    }

    /// The guest gets a packet.
    fn guest_hears(&mut self, header: &Header, payload: Vec<u8>) {
        self.guest.learn(&driver::Header::from_bytes(&header.to_bytes()));
        match Op::from_wire(header.op).unwrap() {
            Op::Rw => assert!(self.guest.enqueue(payload, 0), "more than the guest allows: {:?}", self.guest),
            Op::CreditRequest => self.guest_says(Op::CreditUpdate, 0, 0),
            Op::Shutdown => self.guest.peer_shutdown |= header.flags,
            Op::CreditUpdate => {}
            other => panic!("{other:?}"),
        }
    }

    /// The guest's application reads.
    fn guest_reads(&mut self, max: usize) {
        let (received, due) = self.guest.read(max);
        match received {
            Received::Data(bytes) => {
                assert_eq!(bytes, Self::bytes(self.guest_got, bytes.len()));
                self.guest_got += bytes.len() as u64;
            }
            Received::End => self.guest_saw_end = true,
            Received::Nothing => {}
            Received::Fault(fault) => panic!("{fault:?}"),
        }
        if due {
            self.guest_says(Op::CreditUpdate, 0, 0);
        }
    }

    /// The guest's application writes.
    fn guest_writes(&mut self, len: u32) {
        let len = u32::try_from(self.guest.credit()).unwrap().min(len).min(MAX_PAYLOAD);
        if len > 0 && !self.guest_ended {
            self.guest_says(Op::Rw, len, 0);
            self.guest.tx_cnt = self.guest.tx_cnt.wrapping_add(len);
            self.guest_wrote += u64::from(len);
        }
    }

    /// One thing happens.
    fn happen(&mut self, what: Happens) {
        match what {
            Happens::GuestWrites(len) => self.guest_writes(len),
            Happens::GuestReads(max) => self.guest_reads(max),
            Happens::Arrive(count) => (0..count).for_each(|_| self.arrive()),
            Happens::HostWrites(len) if !self.host_ended => {
                self.host_wrote += len as u64;
                self.bench.mux.host_readable(self.conn, self.bench.now);
            }
            Happens::HostWrites(_) => {}
            Happens::HostReads(len) => {
                let part = self.host_socket.min(len as u64);
                self.host_socket -= part;
                self.host_got += part;
                self.flush();
            }
            Happens::Buffers(count, room) => {
                for _ in 0..count {
                    if !self.fill(room) {
                        break;
                    }
                }
            }
            Happens::Pass(time) => assert_eq!(self.bench.pass(time * MILLISECOND), []),
            Happens::GuestEnds if !self.guest_ended => {
                self.guest_ended = true;
                self.guest_says(Op::Shutdown, 0, SHUTDOWN_SEND);
            }
            Happens::GuestEnds => {}
            Happens::HostEnds => {
                self.host_ended = true;
                self.bench.mux.host_readable(self.conn, self.bench.now);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 300 / 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever two ends do with whatever windows: bytes out are bytes in, in order; nothing overruns the guest; and once
    /// both read and write again, everything comes through with no time passing but that of a credit request.
    #[test]
    fn bytes_out_are_bytes_in(
        happenings in happenings(),
        buf_alloc in prop_oneof![500_u32..5000, 5000_u32..600_000],
        (min_window, packet_limit, collapse) in any::<(bool, bool, bool)>(),
    ) {
        let rules = Rules { min_window, packet_limit: packet_limit && buf_alloc > 1200, collapse, buf_alloc };
        let mut world = World::new(rules);
        for what in happenings {
            world.happen(what);
        }
        // Both ends go on until all is there, and end.
        world.happen(Happens::GuestEnds);
        world.happen(Happens::HostEnds);
        let (mut got, mut idle) = (0, 0);
        while idle < 100 {
            world.happen(Happens::Arrive(10));
            world.happen(Happens::HostReads(usize::MAX / 2));
            world.happen(Happens::Buffers(20, 3732));
            world.guest_reads(1 << 20);
            let host_done = world.host_saw_end && world.host_socket + world.backlog == 0;
            if world.guest_saw_end && host_done && world.wire.is_empty() {
                break;
            }
            if !world.bench.mux.has_to_guest() && world.wire.is_empty() {
                // Only a question may be due: no stall is longer than the longest distance between two of them.
                world.happen(Happens::Pass(64_000));
            }
            let now = world.guest_got + world.host_got;
            idle = if now == got { idle + 1 } else { 0 };
            got = now;
        }
        prop_assert!(world.guest_saw_end && world.host_saw_end, "an end did not come through");
        prop_assert_eq!(world.guest_got, world.host_wrote);
        prop_assert_eq!(world.host_got, world.guest_wrote);
        prop_assert_eq!(world.bench.count(), 1);
    }
}
