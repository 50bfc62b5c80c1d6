//! Job: the host's applications: some read, some write, some send back what they get.
//! Before: a row has connections, and gives their hosts' ends away.
//! After: bytes are counted, made or sent back until the other end is gone.
//! Rules: 64 KiB at a time where it is bulk. Many streams are one thread's, which sleeps in epoll. A message socket is used
//! like a stream: one read or write is one message.

use rustix::event::epoll;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What applications read and write at a time.
pub const BLOCK: usize = 64 * 1024;
/// What an application that sends back reads at a time.
const ECHO: usize = 4096;

/// Reads to the end, counting.
pub fn sink(mut stream: UnixStream, count: Arc<AtomicU64>) {
    let mut block = vec![0; BLOCK];
    while let Ok(len @ 1..) = stream.read(&mut block) {
        count.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// The same on many streams.
pub fn sink_many(streams: Vec<UnixStream>, count: Arc<AtomicU64>) -> io::Result<()> {
    serve(streams, BLOCK, |_, bytes| {
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    })
}

/// Writes so many bytes at a time until told to stop, or the other end is gone.
pub fn source(mut stream: UnixStream, size: usize, stop: Arc<AtomicBool>) {
    let block = vec![0x5a; size];
    while !stop.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {}
}

/// Sends everything back.
pub fn echo(mut stream: UnixStream) {
    let mut bytes = [0; ECHO];
    while let Ok(len @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..len]).is_err() {
            return;
        }
    }
}

/// The same on many streams.
pub fn echo_many(streams: Vec<UnixStream>) -> io::Result<()> {
    serve(streams, ECHO, |mut stream, bytes| stream.write_all(bytes))
}

/// Reads whatever comes on any stream, until one of them ends.
fn serve(
    streams: Vec<UnixStream>,
    block: usize,
    mut handle: impl FnMut(&UnixStream, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (stream, index) in streams.iter().zip(0..) {
        epoll::add(&poll, stream, epoll::EventData::new_u64(index), epoll::EventFlags::IN)?;
    }
    let mut bytes = vec![0; block];
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let index = usize::try_from(event.data.u64()).unwrap_or(0);
            let mut stream = &streams[index];
            match stream.read(&mut bytes)? {
                0 => return Ok(()),
                len => handle(stream, &bytes[..len])?,
            }
        }
    }
}
