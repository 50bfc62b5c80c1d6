//! Job: one thing that happens, out of a fuzzer's bytes.

use super::{CID, WINDOWS};
use crate::input::Input;
use vhostvsock_native::ids::HOST_CID;
use vhostvsock_native::packet::{Header, Type};

/// The most bytes of one write.
const MOST: usize = 90_000;

/// The length of a message that a step means. The most stands for one that is too long by a byte, what is near it for what
/// is near the longest.
pub fn message_length(len: usize, longest: usize) -> usize {
    if len + 8 > MOST { (longest + 1).saturating_sub(MOST - len) } else { len % (longest + 1) }
}

/// One thing that happens. The first number of most says to which connection.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// An application of the guest asks for a connection, if possible on ports that were used before.
    GuestConnects {
        /// Whether on ports that were used before.
        reuse: bool,
        /// What for.
        kind: Type,
    },
    /// The listener on the host takes the connection or does not.
    ListenerAnswers(u8, bool),
    /// An application of the host asks for a connection.
    HostConnects {
        /// What for.
        kind: Type,
        /// What listens there.
        listens: Option<Type>,
    },
    /// The guest's application writes so much; a message may end a record.
    GuestWrites(u8, usize, bool),
    /// It reads up to so much.
    GuestReads(u8, usize),
    /// The host's application writes so much, so many times.
    HostWrites(u8, usize, usize),
    /// It reads up to so much.
    HostReads(u8, usize),
    /// `shutdown(2)` in the guest, with the bits of the packet.
    GuestShutsDown(u8, u32),
    /// `close(2)` in the guest.
    GuestCloses(u8),
    /// The host's application sends no more.
    HostEnds(u8),
    /// It closes its socket.
    HostCloses(u8),
    /// Its socket breaks.
    HostBreaks(u8),
    /// So many packets of the guest reach the mux.
    Arrive(usize),
    /// So many receive buffers of this size are filled.
    Buffers(usize, usize),
    /// Time passes, in milliseconds.
    Pass(u64),
    /// The guest sends a packet that Linux would not.
    Forge {
        /// The packet.
        header: Header,
        /// Of which type, if not of that of its connection.
        type_: Option<u16>,
        /// On whose ports, if not on its own.
        which: Option<u8>,
        /// Payload bytes in its descriptors.
        available: u64,
    },
    /// The guest's driver starts anew.
    Reset {
        /// Whether it knows of messages.
        seqpacket: bool,
    },
}

impl Step {
    /// The next one.
    pub fn new(input: &mut Input) -> Self {
        match input.u8() {
            0..12 => {
                let choice = input.u8();
                Self::GuestConnects { reuse: choice & 1 != 0, kind: kind(choice & 2) }
            }
            12..24 => {
                let choice = input.u8();
                let listens = if choice & 3 == 3 { kind(choice & 4) } else { kind(choice & 8) };
                Self::HostConnects { kind: kind(choice & 8), listens: (choice & 7 > 0).then_some(listens) }
            }
            24..36 => Self::ListenerAnswers(input.u8(), input.below(8) > 0),
            36..62 => {
                let which = input.u8();
                Self::GuestWrites(which, input.length(MOST), which > 127)
            }
            62..88 => {
                let which = input.u8();
                let len = input.length(MOST);
                Self::HostWrites(which, len, if which > 127 && len < 200 { 32 } else { 1 })
            }
            88..112 => Self::GuestReads(input.u8(), input.length(300_000)),
            112..136 => Self::HostReads(input.u8(), input.length(300_000)),
            136..166 => Self::Arrive(1 + input.below(8)),
            166..198 => Self::Buffers(1 + input.below(24), input.pick(&[3732, 1, 100, 1500, 65_536])),
            198..208 => Self::Pass(input.pick(&[1, 10, 100, 1000, 2000, 8000, 64_000])),
            208..216 => Self::GuestShutsDown(input.u8(), 1 + input.below(3) as u32),
            216..222 => Self::HostEnds(input.u8()),
            222..228 => Self::GuestCloses(input.u8()),
            228..234 => Self::HostCloses(input.u8()),
            234..236 => Self::HostBreaks(input.u8()),
            236..254 => Self::forge(input),
            _ => Self::Reset { seqpacket: !input.flag() },
        }
    }

    /// A packet, more often near the rules than far from them.
    fn forge(input: &mut Input) -> Self {
        let which = (input.below(8) > 0).then(|| input.u8());
        let len = input.length(70_000) as u32;
        let odd = input.below(16);
        let header = Header {
            src_cid: if odd == 1 { input.u64() } else { CID },
            dst_cid: if odd == 2 { input.u64() } else { HOST_CID },
            src_port: input.below(4) as u32 + 50_000,
            dst_port: input.below(4) as u32 + 1000,
            len: match odd {
                3 => input.u32(),
                // A little more than the smaller window, or than what is left of it.
                11 => WINDOWS[0] - 4096 + input.below(8192) as u32,
                _ => len,
            },
            type_: Type::Stream as u16,
            op: if odd == 5 { input.u16() } else { input.below(8) as u16 },
            flags: if odd == 6 { input.u32() } else { input.below(4) as u32 },
            buf_alloc: if odd == 7 { input.u32() } else { 256 * 1024 },
            fwd_cnt: if odd == 8 { input.u32() } else { u32::from(input.u16()) },
        };
        let available = if odd == 9 { input.u16().into() } else { u64::from(header.len) };
        let type_ = if odd == 4 || odd == 10 { Some(input.below(4) as u16) } else { None };
        Self::Forge { header, type_, which, available }
    }
}

/// What a bit stands for.
fn kind(bit: u8) -> Type {
    if bit == 0 { Type::Stream } else { Type::Seqpacket }
}
