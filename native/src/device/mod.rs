//! Job: the device of one VM: a thread of its own, and the handle by which it is told what to do.
//! Before: `ffi` starts one per VM and hands over the sockets of front-ends.
//! After: `plane` runs in the thread until it is told to stop.
//! Rules: a fault in the thread ends this device and no other; the handle's owner hears of it as an event. Calls on the
//! handle never wait, but for its end, which joins the thread.

mod clients;
mod from_guest;
mod hosts;
mod plane;
mod poller;
mod polling;
mod to_guest;
mod visibility;

use crate::events::{Events, Kind, Level, Log};
use crate::ids::{GuestCid, GuestPort};
use crate::slab::Id;
use crate::stats::{Snapshot, Stats};
use crate::timers::SECOND;
use crate::virtio::queue::RingError;
use plane::Plane;
use rustix::event::{EventfdFlags, eventfd};
use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
pub use visibility::Scope;

/// What a device has to know of its VM.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The VM's name, for the thread's.
    pub name: String,
    /// The guest's CID.
    pub guest_cid: GuestCid,
    /// `<uds_path>_<port>` is where the guest finds host applications.
    pub uds_path: Vec<u8>,
    /// Receive window of each connection, in bytes. Linux guests use no more than their own, mostly 256 KiB.
    pub buf_alloc: u32,
    /// Connections, and sockets of host applications, that may exist at once.
    pub max_connections: usize,
    /// How long a client may take for its CONNECT line, in nanoseconds.
    pub handshake_timeout: u64,
    /// How long the guest may take to accept or refuse a connection, in nanoseconds.
    pub connect_timeout: u64,
    /// How long to look for more at the most before sleeping, in nanoseconds; 0 for not at all.
    pub poll: u64,
    /// The front-end is to be able to go on at another back-end, should this one die.
    pub reconnect: bool,
}

impl Settings {
    /// The defaults for a VM.
    pub fn new(name: &str, guest_cid: GuestCid, uds_path: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.into(),
            guest_cid,
            uds_path: uds_path.as_ref().to_vec(),
            buf_alloc: 256 * 1024,
            max_connections: usize::MAX,
            handshake_timeout: 5 * SECOND,
            connect_timeout: 10 * SECOND,
            poll: 0,
            reconnect: false,
        }
    }
}

/// Why the device cannot go on with this front-end.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The guest broke a ring.
    Ring(RingError),
    /// Guest memory that was mapped cannot be accessed any more.
    Memory,
}

impl From<RingError> for Failure {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

/// On which terms a front-end is attached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Admission {
    /// The guest's CID, where it is not the one of [`Settings`].
    pub guest_cid: Option<GuestCid>,
    /// Which clients may see the VM.
    pub scope: Scope,
    /// Whether to ask the control plane ([`Kind::Ask`]) about ports where nobody listens at the VM's own path.
    pub asks: bool,
}

/// What the thread is told to do.
#[derive(Debug)]
enum Command {
    /// Attach a front-end.
    Attach(OwnedFd, Admission),
    /// Connect a client of the bridge to a port of the guest.
    Connect(OwnedFd, GuestPort),
    /// The answer to [`Kind::Ask`].
    Answer(Id, Option<OwnedFd>),
    /// The answer to [`Kind::Netns`].
    Netns(u64, bool),
    /// Show that the thread gets round: count it.
    Ping,
}

/// What the handle and the thread share.
#[derive(Debug)]
struct Shared {
    /// Readable when the thread is told something.
    command: OwnedFd,
    /// The thread shall end.
    stop: AtomicBool,
    /// A front-end is attached, or about to be.
    busy: AtomicBool,
    /// What the thread was told and has not done.
    commands: Mutex<VecDeque<Command>>,
    /// Counters.
    stats: Arc<Stats>,
}

impl Shared {
    /// Wakes the thread.
    fn wake(&self) {
        let _ = rustix::io::write(&self.command, &1_u64.to_ne_bytes());
    }

    /// Tells the thread to do something.
    fn tell(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push_back(command);
        self.wake();
    }

    /// What the thread shall do next.
    fn next_command(&self) -> Option<Command> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Another front-end is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// The device of one VM. Its end resets all connections and joins the thread.
#[derive(Debug)]
pub struct Device {
    /// What it shares with its thread.
    shared: Arc<Shared>,
    /// The thread.
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// Starts the device `number`, which serves the clients of `listener`, a UNIX socket that listens and does not
    /// block, from now on.
    pub fn start(number: u64, settings: Settings, listener: OwnedFd, events: Arc<Events>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            command: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            stop: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            commands: Mutex::default(),
            stats: Arc::default(),
        });
        let log = Log::new(Arc::clone(&events), number);
        let last_words = Log::new(events, number);
        let seeds = plane::Seeds::new(settings, listener, Arc::clone(&shared), log)?;
        let thread = std::thread::Builder::new().name(seeds.thread_name()).spawn(move || {
            // The plane holds no lock and shares nothing that a panic could leave half done.
            let run = std::panic::AssertUnwindSafe(|| Plane::new(seeds).run());
            let fault = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(panic) => panic_text(&*panic),
            };
            last_words.state(Kind::Fault, Level::Error, fault);
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Hands a connected vhost-user socket over. The error closes it.
    pub fn attach(&self, front_end: OwnedFd, admission: Admission) -> Result<(), Busy> {
        if self.shared.busy.swap(true, Ordering::AcqRel) {
            return Err(Busy);
        }
        self.shared.tell(Command::Attach(front_end, admission));
        Ok(())
    }

    /// Connects a client, which sees the VM, to a port of the guest. It is answered as the bridge answers: `OK <port>` or
    /// `ERR <errno> <sentence>`, a line each, and then bytes flow or the socket is closed.
    pub fn connect(&self, client: OwnedFd, port: GuestPort) {
        self.shared.tell(Command::Connect(client, port));
    }

    /// Answers [`Kind::Ask`]: with a socket connected to the application that listens, or with `None`.
    pub fn answer(&self, token: u64, socket: Option<OwnedFd>) {
        self.shared.tell(Command::Answer(Id::from_u64(token), socket));
    }

    /// Answers [`Kind::Netns`]: whether the namespace with this cookie is local.
    pub fn learn_netns(&self, netns: u64, local: bool) {
        self.shared.tell(Command::Netns(netns, local));
    }

    /// Has the thread count one more pong, once it gets round to it.
    pub fn ping(&self) {
        self.shared.tell(Command::Ping);
    }

    /// The counters as they are now.
    pub fn stats(&self) -> Snapshot {
        self.shared.stats.snapshot()
    }

    /// The counters themselves.
    pub fn counters(&self) -> &Stats {
        &self.shared.stats
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a panic says.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("fault in the device's thread: {}", text.unwrap_or("unknown"))
}
