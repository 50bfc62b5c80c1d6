//! What costs nothing must cost nothing: no processor time while nobody can go on, no descriptor that stays, little memory.
//! A program of its own, as it looks at the whole process; its tests run one after another.

#[path = "conformance/rig.rs"]
mod rig;

use rig::{Rig, connect_from_guest, open_from_guest, open_from_host};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vhostvsock_native::timers::{MICROSECOND, MILLISECOND};
use vsock_driver::deadline::{Deadline, wait_until};
use vsock_driver::guest::Guest;
use vsock_driver::header::{Header, SHUTDOWN_RCV, SHUTDOWN_SEND, op};

/// How long a device is watched, in milliseconds.
const WATCH: u64 = 60;

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The directory of the device's thread under /proc.
fn thread() -> std::path::PathBuf {
    let mut found = None;
    wait_until("the device's thread has its name", || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        found = tasks
            .map(|entry| entry.path())
            .find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "vs-test\n"));
        found.is_some()
    });
    found.expect("waited for")
}

/// Nanoseconds that the device's thread has run, and how often it was given a processor.
fn used() -> (u64, u64) {
    let text = std::fs::read_to_string(thread().join("schedstat")).unwrap();
    let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>().unwrap());
    let time = numbers.next().unwrap();
    (time, numbers.nth(1).unwrap())
}

/// Looks on for a while: the device must do next to nothing.
#[track_caller]
fn assert_quiet(what: &str) {
    // Until it has done what it had to do.
    let mut before = used();
    wait_until(what, || {
        std::thread::sleep(Duration::from_millis(3));
        let now = used();
        let quiet = now.1 - before.1 <= 1;
        before = now;
        quiet
    });
    std::thread::sleep(Duration::from_millis(WATCH));
    let after = used();
    let (time, turns) = (after.0 - before.0, after.1 - before.1);
    assert!(time < 3_000_000 && turns < 20, "{what}: {turns} turns, {} us in {WATCH} ms", time / 1000);
}

/// Open descriptors of the process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until as few descriptors are open as before.
#[track_caller]
fn wait_descriptors(before: usize) {
    wait_until("all descriptors are closed", || descriptors() <= before);
}

/// Four connections to a port of the guest: the hosts' sockets, and their ports.
fn four(rig: &Rig, guest: &mut Guest) -> Vec<(UnixStream, u32)> {
    (0..4).map(|_| open_from_host(rig, guest, 80)).collect()
}

