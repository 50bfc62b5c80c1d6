//! Job: the names of the two ends of a connection, each a type of its own, valid by construction.
//! Before: raw integers out of packet headers, the configuration and the handshake.
//! After: `mux` and `device`, which accept only these types.
//! Rules: no I/O; every number's source is named.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// The host's own CID (`VMADDR_CID_HOST`, virtio 1.3 section 5.10.4).
pub const HOST_CID: u64 = 2;

/// The CID of a guest: 3 to 0xffff_fffe.
///
/// 0 and 1 are reserved, 2 is the host and 0xffff_ffff means "any"; the upper 32 bits are
/// reserved and zero (virtio 1.3 section 5.10.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestCid(u32);

impl GuestCid {
    /// Checks `raw`; `None` if no guest may have it.
    pub fn new(raw: u64) -> Option<Self> {
        match u32::try_from(raw) {
            Ok(cid) if cid > 2 && cid != u32::MAX => Some(Self(cid)),
            _ => None,
        }
    }

    /// As it stands in headers and in the configuration space.
    pub fn as_u64(self) -> u64 {
        u64::from(self.0)
    }
}

impl fmt::Display for GuestCid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A port of a guest application. Any 32-bit value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPort(pub u32);

/// A port of a host application. Any 32-bit value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort(pub u32);

/// What tells one connection of a guest from another: Linux looks a packet of a connection up by
/// both ports, without its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnKey {
    /// The guest's end.
    pub guest: GuestPort,
    /// The host's end.
    pub host: HostPort,
}

impl std::hash::Hash for ConnKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64((u64::from(self.guest.0) << 32) | u64::from(self.host.0));
    }
}

/// A hasher of one multiplication for the two ports of a [`ConnKey`].
///
/// A guest that chooses its ports to collide slows down its own device thread and nobody else's,
/// so a keyed hash would cost every packet and protect no one.
#[derive(Default)]
pub struct PortHasher(u64);

impl Hasher for PortHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 divided by the golden ratio, rounded to odd: spreads runs of ports over the table.
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// The `BuildHasher` of [`PortHasher`].
pub type PortHash = BuildHasherDefault<PortHasher>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_cids_belong_to_no_guest() {
        for raw in [0, 1, 2, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
            assert_eq!(GuestCid::new(raw), None, "{raw:#x}");
        }
        for raw in [3, 42, 0xffff_fffe] {
            assert_eq!(GuestCid::new(raw).map(GuestCid::as_u64), Some(raw));
        }
    }
}
