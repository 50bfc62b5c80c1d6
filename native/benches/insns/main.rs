//! What the device does for one packet, one round trip and one connection, always the same: `scripts/insns` runs it under
//! callgrind, which counts the instructions and system calls of [`ByHand::turn`] within [`measured`].
//!
//! ```text
//! insns ROW...       one JSON object per row
//! insns --list
//! ```
//!
//! [`ByHand::turn`]: vhostvsock_native::device::by_hand::ByHand::turn

#[path = "../../tests/conformance/rig.rs"]
mod rig;
mod stage;

use stage::{Ends, PORT, Stage};
use std::io::{Read, Write};
use vhostvsock_native::stats::Snapshot;
use vsock_driver::header::op;
use vsock_driver::host;
use vsock_driver::linux::{Message, Received};

/// Goes before measuring, in which memory is allocated and guesses are learned.
const WARM_UP: usize = 20;
/// Goes that are measured.
const GOES: usize = 200;
/// What Linux posts for receive buffers, in bytes.
const SMALL_BUFFER: usize = 3776;
/// A receive buffer for the largest packet.
const LARGE_BUFFER: usize = 65_536 + 44;
/// Bytes that host applications write at a time.
const BLOCK: usize = 64 * 1024;

/// What is measured.
struct Row {
    /// Its name.
    name: &'static str,
    /// What the figures are for.
    unit: &'static str,
    /// The guest's receive buffers, in bytes.
    receive_buffer: usize,
    /// Connections that are open.
    connections: usize,
    /// They are message sockets.
    messages: bool,
    /// One go; how many units it was.
    go: fn(&mut Stage, &mut [Ends]) -> u64,
}

/// All rows.
const ROWS: [Row; 14] = [
    row("g2h-64k", "packet", 1, |stage, ends| send(stage, ends, 65_536, 2)),
    row("g2h-4k", "packet", 1, |stage, ends| send(stage, ends, 4096, 16)),
    row("g2h-256", "packet", 1, |stage, ends| send(stage, ends, 256, 64)),
    row("h2g", "packet", 1, receive),
    Row { receive_buffer: LARGE_BUFFER, ..row("h2g-64k", "packet", 1, receive) },
    row("credit", "packet", 1, credit),
    row("rtt", "round trip", 1, |stage, ends| there_and_back(stage, ends, 1)),
    row("messages-16", "message there and back", 16, |stage, ends| there_and_back(stage, ends, 64)),
    Row { messages: true, ..row("seq-g2h-256", "message", 1, |stage, ends| send_messages(stage, ends, 256, 64)) },
    Row { messages: true, ..row("seq-h2g-256", "message", 1, |stage, ends| receive_messages(stage, ends, 256, 64)) },
    Row { messages: true, ..row("seq-h2g-64k", "message", 1, |stage, ends| receive_messages(stage, ends, BLOCK, 1)) },
    row("connect-guest", "connection", 0, connect_from_guest),
    row("connect-host", "connection", 0, connect_from_host),
    row("nothing", "turn", 1, nothing),
];

/// A row with small receive buffers.
const fn row(
    name: &'static str,
    unit: &'static str,
    connections: usize,
    go: fn(&mut Stage, &mut [Ends]) -> u64,
) -> Row {
    Row { name, unit, receive_buffer: SMALL_BUFFER, connections, messages: false, go }
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words == ["--list"] {
        return ROWS.iter().for_each(|row| println!("{}\t{}", row.name, row.unit));
    }
    // `cargo bench` says so to each program.
    words.retain(|word| word != "--bench");
    for row in ROWS.iter().filter(|row| words.is_empty() || words.iter().any(|word| word == row.name)) {
        run(row);
    }
}

/// Runs a row.
fn run(row: &Row) {
    let mut stage = Stage::new(row.receive_buffer);
    let connect = if row.messages { Stage::connect_for_messages } else { Stage::connect };
    let mut ends: Vec<Ends> = (0..row.connections).map(|_| connect(&mut stage)).collect();
    for _ in 0..WARM_UP {
        (row.go)(&mut stage, &mut ends);
    }
    let before = stage.device.stats();
    let units = measured(row, &mut stage, &mut ends);
    report(row, units, &before, &stage.device.stats());
}

/// The part that counts. callgrind is told its name: it forgets what was before.
#[inline(never)]
fn measured(row: &Row, stage: &mut Stage, ends: &mut [Ends]) -> u64 {
    (0..GOES).map(|_| (row.go)(stage, ends)).sum()
}

