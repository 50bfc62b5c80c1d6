//! Job: a guest at memory speed, and connections through it to host applications.
//! Before: a row says what guest it wants.
//! After: rows put packets and take them, one window of credit for each connection, as Linux does.
//! Rules: payload is never touched. Whoever waits asks for a deadline.

use crate::report::{HANGS_AFTER, Outcome};
use crate::{Options, Vm};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use vsock_driver::deadline::Deadline;
use vsock_driver::front_end::FrontEnd;
use vsock_driver::front_end::message::feature;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::{Header, SEQ_EOM, SEQPACKET, STREAM, op};
use vsock_driver::host;
use vsock_driver::layout::RxLayout;
use vsock_driver::memory::RegionSpec;
use vsock_driver::ring::Mode;

/// The receive window of guest sockets: Linux's default.
pub const WINDOW: u32 = 256 * 1024;
/// The port that host applications listen at.
pub const PORT: u32 = 1000;

/// How long a guest sleeps at most before it looks at the clock.
pub const NAP: Duration = Duration::from_millis(100);

/// The guest's end of a connection.
#[derive(Clone, Debug)]
pub struct Conn {
    /// The type of its socket, as headers have it.
    kind: u16,
    /// The guest's port.
    pub local: u32,
    /// The host's port.
    pub peer: u32,
    /// Bytes sent.
    pub sent: u32,
    /// What the host has taken.
    pub taken: u32,
    /// The host's window.
    pub window: u32,
    /// Bytes received, which the application reads at once.
    pub received: u32,
    /// What the host was told of it.
    pub told: u32,
}

impl Conn {
    /// How much may be sent: the smaller window counts, as for Linux.
    pub fn credit(&self) -> u32 {
        self.window.min(WINDOW).saturating_sub(self.sent.wrapping_sub(self.taken))
    }

    /// A header that tells our credit. A message is one packet.
    pub fn header(&mut self, guest: &Guest, op: u16, len: u32) -> Header {
        self.told = self.received;
        let flags = if self.kind == SEQPACKET && op == op::RW { SEQ_EOM } else { 0 };
        let blank = guest.header(op, self.local, self.peer);
        Header { type_: self.kind, len, flags, fwd_cnt: self.received, buf_alloc: WINDOW, ..blank }
    }

    /// Takes what a packet says.
    pub fn learn(&mut self, header: &Header) {
        (self.window, self.taken) = (header.buf_alloc, header.fwd_cnt);
        if header.op == op::RW {
            self.received = self.received.wrapping_add(header.len);
        }
    }
}

/// A guest that is up.
pub struct Session {
    /// It.
    pub guest: Guest,
}

