//! Job: how a connection of a host application to the guest begins: a client's CONNECT line, or the control plane's word.
//! Before: the listening socket has a client, or the control plane has let one in.
//! After: the socket is open and belongs to a connection, or is closed with a counter that says why.
//! Rules: nothing waits: a line that is not complete is a state with a deadline.

use super::hosts::Hosts;
use super::poller::Token;
use super::visibility::Judgement;
use crate::events::{Kind, Level};
use crate::host::handshake::{MAX_LINE, Parsed, Refusal, ok_line, parse, parse_message};
use crate::host::messages::{Messages, kind_of};
use crate::host::stream::{HostStream, Manners, Phase, make_room};
use crate::ids::{GuestPort, HostPort};
use crate::mux::Refused;
use crate::packet::Type;
use crate::slab::Id;
use crate::timers::SECOND;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use std::os::fd::OwnedFd;

/// How long the guest may take to answer a client of the bridge, in nanoseconds, if nothing else is said: as long as
/// connect(2) waits by default.
pub const BRIDGE_TIMEOUT: u64 = 2 * SECOND;
/// How long the control plane may take to look a network namespace up.
const NETNS_TIMEOUT: u64 = 2 * SECOND;
/// Clients accepted before others have their turn.
const ACCEPTS: usize = 64;

/// A descriptor kept back: with all others taken, clients can still be accepted to be turned away, unless another thread
/// is faster to it.
#[derive(Debug)]
pub struct Spare {
    /// Never used: it is there to be closed.
    _fd: Option<OwnedFd>,
}

impl Spare {
    /// Takes one.
    pub fn new() -> Self {
        Self { _fd: open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok() }
    }
}

/// The connection that a client wants.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The guest's port.
    pub port: GuestPort,
    /// The port of the client's own end, if it has one.
    pub from: Option<HostPort>,
    /// The most bytes that the guest may send ahead, where the device would let it send more.
    pub window: u32,
    /// How long the guest may take to answer, in nanoseconds.
    pub timeout: u64,
}

impl Wish {
    /// One that leaves the rest to the device.
    pub fn new(port: GuestPort, timeout: u64) -> Self {
        Self { port, from: None, window: u32::MAX, timeout }
    }
}

/// A client that the control plane let in.
#[derive(Debug)]
pub struct Client {
    /// What becomes the connection.
    pub socket: OwnedFd,
    /// Where the client is answered, if not on the connection itself. What is in the connection then, when it comes here,
    /// is no payload: its other end was filled up, so that it polls as not writable for as long as it is not connected.
    /// A client that has a port of its own finds it closed when the connection has ended.
    pub answer: Option<OwnedFd>,
    /// What it asks for.
    pub wish: Wish,
}

