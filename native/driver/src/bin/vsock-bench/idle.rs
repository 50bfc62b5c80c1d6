//! Job: rows of what does nothing: what idle connections, guests and daemons cost.
//! Before: `rows` names how many.
//! After: bytes of the daemon's memory for each, what a busy connection notices of them, or how often the daemon wakes up.
//! Rules: the first ones of a kind make the daemon fetch memory that it keeps, so they are not counted.

use crate::Options;
use crate::applications::sink;
use crate::bulk::{measure_sending, packets};
use crate::process::{descriptors, host_thread, is_out_of_descriptors, memory, turns};
use crate::report::Outcome;
use crate::rows::Cut;
use crate::session::{Conn, Session, listen};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use vsock_driver::deadline::Deadline;
use vsock_driver::header::op;
use vsock_driver::ring::Mode;

/// Connections before those that count.
const FIRST: usize = 100;
/// The guest's port of the first idle connection.
const FIRST_PORT: u32 = 10_000;
/// Until a device has looked at everything that it looks at once, after a guest came: 2 s for ours.
const SETTLED_AFTER: Duration = Duration::from_millis(2300);
/// How long a daemon is watched that does nothing.
const WATCH: Duration = Duration::from_secs(1);

/// Opens one more idle connection. `None` if that hangs.
fn open_idle(session: &mut Session, listener: &UnixListener, index: usize) -> io::Result<Option<UnixStream>> {
    let local = FIRST_PORT + u32::try_from(index).expect("few");
    Ok(session.connect(listener, local)?.map(|(_, stream)| stream))
}

/// Memory and descriptors of an idle connection.
pub fn connections(options: &Options, count: usize) -> io::Result<Outcome> {
    let pid = options.daemon()?;
    let listener = listen(options.vm())?;
    let mut session = Session::boot(options.vm(), 3776, Mode::Waiting)?;
    let mut streams = Vec::new();
    let look = || (memory(pid, "Pss").unwrap_or(0), memory(pid, "Rss").unwrap_or(0), descriptors(pid).unwrap_or(0));
    let mut before = (0, 0, 0);
    for index in 0..count + FIRST {
        if index == FIRST {
            before = look();
        }
        let Some(stream) = open_idle(&mut session, &listener, index)? else { return Ok(Outcome::Hangs) };
        streams.push(stream);
    }
    let after = look();
    let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / count as f64;
    let fds = after.2.saturating_sub(before.2) as f64 / count as f64;
    Ok(Outcome::Value(each(after.0, before.0), vec![("rss", each(after.1, before.1)), ("fds", fds)]))
}

/// Memory of a VM's idle guest, in KiB.
pub fn guests(options: &Options) -> io::Result<Outcome> {
    let pid = options.daemon()?;
    let (mut guests, mut before) = (Vec::new(), 0);
    for (index, vm) in options.vms.iter().enumerate() {
        if index == 1 {
            before = memory(pid, "Pss").unwrap_or(0);
        }
        guests.push(Session::boot(vm, 3776, Mode::Waiting)?);
    }
    let grown = memory(pid, "Pss").unwrap_or(0).saturating_sub(before);
    Ok(Outcome::Value(grown as f64 / 1024.0 / (guests.len() - 1) as f64, Vec::new()))
}

/// What bulk on one connection reaches beside many idle ones, as a part of what it reached without them; and the same of
/// the daemon's processor time per byte, which depends less on what else the machine does.
pub fn beside(options: &Options, count: usize) -> io::Result<Outcome> {
    const SIZE: usize = 4096;
    let pid = options.daemon()?;
    let listener = listen(options.vm())?;
    let mut session = Session::boot(options.vm(), 3776, Mode::Waiting)?;
    let Some((mut busy, stream)) = session.connect(&listener, 5000)? else { return Ok(Outcome::Hangs) };
    let counter = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&counter);
    host_thread(options, move || sink(stream, counted));
    let prepared = packets(&session, SIZE, Cut::OnePiece);
    let measure = |session: &mut Session, busy: &mut Conn| match measure_sending(
        options, session, busy, SIZE, &prepared, &counter,
    ) {
        Outcome::Value(rate, more) => match more.first() {
            Some((_, cpu)) => Ok((rate, *cpu)),
            None => Err(Outcome::Failed("the daemon is gone".into())),
        },
        other => Err(other),
    };
    let alone = match measure(&mut session, &mut busy) {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    let mut idle = Vec::new();
    for index in 0..count {
        let Some(stream) = open_idle(&mut session, &listener, index)? else {
            return Ok(if is_out_of_descriptors(pid) {
                Outcome::Failed(format!("no descriptors left for connection {index}"))
            } else {
                Outcome::Hangs
            });
        };
        idle.push(stream);
    }
    // What the device said of credit while these were opened was not listened to.
    session.guest.say(op::CREDIT_REQUEST, busy.local, busy.peer);
    let beside = match measure(&mut session, &mut busy) {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    Ok(Outcome::Value(beside.0 / alone.0, vec![("alone", alone.0), ("cpu_to_alone", beside.1 / alone.1)]))
}

/// How often in a second a daemon with an idle guest and an idle connection is given a processor.
pub fn wake_ups(options: &Options) -> io::Result<Outcome> {
    let pid = options.daemon()?;
    let listener = listen(options.vm())?;
    let mut session = Session::boot(options.vm(), 3776, Mode::Waiting)?;
    let Some(_pair) = session.connect(&listener, FIRST_PORT)? else { return Ok(Outcome::Hangs) };
    let mut rest = |time| {
        let deadline = Deadline::after(time);
        while session.guest.recv_by(deadline).is_some() {}
    };
    rest(SETTLED_AFTER);
    let before = turns(pid).unwrap_or(0);
    rest(WATCH);
    let count = turns(pid).unwrap_or(0) - before;
    Ok(Outcome::per_second(count, WATCH))
}
