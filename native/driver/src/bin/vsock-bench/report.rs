//! Job: what came of a row, as one line of JSON.
//! Before: a row was measured.
//! After: scripts read it.
//! Rules: numbers are plain; a row that made no progress says so rather than giving a number.

use crate::rows::Row;
use std::time::Duration;

/// How long nothing may happen before a row counts as hanging.
pub const HANGS_AFTER: Duration = Duration::from_secs(3);

/// What came of a row.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A value, and more values by name.
    Value(f64, Vec<(&'static str, f64)>),
    /// No progress for [`HANGS_AFTER`].
    Hangs,
    /// It could not be measured.
    Failed(String),
    /// There is no such thing to measure.
    None,
}

impl Outcome {
    /// Bytes in a time, in megabytes per second.
    pub fn rate(bytes: u64, time: Duration, more: Vec<(&'static str, f64)>) -> Self {
        Self::Value(bytes as f64 / time.as_secs_f64() / 1e6, more)
    }

    /// Events in a time, per second.
    pub fn per_second(count: u64, time: Duration) -> Self {
        Self::Value(count as f64 / time.as_secs_f64(), Vec::new())
    }

    /// Times of single round trips, in microseconds.
    pub fn latency(mut times: Vec<Duration>) -> Self {
        if times.is_empty() {
            return Self::Hangs;
        }
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        Self::Value(at(0.5), vec![("p99", at(0.99)), ("count", times.len() as f64)])
    }
}

/// Prints a row's line.
pub fn print(row: &Row, outcome: Outcome) {
    let name = row.name;
    match outcome {
        Outcome::Value(value, more) => {
            let more: String = more.iter().map(|(name, value)| format!(", \"{name}\": {value:.3}")).collect();
            println!("{{\"row\": \"{name}\", \"value\": {value:.3}, \"unit\": \"{}\"{more}}}", row.unit());
        }
        Outcome::Hangs => println!("{{\"row\": \"{name}\", \"hangs\": true}}"),
        Outcome::Failed(why) => println!("{{\"row\": \"{name}\", \"failed\": \"{}\"}}", why.escape_default()),
        Outcome::None => println!("{{\"row\": \"{name}\", \"none\": true}}"),
    }
}