/// Writes until the socket is full.
fn fill(stream: &mut UnixStream) {
    stream.set_nonblocking(true).unwrap();
    let block = [7; 4096];
    let mut quiet = 0;
    while quiet < 10 {
        if stream.write(&block).is_ok_and(|len| len > 0) {
            quiet = 0;
        } else {
            quiet += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn idle_device_never_wakes_up() {
    let _alone = alone();
    let rig = Rig::new();
    assert_quiet("without a guest");
    let mut guest = rig.boot();
    let _pair = open_from_host(&rig, &mut guest, 80);
    assert_quiet("with an idle connection");
    // Past the moment when it looks whether the rings are shared.
    std::thread::sleep(Duration::from_millis(2100));
    let before = used();
    std::thread::sleep(Duration::from_millis(WATCH));
    assert_eq!(used().1, before.1, "an idle device woke up");
}

#[test]
fn device_that_polls_sleeps_once_its_guest_rests() {
    let _alone = alone();
    let rig = Rig::with(|settings| settings.poll = 50 * MICROSECOND);
    let mut guest = rig.boot();
    let (mut stream, port) = open_from_host(&rig, &mut guest, 80);
    for number in 0..300_u16 {
        let sent = number.to_le_bytes();
        guest.say_data(80, port, &sent);
        let mut got = [0; 2];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, sent);
        stream.write_all(&got).unwrap();
        assert_eq!(guest.expect(op::RW).payload, sent);
    }
    assert_quiet("after a busy time");
}

#[test]
fn clients_that_leave_at_any_moment_cost_nothing_afterwards() {
    let _alone = alone();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let before = descriptors();
    for _ in 0..20 {
        drop(rig.dial());
        let mut half = rig.dial();
        half.write_all(b"CONNECT ").unwrap();
        drop(half);
        let mut half = rig.dial();
        half.write_all(b"CONNE").unwrap();
        half.shutdown(std::net::Shutdown::Write).unwrap();
        drop(half);
        let mut whole = rig.dial();
        whole.write_all(b"CONNECT 80\n").unwrap();
        drop(whole);
        let mut more = rig.dial();
        more.write_all(b"CONNECT 80\nand more").unwrap();
        drop(more);
    }
    wait_until("all are gone", || {
        // A guest that refuses whatever it is asked.
        while let Some(packet) = guest.recv_by(Deadline::after(Duration::from_millis(2))) {
            if packet.header.op == op::REQUEST {
                guest.say(op::RST, 80, packet.header.src_port);
            }
        }
        rig.stats().connections == 0 && descriptors() <= before
    });
    assert_quiet("after the clients");
}

#[test]
fn clients_that_wait_for_the_guest_cost_nothing_meanwhile() {
    let _alone = alone();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let before = descriptors();
    let mut clients = Vec::new();
    for _ in 0..5 {
        let silent = rig.dial();
        let mut asked = rig.ask(80);
        asked.write_all(b"data in advance").unwrap();
        let ended = rig.ask(80);
        ended.shutdown(std::net::Shutdown::Write).unwrap();
        let mut half = rig.dial();
        half.write_all(b"CONN").unwrap();
        clients.extend([silent, asked, ended, half]);
    }
    while guest.recv_by(Deadline::after(Duration::from_millis(10))).is_some() {}
    assert_quiet("clients wait");
    drop(clients);
    wait_until("forgotten", || {
        while guest.recv_by(Deadline::after(Duration::from_millis(1))).is_some() {}
        rig.stats().connections == 0
    });
    wait_descriptors(before);
    assert_quiet("clients left");
}

#[test]
fn guest_application_that_does_not_read_costs_nothing() {
    let _alone = alone();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let mut pairs = four(&rig, &mut guest);
    for (stream, _) in &mut pairs {
        fill(stream);
        while guest.take().is_some() {}
        guest.post_all();
        fill(stream);
    }
    assert_quiet("guest readers are stuck");
    drop(pairs);
    assert_quiet("and their peers left");
}

#[test]
fn guest_without_receive_buffers_costs_nothing() {
    let _alone = alone();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let mut pairs = four(&rig, &mut guest);
    for (stream, _) in &mut pairs {
        fill(stream);
    }
    assert_quiet("no buffers");
    guest.say(op::CREDIT_REQUEST, 80, pairs[0].1);
    assert_quiet("no buffer for an answer");
    drop(pairs);
    assert_quiet("no buffer to tell the end");
}

#[test]
fn host_application_that_does_not_read_costs_nothing() {
    let _alone = alone();
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let listener = rig.listen(1000);
    let mut pairs = Vec::new();
    for _ in 0..4 {
        let (id, stream) = connect_from_guest(&mut kernel, &listener, 1000);
        let data = vec![1; 2_000_000];
        let (mut sent, mut quiet) = (0, 0);
        while quiet < 5 {
            kernel.pump();
            let part = kernel.send(id, &data[sent..]);
            sent += part;
            let news = kernel.guest.wait(Deadline::after(Duration::from_millis(1)));
            quiet = if part == 0 && !news { quiet + 1 } else { 0 };
        }
        pairs.push((id, stream));
    }
    assert_quiet("host readers are stuck");
    for (id, _) in &pairs {
        kernel.close(*id);
    }
    kernel.pump();
    assert_quiet("closed, with bytes that nobody takes");
}

#[test]
fn half_closed_connections_cost_nothing() {
    let _alone = alone();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut streams = Vec::new();
    for (port, flags) in [(1, SHUTDOWN_RCV), (2, SHUTDOWN_SEND)] {
        let stream = open_from_guest(&mut guest, &listener, port, 1000);
        let header = Header { flags, ..guest.header(op::SHUTDOWN, port, 1000) };
        guest.send(&header, &[]);
        streams.push(stream);
    }
    let ended = open_from_guest(&mut guest, &listener, 4, 1000);
    let deaf = open_from_guest(&mut guest, &listener, 5, 1000);
    let mut with_data = open_from_guest(&mut guest, &listener, 3, 1000);
    ended.shutdown(std::net::Shutdown::Write).unwrap();
    let header = Header { buf_alloc: 0, ..guest.header(op::CREDIT_UPDATE, 3, 1000) };
    guest.send(&header, &[]);
    guest.flush();
    with_data.write_all(b"no credit for this").unwrap();
    with_data.shutdown(std::net::Shutdown::Write).unwrap();
    deaf.shutdown(std::net::Shutdown::Read).unwrap();
    guest.say_data(5, 1000, b"unwanted");
    while guest.recv_by(Deadline::after(Duration::from_millis(10))).is_some() {}
    assert_quiet("half-closed");
    drop((streams, with_data, ended, deaf));
    while guest.recv_by(Deadline::after(Duration::from_millis(10))).is_some() {}
    assert_quiet("and left by the host");
}

#[test]
fn paused_guest_costs_nothing_whatever_its_hosts_do() {
    let _alone = alone();
    let rig = Rig::with(|settings| settings.handshake_timeout = 10 * MILLISECOND);
    let mut guest = rig.boot();
    let (mut stream, _) = open_from_host(&rig, &mut guest, 80);
    let (left, _) = open_from_host(&rig, &mut guest, 80);
    let bases = guest.stop().unwrap();
    fill(&mut stream);
    drop(left);
    guest.rx.kick();
    guest.tx.kick();
    assert_quiet("paused");
    guest.start(bases).unwrap();
    assert!(guest.recv_by(Deadline::patient()).is_some());
}

#[test]
fn front_ends_that_come_and_go_leave_no_descriptor_behind() {
    let _alone = alone();
    let rig = Rig::new();
    drop(rig.boot());
    wait_until("gone", || rig.stats().connections == 0);
    let listener = rig.listen(1000);
    let before = {
        drop(rig.plug());
        descriptors()
    };
    for _ in 0..20 {
        let mut guest = rig.boot();
        let _a = open_from_guest(&mut guest, &listener, 5000, 1000);
        let _b = open_from_host(&rig, &mut guest, 80);
    }
    wait_descriptors(before);
    assert_quiet("nobody is there");
}

/// Bytes of memory that are the process's alone: all but files, and guest memory among those.
fn own_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    (pages[1] - pages[2]) * 4096
}

#[test]
fn memory_for_hosts_that_do_not_read_is_bounded_by_connections_times_window() {
    /// Connections that are allowed.
    const MOST: usize = 48;
    /// Connections that the guest asks for.
    const TRIES: usize = 3 * MOST;
    /// The window of each.
    const WINDOW: u32 = 128 * 1024;
    let _alone = alone();
    let rig = Rig::with(|settings| (settings.max_connections, settings.buf_alloc) = (MOST, WINDOW));
    let listener = rig.listen(1000);
    let mut kernel = rig.linux();
    let before = own_memory();
    let mut streams = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..TRIES {
        if let Ok(id) = kernel.connect(1000) {
            streams.push(vsock_driver::host::accept(&listener));
            ids.push(id);
        }
    }
    assert_eq!((streams.len(), rig.stats().refused_limit), (MOST, (TRIES - MOST) as u64));
    let bound = MOST as u64 * u64::from(WINDOW);
    let block = vec![1; 65_536];
    let deadline = Deadline::patient();
    // Until no one has credit any more; a device that is late on a busy machine is not at its bound yet.
    let mut quiet = 0;
    while (quiet < 5 || rig.stats().backlog_bytes < bound) && !deadline.is_over() {
        kernel.pump();
        let sent: usize = ids.iter().map(|&id| kernel.send(id, &block)).sum();
        let news = kernel.guest.wait(Deadline::after(Duration::from_millis(1)));
        quiet = if sent == 0 && !news { quiet + 1 } else { 0 };
    }
    let waiting = rig.stats().backlog_bytes;
    assert_eq!(waiting, bound, "all that may wait does, and no more");
    // Beside it a backlog's spare room, and what the test itself needs.
    let used = own_memory().saturating_sub(before);
    assert!(used < bound + bound / 3 + (4 << 20), "{used} bytes for a bound of {bound}");
    drop(streams);
    kernel.pump_until(|_| rig.stats().connections == 0);
}

#[test]
fn idle_connection_costs_less_than_two_kib_of_memory() {
    let _alone = alone();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut streams = Vec::with_capacity(4000);
    let mut open = |guest: &mut vsock_driver::guest::Guest, count: u32| {
        for _ in 0..count {
            let port = 10_000 + u32::try_from(streams.len()).unwrap();
            streams.push(open_from_guest(guest, &listener, port, 1000));
        }
    };
    open(&mut guest, 500);
    let before = own_memory();
    open(&mut guest, 3000);
    let each = (own_memory() - before) / 3000;
    assert!(each < 2048, "{each} bytes for each connection");
    assert_quiet("3500 idle connections");
    setrlimit(Resource::Nofile, limit).unwrap();
}
