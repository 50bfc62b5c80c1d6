//! The vhost-user protocol: what QEMU says on the socket that it attached with.

pub mod session;
pub mod wire;
