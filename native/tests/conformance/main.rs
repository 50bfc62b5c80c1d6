//! The device as a guest and host applications see it: real sockets, rings, memory and eventfds, no VM.
//!
//! Tests that need a process of their own stand beside this one: `limits`, `quiet`.

mod credit;
mod fairness;
mod features;
mod from_guest;
mod from_host;
mod hostile;
mod layouts;
mod lifecycle;
mod memory;
mod notifications;
mod properties;
mod rig;
mod streams;
