//! Job: the event loop of one VM's thread: who is served when.
//! Before: `Device::start` spawns it.
//! After: `session` gets messages, `from_guest` and `to_guest` move packets, `hosts` gets news of sockets.
//! Rules: the only place that sleeps and the only one that reads the clock. Nothing it calls may wait. All guest memory
//! is used in this thread alone, so a message that takes memory away finds nobody using it.

use super::clients::Spare;
use super::from_guest::FromGuestBatch;
use super::hosts::Hosts;
use super::poller::{Poller, Ready, Token};
use super::polling::Polling;
use super::to_guest::ToGuestBatch;
use super::visibility::Visibility;
use super::{Admission, Command, Failure, Listeners, Settings, Shared};
use crate::events::{Kind, Level, Log};
use crate::host::io::take_no_descriptors;
use crate::mux::{Config, Mux};
use crate::packet::spec::{EVENT_QUEUE, RX_QUEUE};
use crate::slab::Slab;
use crate::timers::{MICROSECOND, MILLISECOND, SECOND, Timers};
use crate::vhost_user::session::{Effect, SHARE_MEMORY, Session, Vring};
use crate::vhost_user::wire::End;
use crate::virtio::queue::{Queue, RingError};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Rounds of moving packets before sockets and messages are looked at again.
const ROUNDS: usize = 16;
/// Sent packets that the guest gets back without delay. Fewer tell it nothing that it waits for, and mostly something to
/// receive follows within moments: one interrupt does for both. They wait no longer than the device is awake.
const HELD_BACK: u16 = 4;
/// Looks at the rings for each look at the sockets, which takes a system call.
const LOOKS: usize = 16;
/// How long clients wait when there is no descriptor even to turn them away.
const ACCEPT_PAUSE: u64 = 100 * MILLISECOND;
/// Messages of the front-end handled before others have their turn.
const MESSAGES: usize = 64;
/// How long a guest's driver may leave its receive queue empty. Linux fills it within moments of starting the device.
const EMPTY_RINGS_AFTER: u64 = 2 * SECOND;

/// What a plane is made of, all of which can fail; made before the thread is.
pub struct Seeds {
    /// Who it is for.
    settings: Settings,
    /// Where host applications connect.
    listeners: Listeners,
    /// What it shares with its handle.
    shared: Arc<Shared>,
    /// Its way to the control plane.
    log: Log,
    /// Where it sleeps.
    poller: Poller,
    /// Its descriptor for bad times: taken before anyone is told that the device is ready.
    spare: Spare,
}

impl Seeds {
    /// Watches what is there from the beginning.
    pub fn new(settings: Settings, listeners: Listeners, shared: Arc<Shared>, log: Log) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add_level(&shared.command, Token::Command)?;
        watch_listeners(&poller, &listeners)?;
        listeners.all().for_each(|(_, listener)| take_no_descriptors(listener));
        Ok(Self { settings, listeners, shared, log, poller, spare: Spare::new() })
    }

    /// What the thread is called, in 15 bytes.
    pub fn thread_name(&self) -> String {
        let name: String = self.settings.name.chars().filter(char::is_ascii_graphic).take(12).collect();
        format!("vs-{name}")
    }
}

/// The thread's state.
pub struct Plane {
    /// What it shares with its handle.
    shared: Arc<Shared>,
    /// Who it is for.
    settings: Settings,
    /// Where host applications connect.
    listeners: Listeners,
    /// Where it sleeps.
    poller: Rc<Poller>,
    /// All connections.
    hosts: Hosts,
    /// The attached front-end.
    session: Option<Session>,
    /// The kick descriptors that are being watched.
    kicks: [Option<Arc<OwnedFd>>; EVENT_QUEUE],
    /// When to find out whether the rings are shared at all.
    diagnose_at: Option<u64>,
    /// When to accept clients again, after descriptors ran out.
    accept_again_at: Option<u64>,
    /// Memory of `from_guest`.
    from_guest: FromGuestBatch,
    /// Memory of `to_guest`.
    to_guest: ToGuestBatch,
    /// There was something for the guest, and no buffer.
    starved: bool,
    /// How long to look before sleeping.
    polling: Polling,
    /// Nanoseconds of the monotonic clock, read after each sleep.
    now: u64,
}

