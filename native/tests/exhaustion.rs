//! At the limit of file descriptors: newcomers are refused, the others live on. A program of its own, as the limit is the
//! process's; its tests run one after another.

#[path = "conformance/rig.rs"]
mod rig;

use rig::{Rig, assert_ended, connect_from_host, open_from_guest, open_from_host};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vhostvsock_native::events::Kind;
use vsock_driver::deadline::{PATIENCE, wait_until};
use vsock_driver::front_end::message::request;
use vsock_driver::header::op;
use vsock_driver::linux::{Kernel, Rules};

/// How long a device is watched.
const WATCH: Duration = Duration::from_millis(150);

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes all descriptors that the process may have, but `left`.
fn exhaust(left: usize) -> Vec<OwnedFd> {
    let mut taken = Vec::new();
    while let Ok(fd) = rustix::io::dup(std::io::stdin()) {
        taken.push(fd);
    }
    taken.truncate(taken.len() - left);
    taken
}

#[test]
fn without_descriptors_newcomers_are_refused_and_the_others_live_on() {
    let _alone = alone();
    let old = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: old.maximum }).unwrap();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let clients: Vec<OwnedFd> = (0..10)
        .map(|_| socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap())
        .collect();
    let taken = exhaust(0);

    // The guest's requests are answered with RST.
    for count in 1..=20 {
        guest.say(op::REQUEST, 6000, 1000);
        assert_eq!(guest.expect(op::RST).header.dst_port, 6000);
        assert_eq!(rig.stats().refused_limit, count);
    }
    // Clients see the end of the stream rather than silence.
    let address = SocketAddrUnix::new(&rig.uds).unwrap();
    let mut clients: Vec<_> = clients.into_iter().map(UnixStream::from).collect();
    for client in &mut clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        connect(&*client, &address).unwrap();
        let _ = client.write_all(b"CONNECT 80\n");
        assert_ended(client);
    }
    // Who was there before is not concerned.
    stream.write_all(b"alive").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"alive");
    guest.say_data(5000, 1000, b"alive, too");
    let mut bytes = [0; 10];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"alive, too");

    // A single descriptor is enough for a single connection, again and again.
    drop(taken);
    let taken = exhaust(2);
    for _ in 0..20 {
        guest.say(op::REQUEST, 6000, 1000);
        guest.expect(op::RESPONSE);
        guest.say(op::REQUEST, 6001, 1000);
        // Two were left: the listener's queue holds none, so the second succeeds, and the third does not.
        guest.expect(op::RESPONSE);
        guest.say(op::REQUEST, 6002, 1000);
        guest.expect(op::RST);
        guest.say(op::RST, 6000, 1000);
        guest.say(op::RST, 6001, 1000);
        rig.wait_stats("back to one", |s| s.connections == 1);
        // They would fill the listener's queue.
        drop(taken_back(&listener, 2));
    }
    drop(taken);

    // With descriptors, all is well again.
    let mut kernel = Kernel::new(guest, Rules::linux_7());
    let (id, mut stream) = connect_from_host(&rig, &mut kernel, 80);
    stream.write_all(b"again").unwrap();
    assert_eq!(kernel.recv_exact(id, 5), b"again");
    setrlimit(Resource::Nofile, old).unwrap();
}

/// Accepts connections that wait.
fn taken_back(listener: &std::os::unix::net::UnixListener, count: usize) -> Vec<UnixStream> {
    (0..count).filter_map(|_| listener.accept().ok()).map(|(stream, _)| stream).collect()
}

/// The processor time of the device's thread, in nanoseconds. Opened before descriptors run out.
fn processor_time() -> impl Fn() -> u64 {
    let mut found = None;
    wait_until("the device's thread has its name", || {
        let mut tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|entry| entry.path());
        found = tasks.find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "vs-test\n"));
        found.is_some()
    });
    let file = std::fs::File::open(found.expect("waited for").join("schedstat")).unwrap();
    move || {
        let mut bytes = [0; 64];
        let len = file.read_at(&mut bytes, 0).unwrap();
        let text = std::str::from_utf8(&bytes[..len]).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }
}

#[test]
fn clients_that_cannot_even_be_turned_away_wait_without_a_busy_thread() {
    let _alone = alone();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let time = processor_time();
    let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let mut client = UnixStream::from(client);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let old = getrlimit(Resource::Nofile);
    // Lower than what is open: closing the descriptor kept back does not help, as when another thread is faster to it.
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: old.maximum }).unwrap();
    connect(&client, &SocketAddrUnix::new(&rig.uds).unwrap()).unwrap();
    client.write_all(b"CONNECT 80\n").unwrap();
    // Once the thread has come round it knows of the client.
    rig.device.ping();
    rig.wait_stats("the thread comes round", |s| s.pongs == 1);
    let before = time();
    std::thread::sleep(WATCH);
    let used = Duration::from_nanos(time() - before);
    // Who was there before is not concerned.
    stream.write_all(b"alive").unwrap();
    let packet = guest.expect(op::RW);
    setrlimit(Resource::Nofile, old).unwrap();
    assert!(used < WATCH / 10, "{used:?} of processor time in {WATCH:?}");
    assert_eq!(packet.payload, b"alive");
    // With descriptors, the client is served though nothing else woke the thread.
    let request = guest.expect(op::REQUEST).header;
    guest.say(op::RESPONSE, 80, request.src_port);
    assert_eq!(vsock_driver::host::answer(&mut client).unwrap(), request.src_port);
    assert_eq!(rig.stats().refused_limit, 0);
}

#[test]
fn memory_for_which_there_is_no_address_space_ends_its_own_session() {
    const LEN: u64 = 64 << 30;
    let _alone = alone();
    let rig = Rig::new();
    let mut guest = rig.boot();
    let listener = rig.listen(1000);
    let mut stream = open_from_guest(&mut guest, &listener, 5000, 1000);
    let other = rig.another(2);
    let front = other.plug();
    let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, LEN).unwrap();
    let payload: Vec<u8> = [0, 0, LEN, 0, 0].iter().flat_map(|value: &u64| value.to_ne_bytes()).collect();
    let old = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current: Some(LEN), maximum: old.maximum }).unwrap();
    front.tell(request::ADD_MEM_REG, &payload, &[file.as_fd()]).unwrap();
    let thrown_out = front.is_thrown_out();
    setrlimit(Resource::As, old).unwrap();
    assert!(thrown_out);
    rig.wait_event_with(Kind::Detached, "Cannot allocate memory");
    stream.write_all(b"alive").unwrap();
    assert_eq!(guest.expect(op::RW).payload, b"alive");
    open_from_host(&other, &mut other.boot(), 80);
}
