//! Job: what the machine itself reaches: a plain UNIX socket of the same type between two processes, with the same sizes.
//! Before: the command line says `--limit`.
//! After: the same rows, as far as there is something to compare.
//! Rules: the other process is this program again; nothing between the two but the kernel. A message socket is used like a
//! stream: one read or write is one message.

use crate::Options;
use crate::applications::{BLOCK, echo};
use crate::report::Outcome;
use crate::rows::{Row, What};
use crate::session::Clock;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vsock_driver::header::SEQPACKET;

/// A process at the other end of a socket.
struct Peer {
    /// Our end.
    stream: UnixStream,
    /// The process.
    child: Child,
}

impl Peer {
    /// Starts one that does what `role` says.
    fn start(kind: SocketType, role: &str, argument: &str, pinned: bool) -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(std::env::current_exe()?)
            .args(pinned.then_some("--pin"))
            .args(["--limit-child", role, argument])
            .stdin(Stdio::from(theirs))
            .spawn()?;
        Ok(Self { stream: ours.into(), child })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process.
pub fn child(role: &str, argument: &str, pinned: bool) -> Result<(), String> {
    let fd = rustix::io::dup(io::stdin()).map_err(|error| error.to_string())?;
    let mut stream = UnixStream::from(fd);
    if pinned {
        crate::process::pin(1);
    }
    match role {
        "sink" => {
            let mut block = vec![0; BLOCK];
            while let Ok(1..) = stream.read(&mut block) {}
        }
        "echo" => echo(stream),
        "accept" => {
            let listener = UnixListener::bind(argument).map_err(|error| error.to_string())?;
            let _ = stream.write_all(b"!");
            while let Ok((mut client, _)) = listener.accept() {
                let _ = client.write_all(b"!");
            }
        }
        _ => return Err(format!("no role {role}")),
    }
    Ok(())
}

/// Measures a row's limit.
pub fn measure(row: &Row, options: &Options) -> Outcome {
    let (time, pinned) = (options.time, options.pinned);
    let result = match row.what {
        What::FromGuest(kind, size, ..) | What::ToGuest(kind, _, size, _) => bulk(type_of(kind), size, time, pinned),
        What::RoundTrip(kind, _) => round_trip(type_of(kind), time, pinned),
        What::GuestConnects(1) | What::HostConnects(1) => connects(time, pinned),
        _ => Ok(Outcome::None),
    };
    result.unwrap_or_else(|error| Outcome::Failed(error.to_string()))
}

/// The type of a UNIX socket, of that of a connection.
fn type_of(kind: u16) -> SocketType {
    if kind == SEQPACKET { SocketType::SEQPACKET } else { SocketType::STREAM }
}

/// Writes of a size, read 64 KiB at a time.
fn bulk(kind: SocketType, size: usize, time: Duration, pinned: bool) -> io::Result<Outcome> {
    let mut peer = Peer::start(kind, "sink", "", pinned)?;
    let block = vec![0x5a; size];
    let clock = Clock::start(time);
    let mut total = 0;
    while !clock.is_over() {
        for _ in 0..16 {
            peer.stream.write_all(&block)?;
            if clock.has_begun() {
                total += size as u64;
            }
        }
    }
    Ok(Outcome::rate(total, clock.measured(), Vec::new()))
}

/// One byte there and back.
fn round_trip(kind: SocketType, time: Duration, pinned: bool) -> io::Result<Outcome> {
    let mut peer = Peer::start(kind, "echo", "", pinned)?;
    let clock = Clock::start(time);
    let mut times = Vec::new();
    while !clock.is_over() {
        let start = Instant::now();
        peer.stream.write_all(&[1])?;
        peer.stream.read_exact(&mut [0])?;
        if clock.has_begun() {
            times.push(start.elapsed());
        }
    }
    Ok(Outcome::latency(times))
}

/// Connections, each with one byte as the answer.
fn connects(time: Duration, pinned: bool) -> io::Result<Outcome> {
    let path = std::env::temp_dir().join(format!("vsock-bench-{}", std::process::id()));
    let mut peer = Peer::start(SocketType::STREAM, "accept", &path.to_string_lossy(), pinned)?;
    peer.stream.read_exact(&mut [0])?;
    let clock = Clock::start(time);
    let mut count = 0;
    while !clock.is_over() {
        UnixStream::connect(&path)?.read_exact(&mut [0])?;
        count += u64::from(clock.has_begun());
    }
    drop(peer);
    let _ = std::fs::remove_file(&path);
    Ok(Outcome::per_second(count, clock.measured()))
}
