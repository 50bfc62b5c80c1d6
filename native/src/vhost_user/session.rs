//! Job: what a front-end set up: features, memory, rings. One per attached front-end.
//! Before: `wire` delivers messages.
//! After: `device` runs the queues that this says are running, and resets or keeps connections as told.
//! Rules: sets up and tears down, moves no data. Anything that is not in the protocol ends the session with a reason.

use super::descriptor;
use super::wire::{End, Message, Wire};
use crate::ids::GuestCid;
use crate::packet::spec::{EVENT_QUEUE, RX_QUEUE};
use crate::virtio::memory::GuestMemory;
use crate::virtio::queue::{Layout, MAX_SIZE, Queue};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures as Protocol};

/// `VIRTIO_VSOCK_F_SEQPACKET` (virtio 1.3 section 5.10.3). Streams are implied as long as `VIRTIO_VSOCK_F_NO_IMPLIED_STREAM`
/// is not offered, which neither Linux's driver nor QEMU knows.
const SEQPACKET: u64 = 1 << 1;
/// `VIRTIO_F_INDIRECT_DESC` (virtio 1.3 section 6).
const INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;

/// Offered. Not: packed rings (not there yet), RING_RESET (QEMU's device class cannot do it),
/// ACCESS_PLATFORM (no IOMMU), LOG_ALL (QEMU does not migrate this device).
const FEATURES: u64 = SEQPACKET | VERSION_1 | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES;

/// Offered. Not: STATUS (QEMU never sends DRIVER_OK for this device, so it would tell nothing), BACKEND_REQ (QEMU
/// crashes on a configuration change of a stopped device), and whatever serves migration.
const PROTOCOL: Protocol =
    Protocol::MQ.union(Protocol::REPLY_ACK).union(Protocol::CONFIG).union(Protocol::RESET_DEVICE);
/// Offered to front-ends that do not reconnect. QEMU shares with it each region of memory once and never again: nothing
/// that another back-end could begin with.
const SLOTS: Protocol = Protocol::CONFIGURE_MEM_SLOTS;

/// Receive, transmit and event queue. QEMU keeps the last for itself, other front-ends pass it.
const QUEUES: usize = 3;
/// Regions accepted with CONFIGURE_MEM_SLOTS: as many as KVM guests of QEMU can have.
const MAX_SLOTS: u64 = 509;
/// Bytes of a region in a memory table, and of the count in front.
const REGION_LEN: usize = 32;
/// What helps a front-end whose memory does not get here.
pub const SHARE_MEMORY: &str = "Give QEMU share=on: \
    -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem";
/// The bit that says "no descriptor" in the payload of SET_VRING_KICK, _CALL and _ERR.
const NO_FD: u64 = 1 << 8;

/// One ring as far as it was set up.
#[derive(Debug, Default)]
pub struct Vring {
    /// Number of descriptors.
    size: u16,
    /// Addresses of descriptor table, available and used ring, in the front-end's address space.
    addresses: Option<(u64, u64, u64)>,
    /// Where to go on.
    base: u16,
    /// Switched on by SET_VRING_ENABLE.
    enabled: bool,
    /// Readable when the guest kicked. Its arrival starts the ring. Shared with the event loop, which has to forget it
    /// while it is still open.
    pub kick: Option<Arc<OwnedFd>>,
    /// Written to interrupt the guest.
    pub call: Option<OwnedFd>,
    /// The running queue.
    pub queue: Option<Queue>,
}

/// Writing to a call descriptor blocks, which the front-end must have seen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallBlocks;

impl Vring {
    /// Interrupts the guest; whether there is a way to.
    pub fn interrupt(&self) -> Result<bool, CallBlocks> {
        let Some(call) = &self.call else { return Ok(false) };
        // An eventfd that has no room has an interrupt in it already. EINTR is for those that wait, which it must not.
        match rustix::io::write(call, &1_u64.to_ne_bytes()) {
            Err(Errno::INTR) => Err(CallBlocks),
            _ => Ok(true),
        }
    }
}

/// What the device has to do after a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Rings may have started or stopped, or have other descriptors: look at them anew.
    Rings,
    /// The guest's driver starts from nothing: forget all connections, and look at the rings anew.
    Reset,
}

/// Everything that a front-end set up.
pub struct Session {
    /// The socket.
    pub wire: Wire,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The rings.
    pub vrings: [Vring; QUEUES],
    /// Features that the guest and the front-end took.
    features: u64,
    /// The guest's CID.
    guest_cid: GuestCid,
    /// Protocol features offered.
    protocol: Protocol,
    /// What GET_VRING_BASE said last, per ring. A start at another base is the start of a new driver.
    stopped_at: [Option<u16>; QUEUES],
}

