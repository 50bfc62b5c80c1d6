//! Job: the front-end's side of the vhost-user socket: what QEMU says, in QEMU's order, or message by message.
//! Before: a socket that leads to a back-end.
//! After: features are agreed on, memory is shared, rings run.
//! Rules: every reply has a deadline. A back-end that throws the front-end out gives an error, not a panic: tests ask for it.

pub mod message;

use crate::deadline::PATIENCE;
use crate::memory::Region;
use crate::ring::Ring;
use message::{NEED_REPLY, VERSION, encode, feature, receive, request, send};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connected front-end.
#[derive(Debug)]
pub struct FrontEnd {
    /// The socket.
    pub socket: UnixStream,
    /// Features that the back-end offers.
    pub offered: u64,
    /// Features that were agreed on.
    pub features: u64,
    /// Protocol features that were agreed on.
    pub protocol: u64,
}

impl FrontEnd {
    /// Connects to a back-end that listens at `path`.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::from_stream(UnixStream::connect(path)?)
    }

    /// Talks through a connected socket.
    pub fn from_stream(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, offered: 0, features: 0, protocol: 0 })
    }

    /// The same guest's front-end at another back-end, as QEMU's chardev reconnects: nothing is negotiated anew.
    pub fn reconnect(&mut self, socket: UnixStream) -> io::Result<()> {
        let Self { features, protocol, offered, .. } = *self;
        *self = Self { features, protocol, offered, ..Self::from_stream(socket)? };
        Ok(())
    }

    // ---- message by message ----

    /// Sends a request and waits for nothing.
    pub fn tell(&self, number: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(&self.socket, &encode(number, VERSION, payload), fds)
    }

    /// Sends a request that has a reply of its own; the reply's payload.
    pub fn ask(&self, number: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.tell(number, payload, &[])?;
        receive(&self.socket, number)
    }

    /// Sends a request that has a number for its reply.
    pub fn ask_number(&self, number: u32) -> io::Result<u64> {
        let reply = self.ask(number, &[])?;
        match <[u8; 8]>::try_from(&reply[..]) {
            Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} bytes in place of a number", reply.len())))
            }
        }
    }

    /// Sends a request without a reply of its own; waits until it was acted on, where the back-end can say so.
    pub fn set(&self, number: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if self.protocol & feature::PROTOCOL_REPLY_ACK == 0 {
            return self.tell(number, payload, fds);
        }
        send(&self.socket, &encode(number, VERSION | NEED_REPLY, payload), fds)?;
        match receive(&self.socket, number)?.as_slice() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Ok(()),
            refused => Err(io::Error::other(format!("request {number} was refused: {refused:?}"))),
        }
    }

    /// A request about one ring and a number.
    pub fn set_ring(&self, number: u32, index: u32, value: u32) -> io::Result<()> {
        self.set(number, &words(&[index, value]), &[])
    }

    /// A request that passes a descriptor for a ring.
    pub fn set_ring_fd(&self, number: u32, index: u64, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match fd {
            Some(fd) => self.set(number, &index.to_ne_bytes(), &[fd]),
            None => self.set(number, &(index | 1 << 8).to_ne_bytes(), &[]),
        }
    }

    /// Waits until the back-end acted on all that was said before.
    pub fn sync(&self) -> io::Result<()> {
        self.ask_number(request::GET_FEATURES).map(|_| ())
    }

    /// Whether the back-end closed the socket, within the usual patience.
    pub fn is_thrown_out(&self) -> bool {
        use std::io::Read;
        loop {
            match (&self.socket).read(&mut [0; 64]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }

    // ---- as QEMU does it ----

    /// Features, protocol features, ownership, up to the moment when the device waits for a guest. Takes what is
    /// offered, but no more than the two masks have.
    pub fn negotiate(&mut self, features: u64, protocol: u64) -> io::Result<()> {
        self.offered = self.ask_number(request::GET_FEATURES)?;
        if self.offered & features & feature::PROTOCOL_FEATURES != 0 {
            let offered = self.ask_number(request::GET_PROTOCOL_FEATURES)?;
            self.tell(request::SET_PROTOCOL_FEATURES, &(offered & protocol).to_ne_bytes(), &[])?;
            self.protocol = offered & protocol;
            if self.protocol & feature::PROTOCOL_MQ != 0 {
                self.ask_number(request::GET_QUEUE_NUM)?;
            }
            if self.protocol & feature::PROTOCOL_CONFIGURE_MEM_SLOTS != 0 {
                self.ask_number(request::GET_MAX_MEM_SLOTS)?;
            }
        }
        self.set(request::SET_OWNER, &[], &[])?;
        self.offered = self.ask_number(request::GET_FEATURES)?;
        self.features = self.offered & features;
        Ok(())
    }

    /// The CID in the configuration space.
    pub fn guest_cid(&self) -> io::Result<u64> {
        let reply = self.config(0, 8)?;
        let bytes = <[u8; 8]>::try_from(&reply[..]).map_err(|_| io::Error::other("a short configuration"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A part of the configuration space.
    pub fn config(&self, offset: u32, len: u32) -> io::Result<Vec<u8>> {
        let mut payload = words(&[offset, len, 0]);
        payload.resize(12 + len as usize, 0);
        let mut reply = self.ask(request::GET_CONFIG, &payload)?;
        if reply.len() < 12 || reply[..12] != payload[..12] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the configuration came as {reply:?}")));
        }
        Ok(reply.split_off(12))
    }

    /// Shares all regions, one by one or as a table, as was agreed on.
    pub fn share(&self, regions: &[&Region]) -> io::Result<()> {
        if self.protocol & feature::PROTOCOL_CONFIGURE_MEM_SLOTS != 0 {
            return regions.iter().try_for_each(|region| self.add_region(region));
        }
        self.share_table(regions)
    }

    /// SET_MEM_TABLE.
    pub fn share_table(&self, regions: &[&Region]) -> io::Result<()> {
        let mut payload = words(&[u32::try_from(regions.len()).expect("few"), 0]);
        let mut fds = Vec::new();
        for region in regions {
            payload.extend(describe(region));
            fds.push(region.file.as_fd());
        }
        self.set(request::SET_MEM_TABLE, &payload, &fds)
    }

    /// ADD_MEM_REG.
    pub fn add_region(&self, region: &Region) -> io::Result<()> {
        let payload = [vec![0; 8], describe(region)].concat();
        self.set(request::ADD_MEM_REG, &payload, &[region.file.as_fd()])
    }

    /// REM_MEM_REG, with the descriptor that QEMU passes though it means nothing.
    pub fn remove_region(&self, region: &Region) -> io::Result<()> {
        let payload = [vec![0; 8], describe(region)].concat();
        self.set(request::REM_MEM_REG, &payload, &[region.file.as_fd()])
    }

    /// Sets a ring up and starts it at `base`. Without protocol features it runs from here on.
    pub fn start_ring(&self, index: u32, ring: &Ring, base: u16) -> io::Result<()> {
        self.set_ring(request::SET_VRING_NUM, index, u32::from(ring.size))?;
        self.set_ring(request::SET_VRING_BASE, index, u32::from(base))?;
        self.set_ring_addresses(index, ring.desc.user(), ring.avail.user(), ring.used.user())?;
        self.set_ring_fd(request::SET_VRING_KICK, u64::from(index), Some(ring.kick.as_fd()))?;
        self.set_ring_fd(request::SET_VRING_CALL, u64::from(index), Some(ring.call.as_fd()))
    }

    /// SET_VRING_ADDR.
    pub fn set_ring_addresses(&self, index: u32, desc: u64, avail: u64, used: u64) -> io::Result<()> {
        let mut payload = words(&[index, 0]);
        for address in [desc, used, avail, 0] {
            payload.extend_from_slice(&address.to_ne_bytes());
        }
        self.set(request::SET_VRING_ADDR, &payload, &[])
    }

    /// Switches a ring on or off.
    pub fn enable_ring(&self, index: u32, on: bool) -> io::Result<()> {
        if self.features & feature::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.set_ring(request::SET_VRING_ENABLE, index, u32::from(on))
    }

    /// Stops a ring; where it was.
    pub fn stop_ring(&self, index: u32) -> io::Result<u16> {
        let reply = self.ask(request::GET_VRING_BASE, &words(&[index, 0]))?;
        match reply[..] {
            [a, b, c, d, e, f, 0, 0] if u32::from_ne_bytes([a, b, c, d]) == index => Ok(u16::from_ne_bytes([e, f])),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("GET_VRING_BASE gave {reply:?}"))),
        }
    }

    /// SET_FEATURES with what was agreed on.
    pub fn set_features(&self) -> io::Result<()> {
        self.set(request::SET_FEATURES, &self.features.to_ne_bytes(), &[])
    }

    /// RESET_DEVICE, as QEMU from 9 sends it at each reset of the device.
    pub fn reset_device(&self) -> io::Result<()> {
        self.set(request::RESET_DEVICE, &[], &[])
    }
}

/// 32-bit values in a row.
pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// A region as messages describe it.
pub fn describe(region: &Region) -> Vec<u8> {
    [region.spec.guest, region.spec.len as u64, region.user(), region.spec.offset]
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}
