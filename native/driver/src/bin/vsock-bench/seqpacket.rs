//! Job: rows of message sockets (SOCK_SEQPACKET): bulk in messages of a size, and round trips.
//! Before: `rows` names direction, size and how the guest waits.
//! After: the same values as for streams.
//! Rules: one packet of the guest, one call of the host's application is one message. A device without such sockets has
//! nothing to measure.

use crate::Options;
use crate::applications::{BLOCK, echo, sink};
use crate::bulk::{measure_receiving, measure_sending, packets};
use crate::messages::measure_round_trips;
use crate::process::host_thread;
use crate::report::Outcome;
use crate::rows::Cut;
use crate::session::{Conn, Session, listen_for_messages};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use vsock_driver::header::SEQPACKET;
use vsock_driver::ring::Mode;

/// A guest with one connection, or what comes of a row without.
fn connected(options: &Options, mode: Mode) -> io::Result<Result<(Session, Conn, UnixStream), Outcome>> {
    let listener = listen_for_messages(options.vm())?;
    let mut session = Session::boot(options.vm(), 3776, mode)?;
    if !session.has_messages() {
        return Ok(Err(Outcome::None));
    }
    let opened = session.connect_as(SEQPACKET, &listener, 50_000)?;
    Ok(opened.map(|(conn, stream)| (session, conn, stream)).ok_or(Outcome::Hangs))
}

/// From the guest to the host.
pub fn from_guest(options: &Options, size: usize, mode: Mode) -> io::Result<Outcome> {
    let (mut session, mut conn, stream) = match connected(options, mode)? {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    host_thread(options, move || sink(stream, counter));
    let prepared = packets(&session, size, if size == BLOCK { Cut::Pages } else { Cut::OnePiece });
    Ok(measure_sending(options, &mut session, &mut conn, size, &prepared, &count))
}

/// From the host to the guest.
pub fn to_guest(options: &Options, size: usize, mode: Mode) -> io::Result<Outcome> {
    match connected(options, mode)? {
        Ok((mut session, mut conn, stream)) => Ok(measure_receiving(options, &mut session, &mut conn, (stream, size))),
        Err(outcome) => Ok(outcome),
    }
}

/// A message of one byte there and back, one at a time.
pub fn round_trip(options: &Options, mode: Mode) -> io::Result<Outcome> {
    let (mut session, mut conn, stream) = match connected(options, mode)? {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    host_thread(options, move || echo(stream));
    Ok(measure_round_trips(options, &mut session, &mut conn))
}
