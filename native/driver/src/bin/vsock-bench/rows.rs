//! Job: the rows there are: their names, what each measures and in which unit.
//! Before: the command line names some.
//! After: `bulk`, `round_trips`, `connects`, `idle`, `stuck` and `vms` measure.
//! Rules: a row is the same for every contender.

use crate::Options;
use crate::applications::BLOCK;
use crate::report::Outcome;
use crate::{bulk, connects, idle, round_trips, stuck, vms};
use vsock_driver::header::{SEQPACKET, STREAM};
use vsock_driver::ring::Mode::{self, Polling, Waiting};

/// How a guest cuts its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Header and two pages of 32 KiB: Linux from 6.17.
    Pages,
    /// Header and one piece.
    OnePiece,
}

/// Where applications do not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In the guest.
    Guest,
    /// On the host.
    Host,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Bulk from the guest to the host through a type of socket, in packets of a size.
    FromGuest(u16, usize, Cut, Mode),
    /// Bulk from the host to the guest through a type of socket: into buffers of a size, by writes of another.
    ToGuest(u16, usize, usize, Mode),
    /// Both at once.
    Both(Mode),
    /// One byte there and back through a type of socket.
    RoundTrip(u16, Mode),
    /// 64 bytes there and back over so many connections.
    RoundTrips(usize),
    /// Connections by the guest, so many at once.
    GuestConnects(usize),
    /// Connections by the host, so many at once.
    HostConnects(usize),
    /// Memory of so many idle connections.
    Idle(usize),
    /// Bulk of one connection beside so many idle ones.
    Beside(usize),
    /// Memory of so many idle guests, and one that does not count.
    IdleGuests(usize),
    /// Wake-ups of an idle daemon.
    WakeUps,
    /// Processor time while so many readers of a side are stuck.
    Stuck(Side, usize),
    /// Bulk from so many VMs at once.
    Vms(usize),
}

/// A row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it says to people.
    pub title: &'static str,
    /// What is measured.
    pub what: What,
}

impl Row {
    /// The unit of its value.
    pub fn unit(&self) -> &'static str {
        match self.what {
            What::FromGuest(..) | What::ToGuest(..) | What::Both(_) | What::Vms(_) => "MB/s",
            What::RoundTrip(..) => "us",
            What::RoundTrips(_) | What::GuestConnects(_) | What::HostConnects(_) => "1/s",
            What::Idle(_) => "B",
            What::Beside(_) => "part",
            What::IdleGuests(_) => "KiB",
            What::WakeUps => "wake-ups/s",
            What::Stuck(..) => "%",
        }
    }

    /// How many VMs the daemon has to serve.
    pub fn vms(&self) -> usize {
        match self.what {
            What::Vms(count) => count,
            What::IdleGuests(count) => count + 1,
            _ => 1,
        }
    }
}

