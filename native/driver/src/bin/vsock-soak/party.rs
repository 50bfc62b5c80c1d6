//! Job: when a client begins its next conversation, and what the end of one means.
//! Before: `main` says how many are to be open.
//! After: `guests` and `hosts` open and close connections.
//! Rules: where nobody is killed, a connection that breaks or is refused is a fault.

use crate::Options;
use crate::conversation::{Conversation, Step};
use crate::pattern::Random;
use crate::plan::{Next, Plan, draw};
use crate::tally::Tally;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause after a connection was refused, so that nobody who is down is asked all the time.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// Who begins conversations at one VM.
pub struct Party {
    /// For messages.
    pub name: String,
    /// What was asked for.
    pub options: Arc<Options>,
    /// What happened.
    pub tally: Arc<Tally>,
    /// Where plans come from.
    pub random: Random,
    /// Standing connections that are open or being opened.
    standing: u32,
    /// Others.
    active: u32,
    /// Nothing is begun before this moment.
    not_before: Instant,
}

/// A conversation with its place in the books.
#[derive(Debug)]
pub struct Entry {
    /// The conversation.
    pub talk: Conversation,
    /// Who began it.
    role: Role,
    /// One of the ends may be killed.
    pub fragile: bool,
    /// Bytes that were counted.
    counted: u64,
}

/// In which column a conversation is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Ours, to stay open.
    Standing,
    /// Ours.
    Active,
    /// Somebody else's.
    Served,
}

impl Party {
    /// A party for one VM.
    pub fn new(name: &str, seed: u64, options: &Arc<Options>, tally: &Arc<Tally>) -> Self {
        Self {
            name: name.into(),
            options: Arc::clone(options),
            tally: Arc::clone(tally),
            random: Random::new(seed),
            standing: 0,
            active: 0,
            not_before: Instant::now(),
        }
    }

    /// Conversations to begin now; `fragile`: whether they lead to somebody who may be killed.
    pub fn begin(&mut self, fragile: bool) -> Vec<Entry> {
        let mut made = Vec::new();
        if !self.tally.may_begin() || Instant::now() < self.not_before {
            return made;
        }
        // Not all at once: the guest's rings hold 128 packets.
        if self.standing < self.options.standing {
            for _ in 0..(self.options.standing - self.standing).min(16) {
                let plan = Plan::standing(&mut self.random);
                made.push(self.entry(plan, false, Role::Standing, self.options.fragile));
            }
        } else if self.active < self.options.active {
            let pause = self.random.within(0..self.options.pause + 1);
            self.not_before = Instant::now() + Duration::from_millis(u64::from(pause));
            match draw(&mut self.random) {
                Next::One(plan, slow) => made.push(self.entry(plan, slow, Role::Active, fragile)),
                Next::Storm(count) => {
                    for _ in 0..count {
                        let plan = Plan::tiny(&mut self.random);
                        made.push(self.entry(plan, false, Role::Active, fragile));
                    }
                }
            }
        }
        made
    }

    /// One of ours.
    fn entry(&mut self, plan: Plan, slow: bool, role: Role, fragile: bool) -> Entry {
        match role {
            Role::Standing => self.standing += 1,
            Role::Active | Role::Served => self.active += 1,
        }
        self.tally.opening.add(1);
        let talk = Conversation::client(plan, slow, &mut self.random);
        Entry { talk, role, fragile, counted: 0 }
    }

    /// A conversation of somebody who connected to us.
    pub fn serve(&mut self, fragile: bool) -> Entry {
        self.tally.served.add(1);
        Entry { talk: Conversation::server(&mut self.random), role: Role::Served, fragile, counted: 0 }
    }

    /// The connection of a conversation of ours is open.
    pub fn opened(&self, entry: &Entry) {
        self.tally.opening.sub(1);
        self.column(entry).add(1);
    }

    /// Where it is counted while it is open.
    fn column(&self, entry: &Entry) -> &crate::tally::Count {
        match entry.role {
            Role::Standing => &self.tally.standing,
            Role::Active => &self.tally.active,
            Role::Served => &self.tally.served,
        }
    }

    /// A connection was not made.
    pub fn refused(&mut self, entry: &Entry, why: &str) {
        self.unmade(entry);
        self.not_before = Instant::now() + AFTER_REFUSAL;
        if entry.fragile {
            self.tally.refused.add(1);
        } else {
            self.tally.fault(format!("{}: a connection was refused: {why}", self.name));
        }
    }

    /// Takes the result of a step; whether the conversation goes on.
    pub fn after(&mut self, entry: &mut Entry, step: Step) -> bool {
        let bytes = entry.talk.bytes();
        self.tally.bytes.add(bytes - entry.counted);
        entry.counted = bytes;
        match step {
            Step::Moved | Step::Rests => return true,
            Step::Done if entry.role == Role::Served => {}
            Step::Done => self.tally.finished.add(1),
            Step::Broken(_) if entry.fragile => self.tally.broken.add(1),
            Step::Broken(why) => self.tally.fault(format!("{}: a connection broke: {why}", self.name)),
            Step::Wrong(why) => self.tally.fault(format!("{}: {why}", self.name)),
        }
        self.gone(entry);
        false
    }

    /// A connection that was being made is no more.
    pub fn unmade(&mut self, entry: &Entry) {
        self.tally.opening.sub(1);
        self.forget(entry);
    }

    /// An open conversation is no more.
    pub fn gone(&mut self, entry: &Entry) {
        self.column(entry).sub(1);
        self.forget(entry);
    }

    /// There is room for another one.
    fn forget(&mut self, entry: &Entry) {
        match entry.role {
            Role::Standing => self.standing -= 1,
            Role::Active => self.active -= 1,
            Role::Served => {}
        }
    }
}
