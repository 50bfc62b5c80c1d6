//! Job: the two calls that move payload between a socket and guest memory, without a copy in between.
//! Before: `device` has the pieces of guest memory.
//! After: the kernel has read or written them.
//! Rules: never blocks, never raises SIGPIPE.
// UNSAFETY: the kernel gets pointers to guest memory, of which no slice can be made.
#![allow(unsafe_code)]

use crate::faults::no_buffers;
use crate::virtio::memory::Segment;
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// How many pieces one call takes (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// The result of a call on a socket that does not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes. For [`receive`], 0 is the end of the stream.
    Bytes(usize),
    /// So many bytes received, after which the socket was empty.
    Last(usize),
    /// Not now: the socket tells when.
    WouldBlock,
    /// The kernel has no memory for it, and does not tell when it has.
    NoMemory,
    /// The socket's other end is gone or does not take part any more.
    Closed,
    /// The guest's memory cannot be accessed.
    BadMemory,
}

/// A message of these pieces.
fn message(pieces: &[Segment]) -> libc::msghdr {
    // SAFETY: msghdr is plain data, for which zeroes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = Segment::iovecs(pieces).cast_mut();
    message.msg_iovlen = pieces.len().min(MAX_PIECES);
    message
}

/// Sends the pieces, all or the first part.
pub fn send(socket: &OwnedFd, pieces: &[Segment]) -> Moved {
    if no_buffers() {
        return Moved::NoMemory;
    }
    let message = message(pieces);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    loop {
        // SAFETY: `message` points to `pieces`, which outlive the call and which the kernel only reads; each points to
        // memory that is mapped or makes the kernel answer EFAULT.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        if let Some(moved) = outcome(sent) {
            return moved;
        }
    }
}

/// Receives into the pieces, which hold `room` bytes.
pub fn receive(socket: &OwnedFd, pieces: &[Segment], room: usize) -> Moved {
    if no_buffers() {
        return Moved::NoMemory;
    }
    let mut message = message(pieces);
    loop {
        // SAFETY: as in `send`; the memory is shared with the guest, so that the kernel's writing to it breaks no
        // assumption of ours.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        // A short read means an empty queue, with two exceptions. The kernel stops behind descriptors that were passed
        // along, and says that they were cut off. It also stops in front of a byte sent with MSG_OOB, which the caller has to
        // know of ([`HostStream::urgent`](super::stream::HostStream::urgent)).
        let whole = message.msg_flags & libc::MSG_CTRUNC == 0;
        match outcome(received) {
            Some(Moved::Bytes(bytes)) if 0 < bytes && bytes < room && whole => return Moved::Last(bytes),
            Some(moved) => return moved,
            None => {}
        }
    }
}

/// Receives one message: into the pieces as much as they hold, and into `rest` what is beyond that. Its whole length, even
/// if that is more. A message without bytes cannot be told from the end.
pub fn receive_message(socket: &OwnedFd, pieces: &mut Vec<Segment>, rest: &mut [u8]) -> Moved {
    if no_buffers() {
        return Moved::NoMemory;
    }
    // SAFETY: `rest` is borrowed for longer than the piece is in the list.
    pieces.push(unsafe { Segment::of_ours(rest) });
    let mut message = message(pieces);
    let moved = loop {
        // SAFETY: as in `receive`; `rest` is used by nobody else meanwhile.
        let received =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT | libc::MSG_TRUNC) };
        if let Some(moved) = outcome(received) {
            break moved;
        }
    };
    pieces.pop();
    moved
}

/// How much of the kernel's memory is in use for what the socket's other end has not read.
pub fn outgoing(socket: &OwnedFd) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the pointer leads to a variable of ours, of the type that the kernel writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Which network namespace the other end of an accepted UNIX socket was made in: the kernel gives an accepted socket the
/// namespace of the connecting one (`unix_stream_connect`, net/unix/af_unix.c). The number is never used twice.
pub fn netns_cookie(accepted: &OwnedFd) -> Result<u64, Errno> {
    /// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h, since Linux 5.14), which libc does not have.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len: libc::socklen_t = 8;
    // SAFETY: both pointers lead to variables of ours, and `len` says how large the first one is.
    let result = unsafe {
        libc::getsockopt(
            accepted.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// Has whoever passes descriptors to this socket, or to those that a listening one accepts, told EPERM. The kernel would close
/// them in our thread, which may take as long as a TCP socket with SO_LINGER has been told to wait for its other end. Before Linux
/// 6.16 it knows of no such option, and does so.
pub fn take_no_descriptors(socket: &OwnedFd) {
    /// `SO_PASSRIGHTS` (include/uapi/asm-generic/socket.h), which libc does not have.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let off: libc::c_int = 0;
    let len = size_of_val(&off) as libc::socklen_t;
    // SAFETY: the pointer leads to a variable of ours, and `len` says how large it is.
    unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw const off).cast(), len) };
}

/// Judges the result of a call; `None` if it is to be repeated.
fn outcome(result: isize) -> Option<Moved> {
    if let Ok(bytes) = usize::try_from(result) {
        return Some(Moved::Bytes(bytes));
    }
    let error = std::io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        Some(Errno::INTR) => None,
        Some(Errno::AGAIN) => Some(Moved::WouldBlock),
        Some(Errno::NOBUFS | Errno::NOMEM) => Some(Moved::NoMemory),
        Some(Errno::FAULT) => Some(Moved::BadMemory),
        _ => Some(Moved::Closed),
    }
}
