//! What a fuzzer plays against the device, with what must hold whatever it plays.
//!
//! Each module is one target with a function `run`, which takes any bytes and panics if something is wrong:
//!
//! ```text
//! header        44 bytes as a packet's header
//! connect       the line of a client of the hybrid socket
//! ring          a malicious driver's virtqueue
//! session       a malicious front-end's messages, files and descriptors
//! conversation  a guest and host applications, with the mux between them
//! ```
//!
//! The same functions run in three ways: under libFuzzer (`scripts/fuzz`), under proptest (`tests/random.rs`), and over
//! the files of `corpus/` and `crashes/` (`tests/replay.rs`).

pub mod connect;
pub mod conversation;
pub mod header;
pub mod input;
pub mod ring;
pub mod session;

/// A target: its name, which is that of its directories, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("header", header::run),
    ("connect", connect::run),
    ("ring", ring::run),
    ("session", session::run),
    ("conversation", conversation::run),
];
