//! Job: a malicious front-end: messages that make sense and such that do not, whole and in pieces, with descriptors of every
//! kind; memory files of any size, which shrink whenever it likes; and a guest that uses what was set up.
//! Before: a fuzzer.
//! After: the session ended with a reason or goes on, nothing was waited for, and every descriptor is closed in the end.

use crate::input::Input;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use vhostvsock_native::ids::GuestCid;
use vhostvsock_native::vhost_user::session::Session;
use vhostvsock_native::vhost_user::wire::End;
use vsock_driver::front_end::message::{VERSION, encode, request as number, send};

/// The most steps of one run.
const STEPS: usize = 120;
/// Memory files of one run.
const FILES: usize = 4;
/// Where the front-end says that its regions are.
const USER: u64 = 0x7000_0000_0000;
/// The requests that set something up.
const REQUESTS: [u32; 22] = [
    number::GET_FEATURES,
    number::SET_FEATURES,
    number::SET_OWNER,
    number::RESET_OWNER,
    number::SET_MEM_TABLE,
    number::SET_VRING_NUM,
    number::SET_VRING_ADDR,
    number::SET_VRING_BASE,
    number::GET_VRING_BASE,
    number::SET_VRING_KICK,
    number::SET_VRING_CALL,
    number::SET_VRING_ERR,
    number::GET_PROTOCOL_FEATURES,
    number::SET_PROTOCOL_FEATURES,
    number::GET_QUEUE_NUM,
    number::SET_VRING_ENABLE,
    number::GET_CONFIG,
    number::SET_CONFIG,
    number::RESET_DEVICE,
    number::GET_MAX_MEM_SLOTS,
    number::ADD_MEM_REG,
    number::REM_MEM_REG,
];

/// The front-end, and the session that it torments.
struct Front {
    /// Its end of the socket.
    socket: UnixStream,
    /// The device's.
    session: Session,
    /// Memory files, with the size that each was made with.
    files: Vec<(OwnedFd, u64)>,
    /// The other ends of sockets that were passed in place of something else.
    peers: Vec<UnixStream>,
    /// The other ends of pipes: they stay open, as writing to a pipe that nobody reads raises SIGPIPE, which the daemon
    /// ignores and a fuzzer does not.
    pipes: Vec<OwnedFd>,
    /// Memory of [`use_rings`](Self::use_rings).
    segments: Vec<vhostvsock_native::virtio::memory::Segment>,
}

/// Plays until the session or the input ends.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (socket, theirs) = UnixStream::pair().expect("socketpair");
    socket.set_nonblocking(true).expect("fcntl");
    theirs.set_nonblocking(true).expect("fcntl");
    // By the last byte, so that inputs of before mean what they meant.
    let reconnects = data.last().is_some_and(|byte| byte & 1 != 0);
    let session = Session::new(theirs.into(), GuestCid::new(42).expect("a CID"), reconnects);
    let mut front =
        Front { socket, session, files: Vec::new(), peers: Vec::new(), pipes: Vec::new(), segments: Vec::new() };
    for _ in 0..STEPS {
        if input.is_empty() || !front.step(&mut input) {
            break;
        }
    }
    front.end();
}

impl Front {
    /// One thing that the front-end or its guest does; whether the session goes on.
    fn step(&mut self, input: &mut Input) -> bool {
        let sent = match input.below(16) {
            0..9 => self.sensible(input),
            9..11 => self.anything(input),
            11 => {
                let len = input.below(64);
                send(&self.socket, input.bytes(len), &[]).is_ok()
            }
            12 | 13 => {
                // The guest writes a descriptor or two, or an index.
                if let Some((file, _)) = self.files.get(input.below(FILES)) {
                    let part = input.pick(&[0, 0x400, 0x402, 0x800, 0x802, 0x804]);
                    let (at, len) = (input.below(64) as u64 * 16 + part, input.pick(&[2, 4, 16, 32]));
                    let _ = rustix::io::pwrite(file, input.bytes(len), at);
                }
                true
            }
            14 => {
                if let Some((file, size)) = self.files.get(input.below(FILES)) {
                    let less = size / (1 + u64::from(input.u8()));
                    ftruncate(file, less & !0xfff).expect("a memfd shrinks");
                }
                true
            }
            _ => {
                self.use_rings(input);
                true
            }
        };
        // A session that threw us out has closed its end only when it is dropped; so nobody else closes ours.
        sent && self.serve()
    }

