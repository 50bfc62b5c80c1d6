//! The guest's side of the device: its memory and its rings. The trust boundary with the guest.

pub mod memory;
pub mod queue;
mod sigbus;
