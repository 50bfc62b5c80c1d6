//! Plays QEMU and a guest's virtio-vsock driver through a real vhost-user socket: no VM, milliseconds.
//!
//! From the socket up:
//!
//! ```text
//! front_end   what QEMU says: features, memory, rings
//! memory      what it shares: memfd regions
//! ring        what the guest's virtio driver does with it: a split virtqueue
//! layout      how packets and buffers are cut into descriptors
//! guest       packets in and out
//! linux       sockets on top, with the credit rules of Linux
//! host        the other side: clients and listeners of the hybrid socket
//! ```
//!
//! The driver shares no code with the device that it tests.

pub mod deadline;
pub mod front_end;
pub mod guest;
pub mod header;
pub mod host;
pub mod layout;
pub mod linux;
pub mod memory;
pub mod ring;
