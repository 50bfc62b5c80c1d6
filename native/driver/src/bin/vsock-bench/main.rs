//! Measures one back-end: plays QEMU, the guest's driver and the host's applications at memory speed, row by row.
//!
//! ```text
//! vsock-bench --socket vh.sock --uds v.sock [--pid PID] [--seconds 0.3] ROW...
//! vsock-bench --limit ROW...            what a plain UNIX stream socket between two processes reaches
//! vsock-bench --list
//! ```
//!
//! A daemon must be running at these sockets, a fresh one for each call. One JSON object per row goes to stdout.

mod bulk;
mod connects;
mod limit;
mod messages;
mod process;
mod report;
mod rows;
mod session;

use report::Outcome;
use rows::Row;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// The hybrid socket.
    pub uds: PathBuf,
    /// The daemon, for its memory and processor time.
    pub pid: Option<u32>,
    /// How long each row is measured.
    pub time: Duration,
    /// The guest stays on the first processor, host applications on the second; whoever starts the daemon puts it there.
    pub pinned: bool,
}

/// How to call it.
const USAGE: &str = "usage: vsock-bench --socket PATH --uds PATH [--pid PID] [--seconds S] [--pin] ROW...
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
    let mut options = Options {
        socket: PathBuf::new(),
        uds: PathBuf::new(),
        pid: None,
        time: Duration::from_millis(300),
        pinned: false,
    };
    let (mut limit, mut rows) = (false, Vec::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--socket" => options.socket = value()?.into(),
            "--uds" => options.uds = value()?.into(),
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
                    println!("{}\t{}\t{}", row.name, row.unit(), row.title);
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
    if !limit && (options.socket.as_os_str().is_empty() || options.uds.as_os_str().is_empty()) {
        return Err("--socket and --uds are needed".into());
    }
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
