//! Job: the device of one VM: a thread of its own, and the handle by which it is told what to do.
//! Before: `ffi` starts one per VM and hands over the sockets of front-ends.
//! After: `plane` runs in the thread until it is told to stop.
//! Rules: a fault in the thread ends this device and no other; the handle's owner hears of it as an event. Calls on the
//! handle never wait, but for its end, which joins the thread.

pub mod by_hand;
mod clients;
mod from_guest;
mod hosts;
#[cfg(all(test, loom))]
mod interleavings;
mod messages;
mod nudge;
mod plane;
mod poller;
mod polling;
mod reaching;
mod to_guest;
mod visibility;

use crate::events::{Events, Kind, Level, Log};
use crate::ids::GuestCid;
use crate::packet::Type;
use crate::slab::Id;
use crate::stats::{Snapshot, Stats};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, Signal};
use crate::timers::SECOND;
use crate::vhost_user::session::CallBlocks;
use crate::virtio::queue::RingError;
pub use clients::{BRIDGE_TIMEOUT, Client, Wish};
use plane::Plane;
use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
pub use visibility::Scope;

/// How long a thread may take to end before something must be holding it up.
const END_WITHIN: Duration = Duration::from_millis(200);
/// How often it is looked after until then, and how often it is nudged from then on.
const LOOK_EVERY: Duration = Duration::from_millis(1);

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

/// Where host applications connect to the VM.
#[derive(Debug)]
pub struct Listeners {
    /// For streams.
    pub stream: OwnedFd,
    /// For messages, of type SOCK_SEQPACKET.
    pub seqpacket: Option<OwnedFd>,
}

impl Listeners {
    /// All there are.
    fn all(&self) -> impl Iterator<Item = (Type, &OwnedFd)> {
        let seqpacket = self.seqpacket.as_ref().map(|listener| (Type::Seqpacket, listener));
        [Some((Type::Stream, &self.stream)), seqpacket].into_iter().flatten()
    }

    /// The one for this kind.
    fn get(&self, kind: Type) -> Option<&OwnedFd> {
        self.all().find(|&(its, _)| its == kind).map(|(_, listener)| listener)
    }
}

/// Why the device cannot go on with this front-end.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The guest broke a ring.
    Ring(RingError),
    /// Guest memory that was mapped cannot be accessed any more.
    Memory,
    /// A call descriptor made us wait.
    Call,
}

impl From<CallBlocks> for Failure {
    fn from(CallBlocks: CallBlocks) -> Self {
        Self::Call
    }
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
    Connect(Client),
    /// The answer to [`Kind::Ask`], and the largest window.
    Answer(Id, Option<OwnedFd>, u32),
    /// The answer to [`Kind::Netns`].
    Netns(u64, bool),
    /// Show that the thread gets round: count it.
    Ping,
    /// Have something happen, for a test.
    #[cfg(feature = "faults")]
    Fault(crate::faults::Fault),
}

/// What the handle and the thread share.
#[derive(Debug)]
struct Shared {
    /// Readable when the thread is told something.
    command: Signal,
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
    /// For a device that is about to start.
    fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            command: Signal::new()?,
            stop: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            commands: Mutex::new(VecDeque::new()),
            stats: Arc::default(),
        }))
    }

    /// Tells the thread to do something.
    fn tell(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push_back(command);
        self.command.raise();
    }

    /// Tells the thread to end.
    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.command.raise();
    }

    /// Hands a front-end over, unless there is one.
    fn attach(&self, front_end: OwnedFd, admission: Admission) -> Result<(), Busy> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(Busy);
        }
        self.tell(Command::Attach(front_end, admission));
        Ok(())
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
    /// How often it was asked for a pong.
    pings: AtomicU64,
}

impl Device {
    /// Starts the device `number`, which serves the clients of `listeners`, UNIX sockets that listen and do not
    /// block, from now on.
    pub fn start(number: u64, settings: Settings, listeners: Listeners, events: Arc<Events>) -> io::Result<Self> {
        nudge::install()?;
        let shared = Shared::new()?;
        let log = Log::new(Arc::clone(&events), number);
        let last_words = Log::new(events, number);
        let seeds = plane::Seeds::new(settings, listeners, Arc::clone(&shared), log)?;
        let thread = std::thread::Builder::new().name(seeds.thread_name()).spawn(move || {
            // The plane holds no lock and shares nothing that a panic could leave half done.
            let run = std::panic::AssertUnwindSafe(|| Plane::new(seeds).run());
            let fault = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("the device's thread cannot go on: {error}"),
                Err(panic) => panic_text(&*panic),
            };
            last_words.state(Kind::Fault, Level::Error, fault);
        })?;
        Ok(Self { shared, thread: Some(thread), pings: AtomicU64::new(0) })
    }

    /// Hands a connected vhost-user socket over. The error closes it.
    pub fn attach(&self, front_end: OwnedFd, admission: Admission) -> Result<(), Busy> {
        self.shared.attach(front_end, admission)
    }

    /// Connects a client, which sees the VM, to a port of the guest. It is answered as the bridge answers: `OK <port>` or
    /// `ERR <errno> <sentence>`, a line each, and then bytes flow or the socket is closed.
    pub fn connect(&self, client: Client) {
        self.shared.tell(Command::Connect(client));
    }

    /// Answers [`Kind::Ask`]: with a socket connected to the application that listens, which has the guest send no more than
    /// `window` bytes ahead; or with `None`.
    pub fn answer(&self, token: u64, socket: Option<OwnedFd>, window: u32) {
        self.shared.tell(Command::Answer(Id::from_u64(token), socket, window));
    }

    /// Answers [`Kind::Netns`]: whether the namespace with this cookie is local.
    pub fn learn_netns(&self, netns: u64, local: bool) {
        self.shared.tell(Command::Netns(netns, local));
    }

    /// Has the thread count one more pong, once it gets round to it; whether it was asked. One that owes a pong already is not
    /// asked again, but got out of what it waits in.
    pub fn ping(&self) -> bool {
        if self.pings.load(Ordering::Relaxed) != self.shared.stats.pongs.get() {
            self.thread.iter().for_each(nudge::nudge);
            return false;
        }
        self.pings.fetch_add(1, Ordering::Relaxed);
        self.shared.tell(Command::Ping);
        true
    }

    /// Has something happen to the thread, for a test.
    #[cfg(feature = "faults")]
    pub fn inject(&self, fault: crate::faults::Fault) {
        self.shared.tell(Command::Fault(fault));
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
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            let asked = Instant::now();
            while !thread.is_finished() {
                std::thread::sleep(LOOK_EVERY);
                if asked.elapsed() > END_WITHIN {
                    nudge::nudge(&thread);
                }
            }
            let _ = thread.join();
        }
    }
}

/// What a panic says.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("fault in the device's thread: {}", text.unwrap_or("unknown"))
}
