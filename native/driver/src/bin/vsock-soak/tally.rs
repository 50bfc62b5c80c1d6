//! Job: what all threads did, in numbers, and what went wrong.
//! Before: `guests` and `hosts` add.
//! After: `main` prints one line of JSON each second.
//! Rules: the first faults are kept word by word, the rest counted.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Faults that are kept.
const KEPT: usize = 10;

/// One number.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Subtracts.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All numbers of this process.
#[derive(Debug, Default)]
pub struct Tally {
    /// Guests that are attached, or VMs whose listener is there.
    pub ready: Count,
    /// Connections that clients of ours are making.
    pub opening: Count,
    /// Connections that stay open, as their clients see it.
    pub standing: Count,
    /// Other connections of clients of ours.
    pub active: Count,
    /// Connections of servers of ours.
    pub served: Count,
    /// Conversations of clients of ours that were held to the end.
    pub finished: Count,
    /// Bytes sent and received.
    pub bytes: Count,
    /// Connections that broke where one end may be killed.
    pub broken: Count,
    /// Connections that were refused where one end may be killed.
    pub refused: Count,
    /// Clients may begin.
    pub begun: AtomicBool,
    /// No client begins anything new.
    pub finishing: AtomicBool,
    /// Everything is to end.
    pub over: AtomicBool,
    /// The first faults.
    faults: Mutex<Vec<String>>,
    /// All faults.
    wrong: Count,
}

impl Tally {
    /// Notes what must not happen.
    pub fn fault(&self, what: String) {
        self.wrong.add(1);
        let mut faults = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if faults.len() < KEPT {
            eprintln!("vsock-soak: error: {what}");
            faults.push(what);
        }
    }

    /// Whether nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong.get() == 0
    }

    /// Whether clients may begin something new.
    pub fn may_begin(&self) -> bool {
        self.begun.load(Ordering::Relaxed) && !self.is_finishing()
    }

    /// Whether clients are to begin nothing new.
    pub fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Relaxed)
    }

    /// Whether everything is to end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The numbers as JSON.
    pub fn line(&self) -> String {
        let pairs = [
            ("ready", &self.ready),
            ("opening", &self.opening),
            ("standing", &self.standing),
            ("active", &self.active),
            ("served", &self.served),
            ("finished", &self.finished),
            ("bytes", &self.bytes),
            ("broken", &self.broken),
            ("refused", &self.refused),
            ("wrong", &self.wrong),
        ];
        let fields: Vec<_> = pairs.iter().map(|(name, count)| format!("\"{name}\": {}", count.get())).collect();
        format!("{{{}}}", fields.join(", "))
    }
}
