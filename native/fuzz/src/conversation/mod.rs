//! Job: whole conversations of the mux in simulated time: many connections, streams and messages, both ends of each, and
//! packets that no Linux guest would send.
//! Before: a fuzzer says what happens.
//! After: the bytes and the messages that came out are those that went in, in order and whole, or the connection was reset
//! for a reason; nobody sent more than its credit; counters balance; in the end nothing is left of any connection.
//! Rules: the guest's sockets are the driver's model of Linux, which resets whoever sends more than it allows. A connection
//! on whose ports a forged packet was sent is *spoilt*: nothing is expected of its guest any more, but the bounds hold. A
//! packet of another type spoils none: it is refused, and the connection goes on.

mod guest;
mod host;
mod pair;
mod step;
mod to_guest;
mod way;

use crate::input::Input;
use pair::Pair;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use step::Step;
use to_guest::ROOM;
use vhostvsock_native::ids::{GuestCid, HOST_CID};
use vhostvsock_native::mux::{Config, FromGuest, Mux};
use vhostvsock_native::packet::spec::MAX_PAYLOAD;
use vhostvsock_native::packet::{Header, Type};
use vhostvsock_native::slab::Id;
use vhostvsock_native::stats::Stats;
use vhostvsock_native::timers::{MILLISECOND, SECOND};
use vsock_driver::header::{SHUTDOWN_SEND, op};
use vsock_driver::linux::Rules;

/// The guest's CID.
const CID: u64 = 42;
/// Receive windows of the host's side: one that a single packet can overrun, and the default.
const WINDOWS: [u32; 2] = [20_000, 256 * 1024];
/// The longest messages that sockets of applications take: less than the smaller window, and more than the larger one.
const LONGEST: [u32; 2] = [15_000, 300_000];
/// Connections at once.
const MAX_CONNECTIONS: usize = 8;
/// The most steps of one run.
const STEPS: usize = 600;

/// A packet of the guest on its way to the mux.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// Its header.
    header: Header,
    /// Payload bytes behind it in memory.
    available: u64,
    /// Place of its payload in all that its socket sends.
    at: u64,
}

/// The mux and all that is around it.
struct World {
    /// The mux.
    mux: Mux,
    /// Its counters.
    stats: Arc<Stats>,
    /// Simulated time in nanoseconds.
    now: u64,
    /// Receive window of the host's side, in bytes.
    window: u32,
    /// The longest message that sockets of host applications take.
    longest: u32,
    /// Which kernel the guest runs.
    rules: Rules,
    /// Every connection that there was.
    pairs: Vec<Pair>,
    /// The last one on each pair of ports, guest's and host's.
    by_ports: HashMap<(u32, u32), usize>,
    /// Packets on their way to the mux.
    wire: VecDeque<Sent>,
    /// What the counters have to say.
    expected: Expected,
}

/// Counters, counted once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Expected {
    /// Packets of the guest.
    packets: u64,
    /// Connections that host applications asked for.
    host_requests: u64,
    /// Connections that both ends agreed to.
    established: u64,
}

/// Plays all steps, then lets both ends go on and finish.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = Step::new(&mut input);
        world.happen(step);
        world.check();
    }
    world.finish();
}

impl World {
    /// Nothing happened yet.
    fn new(input: &mut Input) -> Self {
        let stats = Arc::new(Stats::default());
        let guest_cid = GuestCid::new(CID).expect("a CID");
        let kind = input.u8();
        let window = WINDOWS[usize::from(kind >> 7)];
        let config = Config { guest_cid, buf_alloc: window, max_connections: MAX_CONNECTIONS, first_port: 0 };
        let buf_alloc = input.pick(&[256 * 1024, 500, 2000, 5000, 60_000, 600_000]);
        let rules = Rules {
            min_window: kind & 1 != 0,
            // A window of less than two packets' cost is none for Linux 7.
            packet_limit: kind & 2 != 0 && buf_alloc > 1200,
            collapse: kind & 4 != 0,
            buf_alloc,
        };
        let mut mux = Mux::new(config, Arc::clone(&stats));
        mux.set_seqpacket(kind & 8 != 0);
        Self {
            mux,
            stats,
            now: SECOND,
            window,
            longest: LONGEST[usize::from(kind >> 4 & 1)],
            rules,
            pairs: Vec::new(),
            by_ports: HashMap::new(),
            wire: VecDeque::new(),
            expected: Expected::default(),
        }
    }

    /// A connection that a step is about, by any number.
    fn choose(&self, which: u8) -> Option<usize> {
        // The last ones, which are the ones that live.
        let recent = self.pairs.len().min(MAX_CONNECTIONS + 2);
        (recent > 0).then(|| self.pairs.len() - 1 - usize::from(which) % recent)
    }

