//! Descriptors that applications pass along with their bytes. Vsock has no such thing.

use crate::rig::{Rig, connect_from_guest, connect_from_host};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use vhostvsock_native::device::{BRIDGE_TIMEOUT, Client, Wish};
use vhostvsock_native::ids::GuestPort;
use vsock_driver::deadline::PATIENCE;
use vsock_driver::host;

#[test]
fn descriptors_that_an_application_passes_are_closed_and_its_bytes_arrive() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    // One of the bridge, whose clients bring sockets of their own.
    let (mut stream, socket) = UnixStream::pair().unwrap();
    kernel.listen(80);
    rig.device.connect(Client { socket: socket.into(), answer: None, wish: Wish::new(GuestPort(80), BRIDGE_TIMEOUT) });
    let id = kernel.accept(80);
    host::answer(&mut stream).unwrap();
    let (passed, mut other_end) = UnixStream::pair().unwrap();
    other_end.set_read_timeout(Some(PATIENCE)).unwrap();
    for round in 0..20_u8 {
        stream.write_all(&[round; 10]).unwrap();
        vsock_driver::front_end::message::send(&stream, &[round; 10], &[passed.as_fd()]).unwrap();
        stream.write_all(&[round; 10]).unwrap();
        assert_eq!(kernel.recv_exact(id, 30), [round; 30]);
    }
    drop(passed);
    assert_eq!(other_end.read(&mut [0]).unwrap(), 0, "somebody still has it");
}

/// Whether the kernel can be told that a socket takes no descriptors.
fn kernel_refuses_descriptors() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let numbers: Vec<u32> = release.split(['.', '-']).map_while(|number| number.parse().ok()).collect();
    numbers[..2] >= [6, 16][..]
}

#[test]
fn descriptors_are_refused_at_sockets_of_ours_where_the_kernel_can() {
    let rig = Rig::new();
    let mut kernel = rig.linux();
    let from_host = connect_from_host(&rig, &mut kernel, 80);
    let from_guest = connect_from_guest(&mut kernel, &rig.listen(1000), 1000);
    let send = |stream: &UnixStream| vsock_driver::front_end::message::send(stream, b"x", &[stream.as_fd()]);
    for (id, mut stream) in [from_host, from_guest] {
        match send(&stream) {
            Ok(()) => assert_eq!((kernel.recv_exact(id, 1), kernel_refuses_descriptors()), (b"x".to_vec(), false)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        }
        stream.write_all(b"bytes").unwrap();
        assert_eq!(kernel.recv_exact(id, 5), b"bytes");
    }
    let client = rig.dial();
    assert_eq!(send(&client).is_err(), kernel_refuses_descriptors(), "before the first line, too");
}
