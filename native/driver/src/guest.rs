//! Job: a guest below its sockets: it boots, posts receive buffers, sends and receives packets.
//! Before: a test or `linux` has packets to send.
//! After: they are in the device's hands, and those of the device in ours.
//! Rules: knows nothing of connections. Buffers are filled with a pattern when posted, so that lies about lengths show.

use crate::deadline::Deadline;
use crate::front_end::FrontEnd;
use crate::front_end::message::feature;
use crate::header::{HOST_CID, Header, LEN, MAX_PAYLOAD, STREAM};
use crate::layout::{RxLayout, TxLayout};
use crate::memory::{Memory, RegionSpec, Window};
use crate::ring::{Mode, Piece, Ring};
use std::io;
use std::os::fd::AsFd;

/// The receive queue.
pub const RX: u32 = 0;
/// The transmit queue.
pub const TX: u32 = 1;
/// Bytes between the pieces of a packet, so that no piece goes on where the one before ends.
const GAP: usize = 24;
/// Memory of each packet in the TX ring: the largest payload and the gaps of many pieces.
const ARENA: usize = LEN + MAX_PAYLOAD + 1024 * GAP;
/// What receive buffers are filled with.
pub const PATTERN: u8 = 0xa5;

/// What kind of guest it is to be.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Queues that the front-end passes on: 2, or 3 with the event queue.
    pub queues: u32,
    /// Features to take if they are offered.
    pub features: u64,
    /// Protocol features to take if they are offered.
    pub protocol: u64,
    /// Memory. The rings lie in the first region, buffers wherever there is room.
    pub regions: Vec<RegionSpec>,
    /// Receive buffers.
    pub rx: RxLayout,
    /// How packets are cut.
    pub tx: TxLayout,
    /// Receive buffers that are posted at most; as many as fit if more.
    pub rx_buffers: usize,
    /// How it waits.
    pub mode: Mode,
    /// Receive buffers are filled with [`PATTERN`].
    pub fill: bool,
}

impl Default for Setup {
    /// A guest of today on QEMU 10.
    fn default() -> Self {
        Self {
            ring_size: 128,
            queues: 2,
            features: feature::SEQPACKET
                | feature::VERSION_1
                | feature::INDIRECT_DESC
                | feature::EVENT_IDX
                | feature::PROTOCOL_FEATURES,
            protocol: feature::PROTOCOL_MQ
                | feature::PROTOCOL_REPLY_ACK
                | feature::PROTOCOL_CONFIG
                | feature::PROTOCOL_RESET_DEVICE
                | feature::PROTOCOL_CONFIGURE_MEM_SLOTS,
            regions: vec![RegionSpec::new(0, 1 << 20), RegionSpec::new(1 << 32, 64 << 20)],
            rx: RxLayout::linux(),
            tx: TxLayout::linux(),
            rx_buffers: usize::MAX,
            mode: Mode::Waiting,
            fill: true,
        }
    }
}

/// A packet out of a receive buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A packet laid out in memory, to be sent again and again.
#[derive(Debug)]
pub struct Prepared {
    /// Where its header is.
    header: Window,
    /// All of it as descriptors.
    pieces: Vec<Piece>,
}

/// A guest that runs.
#[derive(Debug)]
pub struct Guest {
    /// Its virtual machine monitor.
    pub front: FrontEnd,
    /// Its memory.
    pub memory: Memory,
    /// The receive queue.
    pub rx: Ring,
    /// The transmit queue.
    pub tx: Ring,
    /// The event queue, if the front-end passes it.
    pub event: Option<Ring>,
    /// What it was asked to be.
    pub setup: Setup,
    /// Its CID.
    pub cid: u64,
    /// Receive buffers, by token.
    buffers: Vec<Vec<Window>>,
    /// The same as descriptors.
    postings: Vec<Vec<Piece>>,
    /// Buffers that are not posted.
    spare: Vec<u32>,
    /// Memory for packets, by token.
    arenas: Vec<Window>,
    /// Arenas without a packet.
    free_arenas: Vec<u32>,
}

