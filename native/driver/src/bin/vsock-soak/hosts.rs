//! Job: the host applications of one VM: one that listens, and clients.
//! Before: `main` names the VM's hybrid socket, or a bridge and the VM's CID.
//! After: conversations with the guest's applications.
//! Rules: one thread for all applications of a VM, in which nothing waits but `poll`.

use crate::conversation::{Got, Step, Stream};
use crate::party::{Entry, Party};
use crate::{GUEST_FRAGILE, GUEST_SOLID, HOST_FRAGILE, HOST_SOLID, Vm, WAIT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use vsock_driver::host::{listen, listener_path};

/// Also a connection on which nothing comes is looked at so often.
const LOOK: Duration = Duration::from_secs(5);
/// The longest answer to CONNECT.
const ANSWER: usize = 512;

/// The socket of one connection.
struct Socket {
    /// The socket, non-blocking.
    stream: UnixStream,
    /// It took no more when we sent last.
    full: bool,
}

impl Stream for Socket {
    fn recv(&mut self, into: &mut Vec<u8>, max: usize) -> Got {
        into.resize(max, 0);
        match self.stream.read(into) {
            Ok(0) => Got::End,
            Ok(len) => {
                into.truncate(len);
                Got::Data
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Got::Nothing,
            Err(error) => Got::Broken(error.to_string()),
        }
    }

    fn room(&self) -> usize {
        if self.full { 0 } else { usize::MAX }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, String> {
        match self.stream.write(bytes) {
            Ok(len) => Ok(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.full = true;
                Ok(0)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn shutdown(&mut self) {
        // If the other side is gone already, reading will tell.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn describe(&self) -> String {
        let unread = rustix::io::ioctl_fionread(&self.stream).unwrap_or(0);
        format!("{unread} bytes unread, full: {}", self.full)
    }
}

/// A connection of a host application.
struct Open {
    /// Its socket.
    socket: Socket,
    /// What is said on it.
    entry: Entry,
    /// The answer to CONNECT as far as it came; `None` once it is open.
    answer: Option<Vec<u8>>,
    /// When it is looked at though nothing happened.
    look_at: Instant,
}

/// Plays the host applications of a VM until everything is over.
pub fn play(vm: &Vm, mut party: Party) {
    let port = if party.options.beside { HOST_FRAGILE } else { HOST_SOLID };
    // Left there by one of us that was killed.
    let _ = std::fs::remove_file(listener_path(&vm.uds, port));
    let listener = match listen(&vm.uds, port) {
        Ok(listener) => listener,
        Err(error) => return party.tally.fault(format!("{}: no listener for port {port}: {error}", party.name)),
    };
    let mut open: Vec<Open> = Vec::new();
    let mut scratch = Vec::new();
    party.tally.ready.add(1);
    let mut finishing = false;
    while !party.tally.is_over() {
        if party.tally.is_finishing() && !std::mem::replace(&mut finishing, true) {
            // Those that rest do not rest any longer.
            let now = Instant::now();
            open.iter_mut().for_each(|each| each.look_at = now);
        }
        accept(&listener, &mut party, &mut open);
        connect(vm, &mut party, &mut open);
        let now = Instant::now();
        open.retain_mut(|each| now < each.look_at || advance(&mut party, each, &mut scratch));
        if let Err(error) = wait(&listener, &mut open) {
            return party.tally.fault(format!("{}: poll: {error}", party.name));
        }
    }
    if !party.options.fragile && !open.is_empty() {
        party.tally.fault(format!("{}: {} connections never ended", party.name, open.len()));
    }
}

/// Takes the connections of the guest.
fn accept(listener: &UnixListener, party: &mut Party, open: &mut Vec<Open>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let _ = stream.set_nonblocking(true);
                let entry = party.serve(party.options.fragile);
                open.push(Open {
                    socket: Socket { stream, full: false },
                    entry,
                    answer: None,
                    look_at: Instant::now(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return party.tally.fault(format!("{}: accept: {error}", party.name)),
        }
    }
}

/// Begins connections of our own.
fn connect(vm: &Vm, party: &mut Party, open: &mut Vec<Open>) {
    let port = if party.options.beside { GUEST_FRAGILE } else { GUEST_SOLID };
    for entry in party.begin(party.options.fragile) {
        match ask(vm, port) {
            Ok(stream) => {
                let socket = Socket { stream, full: false };
                open.push(Open { socket, entry, answer: Some(Vec::new()), look_at: Instant::now() });
            }
            Err(error) => party.refused(&entry, &error.to_string()),
        }
    }
}

/// Says CONNECT, and does not wait for the answer.
fn ask(vm: &Vm, port: u32) -> io::Result<UnixStream> {
    let (path, line) = match &vm.bridge {
        Some(bridge) => (bridge, format!("CONNECT {} {port}\n", vm.cid)),
        None => (&vm.uds, format!("CONNECT {port}\n")),
    };
    let mut stream = UnixStream::connect(path)?;
    stream.set_nonblocking(true)?;
    stream.write_all(line.as_bytes())?;
    Ok(stream)
}

/// One step of one connection; whether it goes on.
fn advance(party: &mut Party, each: &mut Open, scratch: &mut Vec<u8>) -> bool {
    if let Some(answer) = &mut each.answer {
        match read_answer(&mut each.socket.stream, answer) {
            Ok(false) if !each.entry.talk.is_late() => {
                each.look_at = Instant::now() + LOOK;
                return true;
            }
            Ok(true) => {
                each.answer = None;
                party.opened(&each.entry);
            }
            outcome => {
                let why = outcome.map_or_else(|error| error.to_string(), |_| "no answer".into());
                party.refused(&each.entry, &why);
                return false;
            }
        }
    }
    if party.tally.is_finishing() {
        each.entry.talk.finish();
    }
    let step = each.entry.talk.step(&mut each.socket, scratch);
    let now = Instant::now();
    each.look_at = if step == Step::Moved { now } else { each.entry.talk.due().unwrap_or(now + LOOK) };
    party.after(&mut each.entry, step)
}

/// Reads the answer to CONNECT, no further than its end; whether all of it is there.
fn read_answer(stream: &mut UnixStream, answer: &mut Vec<u8>) -> io::Result<bool> {
    let mut byte = [0];
    while answer.len() < ANSWER {
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::Error::other("closed without an answer")),
            Ok(_) if byte == *b"\n" => {
                if answer.starts_with(b"OK ") {
                    return Ok(true);
                }
                return Err(io::Error::other(String::from_utf8_lossy(answer).into_owned()));
            }
            Ok(_) => answer.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("an answer without end"))
}

/// Sleeps until something can be done; what can be looked at is marked.
fn wait(listener: &UnixListener, open: &mut [Open]) -> io::Result<()> {
    let now = Instant::now();
    let mut first = now + WAIT;
    let mut polled = vec![PollFd::new(listener, PollFlags::IN)];
    let mut places = Vec::new();
    for (place, each) in open.iter().enumerate() {
        first = first.min(each.look_at);
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, each.entry.talk.reads());
        events.set(PollFlags::OUT, each.socket.full);
        // One that waits for nothing would only say again and again that its other end is gone.
        if !events.is_empty() {
            polled.push(PollFd::new(&each.socket.stream, events));
            places.push(place);
        }
    }
    let left = first.saturating_duration_since(now);
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<_> = polled[1..].iter().map(PollFd::revents).collect();
    for (place, events) in places.into_iter().zip(ready).filter(|(_, events)| !events.is_empty()) {
        open[place].look_at = now;
        if !(events - PollFlags::IN).is_empty() {
            open[place].socket.full = false;
        }
    }
    Ok(())
}
