//! Job: one guest: its driver, its sockets, its applications, which serve and connect.
//! Before: `main` names the VM's vhost-user socket.
//! After: conversations with the host's applications.
//! Rules: one thread per guest. A guest whose device goes attaches anew if that may be, as a VM that was started again.

use crate::conversation::{Got, Step, Stream};
use crate::party::{Entry, Party};
use crate::{GUEST_FRAGILE, GUEST_SOLID, HOST_FRAGILE, HOST_SOLID, WAIT};
use rustix::net::{RecvFlags, recv};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use vsock_driver::deadline::Deadline;
use vsock_driver::front_end::FrontEnd;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::{MAX_PAYLOAD, SHUTDOWN_SEND};
use vsock_driver::linux::{Kernel, Received, Rules, SocketId, State};
use vsock_driver::memory::RegionSpec;

/// How long the device may take to end the last connections.
const LAST: Duration = Duration::from_secs(30);

/// A socket of the guest, for as long as a step takes.
struct Socket<'a> {
    /// The guest.
    kernel: &'a mut Kernel,
    /// Which one.
    id: SocketId,
}

impl Stream for Socket<'_> {
    fn recv(&mut self, into: &mut Vec<u8>, max: usize) -> Got {
        match self.kernel.recv(self.id, max) {
            Received::Data(bytes) => {
                *into = bytes;
                Got::Data
            }
            Received::Nothing => Got::Nothing,
            Received::End => Got::End,
            Received::Fault(fault) => Got::Broken(format!("{fault:?}")),
        }
    }

    fn room(&self) -> usize {
        let socket = self.kernel.socket(self.id);
        // Where sending is over, trying it tells so.
        if socket.may_send() { socket.credit().min(MAX_PAYLOAD) } else { MAX_PAYLOAD }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, String> {
        if !self.kernel.socket(self.id).may_send() {
            return Err(format!("the guest may not send: {:?}", self.kernel.socket(self.id).state));
        }
        Ok(self.kernel.send(self.id, bytes))
    }

    fn shutdown(&mut self) {
        self.kernel.shutdown(self.id, SHUTDOWN_SEND);
    }

    fn describe(&self) -> String {
        let outstanding = (self.kernel.guest.rx.outstanding(), self.kernel.guest.tx.outstanding());
        format!("{outstanding:?} buffers at the device, {:?}", self.kernel.socket(self.id))
    }
}

/// A connection of this guest.
struct Open {
    /// Its socket.
    id: SocketId,
    /// What is said on it.
    entry: Entry,
    /// It is not open yet.
    connecting: bool,
}

/// Plays the guest of the VM whose front-end attaches at `socket`, until everything is over.
pub fn play(socket: &Path, mut party: Party) {
    while !party.tally.is_over() {
        let setup = Setup {
            regions: vec![RegionSpec::new(0, 1 << 20), RegionSpec::new(1 << 32, 16 << 20)],
            ..Setup::default()
        };
        match FrontEnd::connect(socket).and_then(|front| Guest::boot(front, setup)) {
            Ok(guest) => live(guest, &mut party),
            Err(_) if party.options.fragile => std::thread::sleep(WAIT),
            Err(error) => return party.tally.fault(format!("{}: the guest cannot attach: {error}", party.name)),
        }
        if !party.options.fragile {
            return;
        }
    }
}

/// From the guest's boot to its end.
fn live(guest: Guest, party: &mut Party) {
    party.tally.ready.add(1);
    let mut kernel = Kernel::new(guest, Rules::linux_7());
    kernel.listen(GUEST_SOLID);
    kernel.listen(GUEST_FRAGILE);
    let mut open: Vec<Open> = Vec::new();
    let mut scratch = Vec::new();
    let (mut looked, mut alive) = (Instant::now(), true);
    while alive && !party.tally.is_over() {
        kernel.pump();
        let mut moved = accept(&mut kernel, party, &mut open);
        moved |= connect(&mut kernel, party, &mut open);
        open.retain_mut(|each| {
            let step = advance(&mut kernel, party, each, &mut scratch);
            moved |= step == Some(true);
            step.is_some()
        });
        if !moved {
            kernel.guest.wait(Deadline::after(WAIT));
        }
        if looked.elapsed() > Duration::from_millis(100) {
            looked = Instant::now();
            alive = is_attached(&kernel);
        }
    }
    if alive {
        say_goodbye(&mut kernel, party, &open);
    } else if !party.options.fragile {
        party.tally.fault(format!("{}: the device is gone", party.name));
    }
    open.iter().for_each(|each| if each.connecting { party.unmade(&each.entry) } else { party.gone(&each.entry) });
    party.tally.ready.sub(1);
}

/// Takes the connections of host applications.
fn accept(kernel: &mut Kernel, party: &mut Party, open: &mut Vec<Open>) -> bool {
    let before = open.len();
    for port in [GUEST_SOLID, GUEST_FRAGILE] {
        while let Some(id) = kernel.try_accept(port) {
            let entry = party.serve(party.options.fragile || port == GUEST_FRAGILE);
            open.push(Open { id, entry, connecting: false });
        }
    }
    open.len() > before
}

/// Begins connections of our own.
fn connect(kernel: &mut Kernel, party: &mut Party, open: &mut Vec<Open>) -> bool {
    // Every eighth conversation leads to an application that may be killed, where there is one.
    let fragile = party.options.killed_hosts && party.random.within(0..8) == 0;
    let made = party.begin(party.options.fragile || fragile);
    let any = !made.is_empty();
    for entry in made {
        let port = if entry.fragile && !party.options.fragile { HOST_FRAGILE } else { HOST_SOLID };
        let id = kernel.start_connect(port);
        open.push(Open { id, entry, connecting: true });
    }
    any
}

/// One step of one connection: `None` if it is over, else whether something moved.
fn advance(kernel: &mut Kernel, party: &mut Party, each: &mut Open, scratch: &mut Vec<u8>) -> Option<bool> {
    if each.connecting {
        let socket = kernel.socket(each.id);
        match (socket.state, socket.fault) {
            (State::Connecting, _) if !each.entry.talk.is_late() => return Some(false),
            (State::Established, _) => {
                each.connecting = false;
                party.opened(&each.entry);
            }
            (state, fault) => {
                kernel.release(each.id);
                party.refused(&each.entry, &format!("{state:?} {fault:?}"));
                return None;
            }
        }
    }
    if party.tally.is_finishing() {
        each.entry.talk.finish();
    }
    let step = each.entry.talk.step(&mut Socket { kernel, id: each.id }, scratch);
    let moved = step == Step::Moved;
    if party.after(&mut each.entry, step) {
        return Some(moved);
    }
    kernel.release(each.id);
    None
}

/// Whether the back-end is there.
fn is_attached(kernel: &Kernel) -> bool {
    let read = recv(&kernel.guest.front.socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(read.map_err(io::Error::from), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// At the end, the device must agree that no connection is left.
fn say_goodbye(kernel: &mut Kernel, party: &Party, open: &[Open]) {
    if party.options.fragile {
        return;
    }
    let deadline = Deadline::after(LAST);
    while kernel.open() > 0 && !deadline.is_over() {
        kernel.pump();
        kernel.guest.wait(Deadline::after(WAIT));
    }
    if kernel.open() > 0 {
        let left = (kernel.open(), open.len());
        party.tally.fault(format!("{}: {left:?} connections (in the guest, of applications) never ended", party.name));
    }
}
