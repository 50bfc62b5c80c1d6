//! The wire format: what a packet of virtio-vsock looks like, and nothing of what it does.

pub mod header;
pub mod spec;

pub use header::Header;
pub use spec::{Op, Type};