/// The fixed-size fields at the front of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next 32-bit value.
    fn u32(&mut self) -> Result<u32, End> {
        let (value, rest) = self.0.split_first_chunk().ok_or_else(too_short)?;
        self.0 = rest;
        Ok(u32::from_ne_bytes(*value))
    }

    /// The next 64-bit value.
    fn u64(&mut self) -> Result<u64, End> {
        let (value, rest) = self.0.split_first_chunk().ok_or_else(too_short)?;
        self.0 = rest;
        Ok(u64::from_ne_bytes(*value))
    }
}

/// The error of a payload that ends too early.
fn too_short() -> End {
    End::Broken("its payload is too short".into())
}

/// The error of everything else.
fn broken<T>(reason: impl Into<String>) -> Result<T, End> {
    Err(End::Broken(reason.into()))
}

impl Session {
    /// A session in which nothing was said yet. A front-end that `reconnects` is to be able to say again
    /// at the next back-end what it says here.
    pub fn new(socket: OwnedFd, guest_cid: GuestCid, reconnects: bool) -> Self {
        Self {
            wire: Wire::new(socket),
            memory: GuestMemory::default(),
            vrings: Default::default(),
            features: 0,
            guest_cid,
            protocol: if reconnects { PROTOCOL } else { PROTOCOL.union(SLOTS) },
            stopped_at: [None; QUEUES],
        }
    }

    /// Acts on one message; `Ok(None)` when no whole one is there.
    pub fn step(&mut self) -> Result<Option<Effect>, End> {
        let Some(mut message) = self.wire.receive()? else { return Ok(None) };
        let Ok(request) = FrontendReq::try_from(message.request) else {
            return broken(format!("unknown request {}", message.request));
        };
        let named = |end| match end {
            End::Broken(reason) => End::Broken(format!("{request:?}: {reason}")),
            End::Closed => End::Closed,
        };
        let (effect, reply) = self.act(request, &mut message).map_err(named)?;
        match reply {
            Some(payload) => self.wire.reply(message.request, &payload)?,
            // Also where REPLY_ACK was not negotiated on this connection: a front-end that reconnects skips that.
            None if message.need_reply => self.wire.reply(message.request, &0_u64.to_ne_bytes())?,
            None => {}
        }
        Ok(Some(effect))
    }