/// All rows, in the order of the table.
pub fn all() -> Vec<Row> {
    use Cut::{OnePiece, Pages};
    let row = |name, title, what| Row { name, title, what };
    let small = 3776;
    vec![
        row("g2h-64k", "guest to host, 64 KiB as Linux sends them", What::FromGuest(STREAM, 65_536, Pages, Waiting)),
        row("g2h-64k-poll", "same, polling guest", What::FromGuest(STREAM, 65_536, Pages, Polling)),
        row("g2h-64k-one", "guest to host, 64 KiB in one piece", What::FromGuest(STREAM, 65_536, OnePiece, Waiting)),
        row("g2h-64k-one-poll", "same, polling guest", What::FromGuest(STREAM, 65_536, OnePiece, Polling)),
        row("g2h-4k", "guest to host, 4 KiB", What::FromGuest(STREAM, 4096, OnePiece, Waiting)),
        row("g2h-4k-poll", "same, polling guest", What::FromGuest(STREAM, 4096, OnePiece, Polling)),
        row("g2h-256", "guest to host, 256 B", What::FromGuest(STREAM, 256, OnePiece, Waiting)),
        row("g2h-256-poll", "same, polling guest", What::FromGuest(STREAM, 256, OnePiece, Polling)),
        row("h2g", "host to guest, receive buffers of 3776 B", What::ToGuest(STREAM, small, BLOCK, Waiting)),
        row("h2g-poll", "same, polling guest", What::ToGuest(STREAM, small, BLOCK, Polling)),
        row("h2g-64k", "host to guest, receive buffers of 64 KiB", What::ToGuest(STREAM, 65_536 + 44, BLOCK, Waiting)),
        row("both", "both directions at once, 64 KiB, the sum", What::Both(Waiting)),
        row("both-poll", "same, polling guest", What::Both(Polling)),
        row("rtt", "round trip of 1 byte", What::RoundTrip(STREAM, Waiting)),
        row("rtt-poll", "same, polling guest", What::RoundTrip(STREAM, Polling)),
        row("connect-guest", "connections by the guest, one at a time", What::GuestConnects(1)),
        row("connect-guest-16", "same, 16 at once", What::GuestConnects(16)),
        row("connect-host", "connections by the host, one at a time", What::HostConnects(1)),
        row("connect-host-4", "same, 4 at once", What::HostConnects(4)),
        row("connect-host-16", "same, 16 at once", What::HostConnects(16)),
        row("messages-1", "64 B there and back, 1 connection", What::RoundTrips(1)),
        row("messages-16", "same, 16 connections", What::RoundTrips(16)),
        row("messages-256", "same, 256 connections", What::RoundTrips(256)),
        row("messages-1024", "same, 1024 connections", What::RoundTrips(1024)),
        row("messages-4096", "same, 4096 connections", What::RoundTrips(4096)),
        row(
            "seq-g2h-64k",
            "message sockets, guest to host, 64 KiB",
            What::FromGuest(SEQPACKET, 65_536, Pages, Waiting),
        ),
        row("seq-g2h-64k-poll", "same, polling guest", What::FromGuest(SEQPACKET, 65_536, Pages, Polling)),
        row("seq-g2h-256", "message sockets, guest to host, 256 B", What::FromGuest(SEQPACKET, 256, OnePiece, Waiting)),
        row("seq-h2g-64k", "message sockets, host to guest, 64 KiB", What::ToGuest(SEQPACKET, small, BLOCK, Waiting)),
        row("seq-h2g-64k-poll", "same, polling guest", What::ToGuest(SEQPACKET, small, BLOCK, Polling)),
        row("seq-h2g-256", "message sockets, host to guest, 256 B", What::ToGuest(SEQPACKET, small, 256, Waiting)),
        row("seq-rtt", "message sockets, round trip of 1 byte", What::RoundTrip(SEQPACKET, Waiting)),
        row("seq-rtt-poll", "same, polling guest", What::RoundTrip(SEQPACKET, Polling)),
        row("vms-1", "guest to host, 128 connections of 1 VM", What::Vms(1)),
        row("vms-16", "same, of 16 VMs in one daemon", What::Vms(16)),
        row("vms-128", "same, of 128 VMs in one daemon", What::Vms(128)),
        row("idle", "memory of an idle connection", What::Idle(2000)),
        row("idle-10k", "4 KiB packets beside 10,000 idle connections, to without", What::Beside(10_000)),
        row("idle-guest", "memory of an idle guest", What::IdleGuests(64)),
        row("wake-ups", "wake-ups of a daemon with an idle guest", What::WakeUps),
        row("stuck-1", "processor while 1 application in the guest does not read", What::Stuck(Side::Guest, 1)),
        row("stuck-16", "same, 16", What::Stuck(Side::Guest, 16)),
        row("stuck-host-1", "same, 1 on the host", What::Stuck(Side::Host, 1)),
        row("stuck-host-16", "same, 16 on the host", What::Stuck(Side::Host, 16)),
    ]
}

/// The row of a name.
pub fn find(name: &str) -> Option<Row> {
    all().into_iter().find(|row| row.name == name)
}

/// Measures.
pub fn run(what: What, options: &Options) -> Outcome {
    let result = match what {
        What::FromGuest(kind, size, cut, mode) => bulk::from_guest(options, kind, size, cut, mode),
        What::ToGuest(kind, buffer, size, mode) => bulk::to_guest(options, kind, buffer, size, mode),
        What::Both(mode) => bulk::both(options, mode),
        What::RoundTrip(kind, mode) => round_trips::one(options, kind, mode),
        What::RoundTrips(count) => round_trips::many(options, count),
        What::GuestConnects(parallel) => connects::by_guest(options, parallel),
        What::HostConnects(parallel) => connects::by_host(options, parallel),
        What::Idle(count) => idle::connections(options, count),
        What::Beside(count) => idle::beside(options, count),
        What::IdleGuests(_) => idle::guests(options),
        What::WakeUps => idle::wake_ups(options),
        What::Stuck(side, count) => stuck::readers(options, side, count),
        What::Vms(_) => vms::from_guests(options),
    };
    result.unwrap_or_else(|error| Outcome::Failed(error.to_string()))
}