    /// Has the session act on all that arrived, and reads its replies; whether it goes on.
    fn serve(&mut self) -> bool {
        loop {
            match self.session.step() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(End::Closed) => panic!("nobody closed the socket"),
                Err(End::Broken(reason)) => {
                    assert!(!reason.is_empty());
                    return false;
                }
            }
            assert!(self.session.memory.region_count() <= 509);
            let running = self.session.vrings[..2].iter().all(|vring| vring.queue.is_some());
            assert_eq!(self.session.running(), running);
        }
        drain(&self.socket);
        true
    }

    /// The guest's rings are used, whatever is in them.
    fn use_rings(&mut self, input: &mut Input) {
        let Session { vrings, memory, .. } = &mut self.session;
        for vring in vrings {
            let Some(queue) = &mut vring.queue else { continue };
            queue.no_kicks();
            for _ in 0..4 {
                self.segments.clear();
                let Ok(Some(chain)) = queue.take(memory, &mut self.segments) else { break };
                let mut bytes = [0; 64];
                for segment in &self.segments {
                    segment.read(&mut bytes);
                    if input.flag() {
                        segment.write(&bytes);
                    }
                }
                queue.give_back(chain.head, 0);
            }
            queue.publish();
            let _ = queue.want_kick();
        }
        // Asked as the device asks: after each use.
        let _ = memory.is_broken();
    }

    /// A message as a front-end would send it, more or less.
    fn sensible(&mut self, input: &mut Input) -> bool {
        let request = input.pick(&REQUESTS);
        let ring = input.below(4) as u32;
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        let longs = |longs: &[u64]| longs.iter().flat_map(|long| long.to_ne_bytes()).collect::<Vec<_>>();
        let mut fds = Vec::new();
        let payload = match request {
            number::SET_FEATURES => longs(&[input.pick(&[1 << 30, 1 << 32, 0x1_7000_0000, 0x1_3000_0000, 1 << 34])]),
            number::SET_PROTOCOL_FEATURES => longs(&[input.pick(&[0, 1, 1 << 3, 1 << 9, 1 << 15, 1 << 63])]),
            number::SET_VRING_NUM => words(&[ring, input.pick(&[8, 1, 2, 16, 128, 0, 3, 32768, 65536])]),
            number::SET_VRING_BASE => words(&[ring, input.pick(&[0, 1, 0xffff, 0x1_0000])]),
            number::GET_VRING_BASE => words(&[ring, 0]),
            number::SET_VRING_ENABLE => words(&[ring, u32::from(input.below(4) > 0)]),
            number::SET_VRING_ADDR => {
                let base = USER + (input.below(FILES) as u64) * 0x1_0000_0000 + (input.below(64) as u64) * 16;
                let [desc, used, avail] = [0, 0x400, 0x800].map(|part| base + part + u64::from(input.u8() & 0x3));
                let [desc, used, avail] =
                    if input.below(8) > 0 { [desc & !15, used & !3, avail & !1] } else { [desc, used, avail] };
                [words(&[ring, 0]), longs(&[desc, used, avail, 0])].concat()
            }
            number::SET_VRING_KICK | number::SET_VRING_CALL | number::SET_VRING_ERR => {
                let none = input.below(8) == 0;
                if !none {
                    fds.push(self.descriptor(input, 0));
                }
                longs(&[u64::from(ring) | u64::from(none) << 8])
            }
            number::ADD_MEM_REG => {
                let region = self.region(input, &mut fds);
                longs(&[&[0][..], &region].concat())
            }
            number::REM_MEM_REG => {
                let region = self.region(input, &mut Vec::new());
                longs(&[&[0][..], &region].concat())
            }
            number::SET_MEM_TABLE => {
                let count = input.below(4);
                let regions: Vec<u64> = (0..count).flat_map(|_| self.region(input, &mut fds)).collect();
                [words(&[count as u32, 0]), longs(&regions)].concat()
            }
            number::GET_CONFIG => words(&[input.pick(&[0, 4, 8, 9, u32::MAX]), input.pick(&[8, 4, 0, 1, u32::MAX]), 0]),
            _ => Vec::new(),
        };
        self.send(request, input.flag(), &payload, &fds)
    }

    /// A region: guest address, length, user address, offset in its file; the file goes into `fds`.
    fn region(&mut self, input: &mut Input, fds: &mut Vec<OwnedFd>) -> [u64; 4] {
        let index = input.below(FILES);
        let size = match input.below(8) {
            0..5 => 0x4000,
            5 => (input.below(64) as u64) << 12,
            6 => u64::from(input.u16()),
            _ => 1 << input.below(62),
        };
        if self.files.len() <= index {
            let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd");
            let made = if ftruncate(&file, size).is_ok() { size } else { 0 };
            self.files.push((file, made));
        }
        let file = index.min(self.files.len() - 1);
        let (fd, made) = &self.files[file];
        let fd = fd.try_clone().expect("dup");
        let (made, place) = (*made, file as u64 * 0x1_0000_0000);
        fds.push(if input.below(10) == 0 { self.descriptor(input, 1) } else { fd });
        let odd = input.below(8);
        [
            if odd == 1 { input.u64() } else { place },
            if odd == 2 { input.u64() } else { made },
            if odd == 3 { input.u64() } else { USER + place },
            if odd == 4 { input.u64() } else { 0 },
        ]
    }

    /// A descriptor, of the kind that is asked for or of another.
    fn descriptor(&mut self, input: &mut Input, kind: usize) -> OwnedFd {
        let kind = if input.below(4) > 0 { kind } else { input.below(6) };
        let open = |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).expect("open");
        match kind {
            0 => eventfd(input.u8().into(), EventfdFlags::CLOEXEC).expect("eventfd"),
            1 => memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd"),
            2 => open("/dev/null", OFlags::RDWR),
            3 => open("/proc/self/status", OFlags::RDONLY),
            4 => {
                let (ours, theirs) = rustix::pipe::pipe().expect("pipe");
                self.pipes.push(ours);
                theirs
            }
            _ => {
                let (ours, theirs) = UnixStream::pair().expect("socketpair");
                self.peers.push(ours);
                theirs.into()
            }
        }
    }

    /// A message that makes no sense.
    fn anything(&mut self, input: &mut Input) -> bool {
        let request = if input.below(8) > 0 { input.below(48) as u32 } else { input.u32() };
        let fds: Vec<OwnedFd> = (0..input.pick(&[0, 0, 1, 1, 2, 8])).map(|_| self.descriptor(input, 0)).collect();
        let payload = match input.below(3) {
            0 => (0..input.below(12)).flat_map(|_| u32::from(input.u8()).to_ne_bytes()).collect(),
            1 => vec![0; input.u16().into()],
            _ => {
                let len = input.below(300);
                input.bytes(len).to_vec()
            }
        };
        self.send(request, input.flag(), &payload, &fds)
    }

    /// Sends a message; whether it went out.
    fn send(&self, request: u32, need_reply: bool, payload: &[u8], fds: &[OwnedFd]) -> bool {
        let flags = VERSION | if need_reply { 8 } else { 0 };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        send(&self.socket, &encode(request, flags, payload), &borrowed).is_ok()
    }

    /// The session ends: everything that it was passed has to be closed with it.
    fn end(self) {
        let Self { socket, session, peers, .. } = self;
        drop(session);
        // What it never received goes with the socket.
        drop(socket);
        for peer in peers {
            assert!(!drain(&peer), "a descriptor was left open");
        }
    }
}

/// Reads all that is there; whether the other end is open.
fn drain(socket: &UnixStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, 1..)) => {}
            Err(Errno::AGAIN) => return true,
            _ => return false,
        }
    }
}
