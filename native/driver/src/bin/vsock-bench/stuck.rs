//! Job: rows of applications that do not read: what the daemon spends on data that nobody takes.
//! Before: `rows` names which side is stuck, and how many.
//! After: the share of a processor that the daemon needs, in per cent.
//! Rules: it counts once nothing moves any more; the guest's driver goes on all the time, as a real one does.

use crate::Options;
use crate::applications::BLOCK;
use crate::bulk::{packets, send};
use crate::process::cpu_time;
use crate::report::{HANGS_AFTER, Outcome};
use crate::rows::{Cut, Side};
use crate::session::{Conn, Session, listen};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vsock_driver::deadline::Deadline;
use vsock_driver::guest::Prepared;
use vsock_driver::header::op;
use vsock_driver::ring::Mode;

/// Nothing moves any more when nothing did for so long.
const STILL: Duration = Duration::from_millis(200);

/// So many applications of one side do not read.
pub fn readers(options: &Options, side: Side, count: usize) -> io::Result<Outcome> {
    let pid = options.daemon()?;
    let listener = listen(options.vm())?;
    let mut session = Session::boot(options.vm(), 3776, Mode::Waiting)?;
    let (mut conns, mut streams) = (Vec::new(), Vec::new());
    for local in 50_000..50_000 + u32::try_from(count).expect("few") {
        let Some((conn, stream)) = session.connect(&listener, local)? else { return Ok(Outcome::Hangs) };
        stream.set_nonblocking(true)?;
        conns.push(conn);
        streams.push(stream);
    }
    let prepared = packets(&session, BLOCK, Cut::OnePiece);
    let deadline = Deadline::after(HANGS_AFTER * 2);
    let mut moved = Instant::now();
    while moved.elapsed() < STILL {
        let any = match side {
            Side::Guest => write_all(&mut streams),
            Side::Host => send_all(&mut session, &mut conns, &prepared),
        };
        if any {
            moved = Instant::now();
        }
        if deadline.is_over() {
            return Ok(Outcome::Failed("data went on moving though nobody read it".into()));
        }
        drive(&mut session, &mut conns, Deadline::after(Duration::from_millis(2)));
    }
    let (before, begin) = (cpu_time(pid), Instant::now());
    drive(&mut session, &mut conns, Deadline::after(options.time));
    let Some((before, after)) = before.zip(cpu_time(pid)) else {
        return Ok(Outcome::Failed("the daemon is gone".into()));
    };
    let share = (after - before) as f64 / begin.elapsed().as_nanos() as f64;
    Ok(Outcome::Value(share * 100.0, Vec::new()))
}

/// Hosts write what their sockets take; whether any took anything.
fn write_all(streams: &mut [UnixStream]) -> bool {
    let block = [0x5a; BLOCK];
    let mut any = false;
    for stream in streams {
        while stream.write(&block).is_ok_and(|len| len > 0) {
            any = true;
        }
    }
    any
}

/// The guest sends what credit allows; whether there was any.
fn send_all(session: &mut Session, conns: &mut [Conn], prepared: &[Prepared]) -> bool {
    let mut any = false;
    for conn in conns {
        any |= send(session, conn, BLOCK, prepared);
    }
    any
}

/// The guest's driver until then: it takes packets, and answers questions for credit with what is true: nothing was read.
fn drive(session: &mut Session, conns: &mut [Conn], deadline: Deadline) {
    while !deadline.is_over() {
        session.guest.reclaim();
        while let Some(header) = session.guest.take_header() {
            if let Some(conn) = conns.iter_mut().find(|conn| conn.local == header.dst_port) {
                conn.learn(&header);
                if header.op == op::CREDIT_REQUEST {
                    let answer = session.guest.header(op::CREDIT_UPDATE, conn.local, conn.peer);
                    if session.guest.put(&answer, &[]) {
                        session.guest.tx.publish_and_kick();
                    }
                }
            }
            session.guest.refill();
        }
        session.guest.wait(deadline);
    }
}
