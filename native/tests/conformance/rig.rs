//! Job: one device with its hybrid socket in a directory of its own, and what tests ask of it again and again.
//! Before: a test.
//! After: a front-end to talk through, or a guest that is up.
//! Rules: everything is gone when the rig is dropped.
#![allow(dead_code, reason = "several test programs share this file, and none needs all of it")]

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vhostvsock_native::device::{Admission, Device, Listeners, Settings};
use vhostvsock_native::events::{Event, Events, Kind};
use vhostvsock_native::ids::GuestCid;
use vhostvsock_native::stats::Snapshot;
use vsock_driver::deadline::{Deadline, wait_until};
use vsock_driver::front_end::FrontEnd;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::op;
use vsock_driver::linux::{Kernel, Rules, SocketId};

/// The guest's CID in all tests.
pub const CID: u64 = 42;

/// A directory that is removed in the end.
pub struct Directory(PathBuf);

impl Directory {
    /// A fresh one.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vhv-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a directory for the test's sockets");
        Self(path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A device.
pub struct Rig {
    /// The device.
    pub device: Device,
    /// Its news.
    pub events: Arc<Events>,
    /// The hybrid socket.
    pub uds: PathBuf,
    /// Where it lies.
    directory: Directory,
}

impl Rig {
    /// A device with the defaults.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// A device with changed settings.
    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let events = Arc::new(Events::new().expect("eventfd"));
        events.set_level(10);
        Self::start(1, events, change)
    }

    /// The device of another VM, whose news come by the same way.
    pub fn another(&self, number: u64) -> Self {
        Self::start(number, Arc::clone(&self.events), |_| {})
    }

    /// A device with this number.
    fn start(number: u64, events: Arc<Events>, change: impl FnOnce(&mut Settings)) -> Self {
        let directory = Directory::new();
        let uds = directory.path("v.sock");
        let listener = UnixListener::bind(&uds).expect("bind");
        listener.set_nonblocking(true).expect("fcntl");
        let path = uds.as_os_str().as_encoded_bytes();
        let mut settings = Settings::new("test", GuestCid::new(CID).expect("a valid CID"), path);
        change(&mut settings);
        let seqpacket = vsock_driver::host::messages::listen(&vsock_driver::host::messages::path(&uds)).expect("bind");
        let listeners = Listeners { stream: listener.into(), seqpacket: Some(seqpacket) };
        let device = Device::start(number, settings, listeners, Arc::clone(&events)).expect("a device");
        Self { device, events, uds, directory }
    }

    /// A connected front-end that has said nothing. Waits until the one before is gone.
    pub fn plug(&self) -> FrontEnd {
        self.plug_as(Admission::default())
    }

    /// The same on other terms.
    pub fn plug_as(&self, admission: Admission) -> FrontEnd {
        let deadline = Deadline::patient();
        loop {
            let (ours, theirs) = UnixStream::pair().expect("socketpair");
            theirs.set_nonblocking(true).expect("fcntl");
            match self.device.attach(OwnedFd::from(theirs), admission) {
                Ok(()) => return FrontEnd::from_stream(ours).expect("timeouts"),
                Err(error) => assert!(!deadline.is_over(), "attach: {error:?}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// A guest of the usual kind.
    pub fn boot(&self) -> Guest {
        self.boot_with(|_| {})
    }

    /// A guest of another kind.
    pub fn boot_with(&self, change: impl FnOnce(&mut Setup)) -> Guest {
        let mut setup = Setup::default();
        change(&mut setup);
        Guest::boot(self.plug(), setup).expect("the guest boots")
    }

    /// A guest with the sockets of Linux.
    pub fn linux(&self) -> Kernel {
        Kernel::new(self.boot(), Rules::linux_7())
    }

    /// The counters.
    pub fn stats(&self) -> Snapshot {
        self.device.stats()
    }

    /// Waits until the counters are as they should be.
    #[track_caller]
    pub fn wait_stats(&self, what: &str, condition: impl Fn(&Snapshot) -> bool) {
        let deadline = Deadline::patient();
        while !condition(&self.stats()) {
            assert!(!deadline.is_over(), "waited in vain: {what}: {:?}", self.stats());
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// Waits for an event of a kind; events before it are lost.
    #[track_caller]
    pub fn wait_event(&self, kind: Kind) -> Event {
        self.wait_event_with(kind, "")
    }

    /// Waits for an event of a kind that says something; events before it are lost.
    #[track_caller]
    pub fn wait_event_with(&self, kind: Kind, text: &str) -> Event {
        let mut found = None;
        wait_until(&format!("a {kind:?} event with {text:?}"), || {
            while let Some(event) = self.events.pop() {
                if event.kind == kind && event.text.contains(text) {
                    found = Some(event);
                    return true;
                }
            }
            false
        });
        found.expect("it was waited for")
    }

    /// A listener for guests.
    pub fn listen(&self, port: u32) -> UnixListener {
        vsock_driver::host::listen(&self.uds, port).expect("listen")
    }

    /// A client that asked for a port of the guest.
    pub fn ask(&self, port: u32) -> UnixStream {
        vsock_driver::host::ask(&self.uds, port).expect("CONNECT")
    }

    /// A client that said whatever a test wants.
    pub fn dial(&self) -> UnixStream {
        vsock_driver::host::dial(&self.uds).expect("connect")
    }

    /// Where guests that connect to `port` are received.
    pub fn listener_path(&self, port: u32) -> PathBuf {
        vsock_driver::host::listener_path(&self.uds, port)
    }
}

/// Opens a connection from the guest below its sockets: the host's stream.
#[track_caller]
pub fn open_from_guest(guest: &mut Guest, listener: &UnixListener, src: u32, dst: u32) -> UnixStream {
    guest.say(op::REQUEST, src, dst);
    let stream = vsock_driver::host::accept(listener);
    let response = guest.expect(op::RESPONSE).header;
    assert_eq!((response.src_port, response.dst_port), (dst, src));
    stream
}

/// Opens a connection from the host below the guest's sockets: the host's stream and port.
#[track_caller]
pub fn open_from_host(rig: &Rig, guest: &mut Guest, port: u32) -> (UnixStream, u32) {
    let mut stream = rig.ask(port);
    let request = guest.expect(op::REQUEST).header;
    assert_eq!(request.dst_port, port);
    guest.say(op::RESPONSE, port, request.src_port);
    let host_port = vsock_driver::host::answer(&mut stream).expect("OK");
    assert_eq!(host_port, request.src_port, "the port in the answer is the one that the guest sees");
    (stream, host_port)
}

/// Opens a connection from a socket of the guest: both ends.
#[track_caller]
pub fn connect_from_guest(kernel: &mut Kernel, listener: &UnixListener, port: u32) -> (SocketId, UnixStream) {
    let id = kernel.connect(port).expect("the guest connects");
    (id, vsock_driver::host::accept(listener))
}

/// Opens a connection from a host application to a socket of the guest: both ends.
#[track_caller]
pub fn connect_from_host(rig: &Rig, kernel: &mut Kernel, port: u32) -> (SocketId, UnixStream) {
    kernel.listen(port);
    let mut stream = rig.ask(port);
    let id = kernel.accept(port);
    vsock_driver::host::answer(&mut stream).expect("OK");
    (id, stream)
}

/// Bytes that differ from place to place and from seed to seed.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Fails with the first place where two byte strings differ, not with both of them.
#[track_caller]
pub fn assert_same(left: &[u8], right: &[u8]) {
    let first = left.iter().zip(right).position(|(a, b)| a != b);
    assert!(
        first.is_none() && left.len() == right.len(),
        "{} and {} bytes, differ at {first:?}",
        left.len(),
        right.len()
    );
}

/// A listening socket whose queue of clients is as short as can be, and full.
pub fn full_listener(path: &Path) -> (UnixListener, Vec<OwnedFd>) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("socket");
    let address = SocketAddrUnix::new(path).expect("a short path");
    let listener = stream();
    bind(&listener, &address).expect("bind");
    listen(&listener, 0).expect("listen");
    let mut waiting = Vec::new();
    loop {
        let client = stream();
        match connect(&client, &address) {
            Ok(()) => waiting.push(client),
            Err(rustix::io::Errno::AGAIN) => return (listener.into(), waiting),
            Err(error) => panic!("connect: {error}"),
        }
    }
}

/// Sets its flag in the end, also when the test fails.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The other end has to be closed by the device: the end of the stream, or a reset, but not silence.
#[track_caller]
pub fn assert_ended(stream: &mut UnixStream) {
    match std::io::Read::read(stream, &mut [0; 1]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("the connection is still there: {other:?}"),
    }
}