impl Guest {
    /// Negotiates, shares memory, starts the rings and posts receive buffers.
    pub fn boot(front: FrontEnd, setup: Setup) -> io::Result<Self> {
        let mut guest = Self::prepare(front, setup)?;
        guest.front.share(&guest.memory.regions().map(|region| &**region).collect::<Vec<_>>())?;
        guest.start([0; 2])?;
        guest.post_all();
        Ok(guest)
    }

    /// Negotiates and makes memory and rings, but starts nothing.
    pub fn prepare(mut front: FrontEnd, setup: Setup) -> io::Result<Self> {
        front.negotiate(setup.features, setup.protocol)?;
        let cid = front.guest_cid()?;
        let mut memory = Memory::new(&setup.regions)?;
        let [mut rx, mut tx] = [0; 2].map(|_| Ring::new(&mut memory, setup.ring_size));
        let event = (setup.queues > 2).then(|| Ring::new(&mut memory, setup.ring_size));
        for ring in [&mut rx, &mut tx] {
            ring.mode = setup.mode;
            ring.set_features(front.features & feature::EVENT_IDX != 0, front.features & feature::INDIRECT_DESC != 0);
        }
        let pieces = setup.rx.lengths();
        let per_buffer = if rx.indirect { 1 } else { pieces.len() };
        let count = setup.rx_buffers.min(usize::from(setup.ring_size) / per_buffer);
        let buffers: Vec<Vec<Window>> =
            (0..count).map(|_| pieces.iter().map(|&len| memory.alloc(len, 1)).collect()).collect();
        let postings = buffers.iter().map(|buffer| buffer.iter().map(piece).collect()).collect();
        let arenas: Vec<Window> = (0..setup.ring_size).map(|_| memory.alloc(ARENA, 1)).collect();
        let spare = (0..u32::try_from(buffers.len()).expect("few")).rev().collect();
        let free_arenas = (0..u32::from(setup.ring_size)).rev().collect();
        Ok(Self { front, memory, rx, tx, event, setup, cid, buffers, postings, spare, arenas, free_arenas })
    }

    // ---- life ----

    /// Starts the rings at the given bases.
    pub fn start(&mut self, bases: [u16; 2]) -> io::Result<()> {
        self.front.set_features()?;
        self.front.start_ring(RX, &self.rx, bases[0])?;
        self.front.start_ring(TX, &self.tx, bases[1])?;
        if let Some(event) = &self.event {
            self.front.start_ring(2, event, 0)?;
        }
        for index in 0..self.setup.queues {
            self.front.enable_ring(index, true)?;
        }
        self.front.sync()
    }

    /// Stops the rings, as `stop` in QEMU does; where they were.
    pub fn stop(&mut self) -> io::Result<[u16; 2]> {
        for index in 0..self.setup.queues {
            self.front.enable_ring(index, false)?;
        }
        if self.event.is_some() {
            self.front.stop_ring(2)?;
        }
        Ok([self.front.stop_ring(RX)?, self.front.stop_ring(TX)?])
    }

    /// The driver is loaded anew: rings from nothing, at base 0. The rings must be stopped.
    pub fn renew(&mut self) -> io::Result<()> {
        self.rx.clear();
        self.tx.clear();
        self.spare = (0..u32::try_from(self.buffers.len()).expect("few")).rev().collect();
        self.free_arenas = (0..u32::from(self.setup.ring_size)).rev().collect();
        for ring in [&mut self.rx, &mut self.tx] {
            ring.set_features(ring.event_idx, ring.indirect);
        }
        self.start([0; 2])?;
        self.post_all();
        Ok(())
    }

    // ---- receiving ----

    /// Posts one receive buffer; `false` if all are posted.
    pub fn post(&mut self) -> bool {
        let Some(&token) = self.spare.last() else { return false };
        if self.setup.fill {
            self.buffers[token as usize].iter().for_each(|piece| piece.fill(PATTERN));
        }
        if !self.rx.add(&self.postings[token as usize], true, token) {
            return false;
        }
        self.spare.pop();
        true
    }

