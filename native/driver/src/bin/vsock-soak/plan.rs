//! Job: what is said on one connection: its client decides, and tells the server in the first bytes.
//! Before: a party wants one more conversation.
//! After: `conversation` carries it out at both ends.
//! Rules: both ends know from the plan which bytes come, how many, and when the other end closes.

use crate::pattern::{Pattern, Random};

/// Bytes in front of the client's stream.
pub const HEADER: usize = 20;
/// The first byte of each header.
const MAGIC: u8 = 0x76;
/// Bytes.
const KIB: u32 = 1024;
/// Bytes.
const MIB: u32 = 1024 * KIB;

/// How the ends take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both send at once, each closes its direction when done.
    Bulk,
    /// The client sends and closes its direction; only then the server sends.
    Answer,
    /// The client sends and closes the socket at once; everything must arrive.
    Push,
    /// Messages to and fro, all of the same length.
    Rounds,
}

/// All that both ends know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How the ends take turns.
    pub kind: Kind,
    /// The server reads slowly.
    pub slow_server: bool,
    /// What the streams' bytes are made of.
    pub seed: u64,
    /// Bytes from the client, or the length of each message.
    pub up: u32,
    /// Bytes from the server, or the number of rounds: 0 for as many as the client likes.
    pub down: u32,
}

impl Plan {
    /// What the client sends first.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let kind = match self.kind {
            Kind::Bulk => 0,
            Kind::Answer => 1,
            Kind::Push => 2,
            Kind::Rounds => 3,
        };
        bytes[..3].copy_from_slice(&[MAGIC, kind, u8::from(self.slow_server)]);
        bytes[4..12].copy_from_slice(&self.seed.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.up.to_le_bytes());
        bytes[16..].copy_from_slice(&self.down.to_le_bytes());
        bytes
    }

    /// What the server makes of it; `None` if no client of ours said this.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = match bytes[..4] {
            [MAGIC, 0, _, 0] => Kind::Bulk,
            [MAGIC, 1, _, 0] => Kind::Answer,
            [MAGIC, 2, _, 0] => Kind::Push,
            [MAGIC, 3, _, 0] => Kind::Rounds,
            _ => return None,
        };
        let seed = u64::from(u32_at(4)) | u64::from(u32_at(8)) << 32;
        Some(Self { kind, slow_server: bytes[2] != 0, seed, up: u32_at(12), down: u32_at(16) })
    }

    /// The client's stream, behind the header.
    pub fn upward(self) -> Pattern {
        Pattern(self.seed)
    }

    /// The server's stream.
    pub fn downward(self) -> Pattern {
        Pattern(!self.seed)
    }

    /// A connection that stays open, with a round now and then.
    pub fn standing(random: &mut Random) -> Self {
        let up = random.within(1..2000);
        Self { kind: Kind::Rounds, slow_server: false, seed: random.next(), up, down: 0 }
    }

    /// One of a storm: hardly more than connecting and closing.
    pub fn tiny(random: &mut Random) -> Self {
        let kind = if random.within(0..2) == 0 { Kind::Push } else { Kind::Rounds };
        Self { kind, slow_server: false, seed: random.next(), up: random.within(1..300), down: 1 }
    }
}

/// What a party does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// One conversation, whose client reads slowly or not.
    One(Plan, bool),
    /// So many connections at once.
    Storm(u32),
}

/// Draws what comes next.
pub fn draw(random: &mut Random) -> Next {
    let seed = random.next();
    let plan = |kind, up, down| Plan { kind, slow_server: false, seed, up, down };
    match random.within(0..16) {
        0..4 => Next::One(plan(Kind::Bulk, random.within(1..3 * MIB), random.within(1..3 * MIB)), false),
        4..7 => Next::One(plan(Kind::Rounds, random.within(1..64 * KIB), random.within(1..200)), false),
        7..10 => Next::One(plan(Kind::Answer, random.within(0..MIB), random.within(0..MIB)), false),
        10 | 11 => Next::One(plan(Kind::Push, random.within(1..MIB), 0), false),
        12 => Next::One(plan(Kind::Bulk, random.within(1..500 * KIB), random.within(1..500 * KIB)), true),
        13 => {
            let slow = plan(Kind::Bulk, random.within(1..500 * KIB), random.within(1..500 * KIB));
            Next::One(Plan { slow_server: true, ..slow }, false)
        }
        _ => Next::Storm(random.within(4..32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_reads_the_plan_that_the_client_made() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            if let Next::One(plan, _) = draw(&mut random) {
                assert_eq!(Plan::from_bytes(&plan.to_bytes()), Some(plan));
            }
        }
        assert_eq!(Plan::from_bytes(&[0; HEADER]), None);
    }
}
