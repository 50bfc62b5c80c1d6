//! Job: host applications at the hybrid socket: clients that say CONNECT, listeners at `<socket>_<port>`.
//! Before: a test or the benchmark says which port.
//! After: it has a stream like any other.
//! Rules: every stream has timeouts.

pub mod messages;

use crate::deadline::{Deadline, PATIENCE};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A connected client that has said nothing.
pub fn dial(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A client that asked for a port of the guest and has not read the answer.
pub fn ask(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = dial(socket)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    Ok(stream)
}

/// Reads the answer to CONNECT: the host's port.
pub fn answer(stream: &mut UnixStream) -> io::Result<u32> {
    let line = read_line(stream)?;
    let port = line.strip_prefix("OK ").and_then(|rest| rest.parse().ok());
    port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("the answer to CONNECT was {line:?}")))
}

/// Reads a line, byte by byte, so that nothing behind it is lost; without its end.
pub fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => break,
            [byte] if line.len() < 64 => line.push(byte),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "an endless line")),
        }
    }
    String::from_utf8(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Where guests that connect to `port` are received.
pub fn listener_path(socket: &Path, port: u32) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Listens for guests that connect to `port`.
pub fn listen(socket: &Path, port: u32) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(listener_path(socket, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts one, which must come.
#[track_caller]
pub fn accept(listener: &UnixListener) -> UnixStream {
    use std::os::fd::AsFd;
    let deadline = Deadline::patient();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("fcntl");
                stream.set_read_timeout(Some(PATIENCE)).expect("setsockopt");
                stream.set_write_timeout(Some(PATIENCE)).expect("setsockopt");
                return stream;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(deadline.wait_readable(&[listener.as_fd()]), "nobody connected to the listener");
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Reads to the end of the stream.
pub fn read_to_end(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}