    /// Carries out a request; the second value is the payload of its own reply.
    fn act(&mut self, request: FrontendReq, message: &mut Message) -> Result<(Effect, Option<Vec<u8>>), End> {
        let payload = std::mem::take(&mut message.payload);
        let mut fields = Fields(&payload);
        let number = |value: u64| Ok((Effect::None, Some(value.to_ne_bytes().to_vec())));
        let effect = match request {
            FrontendReq::GET_FEATURES => return number(FEATURES),
            FrontendReq::GET_PROTOCOL_FEATURES => return number(self.protocol.bits()),
            FrontendReq::GET_QUEUE_NUM => return number(QUEUES as u64),
            FrontendReq::GET_MAX_MEM_SLOTS => return number(MAX_SLOTS),
            FrontendReq::GET_CONFIG => return Ok((Effect::None, Some(self.config(&payload)?))),
            FrontendReq::SET_CONFIG => return broken("nothing in the configuration can be written"),
            FrontendReq::SET_FEATURES => self.set_features(fields.u64()?)?,
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let unknown = fields.u64()? & !self.protocol.bits();
                if unknown != 0 {
                    return broken(format!("protocol features {unknown:#x} were not offered"));
                }
                Effect::None
            }
            FrontendReq::SET_OWNER => {
                // A device that is plugged in anew says this first and shares its memory anew.
                self.stop_all();
                self.memory.clear();
                self.vrings = Default::default();
                self.stopped_at = [None; QUEUES];
                Effect::Reset
            }
            FrontendReq::RESET_OWNER | FrontendReq::RESET_DEVICE => {
                self.stop_all();
                for vring in &mut self.vrings {
                    (vring.enabled, vring.base) = (false, 0);
                }
                self.stopped_at = [None; QUEUES];
                Effect::Reset
            }
            FrontendReq::SET_MEM_TABLE => {
                let (count, _) = (fields.u32()? as usize, fields.u32()?);
                if fields.0.len() != count * REGION_LEN || message.fds.len() != count {
                    return broken(format!(
                        "{count} regions do not fit {} bytes and {} file descriptors",
                        payload.len(),
                        message.fds.len()
                    ));
                }
                self.memory.clear();
                for _ in 0..count {
                    self.add_region(&mut fields, message)?;
                }
                self.remap()?
            }
            FrontendReq::ADD_MEM_REG => {
                fields.u64()?;
                if self.memory.region_count() as u64 >= MAX_SLOTS {
                    return broken("too many memory regions");
                }
                self.add_region(&mut fields, message)?;
                self.remap()?
            }
            FrontendReq::REM_MEM_REG => {
                fields.u64()?;
                let (guest, len, user) = (fields.u64()?, fields.u64()?, fields.u64()?);
                if !self.memory.remove(guest, user, len) {
                    return broken(format!("no memory region of {len:#x} bytes at guest address {guest:#x}"));
                }
                self.remap()?
            }
            FrontendReq::GET_VRING_BASE => {
                let index = self.ring_index(fields.u32()?)?;
                if index != EVENT_QUEUE && self.vrings[index].addresses.is_none() {
                    // It ran at another back-end, if at all. Without an answer of use, QEMU takes the used index, which is right.
                    return Ok((Effect::None, Some(Vec::new())));
                }
                let base = self.stop(index);
                self.stopped_at[index] = Some(base);
                let reply = [(index as u32).to_ne_bytes(), u32::from(base).to_ne_bytes()].concat();
                return Ok((Effect::Rings, Some(reply)));
            }
            _ => self.set_vring(request, &mut fields, message)?,
        };
        Ok((effect, None))
    }

    /// The requests that set up one ring.
    fn set_vring(
        &mut self,
        request: FrontendReq,
        fields: &mut Fields<'_>,
        message: &mut Message,
    ) -> Result<Effect, End> {
        match request {
            FrontendReq::SET_VRING_NUM => {
                let (index, size) = (self.ring_index(fields.u32()?)?, fields.u32()?);
                match u16::try_from(size) {
                    Ok(size) if size <= MAX_SIZE && size.is_power_of_two() => self.vrings[index].size = size,
                    _ => return broken(format!("{size} is no size of a queue")),
                }
                Ok(Effect::None)
            }
            FrontendReq::SET_VRING_ADDR => {
                let (index, _flags) = (self.ring_index(fields.u32()?)?, fields.u32()?);
                let (desc, used, avail) = (fields.u64()?, fields.u64()?, fields.u64()?);
                self.vrings[index].addresses = Some((desc, avail, used));
                if self.vrings[index].queue.is_some() {
                    self.vrings[index].base = self.pause(index);
                }
                self.start_if_ready(index)?;
                Ok(Effect::Rings)
            }
            FrontendReq::SET_VRING_BASE => {
                let (index, base) = (self.ring_index(fields.u32()?)?, fields.u32()?);
                let Ok(base) = u16::try_from(base) else {
                    return broken(format!("{base} is no index of a split ring"));
                };
                self.vrings[index].base = base;
                // Where a paused guest goes on, the ring goes on as well. A driver that was loaded anew starts at 0.
                // QEMU before 10 has no other way to tell.
                let renewed = index != EVENT_QUEUE && self.stopped_at[index].is_some_and(|at| at != base);
                Ok(if renewed { Effect::Reset } else { Effect::None })
            }
            FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR => {
                let value = fields.u64()?;
                let index = self.ring_index(u32::from(value.to_le_bytes()[0]))?;
                let fd = if value & NO_FD != 0 { None } else { Some(eventfd(message)?) };
                match request {
                    FrontendReq::SET_VRING_KICK if fd.is_none() => {
                        return broken("queues that are polled are not supported");
                    }
                    FrontendReq::SET_VRING_KICK => {
                        self.vrings[index].kick = fd.map(Arc::new);
                        self.start_if_ready(index)?;
                    }
                    FrontendReq::SET_VRING_CALL => {
                        // An interrupt that went into the old descriptor after the front-end looked at it last would be
                        // lost, and with event indices no other would follow. One too many does no harm.
                        self.vrings[index].call = fd;
                        let told = self.vrings[index].interrupt();
                        told.or_else(|CallBlocks| broken("writing to its file descriptor blocks"))?;
                    }
                    // An error ends the session, which tells more than an event.
                    _ => {}
                }
                Ok(Effect::Rings)
            }
            FrontendReq::SET_VRING_ENABLE => {
                let (index, on) = (self.ring_index(fields.u32()?)?, fields.u32()?);
                self.vrings[index].enabled = on != 0;
                if on == 0 {
                    self.vrings[index].base = self.pause(index);
                } else {
                    self.start_if_ready(index)?;
                }
                Ok(Effect::Rings)
            }
            _ => broken("not supported"),
        }
    }

    /// SET_FEATURES. QEMU passes features that its machine sets on without regard to what was offered.
    fn set_features(&mut self, features: u64) -> Result<Effect, End> {
        let unknown = features & !FEATURES;
        if unknown != 0 {
            return broken(format!(
                "features {unknown:#x} were not offered (packed=on, iommu_platform=on and the like do not work with this device)"
            ));
        }
        self.features = features;
        Ok(Effect::None)
    }

    /// The reply to GET_CONFIG: the asked-for part of the 8 bytes of `guest_cid` (virtio 1.3 section 5.10.4).
    fn config(&self, payload: &[u8]) -> Result<Vec<u8>, End> {
        let mut fields = Fields(payload);
        let (offset, len, _flags) = (fields.u32()? as usize, fields.u32()? as usize, fields.u32()?);
        let config = self.guest_cid.as_u64().to_le_bytes();
        let Some(part) = offset.checked_add(len).and_then(|end| config.get(offset..end)) else {
            return broken(format!("{len} bytes at offset {offset}: the configuration has {} bytes", config.len()));
        };
        Ok([&payload[..12], part].concat())
    }

    /// Maps the next region of a table.
    fn add_region(&mut self, fields: &mut Fields<'_>, message: &mut Message) -> Result<(), End> {
        let (guest, len, user, offset) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let Some(fd) = message.fds.pop_front() else { return broken("a memory region without a file descriptor") };
        let described = |why| broken(format!("memory region of {len:#x} bytes at guest address {guest:#x}: {why}"));
        descriptor::is_memory(&fd).or_else(described)?;
        self.memory.add(guest, user, len, offset, File::from(fd)).or_else(broken)
    }

    /// Finds the rings in the changed memory. One whose memory is gone rests until that is back: a front-end may take a
    /// region away only to share it anew with another length.
    fn remap(&mut self) -> Result<Effect, End> {
        for index in 0..QUEUES {
            self.vrings[index].base = self.pause(index);
            if self.layout(index).is_some() {
                self.start_if_ready(index)?;
            }
        }
        Ok(Effect::Rings)
    }

    /// Checks the index of a ring.
    fn ring_index(&self, index: u32) -> Result<usize, End> {
        match usize::try_from(index) {
            Ok(index) if index < QUEUES => Ok(index),
            _ => broken(format!("there is no queue {index}")),
        }
    }

    /// Where a ring lies, if it can be found.
    fn layout(&self, index: usize) -> Option<Layout> {
        let vring = &self.vrings[index];
        let (desc, avail, used) = vring.addresses?;
        Layout::resolve(&self.memory, vring.size, desc, avail, used)
    }

    /// Starts a ring that has all it needs. Without protocol features there is no SET_VRING_ENABLE.
    fn start_if_ready(&mut self, index: usize) -> Result<(), End> {
        let vring = &self.vrings[index];
        let on = vring.enabled || self.features & PROTOCOL_FEATURES == 0;
        if !on || vring.kick.is_none() || vring.queue.is_some() || vring.addresses.is_none() || index == EVENT_QUEUE {
            return Ok(());
        }
        let Some(layout) = self.layout(index) else {
            if self.memory.region_count() == 0 {
                return broken(format!(
                    "no memory was shared. {SHARE_MEMORY} (should it have done so, and have reconnected: --reconnect is needed)"
                ));
            }
            return broken(format!("queue {index} does not lie in the guest's memory"));
        };
        let event_idx = self.features & EVENT_IDX != 0;
        let vring = &mut self.vrings[index];
        vring.queue = Some(Queue::new(layout, vring.base, event_idx, index == RX_QUEUE));
        Ok(())
    }

    /// Takes a ring out of service, to go on where it was.
    fn pause(&mut self, index: usize) -> u16 {
        let vring = &mut self.vrings[index];
        vring.queue.take().map_or(vring.base, |queue| queue.base())
    }

    /// Stops a ring: it starts again with a new kick descriptor.
    fn stop(&mut self, index: usize) -> u16 {
        let base = self.pause(index);
        self.vrings[index].kick = None;
        self.vrings[index].base = base;
        base
    }

    /// Stops all rings.
    fn stop_all(&mut self) {
        for index in 0..QUEUES {
            self.stop(index);
        }
    }

    /// Whether the guest's driver took message sockets.
    pub fn seqpacket(&self) -> bool {
        self.features & SEQPACKET != 0
    }

    /// Whether both rings that carry packets run.
    pub fn running(&self) -> bool {
        self.vrings[..EVENT_QUEUE].iter().all(|vring| vring.queue.is_some())
    }
}

/// The descriptor of a SET_VRING_KICK, _CALL or _ERR.
fn eventfd(message: &mut Message) -> Result<OwnedFd, End> {
    let Some(fd) = message.fds.pop_front() else { return broken("no file descriptor came with it") };
    descriptor::eventfd(fd).or_else(broken)
}
