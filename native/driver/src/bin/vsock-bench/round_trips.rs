//! Job: rows of a few bytes that go there and back.
//! Before: `rows` names how many connections.
//! After: the time of one round trip, or how many there are in a second.
//! Rules: the host's application is one thread that sends back what it gets.

use crate::Options;
use crate::applications::{echo, echo_many};
use crate::process::host_thread;
use crate::report::Outcome;
use crate::session::{Clock, Conn, Session, listen, with_connection};
use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Instant;
use vsock_driver::header::{LEN, op};
use vsock_driver::ring::Mode;

/// What goes over each of many connections, in bytes.
const SIZE: usize = 64;

/// One byte there and back, one at a time.
pub fn one(options: &Options, kind: u16, mode: Mode) -> io::Result<Outcome> {
    with_connection(options, kind, 3776, mode, |session, conn, stream| {
        host_thread(options, move || echo(stream));
        let prepared = session.guest.lay_out(&[LEN, 1]);
        let clock = Clock::start(options.time);
        let mut times = Vec::new();
        while !clock.is_over() {
            let start = Instant::now();
            session.guest.reclaim();
            let header = conn.header(&session.guest, op::RW, 1);
            assert!(session.guest.put_prepared(&header, &prepared), "one packet always fits");
            session.guest.tx.publish_and_kick();
            conn.sent = conn.sent.wrapping_add(1);
            let expected = conn.received.wrapping_add(1);
            // What was received is told with the next byte: no packets in between that would be measured.
            while conn.received != expected {
                while let Some(header) = session.guest.take_header() {
                    conn.learn(&header);
                }
                if conn.received != expected && !session.wait() {
                    return Outcome::Hangs;
                }
                session.guest.reclaim();
            }
            if clock.has_begun() {
                times.push(start.elapsed());
            }
            session.guest.refill();
        }
        Outcome::latency(times)
    })
}

/// Over many connections, one on its way on each.
pub fn many(options: &Options, count: usize) -> io::Result<Outcome> {
    let listener = listen(options.vm())?;
    let mut session = Session::boot(options.vm(), 3776, Mode::Waiting)?;
    let (mut conns, mut streams): (Vec<Conn>, Vec<UnixStream>) = Default::default();
    let mut by_port = HashMap::new();
    for local in 50_000..50_000 + u32::try_from(count).expect("few") {
        let Some((conn, stream)) = session.connect(&listener, local)? else { return Ok(Outcome::Hangs) };
        by_port.insert(local, conns.len());
        conns.push(conn);
        streams.push(stream);
    }
    host_thread(options, move || {
        // It ends with an error when the row does.
        let _ = echo_many(streams);
    });
    let prepared = session.guest.lay_out(&[LEN, SIZE]);
    let clock = Clock::start(options.time);
    let mut waiting: Vec<usize> = (0..count).collect();
    let mut done = vec![0_u64; count];
    let mut begun = None;
    loop {
        session.guest.reclaim();
        let mut any = false;
        while let Some(&index) = waiting.last() {
            let header = conns[index].header(&session.guest, op::RW, SIZE as u32);
            if !session.guest.put_prepared(&header, &prepared) {
                break;
            }
            conns[index].sent = conns[index].sent.wrapping_add(SIZE as u32);
            waiting.pop();
            any = true;
        }
        if any {
            session.guest.tx.publish_and_kick();
        }
        while let Some(header) = session.guest.take_header() {
            any = true;
            let Some(&index) = by_port.get(&header.dst_port) else { continue };
            let before = conns[index].received;
            conns[index].learn(&header);
            if conns[index].received / SIZE as u32 != before / SIZE as u32 {
                done[index] += 1;
                waiting.push(index);
            }
            session.guest.refill();
        }
        if begun.is_none() && clock.has_begun() {
            begun = Some(done.clone());
        }
        if let Some(before) = begun.as_ref().filter(|_| clock.is_over()) {
            let each: Vec<u64> = done.iter().zip(before).map(|(after, before)| after - before).collect();
            let total: u64 = each.iter().sum();
            let mean = total as f64 / count as f64;
            let slowest = each.iter().min().map_or(0.0, |&least| least as f64 / mean);
            let rate = total as f64 / clock.measured().as_secs_f64();
            return Ok(Outcome::Value(rate, vec![("slowest_to_mean", slowest)]));
        }
        if !any && !session.wait() {
            return Ok(Outcome::Hangs);
        }
    }
}
