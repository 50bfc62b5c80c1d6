//! The data plane of vhostvsock: one virtio-vsock device per VM, behind a vhost-user socket.
//!
//! The path of a byte from a guest to a host application, module by module:
//!
//! ```text
//! virtio::queue    a descriptor chain out of the TX ring
//! virtio::memory   where its bytes lie
//! packet::header   the first 44 of them
//! mux              which connection, and may it
//! device           several packets of it gathered
//! host::io         one sendmsg
//! ```
//!
//! The way back is the same list from the end. `vhost_user` sets the rings up, `ffi` is what Python calls.

pub mod device;
pub mod events;
pub mod faults;
pub mod ffi;
pub mod host;
pub mod ids;
pub mod mux;
pub mod packet;
pub mod slab;
pub mod stats;
pub mod sync;
pub mod timers;
pub mod vhost_user;
pub mod virtio;
