//! The vhost-user protocol: what QEMU says on the socket that it attached with.

mod descriptor;
pub mod session;
pub mod wire;