/// Prints what callgrind does not know. callgrind is told its name: it writes down what it counted.
#[inline(never)]
fn report(row: &Row, units: u64, before: &Snapshot, after: &Snapshot) {
    assert_eq!(after.backlog_bytes, 0, "{}: a socket was full", row.name);
    println!(
        r#"{{"row":"{}","unit":"{}","units":{units},"from_guest":{},"to_guest":{},"kicks":{},"interrupts":{}}}"#,
        row.name,
        row.unit,
        after.from_guest_packets - before.from_guest_packets,
        after.to_guest_packets - before.to_guest_packets,
        after.kicks - before.kicks,
        after.interrupts - before.interrupts,
    );
}

/// The guest sends so many packets of a length, and the application reads them.
fn send(stage: &mut Stage, ends: &mut [Ends], len: usize, packets: usize) -> u64 {
    let (socket, stream) = &mut ends[0];
    let payload = vec![0x5a; len];
    for _ in 0..packets {
        assert_eq!(stage.guest.send(*socket, &payload), len, "no credit");
    }
    stage.turn();
    stream.read_exact(&mut vec![0; len * packets]).expect("all of it is there");
    packets as u64
}

/// The application writes a block, and the guest reads it.
fn receive(stage: &mut Stage, ends: &mut [Ends]) -> u64 {
    let (socket, stream) = &mut ends[0];
    stream.write_all(&[0x5a; BLOCK]).expect("there is room");
    let before = stage.device.stats().to_guest_packets;
    stage.turn();
    take(stage, *socket, BLOCK);
    stage.device.stats().to_guest_packets - before
}

/// The guest sends so many messages of a length, and the application reads them.
fn send_messages(stage: &mut Stage, ends: &mut [Ends], len: usize, messages: usize) -> u64 {
    let (socket, stream) = &mut ends[0];
    let message = Message { bytes: vec![0x5a; len], record: false };
    for _ in 0..messages {
        assert_eq!(stage.guest.send_some(*socket, &message, 0), Ok(len), "no credit");
    }
    stage.turn();
    for _ in 0..messages {
        stream.read_exact(&mut vec![0; len]).expect("all of them are there");
    }
    messages as u64
}

/// The application sends so many messages of a length, and the guest reads them.
fn receive_messages(stage: &mut Stage, ends: &mut [Ends], len: usize, messages: usize) -> u64 {
    let (socket, stream) = &mut ends[0];
    for _ in 0..messages {
        stream.write_all(&vec![0x5a; len]).expect("there is room");
    }
    stage.turn();
    for _ in 0..messages {
        let message = stage.guest.try_recv_message(*socket).expect("all of them are there");
        assert_eq!(message.bytes.len(), len);
    }
    messages as u64
}

/// The guest sends nothing but credit.
fn credit(stage: &mut Stage, ends: &mut [Ends]) -> u64 {
    const PACKETS: u64 = 64;
    for _ in 0..PACKETS {
        stage.put_credit(ends[0].0);
    }
    stage.guest.guest.tx.publish_and_kick();
    stage.turn();
    PACKETS
}

/// A message from the guest to each application and back.
fn there_and_back(stage: &mut Stage, ends: &mut [Ends], len: usize) -> u64 {
    for (socket, _) in &*ends {
        assert_eq!(stage.guest.send(*socket, &vec![0x5a; len]), len, "no credit");
    }
    stage.turn();
    for (_, stream) in &mut *ends {
        let mut message = vec![0; len];
        stream.read_exact(&mut message).expect("it is there");
        stream.write_all(&message).expect("there is room");
    }
    stage.turn();
    for (socket, _) in &*ends {
        take(stage, *socket, len);
    }
    ends.len() as u64
}

/// The guest's application reads so many bytes, which are there.
fn take(stage: &mut Stage, socket: vsock_driver::linux::SocketId, len: usize) {
    match stage.guest.recv(socket, len) {
        Received::Data(bytes) => assert_eq!(bytes.len(), len, "the rest is missing"),
        other => panic!("{other:?} in place of {len} bytes"),
    }
}

/// The guest connects, and both ends close.
fn connect_from_guest(stage: &mut Stage, _: &mut [Ends]) -> u64 {
    let (socket, stream) = stage.connect();
    stage.guest.close(socket);
    drop(stream);
    stage.turn();
    1
}

/// The host connects, and both ends close.
fn connect_from_host(stage: &mut Stage, _: &mut [Ends]) -> u64 {
    let mut stream = host::ask(&stage.uds, PORT).expect("it listens");
    stage.turn();
    let socket = stage.guest.try_accept(PORT).expect("the request came");
    stage.turn();
    host::answer(&mut stream).expect("it says OK");
    drop(stream);
    stage.turn();
    stage.guest.close(socket);
    stage.turn();
    1
}

/// A packet that no connection belongs to, which is what one turn costs by itself.
fn nothing(stage: &mut Stage, _: &mut [Ends]) -> u64 {
    stage.guest.guest.say(op::RST, 1, 1);
    stage.turn();
    1
}
