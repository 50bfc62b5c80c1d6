//! Job: rows of connections: how many begin in a second.
//! Before: `rows` names how many at once.
//! After: connections per second.
//! Rules: a connection counts when whoever asked for it knows that it is open; both ends close it then.

use crate::Options;
use crate::process::host_thread;
use crate::report::Outcome;
use crate::session::{Clock, PORT, Session, listen};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vsock_driver::header::{Header, op};
use vsock_driver::host;
use vsock_driver::ring::Mode;

/// Connections that the host's application keeps before it closes the oldest: long after the guest has closed it.
const KEPT: usize = 64;

/// The guest connects.
pub fn by_guest(options: &Options, parallel: usize) -> io::Result<Outcome> {
    let listener = listen(options.vm())?;
    let mut session = Session::boot(options.vm(), 3776, Mode::Waiting)?;
    host_thread(options, move || {
        let mut kept = VecDeque::new();
        while let Ok((stream, _)) = listener.accept() {
            kept.push_back(stream);
            if kept.len() > KEPT {
                kept.pop_front();
            }
        }
    });
    let clock = Clock::start(options.time);
    let (mut port, mut done, mut before) = (10_000_u32, 0_u64, None);
    let mut open = HashSet::new();
    loop {
        let mut any = false;
        while open.len() < parallel {
            let header = session.guest.header(op::REQUEST, port, PORT);
            if !session.guest.put(&header, &[]) {
                break;
            }
            open.insert(port);
            port += 1;
            any = true;
        }
        while let Some(header) = session.guest.take_header() {
            match header.op {
                // Some devices answer twice.
                op::RESPONSE if open.remove(&header.dst_port) => {
                    done += 1;
                    let end = Header { flags: 3, ..session.guest.header(op::SHUTDOWN, header.dst_port, PORT) };
                    any |= session.guest.put(&end, &[]);
                }
                op::SHUTDOWN if header.flags == 3 => {
                    let end = session.guest.header(op::RST, header.dst_port, PORT);
                    any |= session.guest.put(&end, &[]);
                }
                _ => {}
            }
            session.guest.refill();
        }
        if any {
            session.guest.tx.publish_and_kick();
        }
        if before.is_none() && clock.has_begun() {
            before = Some(done);
        }
        if let Some(before) = before.filter(|_| clock.is_over()) {
            return Ok(Outcome::per_second(done - before, clock.measured()));
        }
        if !any && !session.wait() {
            return Ok(Outcome::Hangs);
        }
        session.guest.reclaim();
    }
}

/// The host connects.
pub fn by_host(options: &Options, parallel: usize) -> io::Result<Outcome> {
    let mut session = Session::boot(options.vm(), 3776, Mode::Waiting)?;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    for _ in 0..parallel {
        let (stop, count, uds) = (Arc::clone(&stop), Arc::clone(&count), options.vm().uds.clone());
        host_thread(options, move || {
            while !stop.load(Ordering::Relaxed) {
                let opened = host::ask(&uds, PORT).and_then(|mut stream| host::answer(&mut stream));
                if opened.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let clock = Clock::start(options.time);
    let mut before = None;
    loop {
        session.guest.reclaim();
        let mut any = false;
        while let Some(header) = session.guest.take_header() {
            let answer = match header.op {
                op::REQUEST => op::RESPONSE,
                op::SHUTDOWN if header.flags == 3 => op::RST,
                _ => 0,
            };
            if answer != 0 {
                let header = session.guest.header(answer, header.dst_port, header.src_port);
                any |= session.guest.put(&header, &[]);
            }
            session.guest.refill();
        }
        if any {
            session.guest.tx.publish_and_kick();
        }
        let done = count.load(Ordering::Relaxed);
        if before.is_none() && clock.has_begun() {
            before = Some(done);
        }
        if let Some(before) = before.filter(|_| clock.is_over()) {
            stop.store(true, Ordering::Relaxed);
            let moved = done - before;
            return Ok(if moved == 0 { Outcome::Hangs } else { Outcome::per_second(moved, clock.measured()) });
        }
        if !any && !session.wait() {
            return Ok(Outcome::Hangs);
        }
    }
}
