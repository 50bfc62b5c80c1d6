//! Job: a device, a guest with the sockets of Linux, and host applications, in one thread.
//! Before: `main` picks a row.
//! After: the row lets one of them act after the other.
//! Rules: nobody acts while the device has its turn, and nobody waits but for what is there: so that every run is the same.

use crate::rig::{CID, Directory};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use vhostvsock_native::device::by_hand::ByHand;
use vhostvsock_native::device::{Admission, Settings};
use vhostvsock_native::events::Events;
use vhostvsock_native::ids::GuestCid;
use vhostvsock_native::timers::MILLISECOND;
use vsock_driver::front_end::FrontEnd;
use vsock_driver::guest::{Guest, Setup};
use vsock_driver::header::{SEQPACKET, op};
use vsock_driver::host;
use vsock_driver::layout::RxLayout;
use vsock_driver::linux::{Kernel, Rules, SocketId};

/// The port at which host applications and the guest's listen.
pub const PORT: u32 = 1000;
/// The one at which host applications listen with message sockets.
const MESSAGES: u32 = 1001;

/// An open connection: the guest's socket and the host's. On a message socket a read and a write are a message each.
pub type Ends = (SocketId, UnixStream);

/// All who take part.
pub struct Stage {
    /// The device.
    pub device: ByHand,
    /// The guest.
    pub guest: Kernel,
    /// Where the guest finds a host application.
    pub listener: UnixListener,
    /// The same for message sockets.
    message_listener: OwnedFd,
    /// Where host applications find the guest.
    pub uds: PathBuf,
    /// Removed in the end.
    _directory: Directory,
}

impl Stage {
    /// Boots a guest with receive buffers of so many bytes.
    pub fn new(receive_buffer: usize) -> Self {
        let directory = Directory::new();
        let uds = directory.path("v.sock");
        let clients = UnixListener::bind(&uds).expect("bind");
        clients.set_nonblocking(true).expect("fcntl");
        let listener = host::listen(&uds, PORT).expect("bind");
        let message_listener = host::messages::listen(&host::listener_path(&uds, MESSAGES)).expect("bind");
        let settings = Settings::new("insns", GuestCid::new(CID).expect("a CID"), uds.as_os_str().as_encoded_bytes());
        let events = Arc::new(Events::new().expect("eventfd"));
        let mut device = ByHand::new(settings, clients.into(), events).expect("a device");
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        theirs.set_nonblocking(true).expect("fcntl");
        device.attach(OwnedFd::from(theirs), Admission::default()).expect("the first");
        let front = FrontEnd::from_stream(ours).expect("timeouts");
        let setup = Setup { rx: RxLayout::OnePiece(receive_buffer), fill: false, ..Setup::default() };
        // Only here does the guest wait for answers, in a thread of its own.
        let guest = std::thread::scope(|scope| {
            let boot = scope.spawn(|| Guest::boot(front, setup));
            while !boot.is_finished() {
                device.turn(MILLISECOND).expect("epoll");
            }
            boot.join().expect("no panic").expect("the guest boots")
        });
        let mut guest = Kernel::new(guest, Rules::linux_7());
        guest.listen(PORT);
        Self { device, guest, listener, message_listener, uds, _directory: directory }
    }

    /// The guest sleeps until an interrupt, so the device has its turn; then the guest looks at what came.
    pub fn turn(&mut self) {
        let rings = &mut self.guest.guest;
        rings.rx.arm();
        rings.tx.arm();
        self.device.turn(0).expect("epoll");
        let rings = &mut self.guest.guest;
        rings.rx.disarm();
        rings.tx.disarm();
        self.guest.pump();
    }

    /// The guest connects to a host application.
    pub fn connect(&mut self) -> Ends {
        let socket = self.guest.start_connect(PORT);
        self.turn();
        (socket, host::accept(&self.listener))
    }

    /// The same with message sockets.
    pub fn connect_for_messages(&mut self) -> Ends {
        let socket = self.guest.start_connect_as(SEQPACKET, 1, MESSAGES);
        self.turn();
        (socket, host::messages::accept(&self.message_listener).0.into())
    }

    /// Puts a CREDIT_UPDATE of this socket into the ring.
    pub fn put_credit(&mut self, socket: SocketId) {
        let socket = self.guest.socket(socket);
        let (local, peer, fwd_cnt) = (socket.local, socket.peer, socket.fwd_cnt);
        let mut header = self.guest.guest.header(op::CREDIT_UPDATE, local, peer);
        header.fwd_cnt = fwd_cnt;
        assert!(self.guest.guest.put(&header, &[]), "the ring is full");
    }
}
