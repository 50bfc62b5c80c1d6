//! Stream sockets of a Linux guest, with its rules of credit (net/vmw_vsock/virtio_transport_common.c).

pub mod kernel;
pub mod socket;

pub use kernel::{Kernel, SocketId};
pub use socket::{Ended, Received, Rules, State};
