//! Stream and message sockets of a Linux guest, with its rules of credit (net/vmw_vsock/virtio_transport_common.c).

pub mod kernel;
pub mod messages;
pub mod socket;

pub use kernel::{Kernel, SocketId};
pub use messages::{Message, TooLong};
pub use socket::{Ended, Received, Rules, State};