    /// One thing happens.
    fn happen(&mut self, step: Step) {
        match step {
            Step::GuestConnects { reuse, kind } => self.guest_connects(reuse, kind),
            Step::ListenerAnswers(which, accepts) => {
                self.with(which, |world, pair| world.listener_answers(pair, accepts))
            }
            Step::HostConnects { kind, listens } => self.host_connects(kind, listens),
            Step::GuestWrites(which, len, record) => {
                self.with(which, |world, pair| world.guest_writes(pair, len, record));
            }
            Step::GuestReads(which, len) => self.with(which, |world, pair| world.guest_reads(pair, len)),
            Step::HostWrites(which, len, times) => {
                self.with(which, |world, pair| (0..times).for_each(|_| world.host_writes(pair, len)));
            }
            Step::HostReads(which, len) => self.with(which, |world, pair| world.host_reads(pair, len)),
            Step::GuestShutsDown(which, flags) => self.with(which, |world, pair| world.guest_shuts_down(pair, flags)),
            Step::GuestCloses(which) => self.with(which, Self::guest_closes),
            Step::HostEnds(which) => self.with(which, Self::host_ends),
            Step::HostCloses(which) => self.with(which, Self::host_closes),
            Step::HostBreaks(which) => self.with(which, Self::host_breaks),
            Step::Arrive(count) => (0..count).for_each(|_| self.arrive()),
            Step::Buffers(count, room) => {
                for _ in 0..count {
                    if !self.fill(room) {
                        break;
                    }
                }
            }
            Step::Pass(time) => self.pass(time * MILLISECOND),
            Step::Forge { header, type_, which, available } => self.forge(header, type_, which, available),
            Step::Reset { seqpacket } => self.reset(seqpacket),
        }
    }

    /// Does something to a connection, if there is one.
    fn with(&mut self, which: u8, act: impl FnOnce(&mut Self, usize)) {
        if let Some(pair) = self.choose(which) {
            act(self, pair);
        }
    }

    // ---- from the guest ----

    /// A packet of the guest reaches the mux, unless the device has to wait with it.
    fn arrive(&mut self) {
        if self.mux.replies_full() {
            return;
        }
        if let Some(sent) = self.wire.pop_front() {
            self.deliver(sent);
        }
    }

    /// The mux gets a packet, and what it says about it is done.
    fn deliver(&mut self, Sent { header, available, at }: Sent) {
        let ports = (header.src_port, header.dst_port);
        let known = self.by_ports.get(&ports).copied();
        let refused = self.stats.rst_type.get();
        self.expected.packets += 1;
        let action = self.mux.from_guest(&header, available, self.now);
        let sound = u64::from(header.len) <= available;
        if known.is_some_and(|pair| sound && self.is_of_other_type(pair, &header)) {
            assert_eq!(action, FromGuest::Done, "{header:?} is of the other type");
            assert_eq!(self.stats.rst_type.get() - refused, u64::from(header.op != op::RST));
            return;
        }
        match action {
            FromGuest::Done => {}
            FromGuest::Connect { conn, kind, .. } => {
                let asks = known.filter(|&pair| self.pairs[pair].is_asking() && self.pairs[pair].kind == kind);
                let pair = asks.unwrap_or_else(|| self.insert(Pair::forged(ports, kind)));
                self.asked(pair, conn, kind);
            }
            FromGuest::Opened { host, port } => {
                let pair = self.of_host(host);
                assert_eq!(port.0, self.pairs[pair].ports.1);
                self.expected.established += 1;
                self.opened(pair);
            }
            FromGuest::Data { conn, host } => {
                let pair = self.of_host(host);
                assert_eq!((self.pairs[pair].conn, self.pairs[pair].kind), (Some(conn), Type::Stream));
                self.received(pair, u64::from(header.len), at, true);
            }
            FromGuest::Message { conn, host, complete } => {
                let pair = self.of_host(host);
                assert_eq!((self.pairs[pair].conn, self.pairs[pair].kind), (Some(conn), Type::Seqpacket));
                self.received(pair, u64::from(header.len), at, complete);
            }
            FromGuest::Shutdown { host, flags } => {
                let pair = self.of_host(host);
                self.guest_closed(pair, flags);
            }
            FromGuest::Gone { host } => {
                let pair = self.of_host(host);
                self.gone(pair);
            }
        }
    }

    /// The connection of a socket of the host.
    fn of_host(&self, host: Id) -> usize {
        let pair = usize::try_from(host.index).expect("an index");
        assert!(pair < self.pairs.len(), "{host:?} is no socket of ours");
        pair
    }

    /// Whether a packet has nothing wrong but its type, which is not that of the connection on its ports.
    fn is_of_other_type(&self, pair: usize, header: &Header) -> bool {
        let pair = &self.pairs[pair];
        let known = (header.src_cid, header.dst_cid) == (CID, HOST_CID) && header.len <= MAX_PAYLOAD;
        known && pair.conn.is_some() && header.type_ != pair.kind as u16
    }