impl Plane {
    /// Ready to [`run`](Self::run).
    pub fn new(seeds: Seeds) -> Self {
        let Seeds { settings, listeners, shared, log, poller, spare } = seeds;
        let poller = Rc::new(poller);
        let polling = Polling::new(settings.poll);
        let stats = Arc::clone(&shared.stats);
        let config = Config {
            guest_cid: settings.guest_cid,
            buf_alloc: settings.buf_alloc,
            max_connections: settings.max_connections,
            // Not where the device before began, of which the guest may still have connections.
            first_port: u32::try_from(clock() / MICROSECOND % u64::from(u32::MAX)).unwrap_or(0),
        };
        let hosts = Hosts {
            mux: Mux::new(config, Arc::clone(&stats)),
            streams: Slab::default(),
            timers: Timers::default(),
            poller: Rc::clone(&poller),
            stats,
            log,
            uds_path: settings.uds_path.clone(),
            handshake_timeout: settings.handshake_timeout,
            connect_timeout: settings.connect_timeout,
            visible: Visibility::default(),
            asks: false,
            asked: Vec::new(),
            max_streams: settings.max_connections,
            running: false,
            spare,
        };
        Self {
            shared,
            settings,
            listeners,
            poller,
            hosts,
            session: None,
            kicks: [None, None],
            diagnose_at: None,
            accept_again_at: None,
            from_guest: FromGuestBatch::default(),
            to_guest: ToGuestBatch::default(),
            starved: false,
            polling,
            now: clock(),
        }
    }

