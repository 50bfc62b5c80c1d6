//! Job: rows of bulk data: as many bytes as go.
//! Before: `rows` names size, layout and how the guest waits.
//! After: megabytes per second, and processor time of the daemon per gigabyte.
//! Rules: bytes count when the receiving application has them. The host's application reads and writes 64 KiB at a time.
//! Through a message socket, one packet of the guest, and one call of the host's application, is one message.

use crate::Options;
use crate::applications::{BLOCK, sink, source};
use crate::process::{cpu_time, host_thread};
use crate::report::{HANGS_AFTER, Outcome};
use crate::rows::Cut;
use crate::session::{Clock, Conn, NAP, Session, listen, with_connection};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use vsock_driver::deadline::Deadline;
use vsock_driver::guest::Prepared;
use vsock_driver::header::{LEN, op};
use vsock_driver::ring::Mode;

/// What is measured between the beginning and the end of a clock.
pub struct Meter {
    /// The clock.
    clock: Clock,
    /// The daemon.
    pid: Option<u32>,
    /// When measuring began: bytes so far, processor time of the daemon, and the moment.
    begun: Option<(u64, Option<u64>, Instant)>,
    /// Bytes when there was progress last, and when that was.
    progress: (u64, Instant),
}

impl Meter {
    /// Begins.
    pub fn new(options: &Options) -> Self {
        Self { clock: Clock::start(options.time), pid: options.pid, begun: None, progress: (0, Instant::now()) }
    }

    /// Looks at the clock; the outcome once there is one.
    pub fn look(&mut self, bytes: u64) -> Option<Outcome> {
        if bytes != self.progress.0 {
            self.progress = (bytes, Instant::now());
        } else if self.progress.1.elapsed() >= HANGS_AFTER {
            return Some(Outcome::Hangs);
        }
        if self.begun.is_none() && self.clock.has_begun() {
            self.begun = Some((bytes, self.pid.and_then(cpu_time), Instant::now()));
        }
        if !self.clock.is_over() {
            return None;
        }
        let (before, cpu_before, begin) = self.begun?;
        let time = begin.elapsed();
        let moved = bytes - before;
        if moved == 0 {
            // Nothing yet within the time: only patience tells whether it hangs.
            return None;
        }
        let cpu = self.pid.and_then(cpu_time).zip(cpu_before).map(|(after, before)| (after - before) as f64);
        let per_gigabyte = cpu.map(|cpu| ("cpu_s_per_gb", cpu / moved as f64));
        Some(Outcome::rate(moved, time, per_gigabyte.into_iter().collect()))
    }
}

/// Sends as many packets as credit and ring allow; whether any.
pub fn send(session: &mut Session, conn: &mut Conn, size: usize, prepared: &[Prepared]) -> bool {
    session.guest.reclaim();
    let len = u32::try_from(size).expect("a packet");
    let mut any = false;
    while conn.credit() >= len {
        let header = conn.header(&session.guest, op::RW, len);
        if !session.guest.put_prepared(&header, prepared) {
            break;
        }
        conn.sent = conn.sent.wrapping_add(len);
        any = true;
        // As Linux does: each packet is published when it is ready, and kicked for if the device sleeps.
        session.guest.tx.publish_and_kick();
    }
    any
}

/// Packets of a size, cut as Linux does or in one piece.
pub fn packets(session: &Session, size: usize, cut: Cut) -> Vec<Prepared> {
    match cut {
        Cut::Pages => session.guest.lay_out(&[LEN, size / 2, size / 2]),
        Cut::OnePiece => session.guest.lay_out(&[LEN, size]),
    }
}

/// From the guest to the host.
pub fn from_guest(options: &Options, kind: u16, size: usize, cut: Cut, mode: Mode) -> io::Result<Outcome> {
    with_connection(options, kind, 3776, mode, |session, conn, stream| {
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&count);
        host_thread(options, move || sink(stream, counter));
        let prepared = packets(session, size, cut);
        measure_sending(options, session, conn, size, &prepared, &count)
    })
}

/// Sends on a connection as fast as it goes; `count` is what the application has.
pub fn measure_sending(
    options: &Options,
    session: &mut Session,
    conn: &mut Conn,
    size: usize,
    prepared: &[Prepared],
    count: &AtomicU64,
) -> Outcome {
    let mut meter = Meter::new(options);
    loop {
        let sent = send(session, conn, size, prepared);
        let news = session.pump(conn);
        if let Some(outcome) = meter.look(count.load(Ordering::Relaxed)) {
            return outcome;
        }
        if !sent && !news {
            session.guest.wait(Deadline::after(NAP));
        }
    }
}

/// From the host to the guest, into buffers of a size; the application writes so many bytes at a time.
pub fn to_guest(options: &Options, kind: u16, buffer: usize, size: usize, mode: Mode) -> io::Result<Outcome> {
    with_connection(options, kind, buffer, mode, |session, conn, stream| {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        host_thread(options, move || source(stream, size, stopping));
        let mut meter = Meter::new(options);
        let (mut total, mut last) = (0_u64, conn.received);
        loop {
            session.guest.reclaim();
            let news = session.pump(conn);
            total += u64::from(conn.received.wrapping_sub(last));
            last = conn.received;
            if let Some(outcome) = meter.look(total) {
                stop.store(true, Ordering::Relaxed);
                return outcome;
            }
            if !news {
                session.guest.wait(Deadline::after(NAP));
            }
        }
    })
}

/// Both at once, over one connection for each direction.
pub fn both(options: &Options, mode: Mode) -> io::Result<Outcome> {
    let listener = listen(options.vm())?;
    let mut session = Session::boot(options.vm(), 3776, mode)?;
    let Some((mut out, out_stream)) = session.connect(&listener, 50_000)? else { return Ok(Outcome::Hangs) };
    let Some((mut into, into_stream)) = session.connect(&listener, 50_001)? else { return Ok(Outcome::Hangs) };
    let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counter, stopping) = (Arc::clone(&count), Arc::clone(&stop));
    host_thread(options, move || sink(out_stream, counter));
    host_thread(options, move || source(into_stream, BLOCK, stopping));
    let prepared = packets(&session, BLOCK, Cut::OnePiece);
    let mut meter = Meter::new(options);
    let (mut total, mut last) = (0_u64, into.received);
    loop {
        let sent = send(&mut session, &mut out, BLOCK, &prepared);
        let mut news = false;
        while let Some(header) = session.guest.take_header() {
            news = true;
            let conn = if header.dst_port == out.local { &mut out } else { &mut into };
            conn.learn(&header);
            session.guest.refill();
        }
        if into.received != into.told {
            session.tell_credit(&mut into);
        }
        total += u64::from(into.received.wrapping_sub(last));
        last = into.received;
        if let Some(outcome) = meter.look(total + count.load(Ordering::Relaxed)) {
            stop.store(true, Ordering::Relaxed);
            return Ok(outcome);
        }
        if !sent && !news {
            session.guest.wait(Deadline::after(NAP));
        }
    }
}
