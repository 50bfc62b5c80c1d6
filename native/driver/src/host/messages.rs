//! Job: host applications with message sockets (SOCK_SEQPACKET): clients at `<socket>.seqpacket`, listeners at
//! `<socket>_<port>`.
//! Before: a test says which port.
//! After: it has a socket on which each call is one message.
//! Rules: every socket has timeouts.

use crate::deadline::{Deadline, PATIENCE};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    recv, send, shutdown, socket_with,
};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The longest message that is received.
const LONGEST: usize = 4 << 20;

/// One end of a conversation in messages.
#[derive(Debug)]
pub struct Messenger(pub OwnedFd);

impl Messenger {
    /// Gives it timeouts, and room for as long a message as the kernel's vsock takes.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        set_socket_send_buffer_size(&socket, 256 * 1024)?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(PATIENCE))?;
        }
        Ok(Self(socket))
    }

    /// Sends one message.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        let sent = send(&self.0, message, SendFlags::NOSIGNAL)?;
        assert_eq!(sent, message.len(), "a message is sent whole or not at all");
        Ok(())
    }

    /// Receives one message; an empty one is the end.
    pub fn recv(&self) -> io::Result<Vec<u8>> {
        self.recv_with(RecvFlags::empty())
    }

    /// Receives one message if there is one now.
    pub fn try_recv(&self) -> io::Result<Vec<u8>> {
        self.recv_with(RecvFlags::DONTWAIT)
    }

    /// Receives one message.
    fn recv_with(&self, flags: RecvFlags) -> io::Result<Vec<u8>> {
        let mut message = vec![0; LONGEST];
        let (got, len) = recv(&self.0, &mut message[..], flags | RecvFlags::TRUNC)?;
        assert_eq!(got, len, "longer than any message here");
        message.truncate(len);
        Ok(message)
    }

    /// Closes a direction.
    pub fn shutdown(&self, how: Shutdown) {
        shutdown(&self.0, how).expect("shutdown");
    }
}

/// Where clients with message sockets connect.
pub fn path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".seqpacket");
    path.into()
}

/// A fresh message socket.
fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None)?)
}

/// Listens at a path, without ever blocking.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let listener = socket(SocketFlags::NONBLOCK)?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&listener, 128)?;
    Ok(listener)
}

/// Accepts one, which must come.
#[track_caller]
pub fn accept(listener: &OwnedFd) -> Messenger {
    assert!(Deadline::patient().wait_readable(&[listener.as_fd()]), "nobody connected to the listener");
    let accepted = accept_with(listener, SocketFlags::CLOEXEC).expect("accept");
    Messenger::new(accepted).expect("timeouts")
}

/// A connected client that has said nothing.
pub fn dial(hybrid: &Path) -> io::Result<Messenger> {
    let client = socket(SocketFlags::empty())?;
    connect(&client, &SocketAddrUnix::new(path(hybrid))?)?;
    Messenger::new(client)
}

/// A client that asked for a port of the guest and has not read the answer.
pub fn ask(hybrid: &Path, port: u32) -> io::Result<Messenger> {
    let client = dial(hybrid)?;
    client.send(format!("CONNECT {port}\n").as_bytes())?;
    Ok(client)
}

/// Reads the answer to CONNECT: the host's port.
pub fn answer(client: &Messenger) -> io::Result<u32> {
    let line = String::from_utf8_lossy(&client.recv()?).into_owned();
    let port = line.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n')).and_then(|port| port.parse().ok());
    port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("the answer to CONNECT was {line:?}")))
}
