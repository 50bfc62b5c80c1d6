//! Job: any 44 bytes as a packet's header.
//! Before: a fuzzer.
//! After: nothing was lost, and the driver's own parser, written for itself, sees the same.

use vhostvsock_native::packet::spec::HEADER_LEN;
use vhostvsock_native::packet::{Header, Op, Type};
use vsock_driver::header as driver;

/// Reads, compares, writes.
pub fn run(data: &[u8]) {
    let mut bytes = [0; HEADER_LEN];
    let len = data.len().min(HEADER_LEN);
    bytes[..len].copy_from_slice(&data[..len]);
    let header = Header::parse(&bytes);
    assert_eq!(header.to_bytes(), bytes);
    let second = driver::Header::from_bytes(&bytes);
    assert_eq!((header.src_cid, header.dst_cid), (second.src_cid, second.dst_cid));
    assert_eq!((header.src_port, header.dst_port), (second.src_port, second.dst_port));
    assert_eq!((header.len, header.flags), (second.len, second.flags));
    assert_eq!((header.type_, header.op), (second.type_, second.op));
    assert_eq!((header.buf_alloc, header.fwd_cnt), (second.buf_alloc, second.fwd_cnt));
    assert_eq!(Op::from_wire(header.op).map(|op| op as u16), Some(header.op).filter(|op| (1..=7).contains(op)));
    assert_eq!(
        Type::from_wire(header.type_).map(|kind| kind as u16),
        Some(header.type_).filter(|n| (1..=2).contains(n))
    );
}
