//! Job: what is counted, one set per device.
//! Before: the device's thread adds.
//! After: anybody reads, through `ffi`.
//! Rules: one writer per set, so adding is a plain load and store; every reason to drop or reset has its own counter.

use crate::sync::{AtomicU64, Ordering};
use std::ffi::CStr;

/// A number that the device's thread adds to and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the device's own thread may call this.
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares the counters from one list: as atomics for the thread, as plain numbers for readers, and by name.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of one device.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: Counter,)+
        }

        /// A copy of all counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Stats {
            /// Reads every counter.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)+ }
            }

            /// The names of the counters.
            pub const NAMES: &'static [&'static CStr] = &[$(name(concat!(stringify!($name), "\0")),)+];

            /// The values of the counters, in the order of [`NAMES`](Self::NAMES).
            pub fn values(&self) -> [u64; Self::NAMES.len()] {
                [$(self.$name.get(),)+]
            }
        }
    };
}

/// An identifier with a NUL behind it, as C has it.
const fn name(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("identifiers have no NUL inside"),
    }
}

counters! {
    /// Connections open or being opened now.
    connections,
    /// Connections that guest applications asked for.
    guest_requests,
    /// Connections that host applications asked for.
    host_requests,
    /// Connections that both ends agreed to.
    established,
    /// Guest requests refused because nobody listens at the path, or the listener refused.
    refused_no_listener,
    /// Guest requests refused because who listens has a socket of another type.
    refused_type,
    /// Guest requests refused because the listener's backlog stayed full until the timeout.
    refused_backlog,
    /// Requests of either side refused for want of file descriptors or memory, or for a limit.
    refused_limit,
    /// Host requests from a port that another connection to the same port of the guest has.
    refused_port,
    /// Host requests that the guest refused.
    refused_by_guest,
    /// Host requests that the guest did not answer in time.
    timeout_guest,
    /// Host requests for a message socket while the guest has none.
    refused_no_seqpacket,
    /// Host requests while no guest driver was running.
    refused_not_running,
    /// Host clients whose network namespace must not see the VM.
    refused_netns,
    /// Host clients that sent no complete CONNECT line in time.
    handshake_timeout,
    /// Host clients that sent something else than a CONNECT line.
    handshake_bad,
    /// Host clients that left before the connection was open.
    handshake_left,
    /// Connections reset because the guest broke the protocol.
    reset_protocol,
    /// Connections reset because the guest sent more than its credit.
    reset_overrun,
    /// Connections reset because a host application sent a message longer than the guest takes.
    reset_too_long,
    /// Connections reset because the device was reset or its front-end went away.
    reset_device,
    /// Connections reset for want of memory for what the host application does not take.
    reset_memory,
    /// Connections that the guest reset.
    reset_by_guest,
    /// Connections reset because the host application closed its socket with bytes of the guest unread.
    reset_by_host,
    /// Connections that the guest never confirmed as closed.
    timeout_close,
    /// RST packets for packets of a type that is unknown, not negotiated, or not that of the connection.
    rst_type,
    /// RST packets for ports without a connection.
    rst_unknown,
    /// Packets that mean nothing in the state of their connection, and RST packets for none.
    ignored,
    /// Packets dropped for a source or destination CID that is not the guest's or not the host's.
    dropped_forged,
    /// Packets dropped because header and descriptor chain do not fit.
    dropped_malformed,
    /// Payload bytes dropped because the host application does not receive any more.
    dropped_bytes,
    /// Descriptor chains that could not be followed.
    bad_chains,
    /// Receive buffers too small for a packet.
    small_buffers,
    /// Packets from the guest.
    from_guest_packets,
    /// Payload bytes from the guest to host applications.
    from_guest_bytes,
    /// Packets to the guest.
    to_guest_packets,
    /// Payload bytes from host applications to the guest.
    to_guest_bytes,
    /// Payload bytes that waited in our memory for a slow host application.
    backlog_bytes,
    /// Times that the kernel had no memory for what a socket was to take or give, and was asked again later.
    no_buffers,
    /// Kicks of the guest.
    kicks,
    /// Interrupts sent to the guest.
    interrupts,
    /// Times that a front-end attached.
    attached,
    /// Front-ends thrown out for breaking the vhost-user protocol or the rings.
    front_end_errors,
    /// Pings of the control plane that the device's thread answered.
    pongs,
}
