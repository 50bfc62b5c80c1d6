//! Job: one end of one conversation: what to send now, what may come, whether all of it came.
//! Before: `guests` or `hosts` has a connection, and the client's plan or none yet.
//! After: its stream is sent and checked to the last byte; the party closes the connection or reports.
//! Rules: never waits. Whoever ends too early, too late, or with another byte is found out.

use crate::pattern::{Pattern, Random};
use crate::plan::{HEADER, Kind, Plan};
use std::time::{Duration, Instant};

/// How long nothing may happen where something should. Far more than any queue takes on a busy machine.
const STUCK: Duration = Duration::from_secs(60);
/// Bytes sent or received in one step at most, so that all connections get their turn.
const STEP: usize = 128 * 1024;
/// Bytes that a slow reader reads at once at most.
const SIP: u32 = 4096;

/// A connection as applications see it.
pub trait Stream {
    /// Reads up to `max` bytes into `into`, which is empty.
    fn recv(&mut self, into: &mut Vec<u8>, max: usize) -> Got;
    /// How many bytes can be sent now, roughly.
    fn room(&self) -> usize;
    /// Sends what goes; how much that is, or why nothing ever will.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, String>;
    /// Ends the direction of sending.
    fn shutdown(&mut self);
    /// How it stands, for messages.
    fn describe(&self) -> String;
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// Bytes.
    Data,
    /// Nothing now.
    Nothing,
    /// The end of the other's stream.
    End,
    /// The connection is broken.
    Broken(String),
}

/// How far a conversation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something was sent or received.
    Moved,
    /// Nothing to do now.
    Rests,
    /// All was sent and received; the connection is to be closed.
    Done,
    /// The connection broke; fine where somebody was killed.
    Broken(String),
    /// What must not happen.
    Wrong(String),
}

/// One end.
#[derive(Debug)]
pub struct Conversation {
    /// What is said, once it is known.
    plan: Option<Plan>,
    /// We made the plan.
    client: bool,
    /// We read slowly.
    slow: bool,
    /// The client's header, as far as it was sent or received.
    header: Vec<u8>,
    /// Bytes of our stream that were sent.
    sent: u64,
    /// Bytes of the other's stream that came.
    received: u64,
    /// Our direction is closed.
    shut: bool,
    /// The other's direction is closed.
    ended: bool,
    /// No more rounds after this one.
    last_round: bool,
    /// Not to read before this moment.
    read_at: Instant,
    /// Not to begin a round before this moment.
    round_at: Instant,
    /// When something happened last.
    moved_at: Instant,
    /// For pauses.
    random: Random,
}

impl Conversation {
    /// The client's end.
    pub fn client(plan: Plan, slow: bool, random: &mut Random) -> Self {
        Self { plan: Some(plan), client: true, slow, ..Self::server(random) }
    }

    /// The server's end, which learns from the client what is said.
    pub fn server(random: &mut Random) -> Self {
        let now = Instant::now();
        Self {
            plan: None,
            client: false,
            slow: false,
            header: Vec::new(),
            sent: 0,
            received: 0,
            shut: false,
            ended: false,
            last_round: false,
            read_at: now,
            round_at: now,
            moved_at: now,
            random: Random::new(random.next()),
        }
    }

    /// Bytes sent and received so far.
    pub fn bytes(&self) -> u64 {
        self.sent + self.received
    }

    /// Whether it goes on for as long as its client likes.
    fn is_standing(&self) -> bool {
        self.plan.is_some_and(|plan| plan.kind == Kind::Rounds && plan.down == 0)
    }

    /// Ends after the round that was begun, where there is no other end.
    pub fn finish(&mut self) {
        self.last_round = self.is_standing();
    }