    /// Posts all receive buffers and kicks if the device wants that.
    pub fn post_all(&mut self) {
        let mut any = false;
        while self.post() {
            any = true;
        }
        if any {
            self.rx.publish_and_kick();
        }
    }

    /// Takes one packet, if there is one. Its buffer is spare then.
    pub fn take(&mut self) -> Option<Packet> {
        let used = self.rx.pop()?;
        self.spare.push(used.token);
        let buffer = &self.buffers[used.token as usize];
        let total: usize = buffer.iter().map(Window::len).sum();
        let len = used.len as usize;
        assert!(len >= LEN, "the device used a receive buffer with {len} bytes, less than a header");
        assert!(len <= total, "the device says that it wrote {len} bytes into {total}");
        let mut bytes = Vec::with_capacity(len);
        for piece in buffer {
            let part = piece.len().min(len - bytes.len());
            let start = bytes.len();
            bytes.resize(start + part, 0);
            piece.read(0, &mut bytes[start..]);
        }
        let payload = bytes.split_off(LEN);
        let header = Header::from_bytes(&bytes.try_into().expect("split there"));
        // Linux drops what claims more than was written; less is as wrong.
        assert_eq!(header.len as usize, payload.len(), "length in the header and length used differ: {header:?}");
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, self.cid), "{header:?}");
        Some(Packet { header, payload })
    }

    /// Takes one packet and looks at its header only, which must lie in one piece. For the benchmark, whose guest
    /// leaves the payload where it is.
    pub fn take_header(&mut self) -> Option<Header> {
        let used = self.rx.pop()?;
        self.spare.push(used.token);
        let mut bytes = [0; LEN];
        self.buffers[used.token as usize][0].read(0, &mut bytes);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.len as usize + LEN, used.len as usize, "{header:?}");
        Some(header)
    }

    /// Gives spare buffers back once half of them are, as Linux does.
    pub fn refill(&mut self) {
        if self.spare.len() * 2 >= self.buffers.len() {
            self.post_all();
        }
    }

    /// Waits for a packet; `None` if the deadline comes first. Buffers are posted again at once.
    pub fn recv_by(&mut self, deadline: Deadline) -> Option<Packet> {
        loop {
            self.reclaim();
            if let Some(packet) = self.take() {
                self.post_all();
                return Some(packet);
            }
            if !self.wait(deadline) {
                return None;
            }
        }
    }

    /// Waits for a packet, which must come.
    #[track_caller]
    pub fn recv(&mut self) -> Packet {
        let packet = self.recv_by(Deadline::patient());
        packet.expect("the device sent no packet")
    }

    /// Waits for a packet with operation `op`, which must be the next one.
    #[track_caller]
    pub fn expect(&mut self, op: u16) -> Packet {
        let packet = self.recv();
        assert_eq!(packet.header.op, op, "{:?}", packet.header);
        packet
    }

    /// Waits until the device used something of either ring; `false` if the deadline came first.
    pub fn wait(&mut self, deadline: Deadline) -> bool {
        if self.setup.mode == Mode::Polling {
            return crate::ring::spin(deadline, || self.rx.has_used() || self.tx.has_used());
        }
        loop {
            let ready = self.rx.arm() | self.tx.arm();
            let news = ready || deadline.wait_readable(&[self.rx.call.as_fd(), self.tx.call.as_fd()]);
            self.rx.disarm();
            self.tx.disarm();
            if self.rx.has_used() || self.tx.has_used() {
                return true;
            }
            if !news {
                return false;
            }
        }
    }

    // ---- sending ----

    /// Takes sent packets back from the device.
    pub fn reclaim(&mut self) {
        while let Some(used) = self.tx.pop() {
            assert_eq!(used.len, 0, "the device says that it wrote into a packet of ours");
            self.free_arenas.push(used.token);
        }
    }

    /// Puts a packet into the ring in the usual layout; `false` if there is no room now. Not published.
    pub fn put(&mut self, header: &Header, payload: &[u8]) -> bool {
        let lengths = self.setup.tx.lengths(payload.len());
        self.put_as(header, payload, &lengths)
    }

    /// Puts a packet into the ring, cut into pieces of these lengths, backwards in memory and with gaps between them.
    pub fn put_as(&mut self, header: &Header, payload: &[u8], lengths: &[usize]) -> bool {
        self.reclaim();
        if self.free_arenas.is_empty() || !self.tx.fits(lengths.len()) {
            return false;
        }
        let bytes = [&header.to_bytes()[..], payload].concat();
        let token = self.free_arenas.pop().expect("checked");
        let arena = &self.arenas[token as usize];
        let mut end = arena.len();
        let mut at = 0;
        let mut pieces = Vec::with_capacity(lengths.len());
        for &len in lengths {
            let window = arena.part(end - len, len);
            end = (end - len).saturating_sub(GAP);
            let part = &bytes[at.min(bytes.len())..(at + len).min(bytes.len())];
            window.write(0, part);
            at += len;
            pieces.push(piece(&window));
        }
        assert!(self.tx.add(&pieces, false, token));
        true
    }

    /// Lays out one packet of these lengths, the first of which is the header's, in the memory of each token.
    pub fn lay_out(&self, lengths: &[usize]) -> Vec<Prepared> {
        let lay = |arena: &Window| {
            let mut at = 0;
            let mut windows = Vec::new();
            for &len in lengths {
                windows.push(arena.part(at, len));
                at += len + GAP;
            }
            Prepared { header: windows[0].clone(), pieces: windows.iter().map(piece).collect() }
        };
        self.arenas.iter().map(lay).collect()
    }

    /// Puts a packet into the ring that was laid out before: only its header is written. `false` if there is no room.
    pub fn put_prepared(&mut self, header: &Header, prepared: &[Prepared]) -> bool {
        let Some(&token) = self.free_arenas.last() else { return false };
        let packet = &prepared[token as usize];
        if !self.tx.fits(packet.pieces.len()) {
            return false;
        }
        packet.header.write(0, &header.to_bytes());
        self.free_arenas.pop();
        self.tx.add(&packet.pieces, false, token)
    }

    /// Sends a packet, waiting for room if need be.
    #[track_caller]
    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        let lengths = self.setup.tx.lengths(payload.len());
        self.send_as(header, payload, &lengths);
    }

    /// Sends a packet cut into pieces of these lengths, waiting for room if need be.
    #[track_caller]
    pub fn send_as(&mut self, header: &Header, payload: &[u8], lengths: &[usize]) {
        let deadline = Deadline::patient();
        while !self.put_as(header, payload, lengths) {
            assert!(self.tx.wait(deadline), "the device returned no descriptors of the TX ring");
        }
        self.tx.publish_and_kick();
    }

    /// Waits until the device returned everything that was sent.
    #[track_caller]
    pub fn flush(&mut self) {
        let deadline = Deadline::patient();
        loop {
            self.reclaim();
            if self.tx.outstanding() == 0 {
                return;
            }
            let left = self.tx.outstanding();
            assert!(self.tx.wait(deadline), "the device kept {left} chains of the TX ring");
        }
    }

    /// A header of this guest, all but operation and credit.
    pub fn header(&self, op: u16, src_port: u32, dst_port: u32) -> Header {
        Header {
            src_cid: self.cid,
            dst_cid: HOST_CID,
            src_port,
            dst_port,
            type_: STREAM,
            op,
            buf_alloc: 256 * 1024,
            ..Header::default()
        }
    }

    /// Sends a packet without payload.
    #[track_caller]
    pub fn say(&mut self, op: u16, src_port: u32, dst_port: u32) {
        let header = self.header(op, src_port, dst_port);
        self.send(&header, &[]);
    }

    /// Sends payload on a connection, without regard to credit.
    #[track_caller]
    pub fn say_data(&mut self, src_port: u32, dst_port: u32, payload: &[u8]) {
        let mut header = self.header(crate::header::op::RW, src_port, dst_port);
        header.len = u32::try_from(payload.len()).expect("a packet");
        self.send(&header, payload);
    }
}

/// A window as the ring wants it.
pub fn piece(window: &Window) -> Piece {
    Piece { addr: window.guest(), len: u32::try_from(window.len()).expect("smaller than 4 GiB") }
}