    /// Serves until told to stop.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        while self.turn(self.until_next_deadline(), &mut ready)? {}
        Ok(())
    }

    /// Sleeps for at most `timeout` nanoseconds and does what there is to do then, until it is time to sleep again;
    /// whether to go on. `ready` is kept for its memory.
    pub fn turn(&mut self, timeout: Option<u64>, ready: &mut Vec<Ready>) -> io::Result<bool> {
        let before = clock();
        self.poller.wait(timeout, ready)?;
        if !self.handle(ready) {
            return Ok(false);
        }
        self.polling.slept(self.now.saturating_sub(before));
        while self.work(ready)? {
            self.poller.wait(Some(0), ready)?;
            if !self.handle(ready) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does what is due and moves packets; whether there is more to do at once.
    fn work(&mut self, ready: &mut Vec<Ready>) -> io::Result<bool> {
        self.hosts.expire(self.now);
        self.diagnose();
        self.accept_again();
        if self.move_packets() || self.look_again(ready)? {
            return Ok(true);
        }
        self.publish();
        Ok(self.ask_for_kicks())
    }

    /// Looks after clients again once the pause is over.
    fn accept_again(&mut self) {
        if self.accept_again_at.is_some_and(|at| at <= self.now) {
            self.accept_again_at = None;
            if watch_listeners(&self.poller, &self.listeners).is_err() {
                self.pause_accepting();
            }
        }
    }

    /// Looks away from clients, who wait meanwhile.
    fn pause_accepting(&mut self) {
        self.listeners.all().for_each(|(_, listener)| self.poller.remove(listener));
        self.accept_again_at = Some(self.now.saturating_add(ACCEPT_PAUSE));
    }

    /// Acts on what woke the thread; whether it shall go on.
    fn handle(&mut self, ready: &[Ready]) -> bool {
        self.now = clock();
        for &event in ready {
            self.on_ready(event);
        }
        if self.shared.stop.load(Ordering::Acquire) {
            self.detach("the daemon stops");
            return false;
        }
        true
    }

    /// Looks for news for as long as [`Polling`] finds it worthwhile; whether there are any. Not inlined, so that a profile
    /// tells looking from working.
    #[inline(never)]
    fn look_again(&mut self, ready: &mut Vec<Ready>) -> io::Result<bool> {
        let time = self.polling.time();
        if time == 0 {
            return Ok(false);
        }
        let end = clock() + time;
        loop {
            for _ in 0..LOOKS {
                if self.ring_has_news() {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            self.poller.wait(Some(0), ready)?;
            if !ready.is_empty() {
                // Being told to stop is found out behind the next sleep, which will be a short one.
                self.handle(ready);
                return Ok(true);
            }
            if clock() >= end {
                return Ok(false);
            }
        }
    }

    /// How long there is nothing to do.
    fn until_next_deadline(&self) -> Option<u64> {
        let next = [self.hosts.next_deadline(), self.diagnose_at, self.accept_again_at].into_iter().flatten().min()?;
        Some(next.saturating_sub(clock()))
    }

    /// Something woke the thread.
    fn on_ready(&mut self, ready: Ready) {
        match ready.token {
            Token::Command => {
                self.publish();
                self.shared.command.take();
                while let Some(command) = self.shared.next_command() {
                    self.obey(command);
                }
            }
            Token::Listener(kind) => {
                let Some(listener) = self.listeners.get(kind) else { return };
                if !self.hosts.accept(listener, kind, self.now) {
                    self.pause_accepting();
                }
            }
            Token::FrontEnd => {
                // It may stop the rings.
                self.publish();
                self.read_messages();
            }
            // Packets are looked for after every sleep.
            Token::Kick(_) => self.hosts.stats.kicks.add(1),
            Token::Host(host) => self.hosts.on_ready(host, ready, self.now),
        }
    }

    /// The control plane said something.
    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(front_end, admission) => self.attach(front_end, admission),
            Command::Connect(client) => self.hosts.admit(client, self.now),
            Command::Answer(conn, socket, window) => self.hosts.answer(conn, socket, window, self.now),
            Command::Netns(netns, local) => {
                self.hosts.visible.learn(netns, local);
                self.hosts.judge_parked(self.now);
            }
            Command::Ping => self.hosts.stats.pongs.add(1),
            #[cfg(feature = "faults")]
            Command::Fault(fault) => crate::faults::inject(fault),
        }
    }

    // ---- the front-end ----

    /// A front-end takes over.
    fn attach(&mut self, front_end: OwnedFd, admission: Admission) {
        let guest_cid = admission.guest_cid.unwrap_or(self.settings.guest_cid);
        self.hosts.mux.set_guest_cid(guest_cid);
        self.hosts.visible.set_scope(admission.scope);
        self.hosts.asks = admission.asks;
        self.hosts.stats.attached.add(1);
        self.hosts.log.state(Kind::Attached, Level::Info, "");
        let session = Session::new(front_end, guest_cid, self.settings.reconnect);
        let watched = self.poller.add_level(session.wire.socket(), Token::FrontEnd);
        self.session = Some(session);
        if let Err(error) = watched {
            self.detach(&format!("its socket cannot be watched: {error}"));
        }
    }

    /// The front-end is gone, or has to go: forgets everything that it set up.
    fn detach(&mut self, why: &str) {
        let Some(mut session) = self.session.take() else { return };
        for ring in &mut session.vrings {
            // A front-end that stays, and comes back to another daemon, goes on at the used index.
            let _ = publish(ring, &self.hosts);
        }
        for slot in &mut self.kicks {
            if let Some(kick) = slot.take() {
                self.poller.remove(&*kick);
            }
        }
        self.poller.remove(session.wire.socket());
        // A batch that was cut short by an error holds chains and memory of this guest.
        self.from_guest = FromGuestBatch::default();
        self.to_guest = ToGuestBatch::default();
        self.hosts.reset();
        self.hosts.mux.set_seqpacket(false);
        self.note_running(false);
        drop(session);
        // Whoever hears that it is gone may attach the next.
        self.shared.busy.store(false, Ordering::Release);
        self.hosts.log.state(Kind::Detached, Level::Info, why);
    }

    /// The front-end said something, or closed its socket.
    fn read_messages(&mut self) {
        for _ in 0..MESSAGES {
            let Some(session) = &mut self.session else { return };
            match session.step() {
                Ok(None) => return,
                Ok(Some(effect)) => {
                    if effect == Effect::Reset {
                        self.hosts.reset();
                    }
                    if let Err(error) = self.watch_kicks() {
                        return self.throw_out(&format!("its kick descriptor cannot be watched: {error}"));
                    }
                    self.hosts.mux.set_seqpacket(self.session.as_ref().is_some_and(Session::seqpacket));
                    let running = self.session.as_ref().is_some_and(Session::running);
                    self.note_running(running);
                }
                Err(End::Closed) => return self.detach("it closed the vhost-user socket"),
                Err(End::Broken(reason)) => return self.throw_out(&reason),
            }
        }
    }

    /// The front-end or its guest broke the rules.
    fn throw_out(&mut self, why: &str) {
        self.hosts.stats.front_end_errors.add(1);
        self.hosts.log.line(Level::Error, || format!("front-end thrown out: {why}"));
        self.detach(why);
    }

    /// Watches the kick descriptors of the rings that have one now, and no others.
    fn watch_kicks(&mut self) -> rustix::io::Result<()> {
        let Some(session) = &self.session else { return Ok(()) };
        for (index, (watched, vring)) in (0..).zip(self.kicks.iter_mut().zip(&session.vrings)) {
            let same = match (&*watched, &vring.kick) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (old, new) => old.is_none() && new.is_none(),
            };
            if same {
                continue;
            }
            if let Some(old) = watched.take() {
                self.poller.remove(&*old);
            }
            if let Some(new) = &vring.kick {
                self.poller.add_edge(&**new, Token::Kick(index))?;
                *watched = Some(Arc::clone(new));
            }
        }
        Ok(())
    }

    /// Tells the control plane when the rings start and stop.
    fn note_running(&mut self, running: bool) {
        if std::mem::replace(&mut self.hosts.running, running) == running {
            return;
        }
        let kind = if running { Kind::Started } else { Kind::Stopped };
        self.hosts.log.state(kind, Level::Info, "");
        self.diagnose_at = running.then(|| self.now.saturating_add(EMPTY_RINGS_AFTER));
    }

    /// Says so if the guest's memory is not really shared: its rings then stay empty for ever, without any error.
    fn diagnose(&mut self) {
        if self.diagnose_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.diagnose_at = None;
        let Some(session) = &self.session else { return };
        if session.vrings[RX_QUEUE].queue.as_ref().is_some_and(Queue::never_used) {
            self.hosts.log.line(Level::Warning, || {
                format!(
                    "the guest's driver runs, but its rings stay empty: the guest's memory is probably not shared. {SHARE_MEMORY}"
                )
            });
        }
    }

    // ---- packets ----

    /// Moves packets both ways; whether there is more to do at once.
    fn move_packets(&mut self) -> bool {
        for _ in 0..ROUNDS {
            match self.round() {
                Ok(true) => {}
                Ok(false) => return false,
                Err(failure) => {
                    self.throw_out(&describe(&failure));
                    return false;
                }
            }
        }
        true
    }

    /// One round: packets from the guest, packets to the guest, one publication and at most one interrupt for each.
    /// Whether there is, or may be, more.
    fn round(&mut self) -> Result<bool, Failure> {
        let Some(session) = self.session.as_mut().filter(|session| session.running()) else { return Ok(false) };
        let [rx_ring, tx_ring, ..] = &mut session.vrings;
        let (Some(rx), Some(tx)) = (&mut rx_ring.queue, &mut tx_ring.queue) else { return Ok(false) };
        let mut progress = self.from_guest.drain(tx, &session.memory, &mut self.hosts, self.now)?;
        let filled = self.to_guest.fill(rx, &session.memory, &mut self.hosts, self.now)?;
        progress |= filled.progress;
        self.starved = filled.starved;
        if rx.unpublished() > 0 || tx.unpublished() >= HELD_BACK {
            publish(tx_ring, &self.hosts)?;
            publish(rx_ring, &self.hosts)?;
        }
        if session.memory.is_broken() {
            return Err(Failure::Memory);
        }
        Ok(progress)
    }

    /// Makes all that was given back visible to the guest.
    fn publish(&mut self) {
        let Some(session) = &mut self.session else { return };
        if let Err(failure) = session.vrings.iter_mut().try_for_each(|ring| publish(ring, &self.hosts)) {
            self.throw_out(&describe(&failure));
        }
    }

    /// The queues that can bring news: with its answers stuck here, a guest's packets wait until it gives us buffers; and
    /// buffers are of interest only when there were none.
    fn queues_of_interest(&mut self) -> [Option<&mut Queue>; 2] {
        let (tx, rx) = (!self.hosts.mux.replies_full(), self.starved);
        let Some(session) = self.session.as_mut().filter(|session| session.running()) else { return [None, None] };
        let [rx_ring, tx_ring, ..] = &mut session.vrings;
        [tx_ring.queue.as_mut().filter(|_| tx), rx_ring.queue.as_mut().filter(|_| rx)]
    }

    /// Whether the guest put something into a ring. What is wrong with one is found out when it is used.
    fn ring_has_news(&mut self) -> bool {
        self.queues_of_interest().into_iter().flatten().any(|queue| queue.available() != Ok(0))
    }

    /// Before sleeping, asks the guest to kick, and looks once more for what came in between; whether there is something.
    fn ask_for_kicks(&mut self) -> bool {
        let mut news = false;
        for queue in self.queues_of_interest().into_iter().flatten() {
            // What is wrong with it is found out by the next round.
            news |= queue.want_kick().unwrap_or(true);
        }
        news
    }
}

/// Makes the chains that were given back visible to the guest, and interrupts it if it wants that.
fn publish(ring: &mut Vring, hosts: &Hosts) -> Result<(), Failure> {
    if ring.queue.as_mut().is_some_and(Queue::publish) && ring.interrupt()? {
        hosts.stats.interrupts.add(1);
    }
    Ok(())
}

/// Wakes the thread for clients.
fn watch_listeners(poller: &Poller, listeners: &Listeners) -> rustix::io::Result<()> {
    listeners.all().try_for_each(|(kind, listener)| poller.add_level(listener, Token::Listener(kind)))
}

/// What a failure is to people.
fn describe(failure: &Failure) -> String {
    match failure {
        Failure::Ring(RingError::AvailableIndex) => "the guest's driver moved an available index too far".into(),
        Failure::Ring(RingError::Head) => "the guest's driver made a descriptor available that does not exist".into(),
        Failure::Memory => "guest memory that was shared cannot be accessed any more: its file shrank".into(),
        Failure::Call => "writing to its call descriptor blocks".into(),
    }
}

/// The monotonic clock, in nanoseconds.
fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * SECOND + u64::try_from(now.tv_nsec).unwrap_or(0)
}
