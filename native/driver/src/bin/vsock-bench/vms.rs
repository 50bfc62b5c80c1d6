//! Job: rows of many VMs in one daemon, with the same load in total.
//! Before: the command line names as many sockets as the row has VMs.
//! After: megabytes per second of all of them, and processor time of the daemon per gigabyte.
//! Rules: the same connections, shared out among the VMs. A guest is a thread, as a VM's processor is; the host's
//! application is one thread for all connections, whose share of the work stays the same.

use crate::Options;
use crate::applications::{BLOCK, sink_many};
use crate::bulk::{Meter, packets, send};
use crate::process::host_thread;
use crate::report::Outcome;
use crate::rows::Cut;
use crate::session::{Conn, NAP, Session, listen};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use vsock_driver::deadline::Deadline;
use vsock_driver::ring::Mode;

/// Connections of all VMs together.
const CONNECTIONS: usize = 128;
/// How often the meter is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Bulk from all guests to the host.
pub fn from_guests(options: &Options) -> io::Result<Outcome> {
    let each = CONNECTIONS / options.vms.len();
    let (mut guests, mut streams) = (Vec::new(), Vec::new());
    for vm in &options.vms {
        let listener = listen(vm)?;
        let mut session = Session::boot(vm, 3776, Mode::Waiting)?;
        let mut conns = Vec::new();
        for local in 50_000..50_000 + u32::try_from(each).expect("few") {
            let Some((conn, stream)) = session.connect(&listener, local)? else { return Ok(Outcome::Hangs) };
            conns.push(conn);
            streams.push(stream);
        }
        guests.push((session, conns));
    }
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    host_thread(options, move || {
        // It ends with an error when the row does.
        let _ = sink_many(streams, counter);
    });
    let stop = Arc::new(AtomicBool::new(false));
    for (session, conns) in guests {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || run_guest(session, conns, &stop));
    }
    let mut meter = Meter::new(options);
    let outcome = loop {
        if let Some(outcome) = meter.look(count.load(Ordering::Relaxed)) {
            break outcome;
        }
        std::thread::sleep(LOOK);
    };
    stop.store(true, Ordering::Relaxed);
    Ok(outcome)
}

/// One guest, until it is told to stop: its connections in turn send what they may.
fn run_guest(mut session: Session, mut conns: Vec<Conn>, stop: &AtomicBool) {
    let prepared = packets(&session, BLOCK, Cut::OnePiece);
    let (mut first, count) = (0, conns.len());
    while !stop.load(Ordering::Relaxed) {
        let mut any = false;
        // The ring may have room for some of them only: another one is the first the next time.
        for index in (first..count).chain(0..first) {
            if send(&mut session, &mut conns[index], BLOCK, &prepared) {
                any = true;
                first = (index + 1) % count;
            }
        }
        while let Some(header) = session.guest.take_header() {
            any = true;
            if let Some(conn) = conns.iter_mut().find(|conn| conn.local == header.dst_port) {
                conn.learn(&header);
            }
            session.guest.refill();
        }
        if !any {
            session.guest.wait(Deadline::after(NAP));
        }
    }
}
