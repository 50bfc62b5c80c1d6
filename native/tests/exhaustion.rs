//! At the limit of file descriptors: newcomers are refused, the others live on. A program of its own, as the limit is the
//! process's.

#[path = "conformance/rig.rs"]
mod rig;

use rig::{Rig, assert_ended, connect_from_host, open_from_guest};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use vsock_driver::deadline::PATIENCE;
use vsock_driver::header::op;
use vsock_driver::linux::{Kernel, Rules};

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
