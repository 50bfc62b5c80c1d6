//! Measures one back-end: plays QEMU, the guest's driver and the host's applications at memory speed, row by row.
//!
//! ```text
//! vsock-bench --socket vh.sock --uds v.sock [--pid PID] [--seconds 0.3] ROW...    both again for each further VM
//! vsock-bench --limit ROW...            what a plain UNIX socket between two processes reaches
//! vsock-bench --list
//! ```
//!
//! A daemon must be running at these sockets, a fresh one for each call. One JSON object per row goes to stdout.

mod applications;
mod bulk;
mod connects;
mod idle;
mod limit;
mod process;
mod report;
mod round_trips;
mod rows;
mod session;
mod stuck;
mod vms;

use report::Outcome;
use rows::Row;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The sockets of a VM.
#[derive(Clone, Debug)]
pub struct Vm {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// The hybrid socket.
    pub uds: PathBuf,
}

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The VMs that the daemon serves: at least one, unless the limit is measured.
    pub vms: Vec<Vm>,
    /// The daemon, for its memory and processor time.
    pub pid: Option<u32>,
    /// How long each row is measured.
    pub time: Duration,
    /// The guest stays on the first processor, host applications on the second; whoever starts the daemon puts it there.
    pub pinned: bool,
}

impl Options {
    /// The VM, for rows of one.
    pub fn vm(&self) -> &Vm {
        &self.vms[0]
    }

    /// The daemon's pid, for rows that look at it.
    pub fn daemon(&self) -> std::io::Result<u32> {
        self.pid.ok_or_else(|| std::io::Error::other("--pid is needed"))
    }
}

/// How to call it.
const USAGE: &str = "usage: vsock-bench (--socket PATH --uds PATH)... [--pid PID] [--seconds S] [--pin] ROW...
       vsock-bench --limit [--seconds S] [--pin] ROW...
       vsock-bench --list";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock-bench: error: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Reads the command line and measures.
fn run(words: Vec<String>) -> Result<(), String> {
    let mut options = Options { vms: Vec::new(), pid: None, time: Duration::from_millis(300), pinned: false };
    let (mut limit, mut rows) = (false, Vec::new());
    let (mut sockets, mut uds) = (Vec::new(), Vec::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--socket" => sockets.push(PathBuf::from(value()?)),
            "--uds" => uds.push(PathBuf::from(value()?)),
            "--pid" => options.pid = Some(value()?.parse().map_err(|error| format!("--pid: {error}"))?),
            "--seconds" => {
                let seconds: f64 = value()?.parse().map_err(|error| format!("--seconds: {error}"))?;
                options.time = Duration::try_from_secs_f64(seconds).map_err(|error| format!("--seconds: {error}"))?;
            }
            "--limit" => limit = true,
            "--limit-child" => return limit::child(&value()?, &value()?, options.pinned),
            "--pin" => {
                options.pinned = true;
                process::pin(0);
            }
            "--list" => {
                for row in rows::all() {
                    println!("{}\t{}\t{}\t{}", row.name, row.unit(), row.title, row.vms());
                }
                return Ok(());
            }
            _ if word.starts_with('-') => return Err(format!("unknown option {word}")),
            _ => rows.push(rows::find(&word).ok_or_else(|| format!("there is no row {word}; see --list"))?),
        }
    }
    if rows.is_empty() {
        return Err("no row is named".into());
    }
    if sockets.len() != uds.len() {
        return Err("each VM has a --socket and a --uds".into());
    }
    options.vms = sockets.into_iter().zip(uds).map(|(socket, uds)| Vm { socket, uds }).collect();
    if let Some(row) = rows.iter().find(|row| !limit && row.vms() != options.vms.len()) {
        return Err(format!("{} needs --socket and --uds of {} VMs", row.name, row.vms()));
    }
    process::raise_descriptors();
    for row in rows {
        let outcome = if limit { limit::measure(&row, &options) } else { measure(&row, &options) };
        report::print(&row, outcome);
    }
    Ok(())
}

/// Measures one row, within bounds: whatever a daemon does, a row ends.
fn measure(row: &Row, options: &Options) -> Outcome {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (what, given) = (row.what, options.clone());
    // A row that hangs in a call of the kernel is left behind; the process ends with it.
    std::thread::spawn(move || sender.send(rows::run(what, &given)));
    match receiver.recv_timeout(options.time + report::HANGS_AFTER * 4) {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Hangs,
    }
}