    /// A packet that no Linux guest would send, behind those that are on their way.
    fn forge(&mut self, header: Header, type_: Option<u16>, which: Option<u8>, available: u64) {
        let ports = match which.and_then(|which| self.choose(which)) {
            Some(pair) => self.pairs[pair].ports,
            None => (header.src_port, header.dst_port),
        };
        let known = self.by_ports.get(&ports).copied();
        let own = known.map_or(header.type_, |pair| self.pairs[pair].kind as u16);
        let type_ = type_.unwrap_or(own);
        let header = Header { src_port: ports.0, dst_port: ports.1, type_, ..header };
        if let Some(pair) = known {
            self.pairs[pair].spoilt |= type_ == own || header.op == op::REQUEST;
        }
        self.wire.push_back(Sent { header, available, at: 0 });
    }

    // ---- time, and the end of everything ----

    /// Time passes, deadline by deadline.
    fn pass(&mut self, time: u64) {
        self.now += time;
        while let Some(expired) = self.mux.expire(self.now) {
            if let Some(expired) = expired {
                let pair = self.of_host(expired.host);
                self.pairs[pair].expire();
                self.gone(pair);
            }
        }
    }

    /// The guest's driver starts anew: nobody knows of any connection any more.
    fn reset(&mut self, seqpacket: bool) {
        let mut hosts = Vec::new();
        self.mux.reset_all(|host| hosts.push(host));
        assert!(!self.mux.has_to_guest() && self.mux.next_deadline().is_none());
        for host in hosts {
            let pair = self.of_host(host);
            self.pairs[pair].cut = true;
            self.gone(pair);
        }
        self.wire.clear();
        for pair in &mut self.pairs {
            pair.forget_guest();
        }
        self.by_ports.clear();
        self.mux.set_seqpacket(seqpacket);
    }

    /// What holds at any time.
    fn check(&self) {
        let alive = self.pairs.iter().filter(|pair| pair.conn.is_some()).count();
        assert_eq!(self.stats.connections.get(), alive as u64);
        assert!(alive <= MAX_CONNECTIONS);
        assert_eq!(self.stats.from_guest_packets.get(), self.expected.packets);
        assert_eq!(self.stats.host_requests.get(), self.expected.host_requests);
        assert_eq!(self.stats.established.get(), self.expected.established);
    }

    /// Both ends of everything read and finish; then all are closed, and nothing may be left.
    fn finish(&mut self) {
        self.settle();
        for pair in 0..self.pairs.len() {
            self.listener_answers(pair, true);
        }
        // Everything that was written has to come through without anything more being said.
        self.settle();
        for pair in &self.pairs {
            pair.check_bytes();
        }
        for pair in 0..self.pairs.len() {
            self.guest_shuts_down(pair, SHUTDOWN_SEND);
            self.host_ends(pair);
        }
        self.settle();
        for pair in &self.pairs {
            pair.check_bytes();
            pair.check_ends();
        }
        for pair in 0..self.pairs.len() {
            self.guest_closes(pair);
            self.host_closes(pair);
            // A guest that gives no credit keeps what its host sent waiting for ever.
            if self.pairs[pair].spoilt {
                self.listener_answers(pair, false);
                self.host_breaks(pair);
            }
        }
        self.settle();
        self.check();
        assert_eq!(self.stats.connections.get(), 0, "{:#?}", self.pairs);
        assert_eq!(self.mux.next_deadline(), None);
        assert!(!self.mux.has_to_guest());
    }

    /// Lets everybody go on until nothing happens any more.
    fn settle(&mut self) {
        // Ends that say things to each other for ever, and no bytes, are stuck as well.
        let (mut idle, mut talk) = (0, 0);
        while idle < 4 && talk < 64 {
            let before: (u64, u64) = (self.progress(), self.expected.packets);
            while !self.wire.is_empty() {
                // The guest takes what there is, so that the device need not wait with what it sends.
                while self.fill(ROOM) {}
                self.arrive();
            }
            while self.fill(ROOM) {}
            for pair in 0..self.pairs.len() {
                self.host_reads(pair, usize::MAX / 2);
                self.guest_reads(pair, 1 << 20);
                self.guest_goes_on(pair);
            }
            let now = (self.progress(), self.expected.packets);
            talk = if now.0 == before.0 { talk + 1 } else { 0 };
            if self.wire.is_empty() && !self.mux.has_to_guest() && now == before {
                // Only a deadline can be due: no wait is longer than the longest between two questions for credit.
                self.pass(64 * SECOND);
                idle += 1;
            } else {
                idle = 0;
            }
        }
    }

    /// Grows as long as bytes come through.
    fn progress(&self) -> u64 {
        self.pairs.iter().map(|pair| pair.to_guest.got + pair.from_guest.got).sum()
    }
}
