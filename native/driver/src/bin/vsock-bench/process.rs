//! Job: what a daemon uses, processor time and memory, from /proc; and on which processor we run.
//! Before: the command line names its process.
//! After: rows report the difference.
//! Rules: all threads count; a process that cannot be read counts as nothing known.

use crate::Options;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Stays on one processor, if it may; threads and processes that are started after do so, too.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}

/// A thread of the host's applications: beside the daemon, not beside the guest, where there is to be order.
pub fn host_thread(options: &Options, run: impl FnOnce() + Send + 'static) {
    let pinned = options.pinned;
    std::thread::spawn(move || {
        if pinned {
            pin(1);
        }
        run();
    });
}

/// As many open files as may be: thousands of connections have one of ours each.
pub fn raise_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where it does not work, the rows with many connections say which file could not be opened.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Nanoseconds that all threads of a process have run.
pub fn cpu_time(pid: u32) -> Option<u64> {
    schedstat(pid, 0)
}

/// How often its threads were given a processor.
pub fn turns(pid: u32) -> Option<u64> {
    schedstat(pid, 2)
}

/// A column of /proc/PID/task/TID/schedstat, summed over all threads.
fn schedstat(pid: u32, column: usize) -> Option<u64> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        total += text.split_whitespace().nth(column)?.parse::<u64>().ok()?;
    }
    Some(total)
}

/// A line of /proc/PID/smaps_rollup, in bytes.
pub fn memory(pid: u32, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Whether a process has as many descriptors as it may have.
pub fn is_out_of_descriptors(pid: u32) -> bool {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    // Some keep a few for themselves.
    limit.zip(descriptors(pid)).is_some_and(|(limit, open)| open + 8 >= limit)
}

/// Open file descriptors of a process.
pub fn descriptors(pid: u32) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}