impl Session {
    /// Boots a guest with receive buffers of a size.
    pub fn boot(vm: &Vm, rx: usize, mode: Mode) -> io::Result<Self> {
        let deadline = Deadline::after(HANGS_AFTER);
        let front = loop {
            match FrontEnd::connect(&vm.socket) {
                Ok(front) => break front,
                Err(error) if deadline.is_over() => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let setup = Setup {
            rx: RxLayout::OnePiece(rx),
            mode,
            fill: false,
            regions: vec![RegionSpec::new(0, 1 << 20), RegionSpec::new(1 << 32, 64 << 20)],
            ..Setup::default()
        };
        Ok(Self { guest: Guest::boot(front, setup)? })
    }

    /// Opens a stream from the guest: both ends. `None` if that hangs.
    pub fn connect(&mut self, listener: &UnixListener, local: u32) -> io::Result<Option<(Conn, UnixStream)>> {
        self.connect_as(STREAM, listener, local)
    }

    /// Opens a connection of a type from the guest: both ends. `None` if that hangs.
    fn connect_as(&mut self, kind: u16, listener: &UnixListener, local: u32) -> io::Result<Option<(Conn, UnixStream)>> {
        let request = Header { type_: kind, ..self.guest.header(op::REQUEST, local, PORT) };
        self.guest.send(&request, &[]);
        let deadline = Deadline::after(HANGS_AFTER);
        let response = loop {
            match self.guest.recv_by(deadline) {
                Some(packet) if packet.header.op == op::RESPONSE && packet.header.dst_port == local => {
                    break packet.header;
                }
                Some(packet) if packet.header.op == op::RST => {
                    return Err(io::Error::other("the connection was refused"));
                }
                Some(_) => {}
                None => return Ok(None),
            }
        };
        let (stream, _) = listener.accept()?;
        let mut conn = Conn { kind, local, peer: PORT, sent: 0, taken: 0, window: 0, received: 0, told: 0 };
        conn.learn(&response);
        Ok(Some((conn, stream)))
    }

    /// Handles what came for one connection; whether there was anything. Says its credit when the window is used up to
    /// a packet, or when nothing is left to read: as Linux does for a reader that keeps up.
    pub fn pump(&mut self, conn: &mut Conn) -> bool {
        let mut any = false;
        while let Some(header) = self.guest.take_header() {
            any = true;
            if header.dst_port == conn.local {
                conn.learn(&header);
            }
            if header.op == op::CREDIT_REQUEST || conn.received.wrapping_sub(conn.told) > WINDOW - 65_536 {
                self.tell_credit(conn);
            }
            self.guest.refill();
        }
        if conn.received != conn.told {
            self.tell_credit(conn);
        }
        any
    }

    /// Sends a CREDIT_UPDATE if there is room for it; otherwise the next packet tells.
    pub fn tell_credit(&mut self, conn: &mut Conn) {
        let header = conn.header(&self.guest, op::CREDIT_UPDATE, 0);
        if self.guest.put(&header, &[]) {
            self.guest.tx.publish_and_kick();
        }
    }

    /// Waits for news; `false` after [`HANGS_AFTER`] without.
    pub fn wait(&mut self) -> bool {
        self.guest.wait(Deadline::after(HANGS_AFTER))
    }
}

/// A listener for the guest's connections; a stale one is removed.
pub fn listen(vm: &Vm) -> io::Result<UnixListener> {
    let path = host::listener_path(&vm.uds, PORT);
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(path)
}

/// The same for message sockets, on which a read and a write are a message each.
fn listen_for_messages(vm: &Vm) -> io::Result<UnixListener> {
    let path = host::listener_path(&vm.uds, PORT);
    let _ = std::fs::remove_file(&path);
    Ok(host::messages::listen(&path)?.into())
}

/// A guest with one connection of a type, on which `measure` measures. A device without message sockets has nothing to
/// measure on them.
pub fn with_connection(
    options: &Options,
    kind: u16,
    rx: usize,
    mode: Mode,
    measure: impl FnOnce(&mut Session, &mut Conn, UnixStream) -> Outcome,
) -> io::Result<Outcome> {
    let vm = options.vm();
    let listener = if kind == SEQPACKET { listen_for_messages(vm)? } else { listen(vm)? };
    let mut session = Session::boot(vm, rx, mode)?;
    if kind == SEQPACKET && session.guest.front.features & feature::SEQPACKET == 0 {
        return Ok(Outcome::None);
    }
    let Some((mut conn, stream)) = session.connect_as(kind, &listener, 50_000)? else { return Ok(Outcome::Hangs) };
    Ok(measure(&mut session, &mut conn, stream))
}

/// A time that is measured after a start that is not.
#[derive(Debug)]
pub struct Clock {
    /// When measuring begins.
    begin: Instant,
    /// When it ends.
    end: Instant,
}

impl Clock {
    /// So long from now, after a fifth of it for warming up.
    pub fn start(time: Duration) -> Self {
        let begin = Instant::now() + time / 5;
        Self { begin, end: begin + time }
    }

    /// Whether measuring has begun.
    pub fn has_begun(&self) -> bool {
        Instant::now() >= self.begin
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// How long was measured so far.
    pub fn measured(&self) -> Duration {
        self.begin.elapsed()
    }
}
