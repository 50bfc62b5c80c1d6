//! Job: 44 bytes to a header and back.
//! Before: `virtio` copied the bytes out of guest memory, once, so that the guest cannot change them under us.
//! After: `mux` decides on the values.
//! Rules: every value parses; unknown ones stay as they are, for `mux` to judge.

use super::spec::HEADER_LEN;

/// `struct virtio_vsock_hdr` (virtio 1.3 section 5.10.6), in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// CID of the sender.
    pub src_cid: u64,
    /// CID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload behind the header.
    pub len: u32,
    /// Kind of socket; see [`super::Type`].
    pub type_: u16,
    /// Operation; see [`super::Op`].
    pub op: u16,
    /// Flags; their meaning depends on the operation.
    pub flags: u32,
    /// The sender's receive window, in bytes.
    pub buf_alloc: u32,
    /// How many bytes the sender's application took so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the little-endian wire form.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut at = Reader { bytes, pos: 0 };
        Self {
            src_cid: u64::from_le_bytes(at.take()),
            dst_cid: u64::from_le_bytes(at.take()),
            src_port: u32::from_le_bytes(at.take()),
            dst_port: u32::from_le_bytes(at.take()),
            len: u32::from_le_bytes(at.take()),
            type_: u16::from_le_bytes(at.take()),
            op: u16::from_le_bytes(at.take()),
            flags: u32::from_le_bytes(at.take()),
            buf_alloc: u32::from_le_bytes(at.take()),
            fwd_cnt: u32::from_le_bytes(at.take()),
        }
    }

    /// Writes the little-endian wire form.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.type_.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// Takes fixed-size pieces off the front of a header.
struct Reader<'a> {
    /// The whole header.
    bytes: &'a [u8; HEADER_LEN],
    /// Bytes taken so far.
    pos: usize,
}

impl Reader<'_> {
    /// The next `N` bytes.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut piece = [0; N];
        piece.copy_from_slice(&self.bytes[self.pos..self.pos + N]);
        self.pos += N;
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_stand_where_the_standard_puts_them() {
        let mut bytes = [0_u8; HEADER_LEN];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(i).unwrap();
        }
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.src_port, 0x1312_1110);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!(header.type_, 0x1d1c);
        assert_eq!(header.op, 0x1f1e);
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!(header.buf_alloc, 0x2726_2524);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
    }

    proptest! {
        #[test]
        fn parse_and_emit_are_inverse(bytes in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform12(any::<u8>())) {
            let mut all = [0; HEADER_LEN];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::parse(&all).to_bytes(), all);
        }
    }
}
