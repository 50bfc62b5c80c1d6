//! Job: how a connection of the guest to a host application begins: the way to a listener.
//! Before: the mux says that the guest asks for a port.
//! After: the socket is open and belongs to the connection, or the guest is refused with a counter that says why.
//! Rules: nothing waits: a listener that is busy, and a question to the control plane, are states with a deadline.

use super::hosts::Hosts;
use super::poller::Token;
use crate::events::Kind;
use crate::host::io::take_no_descriptors;
use crate::host::messages::kind_of;
use crate::host::stream::Phase;
use crate::ids::HostPort;
use crate::packet::Type;
use crate::slab::Id;
use crate::timers::{MILLISECOND, SECOND};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::os::fd::OwnedFd;

/// How long a listener may let the guest wait with a full backlog: as long as Linux lets connect(2) wait by default.
const LISTENER_TIMEOUT: u64 = 2 * SECOND;
/// Questions to the control plane that may wait for an answer.
const MAX_ASKED: usize = 64;

impl Hosts {
    /// The guest asks for a port: connects to the listener of a host application.
    pub(super) fn reach_listener(&mut self, conn: Id, port: HostPort, kind: Type, now: u64) {
        if self.streams.len() >= self.max_streams {
            self.turned_away(now, "too many connections");
            return self.mux.host_refused(conn);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket_type = match kind {
            Type::Stream => SocketType::STREAM,
            Type::Seqpacket => SocketType::SEQPACKET,
        };
        let socket = match socket_with(AddressFamily::UNIX, socket_type, flags, None) {
            Ok(socket) => socket,
            Err(error) => {
                self.turned_away(now, &error.to_string());
                return self.mux.host_refused(conn);
            }
        };
        take_no_descriptors(&socket);
        match connect_to(&socket, &self.uds_path, port) {
            Ok(()) => self.open(conn, socket, kind, u32::MAX, now),
            // Its backlog is full. An AF_UNIX socket does not tell when that changes.
            Err(Errno::AGAIN) => {
                let stream = self.stream_of(socket, kind, Phase::Connecting(conn), now);
                let host = self.streams.insert(stream);
                self.mux.set_host(conn, host);
                self.set_deadline(host, now + MILLISECOND);
            }
            // Nobody there: but perhaps somebody listens through the bridge.
            Err(Errno::NOENT | Errno::CONNREFUSED) if self.asks => {
                // A guest that asks for ports faster than the control plane can answer. What it gives up meanwhile counts, too:
                // the question waits all the same.
                if self.asked.len() >= MAX_ASKED {
                    self.turned_away(now, "too many connections to listeners of the bridge at once");
                    return self.mux.host_refused(conn);
                }
                self.asked.push(conn);
                self.mux.set_deadline(conn, now + LISTENER_TIMEOUT);
                let from = self.mux.guest_port(conn).map_or(0, |port| port.0);
                let question = match kind {
                    Type::Stream => Kind::Ask,
                    Type::Seqpacket => Kind::AskSeqpacket,
                };
                self.log.ask(question, conn.to_u64(), (u64::from(from) << 32) | u64::from(port.0), None);
            }
            Err(error @ (Errno::NOBUFS | Errno::NOMEM)) => {
                self.turned_away(now, &error.to_string());
                self.mux.host_refused(conn);
            }
            Err(error) => self.unreachable(conn, error),
        }
    }

    /// Nobody can be reached for the guest.
    fn unreachable(&mut self, conn: Id, why: Errno) {
        let counter = match why {
            Errno::AGAIN => &self.stats.refused_backlog,
            Errno::PROTOTYPE => &self.stats.refused_type,
            _ => &self.stats.refused_no_listener,
        };
        counter.add(1);
        self.mux.host_refused(conn);
    }

    /// A host application's socket takes what the guest asked for, which gets no larger window than `window`.
    fn open(&mut self, conn: Id, socket: OwnedFd, kind: Type, window: u32, now: u64) {
        match self.insert(socket, kind, Phase::Open(conn), now) {
            Some(host) => {
                self.mux.set_host(conn, host);
                self.limit_window(conn, host, window);
                self.mux.host_accepted(conn);
            }
            None => self.mux.host_refused(conn),
        }
    }

    /// The control plane's answer to [`Kind::Ask`]: a socket connected to the application that listens, which wants no
    /// larger window than `window`, or nothing.
    pub(super) fn answer(&mut self, conn: Id, socket: Option<OwnedFd>, window: u32, now: u64) {
        self.asked.retain(|&asked| asked != conn);
        if !self.mux.awaits_host(conn) {
            return; // the guest gave up, and the application sees its end of the socket closed
        }
        let Some(socket) = socket.filter(|socket| rustix::io::ioctl_fionbio(socket, true).is_ok()) else {
            self.stats.refused_no_listener.add(1);
            return self.mux.host_refused(conn);
        };
        match kind_of(&socket) {
            Some(kind) if self.mux.kind(conn) == Some(kind) => self.open(conn, socket, kind, window, now),
            _ => {
                self.stats.refused_type.add(1);
                self.mux.host_refused(conn);
            }
        }
    }

    /// Tries to reach a busy listener once more.
    pub(super) fn try_again(&mut self, conn: Id, host: Id, now: u64) {
        let (Some(stream), Some(port)) = (self.streams.get_mut(host), self.mux.host_port(conn)) else { return };
        match connect_to(&stream.fd, &self.uds_path, port) {
            Ok(()) => {
                stream.phase = Phase::Open(conn);
                if self.poller.add_edge(&stream.fd, Token::Host(host)).is_err() {
                    self.turned_away(now, "it cannot be watched");
                    self.mux.host_refused(conn);
                    self.close(host);
                    return;
                }
                self.limit_window(conn, host, u32::MAX);
                self.mux.host_accepted(conn);
            }
            Err(Errno::AGAIN) if now.saturating_sub(stream.since) < LISTENER_TIMEOUT => {
                stream.attempts = stream.attempts.saturating_add(1);
                let wait = (MILLISECOND << stream.attempts.min(5)).min(20 * MILLISECOND);
                self.set_deadline(host, now + wait);
            }
            Err(error) => {
                self.unreachable(conn, error);
                self.close(host);
            }
        }
    }
}

/// Connects to the listener at `<path>_<port>`.
fn connect_to(socket: &OwnedFd, path: &[u8], port: HostPort) -> Result<(), Errno> {
    let mut full = Vec::with_capacity(path.len() + 11);
    full.extend_from_slice(path);
    full.extend_from_slice(format!("_{}", port.0).as_bytes());
    connect(socket, &SocketAddrUnix::new(full)?)
}
