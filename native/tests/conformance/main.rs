//! The device as a guest and host applications see it: real sockets, rings, memory and eventfds, no VM.
//!
//! `PROPTEST_CASES=25600` makes every property test a hundred times as long.
//!
//! Tests that need a process of their own stand beside this one: `exhaustion`, `quiet`; those of rings alone in `rings`.

mod apart;
mod awake;
mod chaos;
mod credit;
mod events;
mod fairness;
mod faults;
mod features;
mod flood;
mod from_guest;
mod from_host;
mod fuzz;
mod hostile;
mod layouts;
mod lifecycle;
mod memory;
mod notifications;
mod passing;
mod properties;
mod races;
mod recovery;
mod rig;
mod seqpacket;
mod seqpacket_credit;
mod streams;
mod wishes;