impl Hosts {
    /// Takes in the clients that wait at the listening socket, whose kind they are of; `false` if that cannot be done for a while, so that the
    /// socket, which stays readable, must not wake us meanwhile.
    pub fn accept(&mut self, listener: &OwnedFd, kind: Type, now: u64) -> bool {
        for _ in 0..ACCEPTS {
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) if self.streams.len() >= self.max_streams => {
                    drop(socket);
                    self.turned_away(now, "too many connections");
                }
                Ok(socket) => {
                    let host = self.insert(socket, kind, Phase::Handshake, now);
                    if let Some(host) = host {
                        self.set_deadline(host, now + self.handshake_timeout);
                        // Mostly the line is there already; where not, its arrival wakes us.
                        self.read_request(host, now);
                    }
                }
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.spare = Spare { _fd: None };
                    let refused = accept_with(listener, SocketFlags::CLOEXEC).map(drop);
                    self.spare = Spare::new();
                    match refused {
                        Ok(()) => self.turned_away(now, "out of file descriptors"),
                        // The kernel looks for a descriptor first and for a client second: there was none.
                        Err(Errno::AGAIN) => return true,
                        // Another thread was faster to the descriptor.
                        Err(_) => return false,
                    }
                }
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                // Whatever it is, the client still waits, and would wake us for ever.
                Err(_) => return false,
            }
        }
        true
    }

    /// A connection was refused for want of something of ours.
    pub(super) fn turned_away(&mut self, now: u64, why: &str) {
        self.stats.refused_limit.add(1);
        self.log.limited(now, Level::Warning, || format!("a connection was refused: {why}"));
    }

    /// Reads as much of the CONNECT line as is there, and not a byte more.
    pub(super) fn read_request(&mut self, host: Id, now: u64) {
        let Some(stream) = self.streams.get(host) else { return };
        let mut bytes = [0; MAX_LINE];
        // Of a message, with TRUNC, the second number is the whole length.
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::TRUNC;
        let (got, len) = match recv(&stream.fd, &mut bytes, flags) {
            Ok(lengths) => lengths,
            Err(Errno::AGAIN | Errno::INTR) if !stream.hung_up => return,
            Err(_) => (0, 0),
        };
        let parsed = match stream.kind() {
            Type::Stream => parse(&bytes[..got]),
            Type::Seqpacket => parse_message(&bytes[..got], len),
        };
        match parsed {
            Parsed::Incomplete if got > 0 && !stream.sends_no_more => {}
            Parsed::Incomplete => {
                self.stats.handshake_left.add(1);
                self.close(host);
            }
            Parsed::Bad(why) => {
                self.stats.handshake_bad.add(1);
                self.log
                    .limited(now, Level::Warning, || format!("a client was closed: instead of a CONNECT line, {why}"));
                self.close(host);
            }
            Parsed::Connect { port, len } => {
                // They are there, and nobody else reads.
                let _ = recv(&stream.fd, &mut bytes[..len], RecvFlags::DONTWAIT);
                if stream.hung_up {
                    self.stats.handshake_left.add(1);
                    return self.close(host);
                }
                self.clear_deadline(host);
                self.request_if_visible(host, port, now);
            }
        }
    }

    /// Asks the guest for a connection, if the client may see the VM.
    fn request_if_visible(&mut self, host: Id, port: GuestPort, now: u64) {
        let Some(stream) = self.streams.get_mut(host) else { return };
        match self.visible.judge(&stream.fd) {
            Judgement::Visible => self.request(host, Wish::new(port, self.connect_timeout), now),
            Judgement::Hidden => self.refuse_unseen(host),
            Judgement::Unknown { netns, first } => {
                stream.phase = Phase::Parked(port);
                if first {
                    // Without the descriptor, for want of descriptors, the answer is less well founded.
                    self.log.ask(Kind::Netns, 0, netns, stream.fd.try_clone().ok());
                }
                self.set_deadline(host, now + NETNS_TIMEOUT);
            }
        }
    }

    /// The control plane looked a network namespace up: those who wait for that go on.
    pub(super) fn judge_parked(&mut self, now: u64) {
        let parked = |host: &Id| self.streams.get(*host).is_some_and(|stream| matches!(stream.phase, Phase::Parked(_)));
        for host in self.streams.ids().filter(parked).collect::<Vec<_>>() {
            let Some(stream) = self.streams.get(host) else { continue };
            if let Phase::Parked(port) = stream.phase {
                self.clear_deadline(host);
                self.request_if_visible(host, port, now);
            }
        }
    }

    /// Refuses a client as if there were no such VM.
    pub(super) fn refuse_unseen(&mut self, host: Id) {
        self.stats.refused_netns.add(1);
        self.refuse(host, Refusal::NoSuchVm);
    }

    /// A client that the control plane let in asks for a port; it is answered as the bridge does.
    pub(super) fn admit(&mut self, client: Client, now: u64) {
        let Client { socket, answer, wish } = client;
        // Whoever passes a descriptor decides whether it blocks; here nothing may.
        if rustix::io::ioctl_fionbio(&socket, true).is_err() {
            return;
        }
        let Some(kind) = kind_of(&socket) else { return };
        let manners = match answer {
            None => Manners::Bridge,
            Some(fd) => {
                let Ok(filler) = rustix::io::ioctl_fionread(&socket) else { return };
                Manners::Apart { fd, filler, stays: wish.from.is_some() }
            }
        };
        let Some(host) = self.insert(socket, kind, Phase::Parked(wish.port), now) else { return };
        if let Some(stream) = self.streams.get_mut(host) {
            stream.manners = manners;
            stream.shared = true;
        }
        self.request(host, wish, now);
    }

    /// Asks the guest for a connection.
    fn request(&mut self, host: Id, wish: Wish, now: u64) {
        let Some(kind) = self.streams.get(host).map(HostStream::kind) else { return };
        if !self.mux.serves(kind) {
            self.stats.refused_no_seqpacket.add(1);
            return self.refuse(host, Refusal::NoSeqpacket);
        }
        if !self.running {
            self.stats.refused_not_running.add(1);
            return self.refuse(host, Refusal::NotRunning);
        }
        match self.mux.host_connects(wish.port, wish.from, kind, host, now + wish.timeout) {
            Ok(conn) => {
                self.limit_window(conn, host, wish.window);
                if let Some(stream) = self.streams.get_mut(host) {
                    stream.phase = Phase::Requested(conn);
                }
            }
            Err(Refused::Limit) => self.refuse(host, Refusal::Limit),
            Err(Refused::PortTaken) => self.refuse(host, Refusal::PortTaken),
        }
    }

    /// The guest accepted: tells the client, and from here on bytes flow.
    pub(super) fn greet(&mut self, host: Id, port: HostPort, now: u64) {
        let Some(stream) = self.streams.get_mut(host) else { return };
        let Phase::Requested(conn) = stream.phase else { return };
        if stream.welcome(&ok_line(port)) {
            stream.phase = Phase::Open(conn);
            // It may have sent more right behind its line.
            self.mux.host_readable(conn, now);
        } else {
            self.stats.handshake_left.add(1);
            self.broke(conn, host);
        }
    }

    // ---- the table ----

    /// A socket with room for a window of the guest.
    pub(super) fn stream_of(&self, socket: OwnedFd, kind: Type, phase: Phase, now: u64) -> HostStream {
        make_room(&socket, self.mux.window());
        HostStream::new(socket, kind, phase, now)
    }

    /// Adds a connected socket to the table and has it watched. `None`, with the socket closed, if that cannot be.
    pub(super) fn insert(&mut self, socket: OwnedFd, kind: Type, phase: Phase, now: u64) -> Option<Id> {
        let host = self.streams.next_id();
        if let Err(error) = self.poller.add_edge(&socket, Token::Host(host)) {
            self.turned_away(now, &format!("its socket cannot be watched: {error}"));
            return None;
        }
        let stream = self.stream_of(socket, kind, phase, now);
        self.streams.insert(stream);
        Some(host)
    }

    /// Gives the guest no larger window than the application wants; and than the longest message that its socket takes, so
    /// that a guest's application is told EMSGSIZE.
    pub(super) fn limit_window(&mut self, conn: Id, host: Id, wanted: u32) {
        let Some(stream) = self.streams.get(host) else { return };
        let longest = match stream.kind() {
            Type::Stream => u32::MAX,
            Type::Seqpacket => Messages::longest(&stream.fd),
        };
        self.mux.limit_window(conn, wanted.min(longest));
    }

    /// Sets a socket's deadline.
    pub(super) fn set_deadline(&mut self, host: Id, at: u64) {
        if let Some(stream) = self.streams.get_mut(host) {
            self.timers.change(host, &mut stream.deadline, Some(at));
        }
    }

    /// Takes a socket's deadline back.
    fn clear_deadline(&mut self, host: Id) {
        if let Some(stream) = self.streams.get_mut(host) {
            self.timers.change(host, &mut stream.deadline, None);
        }
    }
}