    /// When it wants a step though nothing came.
    pub fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        [self.read_at, self.round_at].into_iter().filter(|at| *at > now).min()
    }

    /// Whether it reads now.
    pub fn reads(&self) -> bool {
        !self.ended && Instant::now() >= self.read_at
    }

    /// Whether nothing happened for too long.
    pub fn is_late(&self) -> bool {
        Instant::now() > self.moved_at + STUCK
    }

    /// Sends and receives what goes now.
    pub fn step(&mut self, stream: &mut impl Stream, scratch: &mut Vec<u8>) -> Step {
        let before = (self.sent, self.received, self.header.len(), self.ended, self.shut);
        if let Some(step) = self.receive(stream, scratch) {
            return step;
        }
        if let Some(step) = self.transmit(stream, scratch) {
            return step;
        }
        if self.shut && self.ended {
            return Step::Done;
        }
        let now = Instant::now();
        if before != (self.sent, self.received, self.header.len(), self.ended, self.shut) {
            self.moved_at = now;
            return Step::Moved;
        }
        if self.between_rounds() {
            self.moved_at = now;
        }
        if self.is_late() {
            let whole = format!("{}, {}", self.describe(), stream.describe());
            return Step::Wrong(format!("nothing happened for {} s: {whole}", STUCK.as_secs()));
        }
        Step::Rests
    }

    /// Takes what came. `Some` if the conversation ends here.
    fn receive(&mut self, stream: &mut impl Stream, scratch: &mut Vec<u8>) -> Option<Step> {
        let mut left = STEP;
        while left > 0 && self.reads() {
            let max = if self.slow { self.random.within(1..SIP) as usize } else { left };
            scratch.clear();
            match stream.recv(scratch, max) {
                Got::Nothing => break,
                Got::Data => {
                    left = left.saturating_sub(scratch.len());
                    if let Err(why) = self.take(scratch) {
                        return Some(Step::Wrong(why));
                    }
                    if self.slow {
                        let pause = self.random.within(2..30);
                        self.read_at = Instant::now() + Duration::from_millis(u64::from(pause));
                    }
                }
                Got::End => {
                    self.ended = true;
                    if !self.all_received() {
                        return Some(Step::Broken(format!("the stream ended early: {}", self.describe())));
                    }
                }
                Got::Broken(why) => return Some(Step::Broken(format!("{why}: {}", self.describe()))),
            }
        }
        None
    }

    /// Checks bytes of the other end.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        if !self.client && self.plan.is_none() {
            let part = bytes.len().min(HEADER - self.header.len());
            self.header.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            if let Ok(header) = <&[u8; HEADER]>::try_from(&self.header[..]) {
                let plan = Plan::from_bytes(header).ok_or_else(|| format!("the stream begins with {header:?}"))?;
                self.slow = plan.slow_server;
                self.plan = Some(plan);
            }
        }
        let Some(plan) = self.plan else { return Ok(()) };
        if let Some(place) = self.incoming(plan).wrong(self.received, bytes) {
            return Err(format!("byte {place} is wrong: {}", self.describe()));
        }
        self.received += bytes.len() as u64;
        if self.expected(plan).is_some_and(|expected| self.received > expected) {
            return Err(format!("more bytes came than were sent: {}", self.describe()));
        }
        if self.client && self.is_standing() && self.received == self.sent {
            let pause = self.random.within(100..30_000);
            self.round_at = Instant::now() + Duration::from_millis(u64::from(pause));
        }
        Ok(())
    }

    /// Sends what may be sent. `Some` if the conversation ends here.
    fn transmit(&mut self, stream: &mut impl Stream, scratch: &mut Vec<u8>) -> Option<Step> {
        let plan = self.plan?;
        if self.client && self.header.len() < HEADER {
            match stream.send(&plan.to_bytes()[self.header.len()..]) {
                Ok(len) => self.header.extend_from_slice(&plan.to_bytes()[self.header.len()..][..len]),
                Err(why) => return Some(Step::Broken(format!("{why}: {}", self.describe()))),
            }
            if self.header.len() < HEADER {
                return None;
            }
        }
        let mut left = STEP;
        while left > 0 {
            let len = usize::try_from(self.allowed(plan).saturating_sub(self.sent)).unwrap_or(STEP);
            let len = len.min(left).min(64 * 1024).min(stream.room());
            if len == 0 {
                break;
            }
            scratch.resize(len, 0);
            self.outgoing(plan).fill(self.sent, scratch);
            match stream.send(scratch) {
                Ok(0) => break,
                Ok(len) => {
                    self.sent += len as u64;
                    left -= len;
                }
                Err(why) => return Some(Step::Broken(format!("{why}: {}", self.describe()))),
            }
        }
        if self.all_sent(plan) && !self.shut {
            if self.client && plan.kind == Kind::Push {
                return Some(Step::Done);
            }
            stream.shutdown();
            self.shut = true;
        }
        None
    }

    /// The stream that we send.
    fn outgoing(&self, plan: Plan) -> Pattern {
        if self.client { plan.upward() } else { plan.downward() }
    }

    /// The stream that we receive.
    fn incoming(&self, plan: Plan) -> Pattern {
        if self.client { plan.downward() } else { plan.upward() }
    }

    /// How many bytes may have been sent by now.
    fn allowed(&self, plan: Plan) -> u64 {
        let (up, down) = (u64::from(plan.up), u64::from(plan.down));
        match (plan.kind, self.client) {
            (Kind::Bulk | Kind::Answer | Kind::Push, true) => up,
            (Kind::Bulk, false) => down,
            (Kind::Answer, false) => {
                if self.ended {
                    down
                } else {
                    0
                }
            }
            (Kind::Push, false) => 0,
            (Kind::Rounds, true) => {
                let next = self.received / up + 1;
                let waits = self.last_round || Instant::now() < self.round_at;
                let begun = if waits { self.sent.div_ceil(up) } else { next };
                begun * up
            }
            (Kind::Rounds, false) => self.received / up * up,
        }
        .min(self.total(plan).unwrap_or(u64::MAX))
    }

    /// How many bytes we send in all, if that is known before.
    fn total(&self, plan: Plan) -> Option<u64> {
        let (up, down) = (u64::from(plan.up), u64::from(plan.down));
        match (plan.kind, self.client) {
            (Kind::Rounds, _) => (down > 0).then_some(up * down),
            (_, true) => Some(up),
            (Kind::Push, false) => Some(0),
            (_, false) => Some(down),
        }
    }

    /// How many bytes come in all, if that is known before.
    fn expected(&self, plan: Plan) -> Option<u64> {
        let (up, down) = (u64::from(plan.up), u64::from(plan.down));
        match (plan.kind, self.client) {
            (Kind::Rounds, _) => (down > 0).then_some(up * down),
            (Kind::Push, true) => Some(0),
            (_, true) => Some(down),
            (_, false) => Some(up),
        }
    }

    /// Whether nothing is left to send.
    fn all_sent(&self, plan: Plan) -> bool {
        match self.total(plan) {
            Some(total) => self.sent == total && (self.client || plan.kind != Kind::Answer || self.ended),
            // Rounds without end: the client ends them, the server after it.
            None if self.client => self.last_round && self.sent == self.received,
            None => self.ended && self.sent == self.received,
        }
    }

    /// Whether all came that was to come.
    fn all_received(&self) -> bool {
        let Some(plan) = self.plan else { return false };
        match self.expected(plan) {
            Some(expected) => self.received == expected,
            None if self.client => self.shut,
            None => self.received % u64::from(plan.up) == 0,
        }
    }

    /// Whether it waits for the next of endless rounds.
    fn between_rounds(&self) -> bool {
        self.is_standing() && self.sent == self.received && !self.ended && !self.shut
    }

    /// For messages.
    fn describe(&self) -> String {
        let who = if self.client { "client" } else { "server" };
        format!("{who} of {:?}, {} bytes sent, {} received", self.plan, self.sent, self.received)
    }
}
