//! The host's side of the device: sockets of host applications.

pub mod handshake;
pub mod io;
mod lengths;
pub mod messages;
pub mod room;
pub mod stream;
