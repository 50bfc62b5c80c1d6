//! Job: whole conversations of the mux in simulated time: many connections, both ends of each, and packets that no Linux
//! guest would send.
//! Before: a fuzzer says what happens.
//! After: the bytes that came out are those that went in, in order, or the connection was reset for a reason; nobody sent
//! more than its credit; counters balance; in the end nothing is left of any connection.
//! Rules: the guest's sockets are the driver's model of Linux, which resets whoever sends more than it allows. A connection
//! on whose ports a forged packet was sent is *spoilt*: nothing is expected of its guest any more, but the bounds hold.

mod guest;
mod host;
mod pair;
mod step;

use crate::input::Input;
use pair::Pair;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use step::Step;
use vhostvsock_native::ids::{GuestCid, HOST_CID};
use vhostvsock_native::mux::{Config, FromGuest, Mux, ToGuest};
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
    /// Place of its payload in the stream of its socket.
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
            Step::GuestConnects { reuse } => self.guest_connects(reuse),
            Step::ListenerAnswers(which, accepts) => {
                self.with(which, |world, pair| world.listener_answers(pair, accepts))
            }
            Step::HostConnects { listens } => self.host_connects(listens),
            Step::GuestWrites(which, len) => self.with(which, |world, pair| world.guest_writes(pair, len)),
            Step::GuestReads(which, len) => self.with(which, |world, pair| world.guest_reads(pair, len)),
            Step::HostWrites(which, len) => self.with(which, |world, pair| world.host_writes(pair, len)),
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
            Step::Forge { header, which, available } => self.forge(header, which, available),
            Step::Reset => self.reset(),
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
        self.expected.packets += 1;
        match self.mux.from_guest(&header, available, self.now) {
            FromGuest::Done => {}
            FromGuest::Connect { conn, .. } => {
                let asks = known.filter(|&pair| self.pairs[pair].is_asking());
                let pair = asks.unwrap_or_else(|| self.insert(Pair::forged(ports)));
                self.asked(pair, conn);
            }
            FromGuest::Opened { host, port } => {
                let pair = self.of_host(host);
                assert_eq!(port.0, self.pairs[pair].ports.1);
                self.expected.established += 1;
                self.opened(pair);
            }
            FromGuest::Data { conn, host } => {
                let pair = self.of_host(host);
                assert_eq!(self.pairs[pair].conn, Some(conn));
                self.received(pair, u64::from(header.len), at);
            }
            FromGuest::Message { host, complete, .. } => {
                let pair = self.of_host(host);
                self.received_part(pair, u64::from(header.len), complete);
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

    /// A packet that no Linux guest would send, at once or behind those that are on their way.
    fn forge(&mut self, header: Header, which: Option<u8>, available: u64) {
        let ports = match which.and_then(|which| self.choose(which)) {
            Some(pair) => self.pairs[pair].ports,
            None => (header.src_port, header.dst_port),
        };
        if let Some(&pair) = self.by_ports.get(&ports) {
            self.pairs[pair].spoilt = true;
        }
        let header = Header { src_port: ports.0, dst_port: ports.1, ..header };
        self.wire.push_back(Sent { header, available, at: 0 });
    }

    // ---- to the guest ----

    /// Fills one receive buffer with `room` for payload, or several if it is payload; whether there was anything.
    fn fill(&mut self, room: usize) -> bool {
        // Credit that was left to payload which does not come is found out by asking, and said when asked once more.
        match self.mux.next_to_guest().or_else(|| self.mux.next_to_guest()) {
            None => {
                assert!(!self.mux.has_to_guest(), "something is left, and does not come");
                return false;
            }
            Some(ToGuest::Control(header)) => self.guest_hears(&header, Vec::new()),
            Some(ToGuest::Data { conn, host, bytes, packets }) => {
                assert!(bytes > 0 && packets > 0);
                let most = (bytes as usize).min(room * (packets as usize).min(3));
                self.fill_payload(conn, host, most, room);
            }
            Some(ToGuest::Message { conn, host, bytes, .. }) => {
                assert!(self.pairs[self.of_host(host)].spoilt, "a message on a stream");
                self.fill_payload(conn, host, (bytes as usize).min(3 * room), room);
            }
        }
        true
    }

    /// Puts up to `most` bytes of payload into buffers with `room` each.
    fn fill_payload(&mut self, conn: Id, host: Id, most: usize, room: usize) {
        let pair = self.of_host(host);
        assert_eq!(self.pairs[pair].conn, Some(conn));
        let payload = self.host_reads_from(pair, most);
        if payload.is_empty() {
            return self.host_has_nothing(pair);
        }
        let mut header = self.mux.rw_header(conn).expect("the connection is there");
        for piece in payload.chunks(room) {
            header.len = u32::try_from(piece.len()).expect("a packet");
            self.guest_hears(&header, piece.to_vec());
        }
        let count = |n: usize| u32::try_from(n).expect("few");
        let (bytes, packets) = (count(payload.len()), count(payload.len().div_ceil(room)));
        // On a stream, which has no messages, this is the same as `sent_to_guest`.
        self.mux.message_sent(conn, bytes, packets, true, self.now);
    }

    /// What every packet to the guest has to be.
    fn check_header(header: &Header) {
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        let reset = header.op == op::RST;
        assert!(reset || Type::from_wire(header.type_).is_some(), "{header:?}");
        assert!(header.flags & !3 == 0 && header.len <= 65_536, "{header:?}");
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
    fn reset(&mut self) {
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
        let mut idle = 0;
        while idle < 4 {
            let before: (u64, u64) = (self.progress(), self.expected.packets);
            while !self.wire.is_empty() {
                // The guest takes what there is, so that the device need not wait with what it sends.
                while self.fill(3732) {}
                self.arrive();
            }
            while self.fill(3732) {}
            for pair in 0..self.pairs.len() {
                self.host_reads(pair, usize::MAX / 2);
                self.guest_reads(pair, 1 << 20);
            }
            let now = (self.progress(), self.expected.packets);
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
        self.pairs.iter().map(|pair| pair.guest_got + pair.host_got).sum()
    }
}
